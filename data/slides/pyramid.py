"""Whole-slide images: files, pyramid levels, pixels. Beside deepzoom.py alone to use openslide.

A level-0 pixel is x0, y0; every array is indexed (y, x) in pixels of one level L, whose pixel (y, x) stands at the
level-0 position (2**L * y, 2**L * x). OpenSlide is asked for round(downsample * y), which is the same but where the
sides of a slide are no multiples of 2**L: there OpenSlide's downsample is slightly off and would shift the pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import BadInput
from common.files import open_input

SUFFIXES = (".tif", ".tiff")
MASK_ENDING = "_mask"  # of the name of a slide's mask, which may lie beside it
MAX_DOWNSAMPLE_ERROR = 1e-3
MAX_TILE = 2**12  # px
MAX_PAGES = 1000  # of a TIFF; slides have a dozen
TILE_SIDES = ("].tile-width", "].tile-height")


def find_files(folder: Path, layouts: tuple[str, ...], suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Stem -> the files of that name in the folder's sub-folders that match a layout, all sorted."""
    folders = sorted({path for layout in layouts for path in (folder.glob(layout) if layout else [folder])})
    found: dict[str, list[Path]] = {}
    for path in sorted(file for each in folders if each.is_dir() for file in each.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return dict(sorted(found.items()))


def check_level(path: Path, level: int, downsamples: Sequence[float]) -> None:
    """BadInput when a pyramid has no such level, or when its downsample is not 2**level within 0.1 %."""
    if level >= len(downsamples):
        raise BadInput(f"{path}: has no level {level}, only levels 0 to {len(downsamples) - 1}")
    if abs(downsamples[level] / 2**level - 1) > MAX_DOWNSAMPLE_ERROR:
        raise BadInput(f"{path}: level {level} is downsampled {downsamples[level]:.4g} times, expected {2**level}")


def check_pages(path: Path) -> None:
    """BadInput when a TIFF has more pages than a slide can have, as a chain that leads back into itself has."""
    with open_input(path) as file:
        order, size = {b"II": "little", b"MM": "big"}.get(file.read(2)), path.stat().st_size
        big = int.from_bytes(file.read(2), order or "little") == 43  # BigTIFF
        wide, pointer, tag = (8, 8, 20) if big else (2, 4, 12)  # bytes: number of tags, offset, a tag
        at = (8 if big else 4) if order else size
        for _ in range(MAX_PAGES + 1):  # at: where the page's offset stands
            file.seek(at)
            page = int.from_bytes(file.read(pointer), order or "little")
            if not 0 < page < size:
                return
            file.seek(page)
            at = min(size, page + wide + tag * int.from_bytes(file.read(wide), order))
    raise BadInput(f"{path}: has more than {MAX_PAGES:,} pages, or some that lead back to others; slides have a dozen")


class Slide:
    """One level of an open slide; a context manager.

    `shape` is (H, W) of the level, `mpp` the level-0 microns per pixel or None, `tile` the side of a stored tile,
    `downsamples` how many times narrower than level 0 each level is.
    BadInput: not readable (also while reading a damaged part), no such level, downsample not 2**level within 0.1 %.
    """

    def __init__(self, path: Path, level: int):
        import openslide

        self.path, self.level, self._error = Path(path), level, openslide.OpenSlideError
        check_pages(self.path)
        try:
            self._slide = openslide.OpenSlide(str(path))
        except (openslide.OpenSlideError, OSError) as error:
            raise BadInput(f"{path}: not readable as a slide: {error}") from None
        try:
            check_level(path, level, self._slide.level_downsamples)
        except BadInput:
            self._slide.close()
            raise
        self.downsamples = self._slide.level_downsamples
        width, height = self._slide.level_dimensions[level]
        self.shape = height, width
        self.mpp = self._mpp()
        self.tile = self._tile()
        colour = self._slide.properties.get("openslide.background-color", "ffffff")
        self._background = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)], np.uint16)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def _tile(self):
        """The width of a stored tile. BadInput when a tile of any level is larger than a slide's can sensibly be."""
        sides = {name: int(value) for name, value in self._slide.properties.items() if name.endswith(TILE_SIDES)}
        if max(sides.values(), default=0) > MAX_TILE:
            self._slide.close()
            raise BadInput(f"{self.path}: stored in tiles of {max(sides.values())} px, expected up to {MAX_TILE}")
        return sides.get(f"openslide.level[{self.level}].tile-width", 512)

    def _mpp(self):
        text = self._slide.properties.get("openslide.mpp-x")
        try:
            return float(text) if text and float(text) > 0 else None
        except ValueError:
            return None

    def read(self, y: int, x: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (height, width, 3) uint8 over the slide's background colour, and which are unscanned (bool).

        Unscanned: alpha 0 or RGB sum 0, before compositing. What lies outside the slide counts as unscanned.
        """
        downsample = self._slide.level_downsamples[self.level]
        rgba = self._read_rgba((round(x * downsample), round(y * downsample)), self.level, (width, height))
        red, green, blue, alpha = np.moveaxis(rgba, -1, 0)
        return self._composite(rgba), (alpha == 0) | (red | green | blue == 0)

    def thumbnail(self, step: int) -> np.ndarray:
        """Every step-th pixel of this level, (ceil(H / step), ceil(W / step), 3) uint8, from the coarsest fit level."""
        height, width = (-(-side // step) for side in self.shape)
        level = self._slide.get_best_level_for_downsample(step * 2**self.level * 1.001)
        downsample = self._slide.level_downsamples[level]
        rows, columns = ((np.arange(n) * (step * 2**self.level / downsample)).astype(int) for n in (height, width))
        image = np.empty((height, width, 3), np.uint8)
        for band in np.array_split(np.arange(height), -(-int(rows[-1] + 1) // 512)):
            top, bottom = rows[band[0]], rows[band[-1]]
            corner, size = (0, int(top * downsample)), (int(columns[-1]) + 1, int(bottom - top) + 1)
            image[band] = self._composite(self._read_rgba(corner, level, size))[rows[band] - top][:, columns]
        return image

    def averaged(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The means of squares of step x step pixels, (H // step, W // step, 3) uint8, and which squares are unscanned.

        They are where half of their pixels are: single black ones lie in dark nuclei. Read in parts of a megapixel.
        """
        height, width = (side // step for side in self.shape)
        image, unscanned = np.empty((height, width, 3), np.uint8), np.empty((height, width), bool)
        most = max(1, 1024 // step)  # squares a part
        for y in range(0, height, most):
            for x in range(0, width, most):
                part = slice(y, min(y + most, height)), slice(x, min(x + most, width))
                rows, columns = (axis.stop - axis.start for axis in part)
                pixels, missing = self.read(y * step, x * step, rows * step, columns * step)
                image[part] = pixels.reshape(rows, step, columns, step, 3).mean(axis=(1, 3)).round()
                unscanned[part] = missing.reshape(rows, step, columns, step).mean(axis=(1, 3)) >= 0.5
        return image, unscanned

    def _read_rgba(self, corner, level, size):
        try:
            return np.asarray(self._slide.read_region(corner, level, size))
        except self._error as error:
            raise BadInput(f"{self.path}: damaged near level-0 pixel {corner}: {error}") from None

    def _composite(self, rgba):
        alpha = rgba[..., 3:]
        if alpha.min() == 255:
            return rgba[..., :3]
        mixed = rgba[..., :3].astype(np.uint16) * alpha + self._background * (255 - alpha.astype(np.uint16))
        return ((mixed + 127) // 255).astype(np.uint8)
