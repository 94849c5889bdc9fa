"""Another loop than the classifier's runs, stops, goes on and is logged through the same folder."""

import argparse
import os
import signal

import pandas as pd
import pytest
import torch
from torch import nn

from common import checkpoint, signals
from common.errors import BadInput, WorkFailed
from common.optimizers import Resumable
from common.runfolder import RunFolder
from tests.reliability.harness import events

STEPS = 3  # of a stage
COLUMNS = {"epoch": None, "distance": "val/distance", "lowest": None, "seconds": None}
PARTS = ("encoder", "generator", "critic")


class Trio:
    """Three networks that learn a number in turn, each with an optimiser, and a history of their gradients."""

    def __init__(self):
        torch.manual_seed(0)
        self.parts = {name: nn.Linear(1, 1) for name in PARTS}
        self.optimizers = {name: torch.optim.Adam(part.parameters(), 0.1) for name, part in self.parts.items()}
        self.norms = []

    def state(self):
        moments = {f"{name}_optimizer": Resumable(optimizer) for name, optimizer in self.optimizers.items()}
        return self.parts | moments | {"norms": self}

    def state_dict(self):
        return {"norms": self.norms}

    def load_state_dict(self, saved):
        self.norms = list(saved["norms"])

    def step(self):
        """Learn from a draw; returns its losses, one for each part."""
        losses = []
        for name, part in self.parts.items():
            loss = (part(torch.rand(8, 1)) - 3).square().mean()
            loss.backward()
            self.norms.append(float(part.weight.grad.norm()))
            self.optimizers[name].step()
            self.optimizers[name].zero_grad()
            losses.append(loss.detach().double())
        return torch.stack(losses)

    def distance(self):
        return abs(self.parts["critic"](torch.ones(1)).item() - 3)


def open_folder(logdir, trio, minutes=1e9, **changes):
    args = argparse.Namespace(logdir=logdir, checkpoint_minutes=minutes, signal=None, seed=7)
    settings = {"latent": 16} | changes
    best = ("distance", min)
    return RunFolder(args, settings, trio.state(), COLUMNS, PARTS, best, STEPS, kept=PARTS, advice="lower the rate")


def run(logdir, stages=4, stop_at=None, close_enough=0.0, **options):
    """Train the trio; SIGTERM comes as step number `stop_at` is taken."""
    trio, taken = Trio(), 0
    with open_folder(logdir, trio, **options) as folder:
        for _ in folder.epochs(stages):
            for _ in folder.steps(range(STEPS - folder.done)):
                taken += 1
                if taken == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                folder.count(trio.step())
            distance = trio.distance()
            folder.end_epoch({"distance": distance, "lowest": min(folder.sums.values())})
            if distance < close_enough:
                folder.finish()
    return folder, trio


def content(logdir):
    """All of a folder that must not depend on when it was stopped."""
    table = pd.read_csv(logdir / "stats.csv").drop(columns="seconds")
    saved = [checkpoint.load(logdir / name) for name in (checkpoint.LATEST, checkpoint.BEST)]
    weights = [tensor for each in saved for part in PARTS for tensor in each[part].values()]
    return table.to_csv(), [tensor.tolist() for tensor in weights], saved[0]["norms"], events(logdir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("whole")
    run(logdir)
    return logdir


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 11])
def test_stopped_at_any_step_it_ends_as_if_it_had_not_been(whole, tmp_path, stop_at):
    with pytest.raises(signals.Terminated):
        run(tmp_path, stop_at=stop_at)
    saved = checkpoint.load(tmp_path / checkpoint.LATEST)
    stages, steps = divmod(stop_at - 1, STEPS)
    assert (len(saved["history"]), saved["progress"]["steps"]) == (stages, steps + 1)
    run(tmp_path)
    assert content(tmp_path) == content(whole)


def test_the_best_epoch_is_the_one_with_the_least_score(whole):
    table = pd.read_csv(whole / "stats.csv")
    assert list(table.columns) == list(COLUMNS)
    best = checkpoint.load(whole / checkpoint.BEST)
    assert best["epoch"] == table.epoch[table.distance.idxmin()]
    assert set(best) == {*PARTS, "epoch"}


def test_scores_of_stages_are_logged_under_their_tags(whole):
    found = events(whole)
    assert {step for tag, step in found if tag == "val/distance"} == {1, 2, 3, 4}
    assert {step for tag, step in found if tag == "critic"} == set(range(1, 13))


def test_a_run_that_finishes_early_is_complete(tmp_path, capsys):
    folder, _ = run(tmp_path, stages=9, close_enough=1e9)
    assert len(folder.history) == 1
    before = (tmp_path / checkpoint.LATEST).read_bytes()
    again, _ = run(tmp_path, stages=9, close_enough=1e9)
    assert "complete after epoch 1" in capsys.readouterr().out
    assert again.best == folder.best
    assert (tmp_path / checkpoint.LATEST).read_bytes() == before


def test_other_settings_are_refused_by_name(whole):
    with pytest.raises(BadInput, match=r"differs in latent 16 \(now 8\)"):
        run(whole, latent=8)


def test_a_sum_that_is_not_finite_stops_the_run_with_its_name_and_step(tmp_path, monkeypatch):
    step = Trio.step

    def diverge(trio):
        losses = step(trio)
        if len(trio.norms) == 5 * len(PARTS):
            losses[1] = torch.inf
        return losses

    monkeypatch.setattr(Trio, "step", diverge)
    with pytest.raises(WorkFailed, match="epoch 2, step 2: the generator is not finite; lower the rate in a new"):
        run(tmp_path)
    assert checkpoint.load(tmp_path / checkpoint.LATEST)["epoch"] == 1


def test_no_checkpoint_is_said_to_be_kept_where_none_was_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(Trio, "step", lambda trio: torch.full((len(PARTS),), torch.nan, dtype=torch.float64))
    with pytest.raises(WorkFailed, match=r"epoch 1, step 1: the \w+ is not finite; lower the rate; nothing was saved"):
        run(tmp_path)
    assert not (tmp_path / checkpoint.LATEST).exists()


def test_what_was_saved_at_an_epochs_end_outlasts_a_kill_there(whole, tmp_path):
    class Killed(Exception):
        """Nothing sees to the folder any more."""

    trio = Trio()
    with pytest.raises(Killed), open_folder(tmp_path, trio) as folder:
        for _ in folder.epochs(4):
            for _ in folder.steps(range(STEPS)):
                folder.count(trio.step())
            folder.save()
            raise Killed
    assert checkpoint.load(tmp_path / checkpoint.LATEST)["progress"]["steps"] == STEPS
    run(tmp_path)
    assert content(tmp_path) == content(whole)
