"""manifest.json of a data set: the CRC-32 of every file as it was written, checked when a file is first read.

    {"block": 1048576, "crc32": {"train.csv": ["3610a686"], "recipe/train_clutter.npy": ["9c0b4d21", ...], ...}}

Names are relative to the folder. A file has one checksum per block of 2**20 bytes, so that one image of a large recipe
can be read without reading the rest. A folder without manifest.json (of the first release, of earlier versions), and a
file that it does not name, are read unchecked. Whatever it names, the command that wrote the folder wrote.
"""

import os
import re
import zlib
from pathlib import Path

from common import cli
from common.errors import BadInput
from common.files import json_bytes, open_input, read_json, write_json

NAME = "manifest.json"
BLOCK = 2**20  # bytes
ADVICE = "removed, it is written again by the command that wrote it"


def checksums(content: bytes) -> list[str]:
    """CRC-32 of every block, as eight hexadecimal digits; none for an empty file."""
    return [f"{zlib.crc32(content[start : start + BLOCK]):08x}" for start in range(0, len(content), BLOCK)]


def file_checksums(path: Path) -> list[str]:
    """The checksums of a file, which is read block by block."""
    with open_input(path) as file:
        return [f"{zlib.crc32(block):08x}" for block in iter(lambda: file.read(BLOCK), b"")]


def write(folder: Path, entries: dict[str, list[str]]) -> None:
    """Write manifest.json, unless it says the same already."""
    path, content = folder / NAME, {"block": BLOCK, "crc32": dict(sorted(entries.items()))}
    if not os.path.lexists(path) or file_checksums(path) != checksums(json_bytes(content)):
        write_json(path, content)


class Manifest:
    """The checksums of a folder's files, `entries`; what was read before is not checked again in the same process.

    Cheap to pickle: the file is read again. Errors: BadInput when the file is there and no manifest.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.entries = _read(self.folder / NAME)
        self._process, self._seen = os.getpid(), {}

    def __getstate__(self):
        return self.folder

    def __setstate__(self, folder):
        self.__init__(folder)

    def check(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """BadInput names the file when bytes [start, stop), by default all, are not as they were written."""
        if name not in self.entries:
            return
        expected = self.entries[name]
        last = len(expected) if stop is None else -(-stop // BLOCK)
        if self._process != os.getpid():  # forked
            self._process, self._seen = os.getpid(), {}
        seen = self._seen.setdefault(name, set())
        new = [i for i in range(start // BLOCK, last) if i not in seen]
        if not new:
            return
        path = self.folder / name
        with open_input(path) as file:
            whole = -(-os.fstat(file.fileno()).st_size // BLOCK) == len(expected)
            if not whole or any(_block(file, i) != expected[i] for i in new):
                raise BadInput(f"{path}: damaged or another file, by its CRC-32 in {NAME}; {ADVICE}")
        seen.update(new)

    def verify(self) -> None:
        """Check every file of the folder. BadInput names the first bad one and counts them."""
        if not self.entries:
            raise BadInput(f"--verify: {self.folder} has no {NAME}; the command that wrote the data set adds one")
        bad = []
        for name in cli.progress(self.entries, len(self.entries), f"verifying {self.folder}", "files"):
            try:
                self.check(name)
            except BadInput as error:
                bad.append(str(error))
        if bad:
            raise BadInput(f"{bad[0]} ({len(bad)} of {len(self.entries)} files are bad)")
        print(f"{self.folder}: all {len(self.entries):,} files are as they were written")


def _block(file, i):
    file.seek(i * BLOCK)
    return f"{zlib.crc32(file.read(BLOCK)):08x}"


def _read(path):
    """The entries of a manifest.json; none when there is no such file."""
    if not os.path.lexists(path):
        return {}
    content = read_json(path)
    entries = content.get("crc32")
    good = content.get("block") == BLOCK and isinstance(entries, dict)
    if not good or not all(_is_entry(*item) for item in entries.items()):
        raise BadInput(
            f"{path}: damaged: expected the CRC-32 of files in this folder by blocks of {BLOCK} bytes; {ADVICE}"
        )
    return entries


def _is_entry(name, sums):
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    return inside and isinstance(sums, list) and all(re.fullmatch("[0-9a-f]{8}", str(each)) for each in sums)
