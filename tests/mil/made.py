"""Bags of scikit-learn's digits, positive where one is a 3, and the arguments of a round."""

import functools

import numpy as np
from sklearn.datasets import load_digits

from common import cli, runfolder
from mil import rounds
from mil.bags import Bags, unplaced

TARGET = 3
SHARES = (0.6, 0.8)  # of the digits, where training and validation end: no digit is in two splits


@functools.cache
def digits():
    found = load_digits()
    return (found.data / 16).astype(np.float32), found.target


def digit_bags(train: int, others: int, size: int = 20, seed: int = 0) -> dict[str, Bags]:
    """{"train", "val", "test"} of so many bags, every second one positive with one 3; features are 64 pixels."""
    pixels, target = digits()
    rng = np.random.default_rng(seed)
    parts = np.split(rng.permutation(len(target)), [int(share * len(target)) for share in SHARES])
    splits = {}
    for (name, n), part in zip({"train": train, "val": others, "test": others}.items(), parts, strict=True):
        threes, rest = part[target[part] == TARGET], part[target[part] != TARGET]
        labels = np.arange(n) % 2
        chosen = [rng.choice(rest, size) for _ in labels]
        for digits_of_bag, label in zip(chosen, labels, strict=True):
            if label:
                digits_of_bag[rng.integers(size)] = rng.choice(threes)
        splits[name] = Bags(
            [f"{name}_{i}" for i in range(n)],
            labels.astype(np.int64),
            [pixels[each] for each in chosen],
            [unplaced(size)] * n,
            [(target[each] == TARGET).astype(np.int8) for each in chosen],
        )
    return splits


def make_args(logdir, *flags):
    parser = cli.ArgumentParser()
    rounds.add_flags(parser, aliases=("-b",))
    runfolder.add_flags(parser)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(["--logdir", str(logdir), *map(str, flags)])
