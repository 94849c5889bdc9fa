"""Tables of numbers, as runs and sweeps leave them, read with care."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import BadInput
from common.files import make_folder, make_subfolder, read_json, read_table, write_csv


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


def update_table(path: Path, rows: list[dict], key: Sequence[str], columns: Sequence[str], read: Callable) -> None:
    """Add rows to a table that `read` reads, in place of those of the same key, sorted so that diffs are small."""
    key, table = list(key), pd.DataFrame(rows, columns=columns)
    if path.exists():
        table = pd.concat([read(path), table], ignore_index=True)
    text = table[key].astype("string").fillna("")  # empty cells are equal, too
    table = table.loc[text.drop_duplicates(keep="last").index]
    table = table.sort_values(key, key=lambda column: column.astype(str) if column.dtype == object else column)
    make_subfolder(make_folder(path.parent.parent), path.parent.name)
    write_csv(path, table.round(5).to_dict("records"), columns)


def read_precision(path: Path) -> float:
    """The average precision in a localization.json; NaN where the data do not say where the objects are."""
    value = read_json(path).get("average_precision", float("nan"))
    if not isinstance(value, (float, int)):
        raise BadInput(f"{path}: average_precision is {value!r}, expected a number")
    return value


def read_near_duplicates(audit: Path, split: str) -> dict[str, bool]:
    """Image of a split -> whether audit_leakage.py, which left this folder, found a near-duplicate of it."""
    found = read_json(audit / "summary.json").get("threshold")
    threshold = found.get("distance") if isinstance(found, dict) else None
    if not isinstance(threshold, (float, int)):
        raise BadInput(f"{audit / 'summary.json'}: no threshold, expected what audit_leakage.py writes")
    table = read_numbers(audit / "audit.csv", ["label"], ["distance"], ["query", "split"])
    nearest = table[table["split"] == split].groupby("query")["distance"].min()
    return dict(zip(nearest.index.astype(str), nearest <= threshold, strict=True))
