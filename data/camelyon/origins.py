"""Where crops were cut: the slide, centre, lesion and corner of each, from crops.csv or else from the files' names."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from common.errors import BadInput
from common.files import read_table
from data.camelyon.slides import centre_of

NUMBERS = ("centre", "lesion", "y", "x")  # of a row; the corner (y, x) in level pixels; NaN where not known
_NAME = re.compile(r"(?:.*/)?(.+)_[0-9]+_(?:([0-9]+)_[0-9]+_img|[0-9]+)\.npy")  # slide, level, lesion, number


def of_folders(folders: dict[Path, Sequence[str]]):
    """A row of slide, centre, lesion, y, x for each of these crops of crop folders; by crops.csv, if any, and names."""
    import pandas as pd

    parts = []
    for folder, names in folders.items():
        path, table = folder / "crops.csv", of_names(names)
        if os.path.lexists(path):
            table = read(path).reindex(table.index).combine_first(table).reindex(table.index)
        parts.append(table[["slide", *NUMBERS]])
    return pd.concat(parts)


def of_names(names: Sequence[str]):
    """The same by the names alone, in which no corner stands; slide is None for files that are named otherwise."""
    import pandas as pd

    found = [_NAME.fullmatch(name) for name in names]
    rows = [(match[1], _centre(match[1]), match[2]) if match else (None, None, None) for match in found]
    table = pd.DataFrame(rows, columns=["slide", "centre", "lesion"], index=list(names))
    return table.assign(y=None, x=None).astype(dict.fromkeys(NUMBERS, float))


def read(*paths: Path):
    """The rows of one or more crops.csv by file. BadInput: file, slide, y or x lack or are not what they should be."""
    import pandas as pd

    table = pd.concat([_read(path) for path in paths])
    return table[~table.index.duplicated()]


def _read(path):
    import pandas as pd

    table = read_table(path, dtype={"file": str, "slide": str})
    missing = [name for name in ("file", "slide", "y", "x") if name not in table]
    if missing:
        raise BadInput(f"{path}: no table of crops, its columns lack {', '.join(missing)}")
    table = table.set_index("file").reindex(columns=["slide", *NUMBERS])
    for name in NUMBERS:
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    wrong = (table[["slide", "y", "x"]].isna().any(axis=1) | table.index.isna()).to_numpy()
    if wrong.any():
        raise BadInput(f"{path}, line {int(wrong.argmax()) + 2}: expected a file, its slide and numbers y, x")
    return table


def _centre(slide):
    try:
        return centre_of(slide)
    except BadInput:  # not CAMELYON17's
        return None
