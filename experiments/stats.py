"""Tables of numbers, as runs and sweeps leave them, read with care."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import BadInput
from common.files import read_json, read_table


def read_numbers(path: Path, full: Sequence[str], gaps: Sequence[str] = (), texts: Sequence[str] = (), **options):
    """A table, read with these options of read_csv, whose columns `full` hold a number in every row.

    Cells of the columns `gaps` may be empty, those of `texts` hold anything. BadInput when there is no row, a column
    is missing, or something other than a number is where one should be.
    """
    table = read_table(path, **options)
    missing = [name for name in (*full, *gaps, *texts) if name not in table]
    if missing:
        raise BadInput(f"{path}: its columns lack {', '.join(missing)}")
    if table.empty:
        raise BadInput(f"{path}: has no rows")
    for name in (*full, *gaps):
        numbers = pd.to_numeric(table[name], errors="coerce")
        wrong = ~np.isfinite(numbers.to_numpy(float)) & (table[name].notna() | (name in full)).to_numpy()
        if wrong.any():
            row = int(wrong.argmax())
            raise BadInput(f"{path}: {name} in row {row + 1} is {table[name].iloc[row]}, expected a number")
        table[name] = numbers
    return table


def read_precision(path: Path) -> float:
    """The average precision in a localization.json; NaN where the data do not say where the objects are."""
    value = read_json(path).get("average_precision", float("nan"))
    if not isinstance(value, (float, int)):
        raise BadInput(f"{path}: average_precision is {value!r}, expected a number")
    return value
