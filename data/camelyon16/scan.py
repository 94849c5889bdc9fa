"""Slides in pixels of x40, 0.25 um wide, at whatever magnification they were scanned."""

import math
from pathlib import Path

import numpy as np

from common.errors import BadInput
from data.slides.pyramid import MAX_DOWNSAMPLE_ERROR, SUFFIXES, Slide, find_files

X40_UM = 0.25  # per pixel
COARSE = 8  # level of x40 at which tissue and lesions are drawn: a pixel is 256 px wide


def find_scans(folder: Path, flag: str) -> dict[str, Path]:
    """Name -> slide, of a folder. BadInput names flag and folder when there is none, or two of a name."""
    found = find_files(folder, ("",), (*SUFFIXES, ".svs"))
    if not found:
        raise BadInput(f"--{flag} {folder}: no .tif or .svs slides in it")
    double = next((paths for paths in found.values() if len(paths) > 1), None)
    if double:
        raise BadInput(f"--{flag} {folder}: expected one slide of a name, found " + " and ".join(map(str, double)))
    return {name: paths[0] for name, paths in found.items()}


class Scan:
    """An open slide; a context manager.

    `shape` is (H, W) in pixels of x40, `factor` how many of them a scanned pixel is wide, 1 or 2, `coarse_level` the
    slide's own level of the coarse picture, `note` what had to be assumed, or None. BadInput: not readable, or scanned
    neither at x40 nor at x20.
    """

    def __init__(self, path: Path):
        self.path, self._slide = Path(path), Slide(path, 0)
        um = self._slide.mpp
        octave = 0 if um is None else round(math.log2(um / X40_UM))
        if octave not in (0, 1):
            self._slide.close()
            raise BadInput(f"{path}: scanned at {um:.4g} um per pixel, expected about 0.25 (x40) or 0.5 (x20)")
        self.factor, self.coarse_level = 2**octave, COARSE - octave
        self.shape = tuple(side * self.factor for side in self._slide.shape)
        notes = {"resolution is not stated, x40 assumed": um is None, "scanned at x20, scaled by 2": octave == 1}
        self.note = next((note for note, holds in notes.items() if holds), None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._slide.close()

    @property
    def coarse_shape(self) -> tuple[int, int]:
        """(h, w) of the coarse picture."""
        return tuple(side >> self.coarse_level for side in self._slide.shape)

    def read(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """Pixels (height, width, 3) uint8 of x40; bilinear between those of a slide scanned at x20."""
        if self.factor == 1:
            return self._slide.read(y, x, height, width)[0]
        from skimage.transform import rescale

        top, left, bottom, right = y // 2 - 1, x // 2 - 1, (y + height + 1) // 2 + 1, (x + width + 1) // 2 + 1
        image = self._slide.read(top, left, bottom - top, right - left)[0]
        image = rescale(image, 2, order=1, channel_axis=2, preserve_range=True).round().astype(np.uint8)
        y, x = y - 2 * top, x - 2 * left
        return image[y : y + height, x : x + width]

    def coarse(self) -> tuple[np.ndarray, np.ndarray]:
        """Level 8 of x40, (h, w, 3) uint8, and which of its pixels are not scanned, bool.

        Where the slide lacks the level, the nearest finer one is averaged.
        """
        downsamples = enumerate(self._slide.downsamples[: self.coarse_level + 1])
        level = max(i for i, factor in downsamples if abs(factor / 2**i - 1) <= MAX_DOWNSAMPLE_ERROR)
        with Slide(self.path, level) as slide:
            image, unscanned = slide.averaged(2 ** (self.coarse_level - level))
        height, width = self.coarse_shape  # a stored level may be rounded up
        return image[:height, :width], unscanned[:height, :width]
