"""No tensor is left on the CPU when another device computes. It is "meta" here, which refuses to mix with others."""

import pytest
import torch

import train
from data.loaders import Step
from models import background
from models.saliency import saliency_maps
from tests.synthetic import make_args, make_model

META = torch.device("meta")
POOLINGS = pytest.mark.parametrize("pooling", ["max", "mean", "attention", "logsumexp"])


def make_run(*flags):
    args = make_args("unused", *flags)
    return train.start(make_model(args), args, META)


def dark_images():
    """On the CPU, mostly background."""
    images = torch.zeros(2, 1, 96, 96)
    images[:, :, 20:40, 30:50] = 1
    return images


def test_the_device_refuses_what_is_elsewhere():
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device=META) + torch.ones(2)


@POOLINGS
@pytest.mark.parametrize("flags", [("--opt", "momentum"), ("--opt", "adam"), ("--checkpoint_activations",)])
def test_training_steps_stay_on_the_device(pooling, flags):
    run = make_run("--pooling", pooling, *flags)
    batch = torch.rand(4, 1, 24, 24), torch.tensor([0, 1, 0, 1])
    counts = train.step(run, Step(iter([batch]), [3], 3))
    moments = [value for state in run.optimizer.state.values() for value in state.values() if value.dim()]
    assert {t.device for t in (counts, *run.model.parameters(), *moments)} == {META}


@POOLINGS
def test_rows_stay_on_the_device(pooling, monkeypatch):
    model = make_run("--pooling", pooling, "--background", "rows").model
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
    monkeypatch.setattr(background, "row_counts", lambda actives: [2000] * len(actives))  # which meta can't tell
    assert background.logits(model, dark_images().to(META)).device == META


@POOLINGS
def test_saliency_stays_on_the_device(pooling):
    results = saliency_maps(make_run("--pooling", pooling, "--background", "dense").model, dark_images().to(META))
    assert {t.device for t in results} == {META}
