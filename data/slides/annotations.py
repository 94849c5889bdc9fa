"""ASAP XML or mask TIFF -> the lesion mask of a slide at one level, kept as runs of pixels per row.

Runs take memory in proportion to the length of the outlines, not to the area of the slide, so a level is never
held whole. Sweeping over crossings per pixel row makes the winding rule exact.
"""

import logging
import os
import xml.etree.ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import cli
from common.errors import BadInput
from common.files import check_folder, open_input
from data.slides.pyramid import MASK_ENDING, MAX_TILE, SUFFIXES, Slide, check_level, check_pages, find_files

LESION_GROUPS = {"metastases", "tumor", "_0", "_1"}  # CAMELYON17, then CAMELYON16
CUT_OUT_GROUPS = {"normal", "_2"}
AREA_TYPES = {"polygon", "rectangle", "spline"}
ANNOTATION_FOLDERS = ("", "annotations", "lesion_annotations", "masks")  # where annotations lie below --data
MAX_COORDINATE = 1e9
MAX_XML = 2**24  # bytes; the largest of CAMELYON has a tenth, and 80,000 elements with attributes
MAX_ELEMENTS = 2**20
MAX_OUTLINES = 10_000  # of a slide; real ones have hundreds
MAX_CROSSINGS = 2**23  # of a slide's outlines, or of its mask's runs, with pixel rows; real ones have thousands
LOSSY = {6: "JPEG", 7: "JPEG", 33007: "JPEG", 34892: "JPEG"}  # TIFF's compression tags that say so by themselves
JPEG_2000, WEBP = {33003, 33004, 33005, 34712}, {50001}  # either kind


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
    check_folder(folder, "--data")
    found = {}
    for suffixes in (SUFFIXES, (".xml",)):  # XML wins
        of_slide: dict[str, list[Path]] = {}
        for stem, paths in find_files(folder, ANNOTATION_FOLDERS, suffixes).items():
            own = set(map(os.path.realpath, slides.get(stem, [])))
            others = [path for path in paths if os.path.realpath(path) not in own]
            of_slide.setdefault(stem.removesuffix(MASK_ENDING), []).extend(others)
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


class Outline(NamedTuple):
    """What an annotation encloses, a lesion or a cut-out; points (N, 2) float64, level-0 x, y."""

    name: str
    is_lesion: bool
    points: np.ndarray


def read_xml(path: Path) -> tuple[list[np.ndarray], list[np.ndarray], Counter]:
    """Points of lesions and of cut-outs, and counts of what was ignored; see `read_outlines`."""
    outlines, ignored = read_outlines(path)
    lesions, cut_outs = ([each.points for each in outlines if each.is_lesion is kind] for kind in (True, False))
    return lesions, cut_outs, ignored


def read_outlines(path: Path) -> tuple[list[Outline], Counter]:
    """The outlines of ASAP XML in their order, and counts of what was ignored.

    The group of an annotation is the first that is known among its own, that group's parent and so on. BadInput: not
    readable, not well-formed, too large, not of ASAP, a DTD or entity, a coordinate missing or not a finite number.
    """
    root = _parse(path)
    parents = {_group_of(item, "Name"): _group_of(item) for item in root.iter("Group") if item.get("Name")}
    outlines, ignored = [], Counter()
    for item in root.iter("Annotation"):
        group, kind = item.get("PartOfGroup", "None").strip(), item.get("Type", "None")
        known = _known_group(_group_of(item), parents)
        if kind.lower() not in AREA_TYPES:
            ignored[f"annotation of type {cli.plain_line(kind)} ignored"] += 1
        elif known is None:
            ignored[f"annotation of group {cli.plain_line(group)} ignored"] += 1
        elif len(points := _points(item, path)) < 3:
            ignored["annotation of fewer than three points ignored"] += 1
        else:
            outlines.append(Outline(item.get("Name", ""), known in LESION_GROUPS, points))
            if len(outlines) > MAX_OUTLINES:
                raise BadInput(f"{path}: has more than {MAX_OUTLINES:,} outlines, which no slide needs")
    return outlines, ignored


def _parse(path):
    """The root element of an ASAP XML file."""
    import defusedxml
    from defusedxml.ElementTree import XMLParser

    parser = XMLParser(target=_Tree(path), forbid_dtd=True)
    try:
        with open_input(path, MAX_XML) as file:
            parser.feed(file.read())  # at once: in parts, a long attribute would be read again with each
        root = parser.close()
    except defusedxml.DefusedXmlException:
        raise BadInput(f"{path}: refused: annotations must not hold a DTD or entities") from None
    except (xml.etree.ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadInput(f"{path}: not an XML file: {error}") from None
    if root.tag != "ASAP_Annotations":
        raise BadInput(f"{path}: expected ASAP_Annotations, found {root.tag}")
    return root


class _Tree(xml.etree.ElementTree.TreeBuilder):
    """The elements of an XML file, as long as they are not more than an annotation needs."""

    def __init__(self, path):
        super().__init__()
        self.path, self.n = path, 0

    def start(self, tag, attributes):
        self.n += 1 + len(attributes)
        if self.n > MAX_ELEMENTS:
            raise BadInput(f"{self.path}: has more than {MAX_ELEMENTS:,} elements and attributes, as no annotation has")
        return super().start(tag, attributes)


def _group_of(item, attribute="PartOfGroup"):
    return item.get(attribute, "None").strip().lower()


def _known_group(group, parents):
    """The first of a group, its parent, that one's parent ... whose meaning is known; None without one."""
    above = dict(parents)  # every parent is used once: groups may lie in one another
    while group is not None and group not in LESION_GROUPS | CUT_OUT_GROUPS:
        group = above.pop(group, None)
    return group


def _points(item, path):
    """The points (N, 2) of an annotation, level-0 x, y, in the order of Order. Decimal commas are read, too."""
    points = [_numbers(point, item, path) for point in item.iter("Coordinate")]
    return np.array(sorted(points, key=lambda point: point[0])).reshape(-1, 3)[:, 1:]


def _numbers(point, item, path):
    texts = {key: point.get(key) for key in ("Order", "X", "Y")}
    try:
        numbers = [float(text.replace(",", ".")) for text in texts.values()]
    except (AttributeError, ValueError):
        numbers = [np.nan]
    if not all(abs(number) <= MAX_COORDINATE for number in numbers):
        found = ", ".join(f"{key} {text!r}" for key, text in texts.items())
        name = item.get("Name")
        raise BadInput(f"{path}: annotation {name!r} has a coordinate without usable Order, X and Y: found {found}")
    return numbers


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


def mask_from_tiff(path: Path, slide: Slide) -> LesionMask:
    """Lesion is 1 in a mask of 0, 1, 2, and 255 in one of 0, 255; read tile by tile, cut to the common size.

    BadInput: not a tiled TIFF, damaged, compressed lossily, other values, more runs than memory is there for, no such
    level, or a level that differs from the slide's by a tile or more.
    """
    lesions: list[Runs] = []
    values, n_runs = {0}, 0
    for y, x, tile in _mask_tiles(path, slide):
        common = tile[: max(0, slide.shape[0] - y), : max(0, slide.shape[1] - x)]
        if not common.any():
            continue
        lesions.append(array_runs(_lesion_pixels(path, common, values), y, x))
        n_runs += len(lesions[-1].rows)
        if 2 * n_runs > MAX_CROSSINGS:
            raise BadInput(f"{path}: has more than {MAX_CROSSINGS // 2:,} runs of lesion pixels, which no lesions need")
    return LesionMask(slide.shape, _union(lesions))


def _lesion_pixels(path: Path, part: np.ndarray, values: set[int]) -> np.ndarray:
    """Where a part of a mask is lesion, bool of its shape: 1 of the values 0, 1, 2, and 255 of 0, 255.

    `values`: those of the parts before, to which its own are added. BadInput when together they are of neither kind.
    """
    values.update(np.unique(part).tolist())
    if not (values <= {0, 1, 2} or values <= {0, 255}):
        found = ", ".join(map(str, sorted(values)[:8])) + ", ..." * (len(values) > 8)
        raise BadInput(f"{path}: holds the values {found}, expected 0, 1 and 2, or 0 and 255")
    return (part == 1) | (part == 255)


def _mask_tiles(path, slide):
    """Yield y, x and pixels of each stored tile of the slide's level; exact values, which OpenSlide would blend."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is said below, in one line
    check_pages(path)
    try:
        with tifffile.TiffFile(path) as file:
            levels = sorted((page for page in file.pages if page.is_tiled), key=lambda page: -page.imagewidth)
            if not levels:
                raise BadInput(f"{path}: expected a tiled TIFF")
            check_level(path, slide.level, [_downsample(levels[0], page, 2**i) for i, page in enumerate(levels)])
            page = levels[slide.level]
            _check_mask_page(path, page, slide)
            for values, (_, _, y, x, _), shape in page.segments(maxworkers=1, buffersize=2**24):
                if values is not None:  # else all zero
                    yield y, x, values[0, : shape[1], : shape[2], 0]
    except (BadInput, OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise BadInput(f"{path}: not readable as a tiled TIFF: {error}") from None


def _downsample(base, page, expected):
    """How many times narrower than its base a level is; `expected` if it is so when rounded or filled up with tiles."""
    more = page.imagewidth - base.imagewidth / expected
    filled = page.imagewidth % page.tilewidth == 0 and 0 <= more < page.tilewidth
    return expected if abs(more) < 1 or filled else base.imagewidth / page.imagewidth


def _check_mask_page(path, page, slide):
    """BadInput unless a mask's level holds a byte per pixel, losslessly, in the slide's size but for part of a tile."""
    if page.samplesperpixel != 1 or page.dtype != np.uint8 or max(page.tilewidth, page.tilelength) > MAX_TILE:
        raise BadInput(f"{path}: expected one byte per pixel, in tiles of up to {MAX_TILE} px")
    lossy = _lossy_compression(page)
    if lossy:
        raise BadInput(f"{path}: stored as {lossy}, which changes values; expected a lossless compression like deflate")
    shape, tile = (page.imagelength, page.imagewidth), max(slide.tile, page.tilewidth, page.tilelength)
    if max(abs(a - b) for a, b in zip(shape, slide.shape, strict=True)) >= tile:
        sizes = " and ".join("{1} x {0}".format(*each) for each in (shape, slide.shape))
        raise BadInput(f"{path}: level {slide.level} of mask and slide differ by a tile or more: {sizes} px")


def _lossy_compression(page):
    """Name of the compression that changed the pixels; None where none is known to have done so."""
    first = next((at for at in zip(page.dataoffsets, page.databytecounts, strict=True) if at[1]), None)
    if first is None or page.compression not in JPEG_2000 | WEBP:
        return LOSSY.get(page.compression)
    file = page.parent.filehandle
    file.seek(first[0])
    content = file.read(min(first[1], 2**16))
    if page.compression in WEBP:
        return "lossy WebP" if content[12:16] == b"VP8 " else None
    return "lossy JPEG 2000" if _is_irreversible(content) else None


def _is_irreversible(codestream):
    """Whether the COD marker of a JPEG 2000 codestream names the 9-7 transform, which loses, not the 5-3 one."""
    at = codestream.find(b"\xff\x4f\xff\x51") + 2  # markers follow one another, each with its length
    while 2 <= at < len(codestream) - 13 and codestream[at : at + 2] != b"\xff\x52":
        at += 2 + int.from_bytes(codestream[at + 2 : at + 4], "big")
    return codestream[at + 13 : at + 14] == b"\0"


def array_runs(inside, y, x):
    """Runs of a bool array whose corner lies at (y, x) of the level."""
    if not inside.any():
        return NO_RUNS
    change = np.diff(np.pad(inside, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(change == 1)
    return Runs(rows + y, starts + x, np.nonzero(change == -1)[1] + x)
