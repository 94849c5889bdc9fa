"""Commands that are killed with SIGKILL at random moments, again and again, until they finish by themselves."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.reliability.harness import assert_same_run, contents

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
WATCHED = "checkpoint.pth"  # half of the kills of a training run wait until it is being written


@dataclass
class Target:
    """A command that writes into a folder, and how to tell whether two such folders are equal."""

    name: str
    command: Callable[[Path], list]
    compare: Callable[[Path, Path], None]


def generation(canvas: int, *flags: str) -> Target:
    """Write an nMNIST of scikit-learn's digits."""
    fixed = f"--mnist digits --canvas {canvas} --patch-size 64 --workers 2".split()
    script = ROOT / "data/cluttered_mnist/generate_data.py"
    return Target("generation", lambda out: [script, *fixed, *flags, "--out", out], assert_same_files)


def extraction(slides: Path, size: int, k: int) -> Target:
    """Cut positive crops out of made slides."""
    fixed = ["--data", slides / "annotations", "--base_path", slides / "training", "--size", size, "--k", k]
    fixed += ["--low_roir", "0.01", "--high_roir", "0.1", "--workers", 2]
    script = ROOT / "extract_basic_pos_crops.py"
    return Target("extraction", lambda out: [script, *fixed, "--save_dir", out], assert_same_files)


def training(data: Path, epochs: int, *flags: str) -> Target:
    """Train on an nMNIST, with a checkpoint every second or so."""
    fixed = ["--data_path", data, "--width", "-4", "-e", epochs, "--workers", 1, "--checkpoint_minutes", 0.01]
    fixed += ["--dropout", "--grad_variance", "--lr", "1e-3", "--device", "cpu"]
    return Target("training", lambda out: [ROOT / "train_mnist.py", *fixed, *flags, "--logdir", out], assert_same_run)


def assert_same_files(one: Path, other: Path) -> None:
    """Two folders hold the same files, but for what an interrupted write left behind."""
    files = [contents(folder) for folder in (one, other)]
    assert files[0].keys() == {name for name in files[1] if not Path(name).name.startswith(".")}
    assert all(content == files[1][name] for name, content in files[0].items())


def start(target: Target, out: Path) -> subprocess.Popen:
    """The target's command, as the leader of a group of processes."""
    command = [sys.executable, *map(str, target.command(out))]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, **pipes)


def wait_for_moment(process, out, seconds, rng):
    """Wait for a random time or, half of the time, for the next moment at which a checkpoint is being written."""
    deadline = time.monotonic() + rng.uniform(0.05, 1) * seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    part = out / f".{WATCHED}.part"
    if (out / WATCHED).exists() and rng.random() < 0.5:
        while not part.exists() and process.poll() is None:
            time.sleep(0.0005)


def kill_until_done(target: Target, whole: Path, place: Path, kills: int, seed: int = 0) -> str:
    """Kill the target's command at random moments and start it again until it ends, in one folder after another.

    Args:
        whole: what the uninterrupted command wrote.
        place: where to write.
        kills: how often to kill at least.
    Returns: what happened, in one line. AssertionError when a folder is not equal to `whole`, or a run fails.
    """
    rng, done, writing, folders, seconds = random.Random(seed), 0, 0, 0, whole_seconds(target, whole)
    while done < kills:
        out = place / f"{target.name}_{folders}"
        while True:
            process = start(target, out)
            if done < kills:
                wait_for_moment(process, out, seconds, rng)
            else:
                process.wait()
            if process.poll() is not None:
                break
            writing += any(out.rglob(".*.part"))
            if rng.random() < 0.5:
                process.kill()  # its workers have to notice by themselves
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            done += 1
        assert process.returncode == 0, process.communicate()[1]
        target.compare(whole, out)
        shutil.rmtree(out)
        folders += 1
    return f"{target.name}: {done} kills, {writing} as a file was written; {folders} folders equal the whole one"


def whole_seconds(target: Target, whole: Path) -> float:
    """Run the command uninterrupted; returns what it took."""
    started = time.monotonic()
    process = start(target, whole)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    return time.monotonic() - started
