"""Where a slide holds tissue: cells of 3 x 3 coarse pixels, each 768 px of x40 wide, that lie in it as a whole."""

import argparse

import numpy as np

from common import cli

CELL = 3  # coarse pixels
LARGE = 120  # cells along the longer side, from which on the border of CAMELYON16's slides is left out
TALL = 700  # coarse pixels, from which on a slide's upper, lower and left border differ


def border(text: str) -> str | int:
    """Parse "auto" or a number of coarse pixels (an argparse type)."""
    try:
        return text if text == "auto" else cli.natural(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected auto or a whole number of 0 or more, got {text!r}") from None


def without_border(mask: np.ndarray, width: str | int) -> np.ndarray:
    """The mask bool (h, w) without a border of this width, in coarse pixels.

    "auto" is what suits CAMELYON16: of slides of more than 120 cells 30 on every side or, where they are more than 700
    high, 100 above and below and 50 on the left; of smaller ones nothing.
    """
    height = len(mask)
    if width == "auto":
        large, tall = max(mask.shape) > CELL * LARGE, height > TALL
        top, left, right = (100, 50, 0) if large and tall else (30 * large,) * 3
    else:
        top = left = right = width
    inside = np.zeros_like(mask)
    inside[top : max(0, height - top), left : max(0, mask.shape[1] - right)] = True
    return mask & inside


def tissue_mask(image: np.ndarray, unscanned: np.ndarray, width: str | int) -> np.ndarray:
    """Tissue, bool (h, w), of a coarse picture (h, w, 3) uint8: what is not brighter than Otsu's threshold, scanned,
    inside the border and left by an opening of 3 x 3."""
    from scipy.ndimage import binary_opening
    from skimage.color import rgb2gray
    from skimage.filters import threshold_otsu

    if unscanned.all():
        return np.zeros(unscanned.shape, bool)
    grey = rgb2gray(image)
    scanned = grey[~unscanned]
    if scanned.min() == scanned.max():  # one colour: glass
        return np.zeros(unscanned.shape, bool)
    dark = (grey <= threshold_otsu(scanned)) & ~unscanned
    return binary_opening(without_border(dark, width), np.ones((3, 3)))


def full_cells(mask: np.ndarray) -> np.ndarray:
    """Row and column (N, 2) of the cells that a mask bool (h, w) fills, in raster order."""
    rows, columns = (side // CELL for side in mask.shape)
    cells = mask[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL).all(axis=(1, 3))
    return np.argwhere(cells)
