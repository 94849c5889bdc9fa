"""Dataset -> DataLoader: training subset, class balance, the draws of every epoch, batches across processes."""

import argparse
import errno
import functools
import multiprocessing.queues
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from common import cli, limits, processes, signals
from common.errors import BadInput, WorkFailed
from common.manifest import Manifest

NEEDLES_TRAIN_SIZE = 11276


def add_flags(parser, batch_size: int = 32) -> None:
    """Declare `-b`, `--workers` and `--verify`."""
    add_batch_flags(parser, batch_size)
    _add_verify_flag(parser)


def add_batch_flags(parser, batch_size: int = 32, workers: int = 4) -> None:
    """Declare `-b` and `--workers`."""
    cli.neutral(
        parser.add_argument("-b", "--batch_size", type=cli.positive, default=batch_size, help="images per batch")
    )
    _add_workers_flag(parser, workers)


def add_reading_flags(parser) -> None:
    """Declare `--workers` and `--verify`."""
    _add_workers_flag(parser)
    _add_verify_flag(parser)


def _add_workers_flag(parser, workers=4):
    cli.add_workers_flag(parser, workers, help="processes that read or render images, 0 = none")


def _add_verify_flag(parser):
    cli.neutral(
        parser.add_argument(
            "--verify",
            action="store_true",
            help="first check every file of the data against its checksum in manifest.json",
        )
    )


def verify(args, *folders: Path) -> None:
    """With --verify, check every file of the data; BadInput names the first bad one. The first process does it."""
    if args.verify and processes.rank() == 0:
        for folder in folders:
            Manifest(folder).verify()


def add_balance_flags(parser) -> None:
    """Declare `--num_examples` and `--data_balance`, which choose the training subset."""
    parser.add_argument(
        "--num_examples",
        type=cli.positive,
        help=f"training images; fewer multiply epochs and milestones by {NEEDLES_TRAIN_SIZE} // N "
        f"(without the flag: {NEEDLES_TRAIN_SIZE} or all there are, and nothing is multiplied)",
    )
    parser.add_argument(
        "--data_balance", type=_share, help="share of positives among the training images (without the flag: half)"
    )


def _share(text):
    share = cli.positive_float(text)
    if share >= 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got {text!r}")
    return share


def shrinkage(num_examples: int | None) -> int:
    """Factor on epochs and milestones that gives a small training set as many updates as Pawlowski 2019's."""
    return 1 if num_examples is None else max(1, NEEDLES_TRAIN_SIZE // num_examples)


def training_subset(labels: np.ndarray, num_examples: int | None, balance: float | None) -> np.ndarray:
    """Indices (N,) of the first int(balance * N) positives and the first negatives, in file order.

    N is num_examples, or without it the smaller of 11,276 and len(labels); without either, the file's first N
    images as they come. BadInput when the data hold fewer.
    """
    n = min(NEEDLES_TRAIN_SIZE, len(labels)) if num_examples is None else num_examples
    if num_examples is None and balance is None:
        return np.arange(n)
    balance = 0.5 if balance is None else balance
    n_positive = int(balance * n)
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    if n_positive > len(positives) or n - n_positive > len(negatives):
        raise BadInput(
            f"--num_examples, --data_balance: {n} images with a share of {balance:g} need {n_positive} positives and "
            f"{n - n_positive} negatives, the training data hold {len(positives)} and {len(negatives)}"
        )
    return np.sort(np.concatenate([positives[:n_positive], negatives[: n - n_positive]]))


def balanced_draws(labels: np.ndarray, subset: np.ndarray, seed: int) -> Callable[[int], np.ndarray]:
    """epoch -> len(subset) indices drawn with replacement so that both classes are equally likely."""
    counts = np.bincount(labels[subset], minlength=2)
    if counts.min() == 0:
        found = f"{counts[1]} positives and {counts[0]} negatives"
        raise BadInput(f"--num_examples, --data_balance: training needs images of both classes, found {found}")
    weights = 0.5 / counts[labels[subset]]
    return lambda epoch: np.random.default_rng((seed, epoch)).choice(subset, len(subset), p=weights)


def shuffles(n: int, seed: int) -> Callable[[int], np.ndarray]:
    """epoch -> a permutation of range(n)."""
    return lambda epoch: np.random.default_rng((seed, epoch)).permutation(n)


class EpochBatches:
    """Batch sampler whose order depends on seed and epoch alone; each process gets its share of every batch.

    Set `epoch`, and the batch to start `first` with, before iterating. `draw(epoch)` returns the epoch's `length`
    indices. An empty share of the last batch is filled up with one image, which train.py weights 0. BadInput when the
    processes cannot share alike.
    """

    def __init__(self, draw: Callable[[int], np.ndarray], length: int, batch_size: int):
        if batch_size % processes.world_size():
            raise BadInput(f"-b {batch_size}: cannot be shared alike by {processes.world_size()} processes")
        self.draw, self.length, self.batch_size = draw, length, batch_size
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[list[int]]:
        order = self.draw(self.epoch)
        for start in self._starts()[self.first :]:
            batch = order[start : start + self.batch_size]
            share = batch[processes.rank() :: processes.world_size()]
            yield (share if len(share) else batch[:1]).tolist()

    def groups(self, accumulation: int) -> Iterator[tuple[list[int], int]]:
        """For every optimiser step: this process's images in each batch, and all processes' images in the step."""
        starts = self._starts()
        for first in range(0, len(starts), accumulation):
            group = starts[first : first + accumulation]
            images = min(self.length, group[-1] + self.batch_size) - group[0]
            yield [self._share(start) for start in group], images

    def _starts(self):
        return range(0, self.length, self.batch_size)

    def _share(self, start):
        """How many images of the batch at `start` are this process's."""
        return len(range(start, min(start + self.batch_size, self.length))[processes.rank() :: processes.world_size()])


@dataclass
class Step:
    """The batches of one optimiser step of `n_images` in all processes.

    Yields: images (b, C, H, W), labels (b,), how many of them count, whether the batch is the step's last.
    """

    batches: Iterator
    shares: list[int]
    n_images: int

    def __iter__(self):
        for number, share in enumerate(self.shares, 1):
            yield *next(self.batches), share, number == len(self.shares)


class Steps:
    """The steps of an epoch from one on."""

    def __init__(self, loader: DataLoader, groups: list):
        self.loader, self.groups = loader, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Step]:
        batches = iter(self.loader)
        for shares, n_images in self.groups:
            yield Step(batches, shares, n_images)


@dataclass
class Loaders:
    """What `train.fit` reads: `train` draws by `batches`; `evaluation` maps eval, train and test to ordered loaders."""

    train: DataLoader
    batches: EpochBatches
    evaluation: dict[str, DataLoader]
    fingerprint: str
    epoch_factor: int = 1

    @property
    def n_images(self) -> int:
        """Training images of an epoch."""
        return self.batches.length

    def steps(self, epoch: int, accumulation: int, first: int = 0) -> Steps:
        """An epoch's optimiser steps over `accumulation` batches each, without the first ones."""
        self.batches.epoch, self.batches.first = epoch, first * accumulation
        return Steps(self.train, list(self.batches.groups(accumulation))[first:])


def make_loaders(
    splits: dict[str, Dataset], args, device: torch.device, subset: np.ndarray, draw, epoch_factor: int = 1
) -> Loaders:
    """Loaders over the splits "train", "val" and "test".

    Args:
        device: that trains.
        subset: indices of the training images, for their evaluation.
        draw: epoch -> indices of the training images in the order of that epoch.
        epoch_factor: multiplies epochs and milestones.
    """
    batches = EpochBatches(draw, len(subset), args.batch_size)
    ordered = {"eval": np.arange(len(splits["val"])), "train": subset, "test": np.arange(len(splits["test"]))}
    names = {"eval": "val", "train": "train", "test": "test"}
    n_loaders = 1 + len(names)
    return Loaders(
        train=batch_loader(splits["train"], args, device, batches, n_loaders),
        batches=batches,
        evaluation={
            key: ordered_loader(splits[names[key]], args, device, order, n_loaders) for key, order in ordered.items()
        },
        fingerprint=" ".join(splits[name].fingerprint() for name in names.values()),
        epoch_factor=epoch_factor,
    )


def ordered_loader(
    dataset: Dataset, args, device: torch.device, order: np.ndarray | None = None, n_loaders: int = 1
) -> DataLoader:
    """Every image once, in order; each process gets its share. `n_loaders` keep worker processes beside each other."""
    order = np.arange(len(dataset)) if order is None else order
    share = order[processes.rank() :: processes.world_size()].tolist()
    batch_size = -(-args.batch_size // processes.world_size())
    return batch_loader(dataset, args, device, BatchSampler(share, batch_size, drop_last=False), n_loaders)


def batch_loader(dataset: Dataset, args, device: torch.device, batches, n_loaders: int = 1) -> DataLoader:
    """Batches of indices -> batches of images, which a GPU composes itself where the data set tells it how.

    Args:
        batches: a batch sampler, of whatever the data set takes for an index.
        n_loaders: that keep worker processes beside each other.
    """
    composed = dataset.batches_on(device, batches) if device.type == "cuda" else None
    if composed is not None:
        return composed
    share = -(-args.batch_size // processes.world_size())
    workers = args.workers and affordable_workers(args.workers, dataset[0][0].nbytes * share, n_loaders)
    return _WorkerLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else it draws from the global state, which dropout depends on
    )


class _WorkerLoader(DataLoader):
    """A loader that blames a loader process which has ended, not the connection that broke off with it."""

    def __iter__(self):
        try:
            yield from super().__iter__()
        except (EOFError, ConnectionError):
            time.sleep(1)  # until PyTorch hears of the end, and raises what it was
            raise


@functools.cache  # asked, and said, once for all loaders, before they start
def affordable_workers(wanted: int, batch_bytes: int, n_loaders: int) -> int:
    """Worker processes of each loader, fewer than `wanted` where shared memory does not hold their batches.

    WorkFailed when their pipes and batches (an image and a label tensor) would take more files than may be open.
    """
    warnings.filterwarnings("ignore", "This DataLoader will create")  # so many as the user wants, above the cores
    pipes, tensors, others = n_loaders * (2 + 4 * wanted), 4 * wanted, 16
    if limits.files_left() < pipes + tensors + others:
        raise WorkFailed(cli.TOO_MANY_FILES)
    room = limits.shared_memory_left()
    if room >= (2 * wanted + 2) * batch_bytes:  # each prepares two, two more are in use
        return wanted
    workers = max(0, int(room / batch_bytes - 2) // 2)
    if processes.rank() == 0:
        print(
            f"--workers {wanted}: /dev/shm has {room / 1e6:.0f} MB left for batches of {batch_bytes / 1e6:.0f} MB, "
            f"going on with {workers} (for more: a smaller -b, docker run --shm-size)",
            file=sys.stderr,
        )
    return workers


def _start_worker(worker):
    """Let a loader process end when a thread that sends its batches fails, else the main one would wait for ever."""
    signals.ignore_in_worker()
    sys.excepthook = lambda kind, error, trace: _end_worker(error)  # of the thread that hands out shared memory
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(lambda error, batch: _end_worker(error))


def _end_worker(error):
    os._exit(errno.EMFILE if cli.shortage(error) == cli.TOO_MANY_FILES else 1)
