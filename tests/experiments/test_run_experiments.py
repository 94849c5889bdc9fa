import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure as Canvas

import train_mnist
from common import cli, lock
from common.errors import BadInput, WorkFailed
from data.cluttered_mnist import generate_data
from experiments import (
    claims,
    demo,
    drawing,
    estimate,
    figures,
    plot_results,
    results,
    run_experiments,
    runs,
    sources,
    tables,
)
from experiments.figures import FIGURES, PAPER, SMALL, Point
from experiments.runs import Places, Trial

ROOT = Path(__file__).parents[2]
POINTS = {  # of Pawlowski 2019, nMNIST (and noise) + nCAMELYON
    **{"figure4": 5 + 11, "figure5a": 6 * 5, "figure5b": 4 * 5 - 1, "figure5c": 4 * 11, "figure6": 6 * 5 * 12},
    **{"figure7": 3 * (5 + 11), "figure8": 4 * (5 + 11), "figure9": 2 * 5 * 4, "figure12": 7 * 3 * 4},
    **{
        "figure13": 2 * 3 * 4,
        "figure14": 6 * 5 * 48,
        "figure15": 6 * 5 * 48,
        "figure17": 5 * 4 + 5 * 2,
        "precision": 4,
    },
}


def values(name, axis):
    return sorted({getattr(point, axis) for point in FIGURES[name].points})


def test_every_figure_has_the_papers_points():
    assert {name: len(figure.points) for name, figure in FIGURES.items()} == POINTS
    assert all(len(set(figure.points)) == len(figure.points) for figure in FIGURES.values())


def test_the_axes_are_the_papers():
    networks = {(p.receptive_field, p.width, p.pooling) for p in FIGURES["figure14"].points}
    assert len(networks) == 48
    assert values("figure5a", "num_examples") == [1400, 2819, 5638, 7500, 11276, 22552]
    assert values("figure12", "balance") == [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
    assert values("figure13", "num_examples") == [2819, 11276]
    nmnist = [point for point in FIGURES["figure4"].points if point.data == "nmnist"]
    assert [(p.canvas, p.o2i) for p in nmnist] == [
        *((64, "19.1"), (128, "4.79"), (256, "1.2"), (512, "0.299"), (1024, "0.0748"))
    ]
    assert {point.receptive_field for point in FIGURES["figure4"].points if point.data == "ncamelyon"} == {9}
    assert (PAPER.seeds, PAPER.epochs, PAPER.opt, PAPER.lr, PAPER.batch_size) == (6, 200, "rmsprop", 5e-5, 32)


def plan(*flags):
    args = run_experiments.parse_args([*flags])
    return run_experiments.trials_of(args.figures[0], args)


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "figure5c"])
def test_the_small_preset_takes_90_minutes_at_most(name, tmp_path):
    assert 0 < sum(map(estimate.hours, plan(name, "--preset", "small", "--root", str(tmp_path)))) <= 1.5


def test_figures_replace_parts_of_a_presets_setting():
    small, paper = plan("precision", "--preset", "small")[0].setting, plan("precision")[0].setting
    assert (small.norm, small.epochs, small.seeds, small.label) == ("in_aff", 4, 3, "small")
    assert (paper.norm, paper.epochs, paper.seeds, paper.label) == ("in_aff", 200, 3, "paper")
    assert plan("figure4", "--preset", "small")[0].setting == SMALL
    assert plan("precision", "--preset", "small", "--epochs", "8")[0].setting.label == "small, --epochs 8"


def test_flop_are_those_of_the_network():
    assert estimate.flop_per_image(Point()) == pytest.approx(6 * 2.089e9, rel=0.02)
    assert estimate.parameters(Point()) == 23_093_442


def test_flags_that_choose_keep_the_label_and_flags_that_change_add_to_it(tmp_path):
    root = ["--root", str(tmp_path)]
    chosen = plan("figure4", "--canvas", "64", "128", "--seeds", "3", *root)
    assert len(chosen) == 2 * 3
    assert {run.setting.label for run in chosen} == {"paper"}
    assert [run.seed for run in chosen] == [1, 1, 2, 2, 3, 3]
    changed = plan("figure4", "--width", "-2", "--epochs", "30", *root)
    assert {run.setting.label for run in changed} == {"paper, --width -2, --epochs 30"}
    assert {run.setting.label for run in plan("figure5b", "--width", "-2", *root)} == {"paper"}


def test_the_commands_say_what_the_points_say(tmp_path):
    point = Point(canvas=128, num_examples=1400, balance=0.25, receptive_field=177, pooling="attention", width=-1)
    run = Trial(point, PAPER, 3, True, Places(tmp_path, batch_size=8))
    script, *flags = run.commands()[0]
    args = train_mnist.parse_args(flags)
    assert script == "train_mnist.py"
    assert (args.num_examples, args.data_balance, args.kernel3, args.width) == (1400, 0.25, (3, 4, 6, 3), -1)
    assert (args.pooling, args.seed, args.batch_size, args.delayed_step, args.epochs) == ("attention", 3, 8, 4, 200)
    assert run.epochs == 200 * 8
    assert run.commands()[1][0] == "predict_saliency.py"
    assert runs.generation(run)[3:7] == ["--format", "none", "--canvas", "128"]


def test_runs_are_told_apart_by_their_folders_and_shared_between_figures(tmp_path):
    names = [run.name for figure in FIGURES for run in plan(figure, "--root", str(tmp_path), "--seeds", "1")]
    assert len(set(names)) < len(names)
    assert len(set(names)) == len({run.point for figure in FIGURES for run in plan(figure, "--seeds", "1")})


STUB = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
logdir = pathlib.Path(flags["--logdir"])
with open("calls.txt", "a") as file:
    print(logdir.name, file=file)
(logdir / "config.json").write_text(json.dumps({{"device": "cpu (stub)", "data": "the data"}}))
stats = logdir / "stats.csv"
done = len(stats.read_text().splitlines()) - 1 if stats.exists() else 0
for epoch in range(done + 1, int(flags["-e"]) + 1):
    if epoch == 2 and flags["--seed"] in {interrupted}:
        print("terminated"); sys.exit(143)
    if flags["--seed"] in {failing}:
        print("no good"); sys.exit(1)
    row = epoch, 0.5 + epoch / 10, 0.8, 0.4 + epoch / 10, 0.9, (97 + epoch) / 100, 2.0
    with stats.open("a") as file:
        if epoch == 1:
            print("epoch,eval_acc,train_acc,test_acc,test_auc,train_running_acc,seconds", file=file)
        print(*row, sep=",", file=file)
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Replaces the project's commands by quick ones; returns what runs a sweep of three seeds on them."""
    project = tmp_path / "project"
    (project / "data/cluttered_mnist").mkdir(parents=True)
    (project / "data/cluttered_mnist/generate_data.py").write_text("")
    monkeypatch.setattr(runs, "ROOT", project)
    monkeypatch.setattr(sources, "fingerprint", lambda flags, seed: "the data")

    def sweep(*flags, failing=(), interrupted=()):
        (project / "train_mnist.py").write_text(STUB.format(failing=failing, interrupted=interrupted))
        (project / "calls.txt").write_text("")
        places = ["--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
        try:
            run_experiments.main(["figure4", "--canvas", "64", "--epochs", "3", "--seeds", "3", *places, *flags])
        finally:
            sweep.calls = sorted(line[-2:] for line in (project / "calls.txt").read_text().split())
        return results.load(tmp_path / "out", "figure4")

    return sweep


def test_a_sweep_ends_in_a_table_a_figure_and_verdicts(stub, tmp_path, capsys):
    table = stub()
    assert table["seed"].tolist() == [1, 2, 3]
    row = table.iloc[0]
    assert (row["best_epoch"], row["val_acc"], row["test_acc"], row["seconds"]) == (3, 0.8, 0.7, 6)
    assert (row["fits"], row["epochs_to_fit"]) == (True, 3)  # 0.99 itself does not exceed 0.99
    assert (tmp_path / "out/figures/figure4_paper_epochs_3.png").read_bytes().startswith(b"\x89PNG")
    assert "not yet run: Accuracy falls as objects get smaller (no runs at a second" in capsys.readouterr().out


def test_what_is_done_is_skipped(stub):
    stub()
    assert stub.calls == ["s1", "s2", "s3"]
    assert len(stub("--seeds", "4")) == 4
    assert stub.calls == ["s4"]


def test_a_failing_run_is_named_and_the_others_end(stub, tmp_path):
    with pytest.raises(WorkFailed, match=r"1 runs failed: .*_s2 \(exit code 1: no good\)"):
        stub(failing=("2",))
    assert results.load(tmp_path / "out", "figure4")["seed"].tolist() == [1, 3]


def test_an_interrupted_run_continues(stub, tmp_path):
    with pytest.raises(WorkFailed, match=r"_s3 \(exit code 143: terminated\)"):
        stub(interrupted=("3",))
    assert len(stub()) == 3
    assert stub.calls == ["s3"]
    stats = pd.read_csv(next((tmp_path / "root").glob("runs/*/*_s3/stats.csv")))
    assert stats["epoch"].tolist() == [1, 2, 3]


def test_fewer_epochs_are_read_from_a_longer_run(stub):
    stub()
    table = stub("--epochs", "2")
    assert stub.calls == []
    assert table.set_index("epochs")["test_acc"].loc[2].tolist() == [0.6] * 3


def test_a_run_in_use_is_left_alone(stub, tmp_path):
    run = plan("figure4", "--canvas", "64", "--epochs", "3", "--root", str(tmp_path / "root"))[0]
    in_use = pytest.raises(WorkFailed, match=rf"_s1 \(--root {run.logdir}: in use by ")
    with lock.held(run.logdir, "--root", runs.LOCK), in_use:
        stub()
    assert stub.calls == ["s2", "s3"]


def test_a_dry_run_prints_the_commands_and_starts_nothing(stub, capsys):
    assert stub("--dry_run") is None
    assert stub.calls == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("figure4 (paper, --epochs 3): 3 runs, 3 to do, 101,484 training images")
    assert sum(line.startswith("python train_mnist.py") for line in lines) == 3
    assert lines[1].startswith("python data/cluttered_mnist/generate_data.py --out")


def test_sigterm_ends_the_runs_and_the_same_command_continues(tmp_path):
    """A runner of its own, since a signal ends it."""
    project = tmp_path / "project"
    (project / "data/cluttered_mnist").mkdir(parents=True)
    (project / "data/cluttered_mnist/generate_data.py").write_text("")
    (project / "train_mnist.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "open('started', 'w').close()\n"
        "time.sleep(60)\n"
    )
    script = (
        f"import pathlib, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from common import cli; from experiments import run_experiments, runs\n"
        f"runs.ROOT = pathlib.Path({str(project)!r})\n"
        "cli.run(run_experiments.main)\n"
    )
    flags = ["figure4", "--canvas", "64", "--seeds", "2", "--jobs", "1", "--root", tmp_path / "root", "--out", tmp_path]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runner = subprocess.Popen([sys.executable, "-c", script, *flags], **pipes)
    while not (project / "started").exists():
        assert runner.poll() is None
        time.sleep(0.02)
    runner.terminate()
    out, said = runner.communicate(timeout=30)
    assert (runner.returncode, said) == (143, "-c: terminated; the same command continues\n")
    assert out.count("started") == 1
    assert next((tmp_path / "root").glob("runs/*/*_s1/exit_code.txt")).read_text() == "143\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["figure99"], "invalid choice: 'figure99'"),
        (["figure4", "-b", "5"], "--batch_size 5: expected a divisor"),
        (["figure4", "--pooling", "median"], "argument --pooling: invalid choice"),
        (["figure4", "--receptive_field", "10"], "argument --receptive_field: "),
        (["figure4", "--width", "7"], "argument --width: "),
        (["figure4", "--precision", "fp8"], "argument --precision: "),
        (["figure4", "--canvas", "20"], "--canvas 20: expected more than the 28 px"),
        (["figure5c"], "figure5c: no runs at --preset paper; nCAMELYON needs --crops"),
        (["figure4", "--crops", "/nowhere"], "--crops /nowhere: "),
        (
            ["figure4", "--preset", "small", "--mnist", "digits"],
            "--mnist digits holds too few digits for --preset small",
        ),
        (["figure12", "--mnist", "digits", "--num_examples", "263"], "--num_examples 262 at most"),
        (["figure4", "--executor", "slurm", "--root", "a%j"], "a%j: SLURM takes the % in it for a pattern"),
    ],
)
def test_wrong_flags_end_in_one_line(flags, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_experiments.py", "--root", str(tmp_path), "--dry_run", *flags])
    with pytest.raises(SystemExit) as exit_info:
        cli.run(run_experiments.main)
    lines = capsys.readouterr().err.strip().splitlines()
    assert (exit_info.value.code, len(lines)) == (2, 1)
    assert said in lines[0]


@pytest.fixture(scope="module")
def made_from_digits(tmp_path_factory):
    """A run of a sweep with scikit-learn's digits, as its commands leave it."""
    found = sources.digits_of("digits")
    places = Places(tmp_path_factory.mktemp("root"), "digits", found)
    tiny = replace(SMALL, epochs=1, batch_size=130, scale=0.3)
    run = Trial(Point(canvas=40, width=-4, receptive_field=9), tiny, 1, False, places)
    generate_data.main(runs.generation(run)[1:])
    train_mnist.main(run.commands()[0][1:])
    return run


def test_a_run_is_done_only_if_it_saw_the_sweeps_data(made_from_digits):
    run = made_from_digits
    assert runs.is_done(run)
    other = replace(run, places=replace(run.places, digits=sources.MNIST))
    assert not runs.is_done(other)
    shutil.copytree(run.logdir, other.logdir)  # as an earlier version called it
    words, data = runs.generation(other), Path(runs.generation(other)[2])
    generate_data.main([*words[1:], "--digit", "5"])
    assert not runs.is_done(other)
    shutil.rmtree(data)
    sources.fingerprint.cache_clear()
    assert not runs.is_done(other)  # who knows
    shutil.copytree(runs.generation(run)[2], data)
    assert f"{data} holds other digits than --mnist" in refusal(run_experiments.check_data, {run, other})
    run_experiments.check_data({run})


def test_digits_other_than_mnist_are_in_the_names_of_folders_and_in_the_label(made_from_digits):
    assert made_from_digits.name.startswith("nmnist_40_digits_")
    flags = ["figure4", "--preset", "small", "--num_examples", "260", "--seeds", "1"]
    made = plan(*flags, "--mnist", "digits")
    assert {run.setting.label for run in made} == {"small, --num_examples 260, --mnist digits"}


def test_mnist_itself_keeps_the_names_that_runs_have(mnist_dir, tmp_path):
    assert sources.digits_of(str(mnist_dir)) == sources.MNIST
    assert sources.digits_of(str(tmp_path / "to_download")) == sources.MNIST


def test_too_few_digits_are_told_before_anything_runs(stub, monkeypatch):
    monkeypatch.setattr(sources, "digits_of", lambda source: sources.DigitSource("few", 5637, ""))
    with pytest.raises(
        BadInput, match=r"5,637 of the class, each 2 times\): use real MNIST, or --num_examples 22548 at"
    ):
        stub("--num_examples", "22552")
    assert stub.calls == []
    monkeypatch.setattr(sources, "digits_of", lambda source: sources.DigitSource("enough", 5638, ""))
    assert len(stub("--num_examples", "22552")) == 3


def test_crops_of_other_positions_are_other_runs(tmp_path):
    names = []
    for folder, rows in (("a", "slide,y\ns,1\n"), ("b", "slide,y\ns,2\n"), ("copy_of_a", "slide,y\ns,1\n")):
        crop_folders(tmp_path / folder, 6)
        (tmp_path / folder / "level3_size_128_ratio_0.01_0.1" / "crops.csv").write_text(rows)
        planned = plan("figure4", "--crops", str(tmp_path / folder), "--seeds", "1", "--canvas", "64")
        names.append([run.name for run in planned if run.point.data == "made"])
    assert names[0] == names[2]
    assert set(names[0]).isdisjoint(names[1])


def test_a_link_in_the_place_of_a_run_or_its_log_is_not_followed(stub, tmp_path):
    run, other = (run for run in plan("figure4", "--canvas", "64", "--seeds", "2", "--root", str(tmp_path / "root")))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    run.logdir.parent.mkdir(parents=True)
    run.logdir.symlink_to(tmp_path / "mine")
    other.logdir.mkdir()
    (other.logdir / "output.log").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(WorkFailed, match=r"2 runs failed: .*is a link where a folder.*is a link where a file"):
        stub("--jobs", "1")
    assert not list((tmp_path / "mine").iterdir())
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert stub.calls == ["s3"]


def test_only_the_maps_of_predict_saliency_are_removed(tmp_path):
    run = Trial(Point(canvas=40), SMALL, 1, True, Places(tmp_path))
    maps = run.logdir / "saliency"
    maps.mkdir(parents=True)
    for name in ("sal_0.npy", "pred_12.npy", "mine.npy", "sal_0_mine.npy", "pred.csv"):
        (maps / name).touch()

    class Nothing:
        def call(self, words, **options):
            return 0

    assert runs.execute(replace(run, localise=False), Nothing(), {}) == 0
    assert len(list(maps.iterdir())) == 5
    assert runs.execute(run, Nothing(), {}) == 0
    assert sorted(path.name for path in maps.iterdir()) == ["mine.npy", "pred.csv", "sal_0_mine.npy"]


BROKEN = {
    "empty": lambda path: path.touch(),
    "cut": lambda path: path.write_text("epoch,eval_acc,train_running_acc,seconds,train_acc,test_acc,test_auc\n1,0.5"),
    "columns lack": lambda path: path.write_text("epoch,eval_acc\n1,0.5\n"),
    "no rows": lambda path: path.write_text("epoch,eval_acc\n"),
    "binary": lambda path: path.write_bytes(b"\x89PNG\xff"),
    "text": lambda path: path.write_text("epoch,eval_acc,images_per_s,test_acc,test_auc\n1,good,2,3,4\n"),
    "a folder": lambda path: path.mkdir(),
    "a named pipe": os.mkfifo,
}


def refusal(action, *args):
    """What the action complains, which is one line."""
    with pytest.raises(BadInput) as info:
        action(*args)
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize("kind", BROKEN)
def test_tables_and_records_that_are_none_are_named(kind, tmp_path):
    run = Trial(Point(canvas=40), replace(SMALL, epochs=1), 1, True, Places(tmp_path))
    results_table, crops = tmp_path / "results" / "figure4.csv", tmp_path / "crops.csv"
    for path in (run.logdir / "stats.csv", run.logdir / "saliency" / "localization.json", results_table, crops):
        path.parent.mkdir(parents=True, exist_ok=True)
        BROKEN[kind](path)
    BROKEN[kind](run.logdir / "exit_code.txt")
    assert "stats.csv" in refusal(runs.is_done, run)
    assert "stats.csv" in refusal(demo.summarise, run.logdir, 1.0)
    assert "localization.json" in refusal(runs.localization, run)
    assert "exit_code.txt" in refusal(runs.outcome, run)
    assert "figure4.csv" in refusal(plot_results.main, ["figure4", "--out", str(tmp_path)])
    assert "crops.csv" in refusal(run_experiments.slides_of_negatives, tmp_path)


@pytest.mark.parametrize(("column", "value"), [("test_acc", None), ("o2i", "small"), ("fits", "maybe"), ("seed", None)])
def test_a_table_of_results_with_other_content_is_refused(column, value, tmp_path):
    path = results.path_of(tmp_path, "figure4")
    table = table_of("figure4", lambda p: {})
    results.update(path, table.to_dict("records"))
    table = pd.read_csv(path, dtype={"ratio": str, "o2i": str}).astype({column: object})
    table.loc[3, column] = value
    table.to_csv(path, index=False)
    assert column in refusal(results.load, tmp_path, "figure4")
    table.drop(columns=column).to_csv(path, index=False)
    assert f"lack {column}" in refusal(results.load, tmp_path, "figure4")


def test_hours_below_one_are_told_in_minutes():
    assert [run_experiments.duration(hours) for hours in (0, 0.001, 0.499, 1, 3734.2)] == [
        *("0 min", "1 min", "30 min", "1.0 h", "3,734.2 h")
    ]


def test_a_verdict_without_numbers_has_no_brackets(stub, capsys):
    stub()
    lines = [line for line in capsys.readouterr().out.splitlines() if "Crops: " in line]
    assert len(lines) == 1
    assert lines[0].endswith("above an O2I of 1 %, poor below")


def test_plot_results_names_the_figures_that_it_knows(tmp_path, capsys):
    with pytest.raises(SystemExit):
        plot_results.main(["--help"])
    said = capsys.readouterr().out
    assert "[]" not in said
    assert all(name in said for name in FIGURES)
    with pytest.raises(SystemExit):
        plot_results.main(["figure99"])
    assert "invalid choice: 'figure99' (choose from figure4, " in capsys.readouterr().err
    plot_results.main(["--out", str(tmp_path)])  # nothing to draw


@pytest.mark.parametrize("data", ["mnist", "camelyon"])
def test_the_demo_goes_into_any_folder(data, tmp_path, monkeypatch, capsys):
    words = []
    monkeypatch.setattr(demo, "mnist_source", lambda: ("digits", 1))
    monkeypatch.setattr(demo, "summarise", lambda *args: None)
    finished = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: words.extend(command) or finished)
    monkeypatch.chdir(tmp_path)
    demo.main([data, "--out", "50 % done"])
    folders = {word for word in words if "done" in word}
    assert len(folders) > 1
    assert all(Path(folder).is_relative_to(tmp_path / "50 % done") for folder in folders)
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: ")


def crop_folders(root, slides):
    """Folders as the extractor leaves them, negatives from so many training slides."""
    (root / "level3_size_128_ratio_0.01_0.1").mkdir(parents=True)
    (root / "neg_128").mkdir()
    rows = [{"slide": f"patient_{i:03}_node_0", "split": "train"} for i in range(slides)]
    pd.DataFrame(rows).to_csv(root / "neg_128" / "crops.csv", index=False)


@pytest.mark.parametrize(("slides", "data"), [(197, "ncamelyon"), (6, "made")])
def test_crops_of_made_slides_are_told_from_camelyon17(tmp_path, slides, data):
    crop_folders(tmp_path, slides)
    planned = plan("figure7", "--crops", str(tmp_path), "--seeds", "1", "--canvas", "64")
    found = [run for run in planned if run.point.data == data]
    assert [run.point.receptive_field for run in found] == [9, 33, 177]
    assert found[0].commands()[0][:5] == [
        *("train_camelyon.py", "--pos_path", str(tmp_path / "level3_size_128_ratio_0.01_0.1")),
        *("--neg_path", str(tmp_path / "neg_128")),
    ]


def table_of(name, score, preset=PAPER, seeds=3, spread=0.001):
    """Synthetic results of a figure: score(point) -> columns; seeds differ by the spread in every score."""
    points = figures.preset_points(name, preset)
    rows = []
    for point, seed in product(points, range(1, seeds + 1)):
        run = Trial(point, replace(preset, seeds=seeds), seed, False, Places(Path("none")))
        usual = {"fits": True, "train_acc": 1.0, "val_acc": 0.9, "test_acc": 0.8, "epochs_to_fit": 50}
        usual |= {"mean_running_acc": 0.9, "localization_ap": 0.5, "best_epoch": 9, "seconds": 60.0, "device": "cpu"}
        found = usual | score(point)
        noisy = {k: v + spread * (seed - 2) for k, v in found.items() if k.endswith(("_acc", "_ap"))}
        rows.append(results.configuration(run) | found | noisy)
    return pd.DataFrame(rows)


def small(point):
    """How small the object is: 0 at the largest O2I, 4 at the smallest."""
    if point.ratio:
        return figures.RATIOS.index(point.ratio)
    return int(np.log2(point.canvas / 64))


def size_needed(point, grows):
    return {"val_acc": 0.9 if point.num_examples >= 1400 * 2 ** (small(point) if grows else 4 - small(point)) else 0.6}


def is_max(point):
    return point.pooling == "max"


SCORES = {  # claim -> (scores that confirm it, scores that contradict it)
    "Accuracy falls as": (lambda p: {"test_acc": 0.9 - 0.1 * small(p)}, lambda p: {"test_acc": 0.5 + 0.1 * small(p)}),
    "Accuracy is reasonable above": (
        lambda p: {"test_acc": 0.9 if p.canvas <= 256 else 0.5},
        lambda p: {"test_acc": 0.6},
    ),
    "Crops: accuracy is reasonable": (lambda p: {"test_acc": 0.9 - 0.09 * small(p)}, lambda p: {"test_acc": 0.8}),
    "More training images generalise": (
        lambda p: {"test_acc": 0.5 + p.num_examples / 1e5},
        lambda p: {"test_acc": 0.9 - p.num_examples / 1e5},
    ),
    "More images help most": (
        lambda p: {"test_acc": 0.5 + p.num_examples / 1e5 * (1 + small(p))},
        lambda p: {"test_acc": 0.7 + p.num_examples / 1e6 * (5 - small(p))},
    ),
    "Higher capacity": (lambda p: {"test_acc": 0.7 + 0.05 * p.width}, lambda p: {"test_acc": 0.7 - 0.05 * p.width}),
    "Capacity helps most": (
        lambda p: {"test_acc": 0.7 + 0.01 * p.width * (1 + small(p))},
        lambda p: {"test_acc": 0.7 + 0.01 * p.width * (5 - small(p))},
    ),
    "Crops: capacity": (lambda p: {"test_acc": 0.7 + 0.001 * p.width}, lambda p: {"test_acc": 0.7 + 0.05 * p.width}),
    "The training set needed grows rapidly as objects get smaller": (
        lambda p: size_needed(p, True),
        lambda p: size_needed(p, False),
    ),
    "Receptive fields larger": (
        lambda p: {"test_acc": 0.9 if p.receptive_field > 28 else 0.7},
        lambda p: {"test_acc": 0.7 if p.receptive_field == 177 else 0.9},
    ),
    "Crops: the smallest field": (
        lambda p: {"test_acc": 0.9 - p.receptive_field / 1000},
        lambda p: {"test_acc": 0.7 + p.receptive_field / 1000},
    ),
    "At large O2I all": (
        lambda p: {"test_acc": 0.8 + 0.04 * is_max(p) * (p.canvas < 200)},
        lambda p: {"test_acc": 0.8 + 0.1 * is_max(p)},
    ),
    "At small O2I max pooling is": (
        lambda p: {"test_acc": 0.5 if p.canvas == 1024 else 0.8 + 0.1 * is_max(p)},
        lambda p: {"test_acc": 0.9 - 0.1 * is_max(p) * (p.canvas == 1024)},
    ),
    "Crops: at the smallest O2I": (
        lambda p: {"test_acc": 0.8 - 0.1 * (p.pooling in ("max", "logsumexp"))},
        lambda p: {"test_acc": 0.8 + 0.1 * is_max(p)},
    ),
    "Fitting takes longer": (
        lambda p: {"epochs_to_fit": 10 + 9 * small(p)},
        lambda p: {"epochs_to_fit": 90 - 9 * small(p)},
    ),
    "Max pooling fits most": (lambda p: {"fits": is_max(p) or p.canvas < 200}, lambda p: {"fits": not is_max(p)}),
    "Every network memorises": (lambda p: {}, lambda p: {"fits": p.canvas < 1024}),
    "Accuracy drops as training": (
        lambda p: {"test_acc": 0.9 - abs(p.balance - 0.5)},
        lambda p: {"test_acc": 0.5 + p.balance / 3},
    ),
    "Max and logsumexp": (
        lambda p: {"test_acc": 0.9 - 0.1 * (p.pooling in ("mean", "attention"))},
        lambda p: {"test_acc": 0.8 - 0.1 * is_max(p)},
    ),
    "Capacity helps less on": (
        lambda p: {"test_acc": 0.7 + 1e-6 * p.width * p.num_examples},
        lambda p: {"test_acc": 0.8 + 0.05 * p.width * (p.num_examples < 3000)},
    ),
    "Larger sets reach": (
        lambda p: {"val_acc": 0.5 + p.num_examples / 1e5},
        lambda p: {"val_acc": 0.8 - p.num_examples / 1e5},
    ),
    "Localisation deteriorates": (
        lambda p: {"localization_ap": 0.9 - 0.2 * small(p)},
        lambda p: {"localization_ap": 0.2 * small(p)},
    ),
    "At small O2I max localises": (
        lambda p: {"localization_ap": 0.5 + 0.1 * is_max(p)},
        lambda p: {"localization_ap": 0.5 - 0.1 * is_max(p)},
    ),
    "At large O2I logsumexp": (
        lambda p: {"localization_ap": 0.5 + 0.1 * (p.pooling == "logsumexp")},
        lambda p: {"localization_ap": 0.5 + 0.1 * is_max(p)},
    ),
    "Not in Pawlowski 2019": (lambda p: {}, lambda p: {"val_acc": 0.9 - 0.2 * (p.precision != "float32")}),
}


def scores_of(claim):
    return next(scores for start, scores in SCORES.items() if claim.text.startswith(start))


JUDGED = [claim for claim in claims.CLAIMS if claim.judge is not claims.seeds_agree]


@pytest.mark.parametrize("claim", JUDGED, ids=lambda claim: f"{claim.figure} {claim.text[:30]}")
def test_claims_are_confirmed_and_contradicted_by_what_says_so(claim):
    verdicts = [claims.judge(claim, table_of(claim.figure, score))[0] for score in scores_of(claim)]
    assert verdicts == ["confirmed", "contradicted"]
    assert claim.rule and "\n" not in claim.rule


def test_seeds_that_part_contradict_their_agreement():
    claim = next(claim for claim in claims.CLAIMS if claim.judge is claims.seeds_agree)
    table = table_of("figure9", lambda p: {"fits": p.canvas < 200})
    assert claims.judge(claim, table) == ("confirmed", "20 of 20 points")
    table.loc[(table["seed"] == 1) & (table["data"] == "nmnist"), "fits"] = False
    assert claims.judge(claim, table)[0] == "contradicted"


def test_claims_about_runs_that_do_not_fit_are_undecided_unless_at_the_papers_setting():
    claim = next(claim for claim in claims.CLAIMS if claim.figure == "figure7" and claim.data == "nmnist")
    score = lambda p: {"test_acc": 0.9, "fits": p.receptive_field > 9}  # noqa: E731
    assert claims.judge(claim, table_of("figure7", score))[0] == "confirmed"
    verdict, why = claims.judge(claim, table_of("figure7", score, SMALL))
    assert (verdict, why) == ("undecided", "runs fit the training data at too few points to compare")
    verdict, why = claims.judge(claim, table_of("figure7", lambda p: {"fits": False}, SMALL))
    assert verdict == "undecided"
    assert why.startswith("0 of 3 runs fit the training data at object-to-image ratio (%) 49 receptive field (px) 33")


def test_differences_within_two_standard_errors_are_undecided():
    claim = claims.CLAIMS[0]
    table = table_of("figure4", lambda p: {"test_acc": 0.8 - 0.001 * small(p)}, spread=0.05)
    assert claims.judge(claim, table)[0] == "undecided"


def test_made_slides_judge_no_claim():
    made = [claim for claim in claims.CLAIMS if claim.data == "ncamelyon"]
    for claim in made:
        table = table_of(claim.figure, scores_of(claim)[0])
        table.loc[table["data"] == "ncamelyon", "data"] = "made"
        assert claims.judge(claim, table) == ("not yet run", "")
    assert len(made) == 4


def panel(name, table, view=0):
    axis = Canvas().subplots()
    view = FIGURES[name].views[view]
    {"heat": drawing.draw_heat, "smallest": drawing.draw_smallest}.get(view.kind, drawing.draw_points)(
        axis, drawing.select(table, view), view
    )
    return axis


def test_points_are_means_over_runs_that_fit_between_their_seeds_and_hollow_where_none_does():
    table = table_of("figure7", lambda p: {"test_acc": 0.9 if p.receptive_field > 9 else 0.7}, SMALL, spread=0.1)
    table.loc[table["receptive_field"] == 177, "fits"] = False
    table.loc[(table["receptive_field"] == 9) & (table["seed"] == 3), "fits"] = False
    shown = drawing.means(table, FIGURES["figure7"].views[0]).set_index(["x", "hue"])
    assert shown.loc[("49", 33), "mean"] == pytest.approx(0.9)
    assert shown.loc[("49", 33), "sd"] == pytest.approx(0.1)
    assert shown.loc[("49", 9), ["mean", "fitted", "runs"]].tolist() == pytest.approx([0.65, 2, 3])
    assert shown.loc[("49", 177), ["mean", "hollow"]].tolist() == [pytest.approx(0.9), True]
    at_paper = drawing.means(table.assign(setting="paper"), FIGURES["figure7"].views[0]).set_index(["x", "hue"])
    assert at_paper.loc[("49", 177), "mean"] == 0.5
    axis = panel("figure7", table)
    lines = {
        round(float(line.get_segments()[0][0][1]), 6) for line in axis.collections if hasattr(line, "get_segments")
    }
    assert {0.65, 0.9} <= lines
    dots = [dots for dots in axis.collections if not hasattr(dots, "get_segments")]
    assert sorted(y for each in dots for _, y in each.get_offsets()) == pytest.approx(sorted(table["test_acc"]))
    hollow = sum((each.get_facecolor()[:, :3] == 1).all(axis=1).sum() for each in dots)
    assert hollow == (~table["fits"]).sum()
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["49"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("object-to-image ratio (%)", "test accuracy")


def test_counts_and_epochs_of_figure_9():
    table = table_of("figure9", lambda p: {"fits": p.canvas < 200, "epochs_to_fit": 10 if p.canvas < 200 else None})
    epochs, count = (
        drawing.means(drawing.select(table, v), v).set_index(["x", "hue"]) for v in FIGURES["figure9"].views[:2]
    )
    assert epochs.loc[("19.1", "max"), ["mean", "hollow"]].tolist() == [10, False]
    assert epochs.loc[("1.2", "max"), ["mean", "hollow"]].tolist() == [200, True]  # as many as were tried
    assert (count.loc[("19.1", "max"), "mean"], count.loc[("1.2", "max"), "mean"]) == (3, 0)


def test_heat_map_holds_means_of_the_runs_above_70_percent():
    table = table_of(
        "figure14", lambda p: {"val_acc": 0.6 + p.num_examples / 1e5, "train_acc": 0.6 if p.width < 1 else 1.0}
    )
    table.loc[table["width"] == -2, "val_acc"] = 0.1  # does not count
    axis = panel("figure14", table)
    cells = np.array([float(text.get_text()) for text in axis.texts]).reshape(6, 5)
    np.testing.assert_allclose(cells[:, 0], [0.83, 0.71, 0.68, 0.66, 0.63, 0.61], atol=0.011)  # 22552 first


def test_smallest_sets_are_those_of_the_means():
    table = table_of("figure15", lambda p: size_needed(p, True))
    shown = drawing.thresholds(table).set_index(["pooling", "level", "o2i"])["size"]
    assert shown["max", 0.7].loc[["19.1", "4.79", "1.2", "0.299", "0.0748"]].tolist() == [
        1400,
        2819,
        5638,
        11276,
        22552,
    ]
    lines = [line for line in panel("figure15", table).lines if len(line.get_xdata())]
    assert lines[0].get_ydata().tolist() == [1400, 2819, 5638, 11276, 22552]


def test_results_are_replaced_by_configuration_and_kept_otherwise(tmp_path):
    path, table = tmp_path / "results" / "figure4.csv", table_of("figure4", lambda p: {})
    results.update(path, table.to_dict("records"))
    results.update(path, table.assign(test_acc=0.1).head(1).to_dict("records"))
    again = results.read(path)
    assert len(again) == len(table)
    assert (again["test_acc"] == 0.1).sum() == 1
    assert again["setting"].unique().tolist() == ["paper"]


def test_figures_are_drawn_from_their_tables_alone(tmp_path):
    names = ["figure4", "figure6", "figure9", "figure12", "precision"]  # every kind of panel
    for name in names:
        table = table_of(name, lambda p: {"epochs_to_fit": 3}, seeds=2)
        results.update(results.path_of(tmp_path, name), table.to_dict("records"))
        if name == "precision":
            lines = [row | {"epoch": e, "train_running_acc": e / 9} for row in table.to_dict("records") for e in (1, 2)]
            columns = results.CONFIGURATION + results.CURVE
            results.update(results.path_of(tmp_path, f"{name}_curves"), lines, columns)
    plot_results.main(["--out", str(tmp_path)])
    for name in names:
        assert (tmp_path / f"figures/{name}.png").stat().st_size < 300_000


def test_the_tables_of_results_md_are_those_of_the_committed_results():
    text = (ROOT / "RESULTS.md").read_text()
    for table in (tables.figures_table, tables.claims_table):
        up_to_date = table(ROOT / "experiments") in text
        assert up_to_date, "run experiments/plot_results.py --results_md RESULTS.md"


def epochs_of(root, seed):
    """How many epochs the run of a seed has finished."""
    stats = list(root.glob(f"runs/*/*_s{seed}/stats.csv"))
    return len(stats[0].read_text().splitlines()) - 1 if stats else 0


def slurm(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def cluster():
    """A SLURM cluster that answers."""
    if not shutil.which("sbatch") or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("needs a SLURM cluster: sbatch, and sinfo that answers (SLURM_CONF names the configuration)")


@pytest.mark.slow
@pytest.mark.parametrize("how", [["scancel"], ["scancel", "--signal=USR2"]], ids=["killed", "preempted"])
def test_a_slurm_sweep_with_a_job_ended_midway_is_completed(how, tmp_path, cluster):
    """A preempted job, to which SLURM sends USR2, goes back into the queue; a killed one is submitted again."""
    root, out = tmp_path / "root", tmp_path / "out"
    small = "figure4 --preset small --canvas 40 --width -4 --num_examples 260 --epochs 1 --mnist digits --seeds 2"
    where = f"--root {root} --out {out} --executor slurm --gpus 0 --cpus 1 --time 30"
    command = [sys.executable, "experiments/run_experiments.py", *small.split(), *where.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w") as said:
        runner = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
    while epochs_of(root, 1) < 3:
        assert runner.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.1)
    job = next(root.glob("runs/*/*_s1/slurm_job.txt")).read_text()
    slurm(*how, job)
    assert runner.wait(timeout=400) == 0, (tmp_path / "said").read_text()
    assert results.load(out, "figure4")["seed"].tolist() == [1, 2]
    assert [epochs_of(root, seed) for seed in (1, 2)] == [43, 43]
    log = next(root.glob("runs/*/*_s1/output.log")).read_text()
    assert "resuming after epoch" in log
    assert ("submitting it again (2 of 3 times)" in (tmp_path / "said").read_text()) == (how == ["scancel"])
