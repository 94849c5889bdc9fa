"""Masks -> the exact set of valid crop positions -> seeded draws. Arrays in, arrays out; (y, x) in level pixels.

A crop of side S holds a lesion when its top-left lies in [bottom - S, top] x [right - S, left], cut to the level: at
most S * S positions. Running sums along rows, then columns, count lesion and unscanned pixels at all of them at once.
"""

import hashlib
from typing import NamedTuple

import numpy as np

# Reasons for which a lesion, or a position tried for a negative, is rejected
TOO_LARGE, TOO_SMALL = "lesion rejected: too large for the range", "lesion rejected: too small for the range"
NONE_BETWEEN = "lesion rejected: neighbouring lesions leave no position in the range"
LEVEL_TOO_SMALL = "lesion rejected: the slide is smaller than a crop"
ALL_UNSCANNED = "lesion rejected: every position holds unscanned pixels"
UNSCANNED, BACKGROUND = "position rejected: holds unscanned pixels", "position rejected: mean green above 200"
MAX_MEAN_GREEN = 200  # Pawlowski 2019, appendix A.2


class Box(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of a level."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


def generator(seed: int, slide: str, lesion: int = 0) -> np.random.Generator:
    """The random stream of one lesion of one slide (lesion 0: of the slide's negatives), whatever else is drawn."""
    digest = hashlib.sha256(f"{seed}/{slide}/{lesion}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def window_sums(flags: np.ndarray, size: int) -> np.ndarray:
    """Number of True pixels in every size x size window: bool (H, W) -> int32 (H - size + 1, W - size + 1)."""
    return _row_sums(_row_sums(flags, size).T, size).T


def _row_sums(counts, size):
    """Sums of every `size` neighbours of a row: (H, W) -> int32 (H, W - size + 1)."""
    table = np.zeros((counts.shape[0], counts.shape[1] + 1), np.int32)
    np.cumsum(np.ascontiguousarray(counts), axis=1, out=table[:, 1:])  # along memory: five times faster
    return table[:, size:] - table[:, :-size]


def placements(lesion, size: int, shape: tuple[int, int]) -> Box | str:
    """Top-lefts of the crops in a level of this shape that hold the lesion's bounding box, or why there are none."""
    if lesion.bottom - lesion.top > size or lesion.right - lesion.left > size:
        return TOO_LARGE
    if size > min(shape):
        return LEVEL_TOO_SMALL
    top, left = max(0, lesion.bottom - size), max(0, lesion.right - size)
    return Box(top, min(lesion.top, shape[0] - size) + 1, left, min(lesion.left, shape[1] - size) + 1)


def in_range(counts: np.ndarray, size: int, low: float, high: float) -> np.ndarray | str:
    """Which positions hold a lesion share strictly between low and high, bool; or why none does."""
    share = counts / size**2
    valid = (share > low) & (share < high)
    if valid.any():
        return valid
    if (share >= high).all():
        return TOO_LARGE
    return TOO_SMALL if (share <= low).all() else NONE_BETWEEN


def size_that_fits(areas: np.ndarray, sides: np.ndarray, low: float, high: float) -> tuple[int, int]:
    """The crop size at which most lesions, each by itself, can lie in the range, and how many: (0, 0) when none can.

    Args:
        areas, sides: (N,) pixels of each lesion, and the longer side of its bounding box.
    """
    least = np.maximum(sides, np.floor(np.sqrt(areas / high)).astype(np.int64) + 1)  # of the sizes that fit each
    most = np.ceil(np.sqrt(areas / max(low, 1e-12))).astype(np.int64) - 1
    least, most = np.sort(least[least <= most]), np.sort(most[least <= most])
    fitting = np.searchsorted(least, least, "right") - np.searchsorted(most, least, "left")  # begun, not yet over
    best = int(fitting.argmax()) if len(least) else None
    return (0, 0) if best is None else (int(least[best]), int(fitting[best]))


def bounding_box(flags: np.ndarray) -> Box:
    """The smallest box around the True entries of a 2-D array that has some."""
    rows, columns = (np.flatnonzero(flags.any(axis=axis)) for axis in (1, 0))
    return Box(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def draw_positions(valid: np.ndarray, k: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """k uniform positions (k, 2) among the True entries of a 2-D array, and how many of them repeat another.

    Without replacement; with fewer than k entries, each is used k // n times and some once more.
    """
    entries = np.flatnonzero(valid)
    whole, rest = divmod(k, len(entries))
    chosen = np.concatenate([np.repeat(entries, whole), rng.choice(entries, rest, replace=False)])
    rng.shuffle(chosen)
    return np.stack(np.unravel_index(chosen, valid.shape), axis=1), max(0, k - len(entries))


def reason_against(image: np.ndarray, unscanned: np.ndarray) -> str | None:
    """Why a negative crop, uint8 (S, S, 3) and bool (S, S), is refused; None when it is good."""
    if unscanned.any():
        return UNSCANNED
    background = image[..., 1].sum(dtype=np.int64) > MAX_MEAN_GREEN * unscanned.size
    return BACKGROUND if background else None
