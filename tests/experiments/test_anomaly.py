"""The figure of the anomaly detectors: its runs, its table, its picture."""

import numpy as np
import pandas as pd
import pytest
from skimage.io import imread, imsave

import score_anomaly
import train_anomaly
from common.errors import BadInput, WorkFailed
from experiments import anomaly, anomaly_runs, run_experiments

PLACES = ("--photos", "p", "--camelyon16", "c", "--nih", "images", "lists", "--cifar10", "t", "--svhn", "s")


def plan(*flags):
    return list(anomaly.detector_trials(anomaly.parse_args(list(flags))))


def test_every_method_is_run_on_every_class_with_every_seed():
    runs = plan(*PLACES, "--runs", "2", "--ablation")
    assert len(runs) == len({run.name for run in runs}) == 2 * (1 + 1 + 2 + 10 + 10) * (5 + len(anomaly.ABLATIONS))
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert {run.normal for run in plan(*PLACES, "--datasets", "nih")} == {"AP", "PA"}
    assert {run.normal for run in plan(*PLACES, "--datasets", "svhn", "--classes", "3", "5")} == {"3", "5"}


@pytest.mark.parametrize("preset", anomaly.PRESETS)
def test_the_commands_have_flags_that_there_are(preset, tmp_path):
    places = (*PLACES, "--mnist", "m", "--camelyon", "pos", "neg")
    for name, data in anomaly_runs.DATASETS.items():
        one = ("--classes", data.classes[0]) if data.classes[0] else ()
        for run in plan(*places, "--datasets", name, *one, "--preset", preset, "--runs", "1", "--ablation"):
            train, score = run.commands()
            assert train_anomaly.parse_args(train[1:]).method == run.method
            assert score_anomaly.parse_args(score[1:]).logdir == run.logdir


def test_dpa_takes_its_settings_on_the_data_that_have_them():
    runs = plan(*PLACES, "--datasets", "camelyon16", "--methods", "dpa", "--ablation", "--runs", "1")
    found = {run.variant: train_anomaly.parse_args(run.commands()[0][1:]) for run in runs}
    assert {variant: args.setting for variant, args in found.items()} == {
        "": "camelyon16",
        "growing": "camelyon16_pg",
        "pixels": "camelyon16",
        "l1": "camelyon16_l1",
        "adversarial": "camelyon16_adversarial",
    }
    assert found["pixels"].loss == "l1" and found["growing"].progressive and found["l1"].l1_weight == 0.1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "where the data are is not said"),
        (("--photos", "p", "--datasets", "nih"), "give --nih DIR"),
        ((*PLACES, "--datasets", "cifar10", "--classes", "10"), "--classes 10: cifar10 has 0, 1"),
    ],
)
def test_what_is_not_there_is_named(flags, message):
    with pytest.raises(BadInput, match=message):
        plan(*flags)


def line(**changes):
    usual = {"setting": "small", "dataset": "photos", "class": "", "method": "dpa", "variant": "", "seed": 1}
    return usual | {"o2i": "all", "positives": 9, "auc": 0.9, "ap": 0.8, "seconds": 1.0, "device": "cpu"} | changes


def test_a_run_repeated_takes_its_lines_place_and_others_stay(tmp_path):
    path = tmp_path / "results" / "anomaly.csv"
    anomaly.update(path, [line(), line(o2i="(1-10] %", auc=0.6), line(method="deep_knn", seed=2)])
    anomaly.update(path, [line(auc=0.7)])
    table = anomaly.read(path)
    assert len(table) == 3
    assert table[(table.method == "dpa") & (table.o2i == "all")].auc.tolist() == [0.7]
    assert table["class"].tolist() == [""] * 3


def test_ranges_are_drawn_from_large_to_small():
    ranges = ["<= 0.01 %", "all", "(1-10] %", "(50-100] %", "(0.01-0.1] %"]
    assert sorted(ranges, key=anomaly.upper_edge, reverse=True) == ["all", *ranges[3:1:-1], ranges[4], ranges[0]]


def test_each_setting_has_a_picture(tmp_path):
    path = tmp_path / "results" / "anomaly.csv"
    lines = [line(seed=seed, auc=0.5 + seed / 10, variant=v) for seed in (1, 2) for v in ("", "l1")]
    anomaly.update(path, [*lines, line(dataset="mnist", o2i="(1-10] %"), line(setting="small 32 px")])
    paths = anomaly.draw(path, tmp_path / "figures")
    assert [path.name for path in paths] == ["anomaly_small.png", "anomaly_small_32_px.png"]
    assert imread(paths[0]).shape[1] > imread(paths[1]).shape[1]


@pytest.mark.slow
def test_runs_are_trained_scored_and_drawn_and_given_again_nothing_is_done(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for kind, split, n in (("normal", "train", 8), ("normal", "test", 6), ("abnormal", "test", 6)):
        folder = tmp_path / "photos" / split / kind
        folder.mkdir(parents=True)
        for i in range(n):
            picture = rng.integers(0, 80 if kind == "normal" else 255, (20, 20, 3)).astype(np.uint8)
            imsave(folder / f"{i}.png", picture, check_contrast=False)
    flags = ["anomaly", "--photos", str(tmp_path / "photos"), "--methods", "deep_knn", "--preset", "small"]
    flags += ["--side", "16", "--embedder", "vgg16", "--embedder_weights", "random", "--runs", "1"]
    flags += ["--root", str(tmp_path / "runs"), "--out", str(tmp_path)]
    run_experiments.main(flags)
    assert "1 runs, 1 to do" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "results" / "anomaly.csv")
    assert table[["method", "seed", "positives"]].values.tolist() == [["deep_knn", 1, 6]]
    assert table.auc[0] > 0.9
    assert (tmp_path / "figures" / "anomaly_small_16_px_vgg16_random.png").exists()
    before = (tmp_path / "results" / "anomaly.csv").read_bytes()
    run_experiments.main(flags)
    assert "1 runs, 0 to do" in capsys.readouterr().out
    assert (tmp_path / "results" / "anomaly.csv").read_bytes() == before
    anomaly_runs.fingerprints.cache_clear()  # as in another process
    imsave(tmp_path / "photos/train/normal/0.png", np.zeros((20, 20, 3), np.uint8), check_contrast=False)
    with pytest.raises(WorkFailed, match=r"exit code 2: .*deep_knn.*data"):
        run_experiments.main(flags)
    assert "1 runs, 1 to do" in capsys.readouterr().out
    assert (tmp_path / "results" / "anomaly.csv").read_bytes() == before
