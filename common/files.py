"""Files of strangers, read with care; our own, written under a temporary name, synced, renamed: whole or absent."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import BadInput

MAX_TEXT = 2**25  # bytes of JSON or of another text
MAX_TABLE = 2**27  # bytes of a CSV: some two million images; parsed, they take a gigabyte
MAX_COLUMNS = 1000
MAX_HEADER = 10_000  # bytes of the header of a .npy file, which NumPy would read whatever its length
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


def kind_of(mode: int) -> str:
    """What a file of this st_mode is, for messages."""
    return "a file" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "a device")


def check_file(path: Path) -> os.stat_result:
    """BadInput unless the path, links followed, is a plain file: a named pipe would be waited on, a device acts."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as error:  # also a link to itself; a name with a zero byte
        raise BadInput(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(f"{path}: expected a file, found {kind_of(found.st_mode)}")
    return found


def open_input(path: Path, most: int | None = None):
    """Open somebody's file to read bytes. BadInput names what is missing, no plain file or larger than `most`."""
    check_file(path)
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    size = os.fstat(file.fileno()).st_size
    if most is not None and size > most:
        file.close()
        raise BadInput(f"{path}: has {size:,} bytes, expected {most:,} at most")
    return file


def sha256_of(path: Path) -> str:
    """Hex digest of somebody's file. BadInput names one that cannot be read."""
    digest = hashlib.sha256()
    with open_input(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_text(path: Path, most: int = MAX_TEXT) -> str:
    """The text of somebody's JSON or table, UTF-8, which may begin with a byte-order mark. BadInput names the file.

    most: bytes it may have.
    """
    with open_input(path, most) as file:
        try:
            return file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: not text in UTF-8: {error.reason} at byte {error.start}") from None


def read_table(path: Path, **options):
    """Somebody's CSV as a pandas table, read with these options of read_csv. BadInput: empty, damaged or no table."""
    import pandas as pd

    text = read_text(path, MAX_TABLE)
    try:
        header = next(csv.reader(io.StringIO(text.lstrip())), [])  # pandas skips blank lines, too
        if len(header) > MAX_COLUMNS:
            raise BadInput(f"{path}: has {len(header):,} columns, expected {MAX_COLUMNS:,} at most")
        return pd.read_csv(io.StringIO(text), **options)
    except (csv.Error, ValueError) as error:  # pandas' own are ValueErrors too
        raise BadInput(f"{path}: not a table: {str(error).splitlines()[0]}") from None


def files_below(folder: Path, endings: Sequence[str], above: tuple[str, ...] = ()) -> list[Path]:
    """Files of these endings, in lower case, in and below a folder, sorted; links are followed, hidden ones left out.

    above: the real paths of the folders that hold it, into which a link may lead back.
    """
    real = os.path.realpath(folder)
    if real in above:
        return []
    found = []
    for entry in os.scandir(folder):  # which knows folders without asking for each file
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += files_below(Path(entry), endings, (*above, real))
        elif Path(entry.name).suffix.lower() in endings:
            found.append(Path(entry))
    return found if above else sorted(found)


def open_npy(path: Path, advice: str = "") -> np.ndarray:
    """The numbers in a .npy file, memory-mapped: no more than the file holds. BadInput names a damaged one."""
    with open_input(path) as file:
        start = file.read(12)
    try:
        if start[6:7] > b"\1" and int.from_bytes(start[8:12], "little") > MAX_HEADER:
            raise ValueError("its header is longer than that of an array of numbers")
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # damaged headers fail in many ways
        reason = getattr(error, "strerror", None) or f"damaged: {error}"
        raise BadInput(f"{path}: {reason}{advice and f'; {advice}'}") from None


def is_whole(path: Path, shape: tuple[int | None, ...], dtype=None) -> bool:
    """Whether a .npy file has all its numbers, nothing after them, the shape (None: any length) and the type, if given.

    A power cut may leave one cut short, or all zeros.
    """
    try:
        array = open_npy(path)
    except (BadInput, OSError):
        return False
    fits = array.ndim == len(shape) and all(n in (None, found) for n, found in zip(shape, array.shape, strict=True))
    return fits and dtype in (None, array.dtype) and path.stat().st_size == array.offset + array.nbytes


def check_folder(path: Path, flag: str = "") -> None:
    """BadInput when a folder, the value of a flag where there is one, is none."""
    if not path.is_dir():
        found = "a file, expected a folder" if path.exists() else "no such folder"
        raise BadInput(f"{flag} {path}: {found}".lstrip())


def check_target(path: Path) -> None:
    """BadInput when something other than a plain file is where one is to be written; links are not followed."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise BadInput(f"{path}: is {kind_of(mode)} where a file is to be written; remove it or choose another folder")


def check_replaceable(path: Path, start: bytes, what: str) -> None:
    """BadInput when a file is there that holds something and does not start as ours do: it is somebody else's."""
    check_target(path)
    if path.exists():
        with open_input(path) as file:
            if file.read(len(start)) not in (b"", start):
                raise BadInput(f"{path}: is there already and not {what}; move it elsewhere or choose another name")


def open_own(path: Path, flags: int, mode: str):
    """Open a file of ours with flags of os.open, creating it; BadInput when there is a link or no plain file."""
    check_target(path)
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # it was put there just now
            check_target(path)
        raise
    return open(path, mode, opener=lambda *_: descriptor)


@contextlib.contextmanager
def errors_name(path: Path):
    """Let an OSError that names no file, as that of a full disk, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextlib.contextmanager
def atomic_open(path: Path, mode: str = "wb", sync: bool = True, keep: Path | None = None):
    """Open a file that appears at `path` only when the block ends without an error; what was there moves to `keep`.

    Without `sync` a power cut may leave it without its content. The temporary name is fixed (`.{name}.part`), so that
    an interrupted run leaves one file at most, which the next run replaces. Not safe for two writers of one path; see
    lock.py. BadInput when a link or no plain file is at either name.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    for name in (path, part):
        check_target(name)
    part.unlink(missing_ok=True)  # it may be another file's second name
    try:
        with errors_name(path), open_own(part, os.O_WRONLY | os.O_EXCL, mode) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        if keep:
            path.replace(keep)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def copy_file(source: Path, target: Path) -> None:
    """Copy somebody's file atomically."""
    with open_input(source) as original, atomic_open(target) as file:
        shutil.copyfileobj(original, file)


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
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # of brackets in brackets
        raise BadInput(f"{path}: not a JSON file") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a JSON object")
    return content


def make_folder(path: Path) -> Path:
    """Create the folder (parents too) and prove that it can be written; BadInput names it otherwise."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise BadInput(f"{path}: cannot write to this folder: {error.strerror}") from None
    return path


def make_subfolder(folder: Path, name: str) -> Path:
    """Create a folder of ours in one that the user named; BadInput when a link or a file is in its place."""
    path = Path(folder) / name
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return make_folder(path)
    if not stat.S_ISDIR(mode):
        raise BadInput(f"{path}: is {kind_of(mode)} where a folder is to be written; remove it or choose another one")
    return make_folder(path)
