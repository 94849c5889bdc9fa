import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from common import cli, lock
from common.errors import BadInput, WorkFailed
from experiments import figures, results, run_experiments, runs, sources
from tests.experiments.sweeps import plan

ROOT = Path(__file__).parents[2]


def test_flags_that_choose_keep_the_label_and_flags_that_change_add_to_it(tmp_path):
    root = ["--root", str(tmp_path)]
    chosen = plan("figure4", "--canvas", "64", "128", "--seeds", "3", *root)
    assert len(chosen) == 2 * 3
    assert {run.setting.label for run in chosen} == {"paper"}
    assert [run.seed for run in chosen] == [1, 1, 2, 2, 3, 3]
    changed = plan("figure4", "--width", "-2", "--epochs", "30", *root)
    assert {run.setting.label for run in changed} == {"paper, --width -2, --epochs 30"}
    assert {run.setting.label for run in plan("figure5b", "--width", "-2", *root)} == {"paper"}


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
        (["figure99"], "precision, anomaly, leakage, methods, got 'figure99'"),
        (["figure4", "--preset", "small", "--batch_size", "8"], "batch norm needs whole batches, of 32 in figure4"),
        (["figure4", "methods"], "argument figures: methods has flags of its own: run it by itself"),
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


@pytest.mark.parametrize("preset", figures.PRESETS)
def test_mnist_holds_the_digits_of_every_figure(preset, tmp_path):
    for name in figures.FIGURES:
        args = run_experiments.parse_args([name, "--preset", preset, "--mnist", str(tmp_path / "to_download")])
        run_experiments.check_digits(args, run_experiments.trials_of(name, args))


def test_too_few_digits_are_told_before_anything_runs(stub, monkeypatch):
    monkeypatch.setattr(sources, "digits_of", lambda source: sources.DigitSource("few", 5637, ""))
    with pytest.raises(
        BadInput, match=r"5,637 of the class, each 2 times\): use real MNIST, or --num_examples 22548 at"
    ):
        stub("--num_examples", "22552")
    assert stub.calls == []
    monkeypatch.setattr(sources, "digits_of", lambda source: sources.DigitSource("enough", 5638, ""))
    assert len(stub("--num_examples", "22552")) == 3


def test_hours_below_one_are_told_in_minutes():
    assert [run_experiments.duration(hours) for hours in (0, 0.001, 0.499, 1, 3734.2)] == [
        "0 min",
        "1 min",
        "30 min",
        "1.0 h",
        "3,734.2 h",
    ]


def test_a_verdict_without_numbers_has_no_brackets(stub, capsys):
    stub()
    lines = [line for line in capsys.readouterr().out.splitlines() if "Crops: " in line]
    assert len(lines) == 1
    assert lines[0].endswith("above an O2I of 1 %, poor below")
