"""Small folders of images to train and test on."""

import numpy as np
from PIL import Image
from skimage import data
from torch import nn

from models import near_duplicates, paired_autoencoder
from retrieval.manipulate import Manipulator


def tissue(y: int, x: int, side: int = 128) -> np.ndarray:
    """A square of scikit-image's picture of tissue, (side, side, 3) uint8."""
    return data.immunohistochemistry()[y : y + side, x : x + side]


def write_images(folder, n: int, side: int = 128, ending: str = ".png"):
    """Write n squares of tissue that do not overlap, up to 16; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(tissue(side * (i // 4), side * (i % 4), side)).save(folder / f"image_{i:02}{ending}")
    return folder


def write_groups(folder, n: int, ending: str = ".png", files: int = 2):
    """Write n groups of a square of tissue and its manipulated copies; returns the folder."""
    make = Manipulator()
    for i in range(n):
        group = folder / f"group_{i:02}"
        group.mkdir(parents=True)
        square = np.asarray(Image.fromarray(tissue(128 * (i // 4), 128 * (i % 4))).resize((256, 256)))
        for k in range(files):
            copy = make(square, np.random.default_rng((i, k)))
            Image.fromarray(copy[k > 0]).save(group / f"{'abc'[k]}{ending}")
    return folder


def shrink_networks(monkeypatch) -> None:
    """Let the networks have few channels and a ResNet's trunk eight small modules."""
    monkeypatch.setattr(paired_autoencoder, "HIDDEN", 16)
    monkeypatch.setattr(paired_autoencoder, "DIM", 8)
    monkeypatch.setattr(near_duplicates, "_trunk", _small_trunk)
    monkeypatch.setattr(near_duplicates, "CHANNELS", {"resnet50": 8})
    monkeypatch.setattr(near_duplicates, "DIM", 16)


def _small_trunk(base):
    stages = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(4))
    return nn.Sequential(nn.Conv2d(3, 8, 7, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4), *stages)
