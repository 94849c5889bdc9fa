"""The tracker is for who has one: no run needs it, its package or its key."""

import sys
import types

import pytest

from common.errors import BadInput
from mil.tracker import KEY, Tracker


@pytest.fixture
def comet(monkeypatch):
    """A package in place of comet_ml; returns what is logged to it."""
    logged = []
    experiment = types.SimpleNamespace(log_metrics=lambda found, epoch: logged.append((epoch, found)))
    monkeypatch.setitem(sys.modules, "comet_ml", types.SimpleNamespace(start=lambda project_name: experiment))
    return logged


def test_without_a_tracker_nothing_is_logged(comet, monkeypatch):
    monkeypatch.setenv(KEY, "key")
    Tracker("none", "run").log({"epoch": 1})
    assert comet == []


def test_without_its_package_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    with pytest.raises(BadInput, match=r"--tracker comet: needs the package comet_ml \(pip install comet_ml\)"):
        Tracker("comet", "run")


def test_without_a_key_the_run_goes_on(comet, monkeypatch, capsys):
    monkeypatch.delenv(KEY, raising=False)
    Tracker("comet", "run").log({"epoch": 1, "loss": 0.5})
    assert f"{KEY} is not set; logging to stats.csv and TensorBoard alone" in capsys.readouterr().err
    assert comet == []


def test_without_a_network_the_run_goes_on(comet, monkeypatch, capsys):
    def start(project_name):
        raise ConnectionError("no route to host")

    monkeypatch.setenv(KEY, "key")
    monkeypatch.setattr(sys.modules["comet_ml"], "start", start)
    Tracker("comet", "run").log({"epoch": 1, "loss": 0.5})
    assert "no route to host; logging to stats.csv and TensorBoard alone" in capsys.readouterr().err


def test_with_a_key_the_finite_numbers_of_an_epoch_are_logged(comet, monkeypatch):
    monkeypatch.setenv(KEY, "key")
    Tracker("comet", "run").log({"epoch": 2, "loss": 0.5, "auc": float("nan")})
    assert comet == [(2, {"epoch": 2, "loss": 0.5})]
