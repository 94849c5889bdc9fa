"""ASAP XML or mask TIFF -> the lesion mask of a slide at one level; which files lie where, and the XML."""

import os
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import cli
from common.errors import BadInput
from common.files import check_folder, open_input
from data.slides.lesion_mask import LesionMask, mask_from_polygons
from data.slides.mask_tiff import mask_from_tiff
from data.slides.pyramid import MASK_ENDING, SUFFIXES, Slide, find_files

LESION_GROUPS = {"metastases", "tumor", "_0", "_1"}  # CAMELYON17, then CAMELYON16
CUT_OUT_GROUPS = {"normal", "_2"}
AREA_TYPES = {"polygon", "rectangle", "spline"}
ANNOTATION_FOLDERS = ("", "annotations", "lesion_annotations", "masks")  # where annotations lie below --data
MAX_COORDINATE = 1e9
MAX_XML = 2**24  # bytes; the largest of CAMELYON has a tenth, and 80,000 elements with attributes
MAX_ELEMENTS = 2**20
MAX_OUTLINES = 10_000  # of a slide; real ones have hundreds


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
