"""A data set that trains in seconds, and the arguments of a run on it."""

import hashlib
import os

import numpy as np
import torch

import train
from common import cli, pictures, processes
from data import loaders
from models import needle

CPU = torch.device("cpu")


class Squares(torch.utils.data.Dataset):
    """Noise (1, 24, 24), positives with a bright 5 px square; labels alternate 1, 0. Dark ones have 9 x 9 px of it."""

    in_channels = 1
    outline, has_objects = pictures.EXAMPLE, False

    def __init__(self, n: int, seed: int, dtype=torch.float32, dark: bool = False):
        rng = np.random.default_rng(seed)
        self.labels = np.tile([1, 0], n)[:n]
        self.images = torch.from_numpy(rng.random((n, 1, 24, 24))).to(dtype) * 0.3
        for i in range(0, n, 2):
            y, x = rng.integers(0, 19, 2) // (4 if dark else 1)
            self.images[i, 0, y : y + 5, x : x + 5] = 1
        if dark:
            self.images[:, :, 9:], self.images[..., 9:] = 0, 0
        self.seed = seed

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], int(self.labels[i])

    def fingerprint(self):
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()


def make_args(logdir, *flags):
    parser = cli.ArgumentParser()
    loaders.add_flags(parser)
    loaders.add_balance_flags(parser)
    needle.add_flags(parser)
    train.add_flags(parser)
    defaults = ["--width", "-2", "--workers", "0", "-b", "8", "-e", "2", "--lr", "1e-3", "--device", "cpu"]
    return parser.parse_args([*defaults, "--logdir", str(logdir), *map(str, flags)])


def make_loaders(args, n=32, dtype=torch.float32, seed=0, dark=False):
    splits = {name: Squares(n, seed + k, dtype, dark) for k, name in enumerate(("train", "val", "test"))}
    labels = splits["train"].labels
    subset = loaders.training_subset(labels, args.num_examples, args.data_balance)
    draw = loaders.balanced_draws(labels, subset, args.seed)
    return loaders.make_loaders(splits, args, CPU, subset, draw, loaders.shrinkage(args.num_examples))


def make_model(args, seed=0):
    torch.manual_seed(seed)
    return needle.build_model(needle.ModelConfig.from_args(args, in_channels=1))


def fit(logdir, *flags, n=32, seed=0, dtype=torch.float32, dark=False):
    """Train on squares; returns the model and the best epoch's row."""
    args = make_args(logdir, *flags)
    device = processes.select(args.device, args.precision)
    model = make_model(args).to(dtype)
    return model, train.fit(model, make_loaders(args, n, dtype, seed, dark), args, device)


def assert_same_training(a, b, tolerance=1e-6):
    """Two runs from the same float64 start moved the weights alike, up to amplified rounding."""
    start = vector(make_model(make_args("unused")).double())
    moved = (a - start).norm()
    assert moved > 0
    assert (a - b).norm() / moved < tolerance


def vector(model):
    """All parameters as one float64 vector."""
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def environment(*folders, **more: str) -> dict[str, str]:
    """Of a child that imports from the folders too."""
    path = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **more}
