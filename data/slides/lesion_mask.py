"""The lesions of a slide at one level, kept as runs of pixels per row.

Runs take memory in proportion to the length of the outlines, not to the area of the slide, so a level is never
held whole. Sweeping over crossings per pixel row makes the winding rule exact.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from common.errors import BadInput

MAX_CROSSINGS = 2**23  # of a slide's outlines, or of its mask's runs, with pixel rows; real ones have thousands


class Runs(NamedTuple):
    """Pixels [start, stop) of rows; three int64 arrays sorted by row, then start; runs of a row never touch."""

    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


NO_RUNS = Runs(*(np.empty(0, np.int64) for _ in range(3)))


def sweep(rows: np.ndarray, columns: np.ndarray, steps: np.ndarray, inside=lambda depth: depth != 0) -> Runs:
    """Runs where the depth, changed by a step at each (row, column), is inside. Steps of a row add up to 0."""
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    keep = inside(np.cumsum(steps[order]))[:-1] & (columns[1:] > columns[:-1]) & (rows[1:] == rows[:-1])
    rows, starts, stops = rows[:-1][keep], columns[:-1][keep], columns[1:][keep]
    new = np.ones(len(rows), bool)  # False where a run continues the one before it
    new[1:] = (rows[1:] != rows[:-1]) | (starts[1:] != stops[:-1])
    return Runs(rows[new], starts[new], stops[np.roll(new, -1)] if len(new) else stops)


def polygon_runs(points: np.ndarray, level: int, shape: tuple[int, int]) -> Runs:
    """Pixels (y, x) of the level whose level-0 point (2**level * y, 2**level * x) the polygon winds around.

    Args:
        points: (N, 2) level-0 x, y; the ring is closed from the last to the first.
        shape: (H, W) of the level; what lies outside is cut off.
    """
    scale = 2.0**level
    x1, y1 = points.T
    x2, y2 = np.roll(points, -1, axis=0).T
    first, last = _rows_between(points, level, shape[0])
    counts = np.abs(last - first)
    edge = np.repeat(np.arange(len(points)), counts)
    offset = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.minimum(first, last)[edge] + offset
    across = (rows * scale - y1[edge]) * (x2 - x1)[edge] / (y2 - y1)[edge]
    columns = np.clip(np.ceil((x1[edge] + across) / scale), 0, shape[1]).astype(np.int64)
    return sweep(rows, columns, np.where(last > first, 1, -1)[edge])


def _rows_between(points, level, height):
    """First and last pixel row, two (N,), that each half-open edge crosses; last < first where it leads upwards."""
    rows = np.clip(np.ceil(points[:, 1] / 2.0**level), 0, height).astype(np.int64)
    return rows, np.roll(rows, -1)


def lesion_minus_cut_outs(lesions: list[Runs], cut_outs: list[Runs]) -> Runs:
    """Pixels in at least one lesion and in no cut-out."""
    steps = [_steps(union(lesions), 1), _steps(union(cut_outs), -2)]
    return sweep(*map(np.concatenate, zip(*steps, strict=True)), inside=lambda depth: depth > 0)


def union(parts: list[Runs]) -> Runs:
    """Pixels in at least one of the parts."""
    steps = [_steps(runs, 1) for runs in [NO_RUNS, *parts]]
    return sweep(*map(np.concatenate, zip(*steps, strict=True)))


def _steps(runs, weight):
    """The runs as (rows, columns, steps): +weight where one starts, -weight where it stops."""
    steps = np.repeat([weight, -weight], len(runs.rows))
    return np.tile(runs.rows, 2), np.concatenate([runs.starts, runs.stops]), steps


@dataclass(frozen=True)
class Lesion:
    """A contiguous lesion: number (from 1), bounding box [top, bottom) x [left, right) and area in level pixels."""

    number: int
    top: int
    bottom: int
    left: int
    right: int
    area: int


@dataclass(frozen=True)
class LesionMask:
    """The lesions of a slide at a level; `notes` counts what the annotation held and the mask does not."""

    shape: tuple[int, int]
    runs: Runs
    notes: Counter = field(default_factory=Counter)

    def window(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """The mask of a window, bool (height, width)."""
        low, high = np.searchsorted(self.runs.rows, [y, y + height])
        rows, starts, stops = (part[low:high] for part in self.runs)
        change = np.zeros((height, width + 1), np.int8)
        np.add.at(change, (rows - y, np.clip(starts - x, 0, width)), 1)
        np.add.at(change, (rows - y, np.clip(stops - x, 0, width)), -1)
        return np.cumsum(change[:, :width], axis=1, dtype=np.int8).astype(bool)

    def coarser(self, step: int) -> "LesionMask":
        """The mask in squares of step x step pixels, each in the mask when one of its pixels is."""
        runs = Runs(self.runs.rows // step, self.runs.starts // step, -(-self.runs.stops // step))
        return LesionMask(tuple(-(-side // step) for side in self.shape), union([runs]))

    def lesions(self) -> list[Lesion]:
        """The 8-connected components, in raster order of their first pixel."""
        rows, starts, stops = self.runs
        if not len(rows):
            return []
        component = _components(self.runs)
        n = component.max() + 1
        low, high = np.full((2, n), np.iinfo(np.int64).max), np.zeros((2, n), np.int64)
        for axis, (first, last) in enumerate([(rows, rows + 1), (starts, stops)]):
            np.minimum.at(low[axis], component, first)
            np.maximum.at(high[axis], component, last)
        area = np.bincount(component, weights=stops - starts)
        boxes = np.stack([low[0], high[0], low[1], high[1], area.astype(np.int64)], axis=1)
        return [Lesion(number, *map(int, box)) for number, box in enumerate(boxes, 1)]


def _components(runs):
    """Component (from 0, in raster order) of every run; runs of adjacent rows belong together if they touch."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, stride = len(runs.rows), runs.stops.max() + 2
    below = (runs.rows + 1) * stride
    first = np.searchsorted(runs.rows * stride + runs.stops, below + runs.starts, "left")
    last = np.searchsorted(runs.rows * stride + runs.starts, below + runs.stops, "right")
    counts = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(n), counts)
    lower = np.arange(len(upper)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    graph = coo_array((np.ones(len(upper), bool), (upper, lower)), shape=(n, n))
    label = connected_components(graph, directed=False)[1]
    _, seen_first, label = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(seen_first))[label]


def mask_from_polygons(
    lesions: list[np.ndarray],
    cut_outs: list[np.ndarray],
    level: int,
    shape: tuple[int, int],
    ignored: Counter | None = None,
) -> LesionMask:
    """Paint lesions, then cut-outs over them, all (N, 2) level-0 x, y, on a level of this shape (H, W).

    The mask's notes are `ignored` and the number of outlines that hold no pixel. BadInput when they cross more rows
    than there is memory for.
    """
    edges = (_rows_between(points, level, shape[0]) for points in lesions + cut_outs)
    crossings = sum(int(np.abs(last - first).sum()) for first, last in edges)
    if crossings > MAX_CROSSINGS:  # before memory is taken for them
        raise BadInput(f"the outlines cross {crossings:,} rows of pixels, expected {MAX_CROSSINGS:,} at most")
    painted = [polygon_runs(points, level, shape) for points in lesions]
    empty = Counter({"outline holds no pixel at this level": sum(1 for runs in painted if not len(runs.rows))})
    cut = [polygon_runs(points, level, shape) for points in cut_outs]
    return LesionMask(shape, lesion_minus_cut_outs(painted, cut), Counter(ignored) + empty)


def array_runs(inside, y, x):
    """Runs of a bool array whose corner lies at (y, x) of the level."""
    if not inside.any():
        return NO_RUNS
    change = np.diff(np.pad(inside, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(change == 1)
    return Runs(rows + y, starts + x, np.nonzero(change == -1)[1] + x)
