"""SimCLR's pretraining stops and goes on, learns, and does not depend on who reads the tiles."""

import argparse

import numpy as np
import pandas as pd
import pytest
import torch

from common import checkpoint
from common.errors import BadInput
from mil import pretrain_simclr
from models import embedders
from models import encoder as encoders
from tests.mil import folders
from tests.mil.kills import Killed, kill_at

FLAGS = "--datatype tiles --encoder_width 0.125 -b 8 -e 3 --lr 1e-2 --augment_transform 2 --device cpu"


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    return folders.write(tmp_path_factory.mktemp("bags"))


def run(bags, logdir, *more):
    pretrain_simclr.main([*FLAGS.split(), "--bags", str(bags), "--logdir", str(logdir), *more])
    table = pd.read_csv(logdir / "stats.csv").drop(columns=["seconds", "tiles_per_s"])
    weights = checkpoint.load(logdir / checkpoint.LATEST)["state_dict"]
    return table, torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.fixture(scope="module")
def whole(bags, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("whole")
    return logdir, *run(bags, logdir, "--workers", "0")


def test_the_loss_falls_and_the_best_encoder_is_kept(whole):
    logdir, table, _ = whole
    assert table.train_loss.iloc[-1] < table.train_loss.iloc[0]
    assert checkpoint.load(logdir / checkpoint.BEST)["epoch"] == table.epoch[table.val_loss.idxmin()]
    kept = checkpoint.load(logdir / checkpoint.BEST)["state_dict"]
    for name, value in encoders.load(logdir / "model.pth").state_dict().items():
        assert torch.equal(value, kept[name])


def test_its_encoder_embeds(whole):
    chosen = argparse.Namespace(embedder="encoder", embedder_weights=str(whole[0] / "model.pth"), weights_input=None)
    assert embedders.build(chosen)(torch.rand(2, 3, 40, 40)).shape == (2, 64)


def test_a_killed_run_ends_as_if_it_had_not_been(whole, bags, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, pretrain_simclr, "step", 7)
        run(bags, tmp_path, "--workers", "0", "--checkpoint_minutes", "1e-9")
    table, weights = run(bags, tmp_path, "--workers", "0")
    assert table.equals(whole[1])
    assert torch.equal(weights, whole[2])


def test_workers_change_nothing(whole, bags, tmp_path):
    table, weights = run(bags, tmp_path, "--workers", "2")
    assert table.equals(whole[1])
    assert torch.equal(weights, whole[2])


def test_a_tenth_of_the_tiles_validates():
    train, val = pretrain_simclr.split_tiles(50, pretrain_simclr.parse_args([*FLAGS.split(), "--logdir", "l"]))
    assert (len(train), len(val)) == (45, 5)
    assert sorted(np.concatenate([train, val])) == list(range(50))
    assert [len(batch) for batch in pretrain_simclr.batches(train, 11)] == [11] * 4  # a tile alone has no pair


def test_a_batch_of_one_tile_is_refused(bags, tmp_path):
    with pytest.raises(BadInput, match="-b 1: expected 2 tiles or more"):
        run(bags, tmp_path, "-b", "1")


def test_too_few_tiles_to_validate_are_refused(bags, tmp_path):
    with pytest.raises(BadInput, match="--val_share 0: leaves 0 of"):
        run(bags, tmp_path, "--val_share", "0")
