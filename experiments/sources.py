"""What the data of a sweep are made of: the digits behind nMNIST, the folders of crops; and whether a run saw them."""

import functools
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from common import cli
from common.files import open_input
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from data.cluttered_mnist import digits

NEEDLE = 3  # generate_data.py's --digit


class DigitSource(NamedTuple):
    """What nMNIST is made of: "" for MNIST itself, else how folders and labels call it; its needles for training."""

    name: str
    needles: int
    content: str  # as `mnist` in a data set's args.json


MNIST = DigitSource("", 5638, "ac596f41042addd5")


def absolute(source: str) -> str:
    """A `--mnist` as commands started elsewhere find it."""
    return source if source == "digits" else str(Path(os.path.expanduser(source)).absolute())  # noqa: PTH111


@functools.cache
def digits_of(source: str) -> DigitSource:
    """The digits of a `--mnist`; those of a folder that is not there yet are MNIST's, which are downloaded."""
    if source != "digits" and not Path(source).exists():
        return MNIST
    splits = digits.load(source)
    needles, content = int((splits["train"].labels == NEEDLE).sum()), digits.content_digest(splits)
    name = "" if content == MNIST.content else "digits" if source == "digits" else content[:8]
    return DigitSource(name, needles, content)


@functools.cache
def crops_digest(positives: Path, negatives: Path) -> str:
    """Of which crops lie in two folders, wherever these are: of their tables; the first release's have none."""
    content = hashlib.sha256()
    for path in (positives / "crops.csv", negatives / "crops.csv"):
        if path.exists():
            with open_input(path) as file:
                content.update(file.read())
        content.update(b"\0")
    return content.hexdigest()[:8]


@functools.cache
def fingerprint(data_flags: tuple[str, ...], seed: int | None) -> str:
    """Of the data that flags of training name, as the config.json of a run has it; the seed chooses among crops.

    BadInput when they are not there, or damaged.
    """
    data = mnist if seed is None else camelyon
    parser = cli.ArgumentParser()
    data.add_flags(parser)
    args = parser.parse_args(data_flags)
    args.seed = seed
    splits = data.load_splits(args)
    return " ".join(splits[name].fingerprint() for name in ("val", "train", "test"))
