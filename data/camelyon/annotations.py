"""ASAP XML or mask TIFF -> the lesion mask of a slide at one level, kept as runs of pixels per row.

Runs take memory in proportion to the length of the outlines, not to the area of the slide, so a level is never
held whole. Sweeping over crossings per pixel row makes the winding rule exact.
"""

import logging
import math
import xml.etree.ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import cli
from common.errors import BadInput
from data.camelyon.slides import MASK_ENDING, MAX_TILE, SUFFIXES, Slide, check_level, find_files

LESION_GROUPS = {"metastases", "tumor", "_0", "_1"}  # CAMELYON17, then CAMELYON16
CUT_OUT_GROUPS = {"normal", "_2"}
AREA_TYPES = {"polygon", "rectangle", "spline"}
LAYOUTS = ("", "annotations", "lesion_annotations", "masks")  # where annotations lie below --data
MAX_COORDINATE = 1e9
MAX_CROSSINGS = 2**24  # of an outline with pixel rows; real ones have thousands


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
    first, last = (np.clip(np.ceil(edge / scale), 0, shape[0]).astype(np.int64) for edge in (y1, y2))
    counts = np.abs(last - first)  # pixel rows whose height lies in the half-open edge
    if counts.sum() > MAX_CROSSINGS:
        raise BadInput(
            f"an outline of {len(points)} points crosses {counts.sum()} rows, expected {MAX_CROSSINGS} at most"
        )
    edge = np.repeat(np.arange(len(points)), counts)
    offset = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.minimum(first, last)[edge] + offset
    across = (rows * scale - y1[edge]) * (x2 - x1)[edge] / (y2 - y1)[edge]
    columns = np.clip(np.ceil((x1[edge] + across) / scale), 0, shape[1]).astype(np.int64)
    return sweep(rows, columns, np.where(last > first, 1, -1)[edge])


def lesion_minus_cut_outs(lesions: list[Runs], cut_outs: list[Runs]) -> Runs:
    """Pixels in at least one lesion and in no cut-out."""
    steps = [_steps(_union(lesions), 1), _steps(_union(cut_outs), -2)]
    return sweep(*map(np.concatenate, zip(*steps, strict=True)), inside=lambda depth: depth > 0)


def _union(parts):
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
        return LesionMask(tuple(-(-side // step) for side in self.shape), _union([runs]))

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


def find_annotations(folder: Path, slides: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Slide name -> its XML files or, where there are none, its mask TIFFs (NAME.tif or NAME_mask.tif), by name.

    Slides that lie in the same folder are not taken for masks. BadInput when the folder holds no annotation.
    """
    if not folder.is_dir():
        raise BadInput(f"--data {folder}: no such folder")
    found = {}
    for suffixes in (SUFFIXES, (".xml",)):  # XML wins
        of_slide: dict[str, list[Path]] = {}
        for stem, paths in find_files(folder, LAYOUTS, suffixes).items():
            own = {path.resolve() for path in slides.get(stem, [])}
            of_slide.setdefault(stem.removesuffix(MASK_ENDING), []).extend(p for p in paths if p.resolve() not in own)
        found |= {name: paths for name, paths in of_slide.items() if paths}
    if not found:
        raise BadInput(f"--data {folder}: no .xml annotations or mask .tif in it, in annotations/ or in masks/")
    return dict(sorted(found.items()))


def read_mask(path: Path, slide: Slide) -> LesionMask:
    """The lesion mask that an annotation file gives for the slide's level. BadInput when it cannot be used."""
    if path.suffix.lower() == ".xml":
        lesions, cut_outs, ignored = read_xml(path)
        return mask_from_polygons(lesions, cut_outs, slide.level, slide.shape, ignored)
    return mask_from_tiff(path, slide)


def read_xml(path: Path) -> tuple[list[np.ndarray], list[np.ndarray], Counter]:
    """Lesion outlines, cut-outs (each (N, 2) float64, level-0 x, y) and counts of what was ignored, from ASAP XML.

    BadInput: not readable, not well-formed, not of ASAP, a DTD or entity, a coordinate missing or not a finite number.
    """
    import defusedxml
    from defusedxml.ElementTree import parse

    try:
        root = parse(path, forbid_dtd=True).getroot()
    except defusedxml.DefusedXmlException:
        raise BadInput(f"{path}: refused: annotations must not hold a DTD or entities") from None
    except (xml.etree.ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadInput(f"{path}: not an XML file: {error}") from None
    if root.tag != "ASAP_Annotations":
        raise BadInput(f"{path}: expected ASAP_Annotations, found {root.tag}")
    lesions, cut_outs, ignored = [], [], Counter()
    for item in root.iter("Annotation"):
        group, kind = item.get("PartOfGroup", "None"), item.get("Type", "None")
        if kind.lower() not in AREA_TYPES:
            ignored[f"annotation of type {cli.plain_line(kind)} ignored"] += 1
        elif group.lower() not in LESION_GROUPS | CUT_OUT_GROUPS:
            ignored[f"annotation of group {cli.plain_line(group)} ignored"] += 1
        elif len(points := _points(item, path)) < 3:
            ignored["annotation of fewer than three points ignored"] += 1
        else:
            (lesions if group.lower() in LESION_GROUPS else cut_outs).append(points)
    return lesions, cut_outs, ignored


def _points(item, path):
    try:
        points = [tuple(float(point.get(key)) for key in ("Order", "X", "Y")) for point in item.iter("Coordinate")]
    except (TypeError, ValueError):
        points = [(math.nan,)]
    if not all(abs(value) <= MAX_COORDINATE for point in points for value in point):
        raise BadInput(f"{path}: annotation {item.get('Name')!r} has a coordinate without usable Order, X and Y")
    return np.array(sorted(points, key=lambda point: point[0])).reshape(-1, 3)[:, 1:]


def mask_from_polygons(
    lesions: list[np.ndarray],
    cut_outs: list[np.ndarray],
    level: int,
    shape: tuple[int, int],
    ignored: Counter | None = None,
) -> LesionMask:
    """Paint lesions, then cut-outs over them, all (N, 2) level-0 x, y, on a level of this shape (H, W).

    The mask's notes are `ignored` and the number of outlines that hold no pixel.
    """
    painted = [polygon_runs(points, level, shape) for points in lesions]
    empty = Counter({"outline holds no pixel at this level": sum(1 for runs in painted if not len(runs.rows))})
    cut = [polygon_runs(points, level, shape) for points in cut_outs]
    return LesionMask(shape, lesion_minus_cut_outs(painted, cut), Counter(ignored) + empty)


def mask_from_tiff(path: Path, slide: Slide) -> LesionMask:
    """Lesion is 1, or 255 where the mask holds no 1 and no 2; read tile by tile, cut to the common size.

    BadInput: not a tiled TIFF, damaged, no such level, or a level that differs from the slide's by a tile or more.
    """
    parts: dict[int, list[Runs]] = {1: [], 2: [], 255: []}
    notes: Counter = Counter()
    for shape, y, x, values in _mask_tiles(path, slide.level):
        if max(abs(a - b) for a, b in zip(shape, slide.shape, strict=True)) >= slide.tile:
            sizes = " and ".join("{1} x {0}".format(*each) for each in (shape, slide.shape))
            raise BadInput(f"{path}: level {slide.level} of mask and slide differ by a tile or more: {sizes} px")
        common = values[: max(0, slide.shape[0] - y), : max(0, slide.shape[1] - x)]
        for value, runs in parts.items():
            runs.append(array_runs(common == value, y, x))
        notes["mask pixel that is not 0, 1, 2 or 255 ignored"] += int(((common > 2) & (common != 255)).sum())
    found = {value: _union(runs) for value, runs in parts.items()}
    standard = len(found[1].rows) or len(found[2].rows)
    return LesionMask(slide.shape, found[1] if standard else found[255], +notes)


def _mask_tiles(path, level):
    """Yield shape (H, W) of the level, y, x and pixels of each tile; exact values, which OpenSlide would blend."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is said below, in one line
    try:
        with tifffile.TiffFile(path) as file:
            levels = sorted((page for page in file.pages if page.is_tiled), key=lambda page: -page.imagewidth)
            if not levels:
                raise BadInput(f"{path}: expected a tiled TIFF")
            check_level(path, level, [levels[0].imagewidth / page.imagewidth for page in levels])
            page = levels[level]
            if page.samplesperpixel != 1 or page.dtype != np.uint8 or max(page.tilewidth, page.tilelength) > MAX_TILE:
                raise BadInput(f"{path}: expected one byte per pixel, in tiles of up to {MAX_TILE} px")
            for values, (_, _, y, x, _), shape in page.segments(maxworkers=1, buffersize=2**24):
                if values is not None:  # else all zero
                    yield (page.imagelength, page.imagewidth), y, x, values[0, : shape[1], : shape[2], 0]
    except (BadInput, OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise BadInput(f"{path}: not readable as a tiled TIFF: {error}") from None


def array_runs(inside, y, x):
    """Runs of a bool array whose corner lies at (y, x) of the level."""
    if not inside.any():
        return NO_RUNS
    change = np.diff(np.pad(inside, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(change == 1)
    return Runs(rows + y, starts + x, np.nonzero(change == -1)[1] + x)
