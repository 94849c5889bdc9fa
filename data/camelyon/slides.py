"""CAMELYON17's slides: folder layout, names, centres and splits, stage labels."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import BadInput
from common.files import check_folder, read_table
from data.slides.pyramid import MASK_ENDING, SUFFIXES, find_files

SLIDE_FOLDERS = ("", "images", "center_*", "centre_*")  # where slides lie below --base_path
SPLIT_OF_CENTRE = {0: "train", 1: "train", 2: "train", 3: "val", 4: "test"}  # Pawlowski 2019, appendix A.2
SPLIT_FOLDERS = {"train": "", "val": "valid", "test": "test"}  # where a split's crops lie in the crop folder
STAGES = {"negative", "itc", "micro", "macro"}
_NAME = re.compile(r"patient_([0-9]{3})_node_[0-9]{1,3}\Z")
_FOLDER = re.compile(r"cent(?:er|re)_([0-9]{1,9})\Z")

# CAMELYON17's slides whose lesions are outlined, as patient_node; four of them are labelled negative.
_ANNOTATED = """004_4 009_1 010_4 012_0 015_1 015_2 016_1 017_1 017_2 017_4 020_2 020_4 021_3 022_4 024_1 024_2 034_3
    036_3 038_2 039_1 040_2 041_0 042_3 044_4 045_1 046_3 046_4 048_1 051_2 052_1 060_3 061_4 062_2 064_0 066_2 067_4
    068_1 072_0 073_1 075_4 080_1 081_4 086_0 086_4 087_0 088_1 089_3 092_1 096_0 099_4"""
ANNOTATED = frozenset(f"patient_{number[:3]}_node_{number[4:]}" for number in _ANNOTATED.split())


def find_slides(base_path: Path) -> dict[str, list[Path]]:
    """Slide name -> its files (more than one is an error to be reported). BadInput when there are none."""
    check_folder(base_path, "--base_path")
    found = find_files(base_path, SLIDE_FOLDERS, SUFFIXES)
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
        raise BadInput(f"{path}: expected the columns patient,stage, found {','.join(columns)}")
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
