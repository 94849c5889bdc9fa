"""One random stream -> where every digit of every canvas goes. Bounds are exclusive throughout."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.errors import BadInput
from data.cluttered_mnist.digits import SIDE
from data.cluttered_mnist.render import MAX_SIDE


def default_clutter(canvas: int) -> int:
    """Clutter digits that keep the density of Pawlowski 2019's 25 digits on 256x256 px, at least 2."""
    return max(2, round(25 * (canvas / 256) ** 2))


@dataclass(frozen=True)
class Layout:
    """What decides where digits may go; lengths in px of the canvas before `--scale`.

    patch_size 0 and location -1 mean no grid and no bound. Errors: BadInput names the flag.
    """

    canvas: int
    clutter: int
    patch_size: int = 0
    center_patch: bool = False
    location: int = -1
    clutter_side: int = SIDE

    def __post_init__(self):
        if not SIDE < self.canvas <= MAX_SIDE:
            raise BadInput(f"--canvas {self.canvas}: expected more than {SIDE}, the side of a digit, up to {MAX_SIDE}")
        if 0 < self.patch_size <= SIDE:
            raise BadInput(f"--patch-size {self.patch_size}: expected 0 or more than {SIDE}, the side of a digit")
        if self.patch_size and self.canvas % self.patch_size:
            raise BadInput(f"--patch-size {self.patch_size}: does not divide --canvas {self.canvas}")
        if self.location != -1 and self.location < 1:
            raise BadInput(f"--distortion-location {self.location}: expected -1 (anywhere) or 1 or more")
        if not 0 < self.clutter_side < self.canvas:
            found = f"{self.clutter_side} px clutter on --canvas {self.canvas}"
            raise BadInput(f"--distortion-scale makes {found}, expected 1 to {self.canvas - 1} px")


def draw_split(rng: np.random.RandomState, layout: Layout, pool: int, images: int) -> Iterator[tuple]:
    """Yield (y, x, clutter) of every image of a split, positives at even indices, advancing the stream.

    Args:
        pool: number of clutter digits to choose from.
    Yields: the needle's top-left (y, x), drawn for negatives too, and clutter (k, 3) int64, rows of pool index,
        top-left y, top-left x in the order drawn; k is layout.clutter, one more for negatives.
    """
    span = layout.canvas - layout.clutter_side
    for index in range(images):
        y, x = _draw_needle(rng, layout)
        k = layout.clutter + index % 2
        clutter = np.empty((k, 3), np.int64)
        clutter[:, 0] = rng.randint(pool, size=k)
        clutter[:, :0:-1] = rng.randint(span, size=(k, 2))  # per digit the column comes first
        yield y, x, clutter


def _draw_needle(rng, layout):
    """Top-left (y, x) of the needle: a grid cell and an offset inside it, or anywhere below the bound."""
    if layout.patch_size == 0:
        span = layout.canvas - SIDE
        if layout.location != -1:
            span = min(span, layout.location)
        return rng.randint(span), rng.randint(span)
    cells = layout.canvas // layout.patch_size
    row = column = cells // 2
    if not layout.center_patch:
        row, column = rng.randint(cells), rng.randint(cells)
    span = layout.patch_size - SIDE
    return row * layout.patch_size + rng.randint(span), column * layout.patch_size + rng.randint(span)
