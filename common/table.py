"""A table that grows in a folder and outlasts interruptions, for commands that score image after image."""

import json
import os
import re
from pathlib import Path

from common.errors import BadInput
from common.files import atomic_open, errors_name, make_folder, open_input, open_own, read_json, write_json

BOOK, ROWS = "run.json", "rows.jsonl"


class GrowingTable:
    """`rows`, dicts of plain values, as far as work of the same identity has come in the folder.

    Args:
        folder: is made; what an earlier run of another identity left in it is removed.
        identity: plain values that decide the rows.
        own: what the names of other files of this work match; they are removed with the rows.
        columns: that every row has; rows are numbered from 0 in "img".
    Errors: BadInput when the folder holds anything else.
    """

    def __init__(self, folder: Path, identity: dict, own: re.Pattern, columns: tuple[str, ...]):
        self.folder = make_folder(folder)
        book, there = self.folder / BOOK, sorted(self.folder.iterdir())
        others = [path for path in there if not self._is_ours(path, own)]
        if not others and not book.exists():  # then nothing was begun, or a kill left an empty table
            others = [path for path in there if path.name != ROWS and not path.name.endswith(".part")]
        if others:
            raise BadInput(f"{others[0]}: not of this command; move it elsewhere")
        known = book.exists() and read_json(book) == json.loads(json.dumps(identity))
        self.rows = self._read(columns) if known else []
        if not known:
            for path in sorted(there, key=lambda path: path == book):  # it says whose the others are
                path.unlink()
        self.keep(len(self.rows))
        write_json(book, identity)

    @staticmethod
    def _is_ours(path, own):
        plain = path.is_file() and not path.is_symlink()
        part = path.name.removeprefix(".").removesuffix(".part")
        return plain and any(name in (BOOK, ROWS) or own.fullmatch(name) for name in (path.name, part))

    def _read(self, columns):
        """The rows before the first that is cut off or damaged."""
        rows, path = [], self.folder / ROWS
        if path.exists():
            with open_input(path) as file:
                lines = file.read().decode(errors="replace").splitlines()
            for number, line in enumerate(lines):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    break
                if not isinstance(row, dict) or row.get("img") != number or not {*columns} <= row.keys():
                    break
                rows.append(row)
        return rows

    def keep(self, n: int) -> None:
        """Keep the first n rows alone."""
        self.rows = self.rows[:n]
        with atomic_open(self.folder / ROWS, "w") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in self.rows)

    def add(self, row: dict) -> None:
        """Add a row, after whatever else belongs to it was written."""
        path = self.folder / ROWS
        with errors_name(path), open_own(path, os.O_WRONLY | os.O_APPEND, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
