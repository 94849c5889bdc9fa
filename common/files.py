"""Files that are either whole or absent: written under a temporary name, synced, then renamed."""

import contextlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.cli import BadInput


@contextlib.contextmanager
def atomic_open(path: Path, mode: str = "wb", sync: bool = True, keep: Path | None = None):
    """Open a file that appears at `path` only when the block ends without an error; what was there moves to `keep`.

    Without `sync` a power cut may leave it without its content. The temporary name is fixed (`.{name}.part`), so that
    an interrupted run leaves one file at most, which the next run overwrites. Two writers of one path are the caller's
    to prevent.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open(mode) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if keep:
            path.replace(keep)
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_json(path: Path, content: dict) -> None:
    """Write a JSON object atomically; paths are written as text."""
    with atomic_open(path) as file:
        file.write(json_bytes(content))


def json_bytes(content: dict) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(content, indent=1, default=str) + "\n").encode()


def write_csv(path: Path, rows: list[dict], columns: Sequence[str] | None = None) -> None:
    """Write a table atomically, by default with the columns of its rows; a value that a row lacks stays empty."""
    import pandas as pd

    with atomic_open(path, "w") as file:
        pd.DataFrame(rows, columns=columns).to_csv(file, index=False)


def write_npy(path: Path, array: np.ndarray, sync: bool = True) -> None:
    """Write an array of numbers atomically."""
    with atomic_open(path, sync=sync) as file:
        file.write(npy_bytes(array))


def npy_bytes(array: np.ndarray) -> memoryview:
    """What a .npy file of the array holds; np.save itself does not say why it failed when a disk is full."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getbuffer()


def read_json(path: Path) -> dict:
    """Read a JSON object; BadInput names a file that is missing or holds anything else."""
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (ValueError, RecursionError):  # of brackets in brackets
        raise BadInput(f"{path}: not a JSON file") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a JSON object")
    return content


def check_zip(path: Path) -> None:
    """BadInput names a zip file of PyTorch with a member whose checksum does not hold; any other file passes."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > Path(path).stat().st_size:
                raise BadInput(f"{path}: damaged: its members are larger than the file")  # nothing is compressed
            broken = archive.testzip()
    except BadInput:
        raise
    except Exception as error:  # damaged archives fail in many ways
        raise BadInput(f"{path}: damaged: {error}") from None
    if broken:
        raise BadInput(f"{path}: damaged: the checksum of {broken} does not hold")


def make_folder(path: Path) -> Path:
    """Create the folder (parents too) and prove that it can be written; BadInput names it otherwise."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise BadInput(f"{path}: cannot write to this folder: {error.strerror}") from None
    return path
