import argparse
import errno
import gc
import math
import os
import time
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common import cli, limits
from common.errors import BadInput, WorkFailed
from data.loaders import (
    EpochBatches,
    affordable_workers,
    balanced_draws,
    ordered_loader,
    shrinkage,
    shuffles,
    training_subset,
)

PAPER_LABELS = np.tile([1, 0], 11276)  # the training file: positives at even indices


@pytest.mark.parametrize("size", [1400, 2819, 5638, 7500, 11276, 22552])
def test_the_papers_sizes_take_the_first_images_of_each_class(size):
    subset = training_subset(PAPER_LABELS, size, 0.5)
    assert len(subset) == size
    labels = PAPER_LABELS[subset]
    assert labels.sum() == size // 2
    assert np.array_equal(subset[labels == 1], np.arange(0, 2 * (size // 2), 2))
    assert np.array_equal(subset[labels == 0], np.arange(1, 2 * (size - size // 2), 2))


def test_without_the_flag_the_papers_set_is_used():
    assert np.array_equal(training_subset(PAPER_LABELS, None, None), np.arange(11276))
    assert len(training_subset(PAPER_LABELS[:99], None, None)) == 99


@pytest.mark.parametrize("balance", [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
def test_the_papers_balances_keep_the_size_and_draw_classes_alike(balance):
    subset = training_subset(PAPER_LABELS, 11276, balance)
    assert len(subset) == 11276
    assert PAPER_LABELS[subset].sum() == int(balance * 11276)
    drawn = balanced_draws(PAPER_LABELS, subset, seed=1)(0)
    assert len(drawn) == 11276
    assert set(drawn) <= set(subset)
    assert PAPER_LABELS[drawn].mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("size", "factor"),
    [(1400, 8), (2819, 4), (5638, 2), (7500, 1), (11276, 1), (22552, 1), (None, 1)],
)
def test_small_sets_get_as_many_updates(size, factor):
    assert shrinkage(size) == factor


def test_more_examples_than_there_are_is_named():
    with pytest.raises(BadInput, match=r"30 images.* need 15 positives and 15 negatives, .* hold 10 and 10"):
        training_subset(np.tile([1, 0], 10), 30, 0.5)


def test_an_epochs_draws_hang_on_seed_and_epoch_alone():
    subset = np.arange(100)
    first, again = (balanced_draws(PAPER_LABELS, subset, seed=3) for _ in range(2))
    assert np.array_equal(first(5), again(5))
    assert not np.array_equal(first(5), first(6))
    assert not np.array_equal(first(5), balanced_draws(PAPER_LABELS, subset, seed=4)(5))
    assert sorted(shuffles(50, 1)(2)) == list(range(50))


@pytest.mark.parametrize("accumulation", [1, 3, 4])
def test_groups_cover_the_epoch_with_a_short_last_one(accumulation):
    batches = EpochBatches(shuffles(50, 0), 50, batch_size=8)
    groups = list(batches.groups(accumulation))
    assert sum(len(shares) for shares, _ in groups) == len(batches) == len(list(batches)) == 7
    assert sum(images for _, images in groups) == 50
    assert all(images == 8 * accumulation for _, images in groups[:-1])


def test_processes_share_every_batch(monkeypatch):
    whole = [set(batch) for batch in EpochBatches(shuffles(21, 0), 21, batch_size=4)]
    monkeypatch.setattr("data.loaders.processes.world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("data.loaders.processes.rank", lambda rank=rank: rank)
        batches = EpochBatches(shuffles(21, 0), 21, batch_size=4)
        counted = [n for group, _ in batches.groups(2) for n in group]
        assert len(batches) == len(counted) == 6
        shares.append([set(batch[:n]) for batch, n in zip(batches, counted, strict=True)])
    assert not shares[1][-1]  # the last batch has one image, the first process's
    assert [a | b for a, b in zip(*shares, strict=True)] == whole


def test_processes_must_be_able_to_share_a_batch(monkeypatch):
    monkeypatch.setattr("data.loaders.processes.world_size", lambda: 3)
    with pytest.raises(BadInput, match="-b 4: cannot be shared alike by 3 processes"):
        EpochBatches(shuffles(21, 0), 21, batch_size=4)


def test_a_gpu_composes_its_batches_itself_where_the_data_set_can():
    class Composing:
        def __init__(self, answer):
            self.answer = answer

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return torch.zeros(1, 8, 8), 0

        def batches_on(self, device, batches):
            return self.answer

    args, composed = argparse.Namespace(batch_size=2, workers=0), object()
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert ordered_loader(Composing(composed), args, gpu) is composed
    assert isinstance(ordered_loader(Composing(None), args, gpu), DataLoader)
    assert isinstance(ordered_loader(Composing(composed), args, cpu), DataLoader)


class Images(torch.utils.data.Dataset):
    """Eight images; `fail(i)` is called in the loader process that reads image i."""

    def __init__(self, fail=lambda i: None):
        self.fail = fail

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if torch.utils.data.get_worker_info():
            self.fail(i)
        return torch.full((1, 16, 16), float(i)), i % 2


@pytest.fixture
def allotted(monkeypatch):
    """A function that sets what files and bytes of shared memory are left."""

    def allot(files=10**6, shared=math.inf):
        affordable_workers.cache_clear()
        monkeypatch.setattr(limits, "files_left", lambda: files)
        monkeypatch.setattr(limits, "shared_memory_left", lambda: shared)

    yield allot
    affordable_workers.cache_clear()


def load(dataset, workers):
    return ordered_loader(dataset, argparse.Namespace(batch_size=2, workers=workers), torch.device("cpu"))


def test_fewer_worker_processes_start_where_shared_memory_does_not_hold_their_batches(allotted, capsys):
    batch = 2 * 16 * 16 * 4
    for room, workers in [(10 * batch, 4), (9 * batch, 3), (4 * batch, 1), (3 * batch, 0), (0, 0)]:
        allotted(shared=room)
        loaders = [load(Images(), 4) for _ in range(3)]
        assert {loader.num_workers for loader in loaders} == {workers}
        said = capsys.readouterr().err
        assert said.count("\n") == (workers < 4) and (workers == 4 or f"going on with {workers}" in said)


def test_without_shared_memory_the_same_batches_come(allotted):
    allotted(shared=0)
    with_none = list(load(Images(), 2))
    allotted()
    for (images, labels), (others, other_labels) in zip(load(Images(), 2), with_none, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_too_few_files_for_the_workers_are_refused_before_they_start(allotted):
    allotted(files=50)
    with pytest.raises(WorkFailed, match="too many open files: raise `ulimit -n` or use fewer --workers"):
        load(Images(), 8)
    assert load(Images(), 0).num_workers == 0


def test_more_workers_than_cores_are_the_users_choice(allotted):
    allotted()
    with warnings.catch_warnings(record=True) as found:
        list(load(Images(), limits.cores() + 1))
    assert not found


def fail_to_send(i):
    """As of too many open files in the thread that sends a batch."""
    from multiprocessing import reduction

    def dumps(batch):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    reduction.ForkingPickler.dumps = dumps


def fail_to_share(i):
    """The same in the thread that hands out shared memory."""
    from multiprocessing import connection

    def accept(self):
        time.sleep(0.1)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    connection.Listener.accept = accept


@pytest.mark.parametrize("fail", [fail_to_send, fail_to_share])
def test_a_loader_process_that_cannot_send_its_batches_is_not_waited_for(fail, allotted, capfd):
    allotted()
    gc.collect()  # else the forked process would collect loaders of earlier tests, and torch complain of it
    with pytest.raises((RuntimeError, OSError)) as caught:
        list(load(Images(fail), 1))
    assert cli.shortage(caught.value) == cli.TOO_MANY_FILES
    assert capfd.readouterr().err == ""
