"""What a sweep takes before it is started: images, hours and disk."""

import functools
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments import runs
from experiments.figures import CROP_DATA, Point
from experiments.runs import Trial
from models import needle

CROPS = 10000  # training crops a run is taken to have: Pawlowski 2019's Table 2 lists 1,000 to 11,750
EVALUATION = 1.25  # images pass the network this many times as often as in training alone
DIGITS = 55e6  # bytes of the digits in a data set's folder


def network(point: Point):
    """The point's network without memory for its weights."""
    channels, kernel3 = 3 if point.data in CROP_DATA else 1, needle.parse_kernel3(str(point.receptive_field))
    with torch.device("meta"):
        return needle.build_model(needle.ModelConfig(channels, kernel3, point.width, point.pooling))


@functools.cache
def flop_per_image(point: Point) -> float:
    """Of a training step, dense, on a canvas of 64 px: three times the forward pass. It grows with the area."""
    model = network(point)
    with FlopCounterMode(display=False) as counter:
        model.image_logits(model.cnn(torch.zeros(1, model.config.in_channels, 64, 64, device="meta")))
    return 3 * counter.get_total_flops()


def images(run: Trial) -> int:
    """Training images over all epochs."""
    return run.epochs * (run.point.num_examples or CROPS)


def left(run: Trial) -> float:
    """The share of the run's epochs that is still to come."""
    rows = runs.history(run)
    return 1 - (0 if rows is None else len(rows)) / run.epochs


def hours(run: Trial) -> float:
    """Of the whole run, on one device that sustains the setting's TFLOP/s."""
    setting = run.setting
    area = (run.point.canvas * setting.scale / 64) ** 2
    flop = flop_per_image(replace(_shape(run.point), pooling="max"))  # the poolings hardly differ
    return EVALUATION * images(run) * flop * area / (setting.tflops * 1e12) / 3600


def disk(todo: list[Trial]) -> int:
    """Bytes of data sets, checkpoints (weights twice, optimiser state once) and TensorBoard files."""
    data = {runs.data_name(r.point, r.setting, r.places): r for r in todo if r.point.data == "nmnist"}
    recipes = sum(DIGITS + 14282 * r.setting.duplicates * 6 * runs.clutter(r.point, r.setting) for r in data.values())
    return int(recipes + sum(12 * parameters(_shape(run.point)) + 3e6 for run in todo))


@functools.cache
def parameters(point: Point) -> int:
    return sum(p.numel() for p in network(point).parameters())


def _shape(point):
    """What decides a network."""
    return Point(data=point.data, receptive_field=point.receptive_field, pooling=point.pooling, width=point.width)
