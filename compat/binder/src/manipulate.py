"""BINDER's Manipulator, from compat/binder: `from src.manipulate import Manipulator`; pairs of PIL images."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from compat.binder.src import translate
from data import photos
from retrieval import manipulate


class Manipulator(manipulate.Manipulator):
    """`Manipulator("manipulations.yaml")(img)` -> anchor and copy, 128 px; a seed makes the draws repeatable."""

    def __init__(self, config: str = "manipulations.yml", seed: int | None = None):
        super().__init__(translate.table(config))
        self.rng = np.random.default_rng(seed)

    def __call__(self, img: Image.Image) -> tuple[Image.Image, Image.Image]:
        pair = super().__call__(_pixels(img), self.rng)
        return Image.fromarray(pair[0]), Image.fromarray(pair[1])


def _pixels(img):
    """(H, W, 3) uint8 of a PIL image; 16 bits are scaled, an alpha channel is dropped."""
    if img.mode not in ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I", "F"):
        img = img.convert("RGB")
    pixels = np.asarray(img)
    deep = pixels.dtype == np.int32 and 0 <= pixels.min() <= pixels.max() < 2**16  # of 16 bits, as PIL may open them
    return photos.to_rgb(pixels.astype(np.uint16) if deep else pixels, "the image")
