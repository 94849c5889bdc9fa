"""Whole-slide images: folder layouts, stage labels, pyramid levels, pixels. Beside deepzoom.py alone to use openslide.

A level-0 pixel is x0, y0; every array is indexed (y, x) in pixels of one level L, whose pixel (y, x) stands at the
level-0 position (2**L * y, 2**L * x). OpenSlide is asked for round(downsample * y), which is the same but where the
sides of a slide are no multiples of 2**L: there OpenSlide's downsample is slightly off and would shift the pixels.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import BadInput
from common.files import open_input, read_table

SUFFIXES = (".tif", ".tiff")
MASK_ENDING = "_mask"  # of the name of a slide's mask, which may lie beside it
LAYOUTS = ("", "images", "center_*", "centre_*")  # where slides lie below --base_path
SPLIT_OF_CENTRE = {0: "train", 1: "train", 2: "train", 3: "val", 4: "test"}  # paper, appendix A.2
SPLIT_FOLDERS = {"train": "", "val": "valid", "test": "test"}  # where a split's crops lie in the crop folder
STAGES = {"negative", "itc", "micro", "macro"}
MAX_DOWNSAMPLE_ERROR = 1e-3
MAX_TILE = 2**12  # px
MAX_PAGES = 1000  # of a TIFF; slides have a dozen
TILE_SIDES = ("].tile-width", "].tile-height")
_NAME = re.compile(r"patient_([0-9]{3})_node_[0-9]{1,3}\Z")
_FOLDER = re.compile(r"cent(?:er|re)_([0-9]{1,9})\Z")

# CAMELYON17's slides whose lesions are outlined, as patient_node; four of them are labelled negative.
_ANNOTATED = """004_4 009_1 010_4 012_0 015_1 015_2 016_1 017_1 017_2 017_4 020_2 020_4 021_3 022_4 024_1 024_2 034_3
    036_3 038_2 039_1 040_2 041_0 042_3 044_4 045_1 046_3 046_4 048_1 051_2 052_1 060_3 061_4 062_2 064_0 066_2 067_4
    068_1 072_0 073_1 075_4 080_1 081_4 086_0 086_4 087_0 088_1 089_3 092_1 096_0 099_4"""
ANNOTATED = frozenset(f"patient_{number[:3]}_node_{number[4:]}" for number in _ANNOTATED.split())


def find_files(folder: Path, layouts: tuple[str, ...], suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Stem -> the files of that name in the folder's sub-folders that match a layout, all sorted."""
    folders = sorted({path for layout in layouts for path in (folder.glob(layout) if layout else [folder])})
    found: dict[str, list[Path]] = {}
    for path in sorted(file for each in folders if each.is_dir() for file in each.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return dict(sorted(found.items()))


def find_slides(base_path: Path) -> dict[str, list[Path]]:
    """Slide name -> its files (more than one is an error to be reported). BadInput when there are none."""
    if not base_path.is_dir():
        raise BadInput(f"--base_path {base_path}: no such folder")
    found = find_files(base_path, LAYOUTS, SUFFIXES)
    found = {name: files for name, files in found.items() if not name.endswith(MASK_ENDING)}
    if not found:
        raise BadInput(f"--base_path {base_path}: no .tif slides in it, in images/ or in center_*/")
    return found


def centre_of(name: str) -> int:
    """The medical centre of a slide: patient number // 20. BadInput when the name or the number is not CAMELYON17's."""
    match = _NAME.match(name)
    if not match:
        raise BadInput(f"{name}: expected a slide named patient_PPP_node_N")
    centre = int(match[1]) // 20
    if centre not in SPLIT_OF_CENTRE:
        raise BadInput(f"{name}: patient {match[1]} has no centre; CAMELYON17's training patients are 000 to 099")
    return centre


def is_test_patient(name: str) -> bool:
    """Whether the slide belongs to the challenge's unlabelled test patients, 100 to 199."""
    match = _NAME.match(name)
    return bool(match) and int(match[1]) >= 100


def resolve_slide(name: str, files: list[Path], labels: "Labels | None" = None) -> tuple[Path | None, int]:
    """The file of a slide, None without any, and its centre. BadInput: several files; folder or column disagree."""
    centre = centre_of(name)
    if len(files) > 1:
        raise BadInput(f"{name}: expected one slide, found " + " and ".join(map(str, files)))
    folder = _FOLDER.match(files[0].parent.name) if files else None
    if folder and int(folder[1]) != centre:
        raise BadInput(f"{name}: lies in {files[0].parent.name}, but its patient number means centre {centre}")
    if labels and labels.centres is not None:
        if name not in labels.stages:
            raise BadInput(f"{name}: not in {labels.path.name}")
        listed = labels.centres.get(name, "")
        if listed != str(centre):
            found = f"centre {listed}" if listed else "no centre"
            raise BadInput(f"{name}: {labels.path.name} gives {found}, its patient number means centre {centre}")
    return next(iter(files), None), centre


@dataclass(frozen=True)
class Labels:
    """Rows of slides in stage_labels.csv or stages.csv: name -> stages given, and name -> centre (None: no column)."""

    path: Path
    stages: dict[str, frozenset[str]]
    centres: dict[str, str] | None

    def unclear(self, names: Iterable[str]) -> list[str]:
        """A line for each of the slides that has no stage, an unknown one or several."""
        expected = f"expected one of {', '.join(sorted(STAGES))} in {self.path.name}"
        found = {name: sorted(self.stages.get(name, ())) for name in names}
        unclear = {name: stages for name, stages in found.items() if len(stages) != 1 or not STAGES.issuperset(stages)}
        return [
            f"{name}: {expected}, found {' and '.join(map(repr, stages)) or 'no row'}"
            for name, stages in unclear.items()
        ]


def read_labels(path: Path) -> Labels:
    """Read a label file with the columns patient, stage and perhaps center. BadInput when it is not one."""
    table = read_table(path, dtype=str, keep_default_na=False, header=None)  # a header would be made unique
    columns = [column.strip().lower() for column in table.iloc[0]]
    if columns.count("patient") != 1 or columns.count("stage") != 1:
        raise BadInput(f"--label_path {path}: expected the columns patient,stage, found {','.join(columns)}")
    table = table[1:].set_axis(columns, axis="columns")
    table = table[table["patient"].str.contains("_node_")].copy()  # the other rows are those of patients
    table["name"] = table["patient"].str.strip().str.replace(r"\.tiff?$", "", case=False, regex=True)
    stages = table["stage"].str.strip().str.lower().groupby(table["name"]).agg(frozenset).to_dict()
    column = next((name for name in ("center", "centre") if name in table.columns), None)
    centres = None if column is None else dict(zip(table["name"], table[column].map(_centre_text), strict=True))
    return Labels(path, stages, centres)


def _centre_text(text):
    """'2', 'center_2' and '2.0' are all centre 2; anything else is kept to be quoted in a message."""
    match = re.fullmatch(r"\s*(?:cent(?:er|re)_)?(\d+)(?:\.0*)?\s*", text)
    return match[1] if match else text.strip()


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

    `shape` is (H, W) of the level, `mpp` the level-0 microns per pixel or None, `tile` the side of a stored tile.
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
        width, height = self._slide.level_dimensions[level]
        self.shape = height, width
        self.mpp = self._mpp()
        self.tile = self._tile()
        colour = self._slide.properties.get("openslide.background-color", "ffffff")
        self._background = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)], np.uint16)

    def __enter__(self):
        return self

    def __exit__(self, *_):
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
