"""Square tiles of an image: where they lie, their pixels, and which hold the object."""

import numpy as np
from torch import Tensor


def starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin along a side of this length; the last one is flush with the edge. Empty when none fits."""
    if length < tile:
        return []
    found = list(range(0, length - tile + 1, stride))
    return found if found[-1] == length - tile else [*found, length - tile]


def corners(height: int, width: int, tile: int, stride: int) -> np.ndarray:
    """Upper left corners (N, 2) int64, y and x, of an image's tiles, row by row."""
    found = [(y, x) for y in starts(height, tile, stride) for x in starts(width, tile, stride)]
    return np.array(found, np.int64).reshape(-1, 2)


def cut(image: Tensor, corners: np.ndarray, tile: int) -> Tensor:
    """The tiles (N, C, tile, tile) of an image (C, H, W) at these corners."""
    windows = image.unfold(1, tile, 1).unfold(2, tile, 1)  # (C, H - tile + 1, W - tile + 1, tile, tile), a view
    return windows[:, corners[:, 0], corners[:, 1]].movedim(1, 0)


def object_share(mask: np.ndarray, corners: np.ndarray, tile: int) -> np.ndarray:
    """Share (N,) float64 of each tile's pixels that a mask, bool (H, W), marks."""
    return np.array([mask[y : y + tile, x : x + tile].mean() for y, x in corners])


def holds_object(mask: np.ndarray, corners: np.ndarray, tile: int, least: float = 0.0) -> np.ndarray:
    """Which tiles (N,) bool hold the object: `least` of their pixels, any pixel for 0; the fullest one always does."""
    share = object_share(mask, corners, tile)
    return (share > 0) & ((share >= least) | (share == share.max()))
