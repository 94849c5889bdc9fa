"""bags.csv: which bags there are, of which label and split, and where each lies.

    bag,label,split,file
    tumor_001,1,train,training/tumor_001

`file` is relative to the list: a folder of tiles or a file of features. `split` may be empty where folds decide it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import BadInput
from common.files import read_table, write_csv
from data import SPLITS

COLUMNS = ("bag", "label", "split", "file")


@dataclass(frozen=True)
class Row:
    """A bag of the list; split is "" where the list leaves it open, file is an existing path."""

    bag: str
    label: int
    split: str
    file: Path


def read(path: Path, classes: int = 2, folder: Path | None = None) -> list[Row]:
    """The list's rows in its order.

    Args:
        classes: how many; labels are whole numbers from 0 below it.
        folder: that files are relative to, by default the list's.
    Errors: BadInput names the line: a bag twice, a label or split of another kind, a file that is not there.
    """
    table = read_table(path, dtype=str, keep_default_na=False)
    missing = {"bag", "label", "file"} - set(table.columns)
    if missing or table.empty:
        raise BadInput(f"{path}: expected rows of {','.join(COLUMNS)}, found {len(table)} of {','.join(table.columns)}")
    folder = path.parent if folder is None else folder
    rows, seen = [], set()
    for line, found in enumerate(table.to_dict("records"), 2):
        bag, label, split, file = (found.get(name, "").strip() for name in COLUMNS)
        labels = [str(number) for number in range(classes)]
        if not bag or label not in labels or split not in ("", *SPLITS) or not file:
            raise BadInput(
                f"{path}, line {line}: found {bag},{label},{split},{file}, expected a name, a label of "
                f"{labels[0]} to {labels[-1]}, a split of {', '.join(SPLITS)} or none, and a file"
            )
        if bag in seen:
            raise BadInput(f"{path}, line {line}: bag {bag} is listed twice")
        seen.add(bag)
        if not os.path.lexists(folder / file):
            raise BadInput(f"{path}, line {line}: bag {bag}: {folder / file}: no such file or folder")
        rows.append(Row(bag, int(label), split, folder / file))
    return rows


def write(path: Path, rows: Sequence[tuple[str, int, str, Path]]) -> None:
    """Write a list of (bag, label, split, file), files by their place relative to the list's folder."""
    places = [os.path.relpath(file, path.parent) for *_, file in rows]
    write_csv(
        path,
        [dict(zip(COLUMNS, (*row[:3], place), strict=True)) for row, place in zip(rows, places, strict=True)],
        COLUMNS,
    )


def by_split(rows: Sequence[Row], path: Path, needed: Sequence[str] = SPLITS) -> dict[str, list[Row]]:
    """Split -> its rows. BadInput when a row has no split, or when a needed one is empty or lacks a class."""
    without = [row.bag for row in rows if not row.split]
    if without:
        raise BadInput(f"{path}: bag {without[0]} has no split ({len(without)} of {len(rows)} have none)")
    found = {split: [row for row in rows if row.split == split] for split in SPLITS}
    for split in needed:
        labels = {row.label for row in found[split]}
        if len(labels) < 2:
            only = f"only label {labels.pop()}" if labels else "no bag"
            raise BadInput(f"{path}: split {split} has {only}, expected bags of both classes")
    return found
