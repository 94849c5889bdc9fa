"""Tiles of a slide at any magnification: OpenSlide's DeepZoom pyramid, halved from level to level, without overlap."""

import math
from pathlib import Path

from common.errors import BadInput
from data.slides.pyramid import check_pages

POWER = "openslide.objective-power"


class DeepZoom:
    """An open slide in tiles; a context manager. BadInput: not a readable slide, no objective power known.

    Args:
        objective: magnification of a slide that does not say its own.
    """

    def __init__(self, path: Path, tile_size: int, objective: float | None = None):
        import openslide
        from openslide.deepzoom import DeepZoomGenerator

        self.path, self._error = Path(path), openslide.OpenSlideError
        check_pages(self.path)
        try:
            self._slide = openslide.OpenSlide(str(path))
        except (openslide.OpenSlideError, OSError) as error:
            raise BadInput(f"{path}: not readable as a slide: {error}") from None
        self._zoom = DeepZoomGenerator(self._slide, tile_size, overlap=0, limit_bounds=False)
        power = self._slide.properties.get(POWER) or objective
        if power is None:
            self._slide.close()
            raise BadInput(f"{path}: does not say its objective power; give --objective")
        self.objective = float(power)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._slide.close()

    def halvings(self, magnification: float) -> int:
        """How often the slide is halved to a magnification. BadInput where that is not a whole number, or too many."""
        times = math.log2(self.objective / magnification)
        n = round(times)
        if abs(times - n) > 0.1 or n < 0 or n >= self._zoom.level_count:
            raise BadInput(
                f"{self.path}: scanned at {self.objective:g}x, which halved cannot give {magnification:g}x; "
                f"see --base_mag and --magnifications"
            )
        return n

    def grid(self, halvings: int) -> tuple[int, int]:
        """Columns and rows of tiles."""
        return self._zoom.level_tiles[self._zoom.level_count - 1 - halvings]

    def read(self, halvings: int, column: int, row: int):
        """A tile as PIL's RGB; smaller at the right and bottom edges. BadInput near damage."""
        try:
            return self._zoom.get_tile(self._zoom.level_count - 1 - halvings, (column, row)).convert("RGB")
        except self._error as error:
            raise BadInput(f"{self.path}: damaged near tile {column}_{row}: {error}") from None
