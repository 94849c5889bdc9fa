"""A training run that is stopped anywhere and started again equals the uninterrupted one, to the bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from common import checkpoint, processes, runfolder, signals
from common.errors import BadInput, WorkFailed
from tests import synthetic
from tests.reliability.harness import assert_same_run
from tests.synthetic import environment, make_args, make_loaders, make_model

ROOT = Path(__file__).parents[2]
FLAGS = ("-e", 2, "--dropout", "--grad_variance", "--delayed_step", 2, "-b", 4)  # 4 steps an epoch


def fit(logdir, *flags):
    """Train a narrow network on squares."""
    return synthetic.fit(logdir, "--width", "-4", *flags)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    logdir = tmp_path_factory.mktemp("whole")
    fit(logdir, *FLAGS)
    return logdir


def interrupt_at(monkeypatch, name, call, number=signal.SIGTERM):
    """Send a signal to this process as a function of train.py is called for the nth time."""
    function, calls = getattr(train, name), []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == call:
            for _ in range(3):  # launchers and clusters send several at a time
                os.kill(os.getpid(), number)
        return function(*args)

    monkeypatch.setattr(train, name, interrupted)


@pytest.mark.parametrize(
    ("function", "call", "position"),
    [
        ("step", 1, (0, 1)),
        ("confusion", 6, (0, 3)),  # in the middle of a step
        ("step", 4, (0, 4)),
        ("evaluate", 2, (0, 4)),
        ("say_epoch", 1, (1, 1)),
        ("step", 7, (1, 3)),
    ],
)
def test_after_sigterm_it_continues_from_the_step_it_had_reached(
    whole, tmp_path, monkeypatch, function, call, position
):
    interrupt_at(monkeypatch, function, call)
    with pytest.raises(signals.Terminated):
        fit(tmp_path, *FLAGS)
    monkeypatch.undo()
    saved = checkpoint.load(tmp_path / "checkpoint.pth")
    assert (len(saved["history"]), saved["progress"]["steps"]) == position
    fit(tmp_path, *FLAGS)
    assert_same_run(whole, tmp_path)


def test_in_fp16_it_continues_where_the_loss_scaler_has_skipped_every_step_so_far(tmp_path, monkeypatch):
    flags = ("--precision", "fp16", "-e", 1)
    fit(tmp_path / "whole", *flags)
    interrupt_at(monkeypatch, "step", 1)
    with pytest.raises(signals.Terminated):
        fit(tmp_path / "cut", *flags)
    monkeypatch.undo()
    saved = checkpoint.load(tmp_path / "cut" / "checkpoint.pth")
    assert (saved["progress"]["steps"], saved["optimizer"]["state"]) == (1, {})
    fit(tmp_path / "cut", *flags)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_ctrl_c_and_the_signal_of_the_flag_save_too(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)  # ignored in background jobs
    interrupt_at(monkeypatch, "step", 3, number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else signals.Terminated):
        fit(tmp_path, "--signal", "USR1")
    assert f"{tmp_path}: saved in epoch 1 after step 3" in capsys.readouterr().out


def test_a_second_signal_ends_the_step_at_once_and_the_checkpoint_before_stays(tmp_path, monkeypatch):
    fit(tmp_path, "-e", 1)
    monkeypatch.setattr(signals, "REPEAT", 0)  # the second one comes later, then
    interrupt_at(monkeypatch, "confusion", 2)
    with pytest.raises(signals.Terminated):
        fit(tmp_path, "-e", 2)
    assert checkpoint.load(tmp_path / "checkpoint.pth")["progress"]["steps"] == 0


def test_checkpoints_in_the_middle_of_an_epoch_come_by_the_clock(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(runfolder.checkpoint, "save", lambda path, content, keep=None: saved.append(content))
    fit(tmp_path / "often", "-e", 1, "--checkpoint_minutes", 1e-9)
    assert [content["progress"]["steps"] for content in saved if "progress" in content] == [1, 2, 3, 4, 0]
    saved.clear()
    fit(tmp_path / "rarely", "-e", 1)
    assert [content["progress"]["steps"] for content in saved if "progress" in content] == [0]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_it(whole, tmp_path, capsys, damage):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(signals.Terminated):
        interrupt_at(patch, "step", 6)
        fit(tmp_path, *FLAGS)
    latest = tmp_path / "checkpoint.pth"
    content = latest.read_bytes()
    if damage == "missing":  # as between the two renames of a save
        latest.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        latest.write_bytes({"flipped": flipped, "truncated": content[:-100], "empty": b""}[damage])
    capsys.readouterr()
    fit(tmp_path, *FLAGS)
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"{latest}: ") and said.endswith(
        "going on from checkpoint.previous.pth, the checkpoint before it"
    )
    assert_same_run(whole, tmp_path)


def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one_before_it(tmp_path, monkeypatch):
    fit(tmp_path, "-e", 2)
    good = (tmp_path / "checkpoint.previous.pth").read_bytes()
    (tmp_path / "checkpoint.pth").write_bytes(b"damaged")
    interrupt_at(monkeypatch, "step", 1)
    with pytest.raises(signals.Terminated):
        fit(tmp_path, "-e", 2)
    assert (tmp_path / "checkpoint.previous.pth").read_bytes() == good
    assert checkpoint.load(tmp_path / "checkpoint.pth")["progress"]["steps"] == 1


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """The loss of the last step before a checkpoint was finite, its gradient was not."""
    fit(tmp_path, "-e", 1, "--precision", "bf16")
    before = (tmp_path / "checkpoint.pth").read_bytes()
    step = train.step

    def overflow(learner, batches):
        sums = step(learner, batches)
        next(learner.model.parameters()).data[0] = float("inf")
        return sums

    monkeypatch.setattr(train, "step", overflow)
    said = r"epoch 2, step 1: the weights are not finite; lower --lr or take --precision float32 in a new --logdir"
    with pytest.raises(WorkFailed, match=said):
        fit(tmp_path, "-e", 2, "--checkpoint_minutes", 1e-9, "--precision", "bf16")
    assert (tmp_path / "checkpoint.pth").read_bytes() == before


@pytest.mark.slow
def test_processes_of_torchrun_save_at_the_same_step(tmp_path):
    """SIGTERM reaches each of them at a time of its own."""
    flags = ["-e", "2", "--dropout", "-b", "2", "--width", "-4"]  # 16 steps an epoch
    script = tmp_path / "job.py"
    script.write_text(
        "import os, signal, sys, synthetic, train\nfrom common import cli\n"
        "step = train.step\n"
        "def interrupted(learner, batches):\n"
        "    if sys.argv[2] == os.environ['RANK'] and len(log) == 5:\n"
        "        for _ in range(3): os.kill(os.getpid(), signal.SIGTERM)\n"
        "    log.append(step(learner, batches))\n"
        "    return log[-1]\n"
        "log, train.step = [], interrupted\n"
        f"cli.run(lambda: synthetic.fit(sys.argv[1], *{flags}) and None)\n"
    )
    env = environment(ROOT, ROOT / "tests", OMP_NUM_THREADS="1")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    for logdir, rank in (("whole", "none"), ("cut", "1"), ("cut", "none")):
        done = subprocess.run(
            [*torchrun, tmp_path / logdir, rank], env=env, timeout=120, capture_output=True, text=True
        )
        assert (done.returncode == 0) == (rank == "none"), done.stderr
        assert ("saved in epoch 1 after step 6" in done.stdout) == (rank == "1")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


HOLDER = """
import sys, time
from pathlib import Path
from common import lock
with lock.held(Path(sys.argv[1]), "--logdir"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_on_a_log_folder_names_the_first(tmp_path):
    env = environment(ROOT)
    command = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match=f"--logdir {tmp_path}: in use by .* process {first.pid}; wait"):
            fit(tmp_path, "-e", 1)
        assert not (tmp_path / "checkpoint.pth").exists()
        first.kill()
    fit(tmp_path, "-e", 1)  # the kernel released the lock
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("pooling", ["max", "mean", "logsumexp", "attention"])
def test_no_part_of_a_network_refuses_the_deterministic_kernels(tmp_path, pooling):
    """On a CPU; the kernels of a GPU may still."""
    try:
        processes.select("cpu", deterministic=True)
        runs = [tmp_path / name for name in ("one", "two")]
        for logdir in runs:
            args = make_args(logdir, "-e", 1, "--width", "-4", "--pooling", pooling, "--deterministic")
            train.fit(
                make_model(args), make_loaders(args), args, processes.select("cpu", "float32", args.deterministic)
            )
            assert torch.are_deterministic_algorithms_enabled()
        assert_same_run(*runs)
    finally:
        processes.select("cpu")
