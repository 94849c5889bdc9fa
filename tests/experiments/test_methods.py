"""The figure of all methods: its runs, its table, its picture, at the size of seconds and in this process."""

import dataclasses
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from skimage.io import imread

import predict_saliency
import score_anomaly
import train_anomaly
import train_camelyon
import train_mil
import train_mnist
from common import scores
from common.errors import BadInput, WorkFailed
from experiments import executors, method_runs, methods, run_experiments, runs, size_panels
from experiments.stats import update_table
from mil import finetune

ROOT = Path(__file__).parents[2]
COMMANDS = {
    f"{module.__name__.removeprefix('mil.')}.py": module
    for module in (predict_saliency, score_anomaly, train_anomaly, train_camelyon, train_mil, train_mnist, finetune)
}


def plan(*flags):
    return method_runs.trials(methods.parse_args(list(flags)))


def test_the_small_preset_has_the_runs_that_the_figure_promises():
    planned = plan("--preset", "small")
    assert len(planned) == len({run.name for run in planned}) == 3 * (5 * 5 + 2 * (3 + 1))
    assert [run.seed for run in planned] == sorted(run.seed for run in planned)
    places = {}
    for run in planned:
        places.setdefault((run.method, run.variant), set()).add((run.data.table_name, run.data.o2i))
    everywhere = {("nmnist", "19.1"), ("nmnist", "8.51"), ("nmnist", "4.79"), ("made", "1-10"), ("made", "0.1-1")}
    for method in ("dsmil", "dpa", "deep_if", "deep_knn"):
        assert places[method, ""] == everywhere
    assert places["classifier", "max"] == everywhere
    for method in [("hnm", ""), *(("classifier", pooling) for pooling in ("mean", "logsumexp", "attention"))]:
        assert places[method] == {("nmnist", "19.1"), ("made", "1-10")}
    assert len(size_panels.styles(methods.LABELS)) == len(methods.LABELS) == len(set(methods.LABELS))


def test_the_small_preset_takes_eight_hours_of_two_cores_at_most():
    assert 0 < sum(map(method_runs.estimate, plan("--preset", "small"))) < 2 * 8 * 3600


@pytest.mark.parametrize("preset", method_runs.PRESETS)
def test_the_commands_have_flags_that_there_are(preset):
    for run in plan("--preset", preset, "--seeds", "1"):
        for script, *flags in run.commands():
            COMMANDS[Path(script).name].parse_args(flags)


def test_a_run_with_other_flags_has_another_folder(monkeypatch):
    before = plan("--methods", "dpa")[0]
    changed = dataclasses.replace(method_runs.SMALL, detectors={"dpa": "--iters 7"})
    monkeypatch.setitem(method_runs.PRESETS, "small", changed)
    assert plan("--methods", "dpa")[0].logdir.name != before.logdir.name
    assert plan("--methods", "dpa", "--root", "elsewhere")[0].logdir.name == plan("--methods", "dpa")[0].logdir.name


def test_the_share_of_cells_on_the_object_is_that_of_the_methods_own_cells():
    mask = np.zeros((64, 64), bool)
    mask[0:8, 0:8] = True
    for method, cell, share in (("classifier", 1, 1 / 64), ("deep_knn", 32, 1 / 4), ("dsmil", 32, 1 / 9)):
        run = plan("--methods", method)[0]
        run.data.__dict__["masks"] = {"image": mask}
        assert methods.cells_on_object(run, "image", cell) == pytest.approx(share)
        assert methods.cells_on_object(run, "negative", cell) == 0


def line(**changes):
    usual = {"setting": "small", "data": "nmnist", "size": 64, "o2i": "19.1", "method": "dpa", "variant": "", "seed": 1}
    usual |= {"o2i_percent": 19.14, "positives": 9, "auc": 0.6, "ap": 0.5, "near_duplicates": 0.01, "chance_ap": 0.1}
    return usual | {"localization_ap": 0.2, "cell": 1, "seconds": 2.0, "device": "cpu", "weights": "none"} | changes


def write(path, *lines):
    update_table(path, lines, methods.KEY, methods.COLUMNS, methods.read)


def test_each_setting_has_a_picture_and_data_without_objects_have_one_too(tmp_path):
    path = tmp_path / "results" / "methods.csv"
    write(path, line(), line(seed=2, auc=0.7), line(method="deep_knn", localization_ap=None, chance_ap=None))
    write(path, line(data="made", o2i="1-10"), line(setting="tiny, digits"))
    paths = methods.draw(path, tmp_path / "figures")
    assert [path.name for path in paths] == ["methods.png", "methods_tiny_digits.png"]
    assert imread(paths[0]).shape[1] > imread(paths[1]).shape[1]


def test_a_method_finds_at_the_sizes_at_which_seeds_and_images_agree_on_more_than_chance(tmp_path):
    path = tmp_path / "results" / "methods.csv"
    sizes = {"19.1": (0.9, 0.91), "8.51": (0.6, 0.62), "4.79": (0.45, 0.65)}
    for o2i, scores_of_seeds in sizes.items():
        for seed, auc in enumerate(scores_of_seeds, 1):
            size = {"o2i": o2i, "o2i_percent": float(o2i), "positives": 1000}
            write(path, line(**size, seed=seed, auc=auc))
            write(path, line(**size, seed=seed, auc=1 - auc, method="deep_knn"))
            few = size | {"positives": 6}  # images that chance scores as well
            write(path, line(**few, seed=seed, auc=min(auc, 0.65), method="deep_if"))
    write(path, line(method="hnm"))
    found, few, nothing, one = (
        next(text for text in methods.verdicts(path) if f", {name}:" in text)
        for name in ("dpa", "deep_if", "deep_knn", "hnm")
    )
    assert "nMNIST, hnm: undecided, one seed (AUC 19 %: 0.600)" in one
    assert "nMNIST, dpa: above chance at O2I 8.5, 19 % (AUC 4.8 %: 0.550, 8.5 %: 0.610, 19 %: 0.905)" in found
    assert "nMNIST, deep_knn: at chance" in nothing and "nMNIST, deep_if: at chance" in few


def test_a_damaged_table_is_named(tmp_path):
    path = tmp_path / "methods.csv"
    path.write_text("setting\nsmall\n")
    with pytest.raises(BadInput, match=r"methods\.csv: its columns lack"):
        methods.draw(path, tmp_path / "figures")


def test_seeds_agree_by_the_standard_error_of_their_mean(tmp_path):
    """0.56 and 0.64 lie two of their standard errors above 0.5, not two of their deviations."""
    path = tmp_path / "results" / "methods.csv"
    write(path, *(line(seed=seed, auc=auc, positives=1000) for seed, auc in ((1, 0.56), (2, 0.64))))
    assert "above chance at O2I 19 %" in methods.verdicts(path)[0]


class Here:
    """Runs the project's scripts in this process; `ended` names a script that is ended from outside."""

    def __init__(self, ended=None):
        self.calls, self.ended = [], ended

    def call(self, words, **options):
        self.calls.append(words[0])
        if words[0] == self.ended:
            return 143
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", list(map(str, words)))
            try:
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
            except SystemExit as exit_info:
                return exit_info.code or 0
        return 0


@pytest.fixture
def figure(tmp_path, monkeypatch):
    """Returns what runs the figure with some methods on scikit-learn's digits: the scripts that it called."""
    tiny = dataclasses.replace(
        method_runs.TINY, k=(6, 20), bags=dict.fromkeys(method_runs.TINY.bags, "--num_examples 16")
    )
    monkeypatch.setitem(method_runs.PRESETS, "tiny", tiny)
    monkeypatch.setattr(method_runs, "POOLINGS", ("max",))
    words = ["methods", "--preset", "tiny", "--mnist", "digits", "--methods", "classifier", "dsmil", "deep_knn"]
    words += ["--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]

    def run(*more, ended=None):
        here = Here(ended)
        monkeypatch.setattr(methods, "Children", lambda: here)
        serial = lambda todo, jobs: ((each, runs.ending(each, runs.execute(each, here, {}))) for each in todo)  # noqa: E731
        monkeypatch.setattr(executors, "run_local", serial)
        run_experiments.main([*words, *more])
        return here.calls

    return run


@pytest.mark.slow
def test_an_interrupted_figure_continues_and_given_again_does_nothing(figure, tmp_path, capsys):
    assert figure("--dry_run") == [] and "6 runs, 6 to do" in capsys.readouterr().out
    with pytest.raises(WorkFailed, match=r"2 runs failed: .*deep_knn"):
        figure(ended="score_anomaly.py")
    path = tmp_path / "out" / "results" / "methods.csv"
    partial = pd.read_csv(path)
    assert sorted(partial["method"]) == ["classifier"] * 2 + ["dsmil"] * 2

    capsys.readouterr()
    calls = figure()
    assert "6 runs, 2 to do" in capsys.readouterr().out
    assert [call for call in calls if call.startswith(("train", "predict"))] == ["train_anomaly.py"] * 2
    table = pd.read_csv(path)
    assert len(table) == 6 and list(table) == list(methods.COLUMNS)
    assert set(table["weights"].str.split().str[0]) == {"none", "squeezenet", "vgg16"}
    assert table["auc"].between(0, 1).all() and (table["seconds"] > 0).all()
    picture = tmp_path / "out" / "figures" / "methods_tiny_digits.png"
    assert imread(picture).std() > 0

    before = path.read_bytes(), picture.read_bytes()
    assert figure() == []
    assert (path.read_bytes(), picture.read_bytes()) == before

    run = next(run for run in plan_like(tmp_path) if run.method == "deep_knn" and not run.data.ratio)
    images = pd.read_csv(run.logdir / "images.csv")
    audited = pd.read_csv(run.data.audit / "audit.csv")
    assert set(images["img_path"]) == set(audited.loc[audited["split"] == "test", "query"])
    own = table[(table["method"] == "deep_knn") & (table["data"] == "nmnist")].iloc[0]
    assert own["near_duplicates"] == pytest.approx(images["near_duplicate"].mean(), abs=1e-5)
    assert own["auc"] == pytest.approx(scores.summarise(images.to_dict("records"))["auc"], abs=1e-5)
    assert not list((tmp_path / "root" / "runs").rglob("features/train.npy"))


def plan_like(tmp_path):
    """The runs of the fixture's figure."""
    return plan("--preset", "tiny", "--mnist", "digits", "--root", str(tmp_path / "root"))
