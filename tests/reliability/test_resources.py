"""No disk, no memory, no permission, no folder any more: one line, and what was written before stays of use."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import train
from common import checkpoint, cli, files, processes
from data.cluttered_mnist import generate_data
from tests.reliability import sandbox
from tests.synthetic import make_args, make_loaders, make_model

ROOT = Path(__file__).parents[2]
SMALL = "--mnist digits --canvas 64 --distortion-num 1 --duplicates 1 --workers 1"


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a disk of some megabytes of its own, perhaps to be read only."""
    place, mounted = tmp_path / "disk", []

    def mount(size, *options):
        place.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", place])
        if done.returncode:
            pytest.skip("needs the right to mount a small disk")
        mounted.append(place)
        return place

    yield mount
    for each in mounted:
        subprocess.run(["umount", "-l", each], check=True)


def fit(logdir, *flags):
    """Train on squares, as a command."""
    args = make_args(logdir, "--width", "-4", *flags)
    train.fit(make_model(args), make_loaders(args), args, processes.select("cpu"))


def run_fit(logdir, *flags):
    return sandbox.run(lambda argv: fit(logdir, *argv), flags)


def generate(out, *flags):
    return sandbox.run(generate_data.main, [*SMALL.split(), *flags, "--out", out])


def assert_one_line(outcome, code, *words):
    assert outcome.code == code, outcome
    assert outcome.said.count("\n") == 1 and all(word in outcome.said for word in words), outcome.said


def open_full(path, flags, mode, name, open_own=files.open_own):
    """Open a file of ours, the one of this name on a full disk."""
    return Path("/dev/full").open(mode) if path.name == f".{name}.part" else open_own(path, flags, mode)


@pytest.mark.parametrize("name", ["checkpoint.pth", "best_checkpoint.pth", "stats.csv", "config.json"])
def test_a_disk_that_is_full_as_a_run_writes(tmp_path, name, monkeypatch):
    """/dev/full stands for it; afterwards the run continues."""
    fit(tmp_path, "-e", 1, "--lr", "1e-9")
    before = (tmp_path / "checkpoint.pth").read_bytes()
    if name == "best_checkpoint.pth":
        (tmp_path / name).unlink()  # it is written again
    with monkeypatch.context() as patch:
        patch.setattr(files, "open_own", lambda path, flags, mode: open_full(path, flags, mode, name))
        assert_one_line(
            run_fit(tmp_path, "-e", 2, "--lr", "1e-9"), 1, f"disk full ({tmp_path / name}): free some space"
        )
    if name != "stats.csv":
        assert (tmp_path / "checkpoint.pth").read_bytes() == before
    fit(tmp_path, "-e", 2, "--lr", "1e-9")
    assert checkpoint.load(tmp_path / "checkpoint.pth")["epoch"] == 2


def test_a_small_disk_fills_up_with_checkpoints_and_events(disk, tmp_path):
    """A real one: the last good checkpoint stays, and is continued from elsewhere."""
    logdir = disk("2m") / "run"  # a checkpoint has 0.8 MB
    fit(logdir, "-e", 1)
    shutil.copy(logdir / "best_checkpoint.pth", logdir / "filler")
    outcome = run_fit(logdir, "-e", 9)
    assert_one_line(outcome, 1, "disk full", "free some space")
    moved = shutil.copytree(logdir, tmp_path / "moved")
    fit(moved, "-e", 2)
    assert checkpoint.load(moved / "checkpoint.pth")["epoch"] == 2


def test_a_small_disk_fills_up_with_events(disk, tmp_path):
    place = disk("100k")
    outcome = run_fit(place, "-e", 1)
    assert_one_line(outcome, 1, "disk full")


def test_a_small_disk_fills_up_with_canvases(disk):
    out = disk("2m")
    for workers in (1, 2):
        assert_one_line(generate(out, "--workers", workers), 1, "disk full", "free some space")
        assert len(list(out.rglob(".*.part"))) < workers  # another worker may have been stopped as it wrote


def test_a_read_only_disk(disk):
    place = disk("2m", "ro")
    assert_one_line(run_fit(place), 2, f"{place}: cannot write to this folder: Read-only file system")
    assert_one_line(generate(place), 2, f"{place}: cannot write to this folder: Read-only file system")


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who may not write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    assert_one_line(run_fit(tmp_path), 2, f"{tmp_path}: cannot write to this folder: Permission denied")


def test_a_log_folder_that_is_deleted_while_training(tmp_path, monkeypatch):
    step = train.step

    def delete(learner, batches):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return step(learner, batches)

    monkeypatch.setattr(train, "step", delete)
    assert_one_line(run_fit(tmp_path / "run", "-e", 1), 2, str(tmp_path / "run"), "No such file or directory")


def test_a_data_folder_that_is_deleted_while_generating(tmp_path, monkeypatch):
    from data.cluttered_mnist import canvas_files

    save = canvas_files.save_npz

    def delete(path, arrays):
        shutil.rmtree(path.parent, ignore_errors=True)
        save(path, arrays)

    monkeypatch.setattr(canvas_files, "save_npz", delete)
    assert_one_line(generate(tmp_path / "data"), 2, str(tmp_path / "data"), "No such file or directory")


def test_a_batch_that_does_not_fit_into_memory(tmp_path):
    fit(tmp_path, "-e", 1, "-b", 16)
    before = (tmp_path / "checkpoint.pth").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "confusion", lambda *_: bytearray(2**31))
        assert_one_line(run_fit(tmp_path, "-e", 2, "-b", 16), 1, "out of memory: use a smaller -b")
    assert (tmp_path / "checkpoint.pth").read_bytes() == before
    fit(tmp_path, "-e", 2, "-b", 8, "--delayed_step", 2)


def train_mnist(tmp_path, before):
    """Train on generated digits with two workers, by a shell that is told something `before`."""
    if not (tmp_path / "data").exists():
        assert generate(tmp_path / "data", "--format", "none").code == 0
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'train_mnist.py'))} --data_path data --logdir run"
    line = f"{before} {command} -e 1 -b 32 --width -4 --receptive_field 9 --workers 2"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, timeout=60)


@pytest.mark.slow
def test_too_few_files_end_in_one_line_and_the_same_command_continues(tmp_path):
    """Unless the limit may be raised."""
    done = train_mnist(tmp_path, "ulimit -n 44;")
    assert (done.returncode, done.stderr) == (1, f"train_mnist.py: {cli.TOO_MANY_FILES}\n")
    done = train_mnist(tmp_path, "ulimit -S -n 44;")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_with_little_shared_memory_no_worker_process_starts(tmp_path):
    small = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    if subprocess.run(["bash", "-c", f"unshare -m {small}"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small /dev/shm")
    done = train_mnist(tmp_path, f'exec unshare -m bash -c \'{small} && "$0" "$@"\'')
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1 and "--workers 2: /dev/shm has 1 MB left" in done.stderr
    assert "going on with 0" in done.stderr
