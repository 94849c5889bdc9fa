"""Generation, loading and training for a long time: memory, file handles and processes, sampled all along."""

import argparse
import contextlib
import itertools
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import train_mnist
from common import signals
from data import loaders
from data.cluttered_mnist import dataset, generate_data

PAGE = os.sysconf("SC_PAGE_SIZE")
INTERVAL = 5  # seconds between samples
WARM_UP = 0.2  # share of a phase's samples
TOLERANCE = 0.05
SMALL = "--mnist digits --canvas 64 --distortion-num 2 --patch-size 64 --workers 1"


@dataclass
class Sample:
    """At one moment: resident bytes of this process and of its children together, open files, children."""

    own: int
    children: int
    files: int
    processes: int


def sample() -> Sample:
    """Look at this process and its children."""
    pids = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    files = len(list(Path("/proc/self/fd").iterdir()))
    return Sample(_resident("self"), sum(map(_resident, pids)), files, len(pids))


def _resident(pid):
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0


def report(phase: str, samples: list[Sample]) -> None:
    """Print a line on a phase after its warm-up. AssertionError when something grew.

    Compared is the last fifth with the first, of memory the most, of files and children the fewest: a batch on its way
    holds two files, and what leaks is never given back.
    """
    steady = samples[int(len(samples) * WARM_UP) :]
    fifth = max(1, len(steady) // 5)
    parts = steady[:fifth], steady[-fifth:]
    kinds = {"own": max, "children": max, "files": min, "processes": min}
    first, last = ([kind(getattr(s, name) for s in part) for name, kind in kinds.items()] for part in parts)
    growth = [b / a - 1 if a else 0.0 for a, b in zip(first, last, strict=True)]
    print(
        f"{phase}: {len(samples)} samples; resident {first[0] / 1e6:.0f} -> {last[0] / 1e6:.0f} MB ({growth[0]:+.1%}), "
        f"children {first[1] / 1e6:.0f} -> {last[1] / 1e6:.0f} MB ({growth[1]:+.1%}), "
        f"open files {first[2]} -> {last[2]}, children {first[3]} -> {last[3]}",
        flush=True,
    )
    assert growth[0] <= TOLERANCE and growth[1] <= TOLERANCE and last[2] <= first[2] and last[3] <= first[3], phase


def generate(place: Path, seconds: float) -> list[Sample]:
    """Write one data set after another with two workers; a sample after each."""
    samples, end = [], time.monotonic() + seconds
    for seed in itertools.count():
        if time.monotonic() > end:
            return samples
        out = place / "generated"
        generate_data.main([*SMALL.split(), "--workers", "2", "--seed", str(seed), "--out", str(out)])
        shutil.rmtree(out)
        samples.append(sample())


def load(data: Path, seconds: float) -> list[Sample]:
    """Read the files of a data set with two workers, epoch after epoch; a sample in the middle of each."""
    args = argparse.Namespace(data_path=data, data_scaling=1.0, source="files", batch_size=32, workers=2)
    split = dataset.load_splits(args)["train"]
    loader = loaders.ordered_loader(split, args, torch.device("cpu"))
    samples, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        for i, _ in enumerate(loader):
            if i == len(loader) // 2:
                samples.append(sample())
    return samples


def train(data: Path, logdir: Path, seconds: float) -> list[Sample]:
    """Train with two workers until SIGTERM; a sample every few seconds after the first epoch."""
    samples, ended = [], threading.Event()

    def watch():
        end = time.monotonic() + seconds
        while time.monotonic() < end and not ended.wait(INTERVAL):
            if (logdir / "stats.csv").exists():  # all loaders have started
                samples.append(sample())
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch)
    watcher.start()
    flags = ["--data_path", data, "--logdir", logdir, "--width", "-2", "--workers", "2", "-e", "100000"]
    with contextlib.suppress(signals.Terminated):
        train_mnist.main([*map(str, flags), "--checkpoint_minutes", "0.2", "--source", "files", "--device", "cpu"])
    ended.set()
    watcher.join()
    return samples


def run(place: Path, minutes: float) -> None:
    """Generate, load and train for a third of the time each; prints a line on each."""
    data, seconds = place / "data", 60 * minutes / 3
    generate_data.main([*SMALL.split(), "--out", str(data)])
    report("generation", generate(place, seconds))
    report("loading", load(data, seconds))
    report("training", train(data, place / "run", seconds))
