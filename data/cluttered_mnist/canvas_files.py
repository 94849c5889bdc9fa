"""Canvases in .npz files: equal arrays are equal bytes; a file of anyone is read without trust in what it claims."""

import contextlib
import io
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from common.errors import BadInput
from common.files import atomic_open, npy_bytes, open_input

MAX_BYTES = 2**29  # of a canvas: 16,384 px a side as uint8 have half of that, 8,192 px as float64 all
MAX_HEADER = 2**12  # bytes of a .npy header, of a zip file's directory; NumPy writes 128 and 120
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may ask for gigabytes


def ends_as_zip(path: Path) -> bool:
    """Whether a file has the end of a zip file: a canvas that is cut short lacks it."""
    with open_input(path) as file:
        return zipfile.is_zipfile(file)


def holds(path: Path, arrays: tuple) -> bool:
    """Whether a file that is not listed holds the arrays; False if only the beginning, as a power cut leaves it.

    BadInput: it holds anything else, so this command did not write it.
    """
    with contextlib.suppress(BadInput), _opened(path) as archive:
        members = {f"arr_{number}.npy": npy_bytes(array) for number, array in enumerate(arrays)}
        if archive.namelist() == list(members) and all(_read(archive, *member) for member in members.items()):
            return True
    expected = io.BytesIO()
    _write_npz(expected, arrays)
    with open_input(path) as file:
        there = file.read(expected.tell() + 1).rstrip(b"\0")
    if expected.getvalue().startswith(there):
        return False
    raise BadInput(f"{path}: was not written by this command, and would be replaced; choose another folder")


def _read(archive, name, content):
    """Whether a member has this content, of which no more is unpacked."""
    with archive.open(name) as member:
        return member.read(len(content) + 1) == content


def save_npz(path: Path, arrays: tuple) -> None:
    """Write arr_0, arr_1, ... as NumPy does, but dated 1980, so that equal arrays are equal bytes.

    Bytes are deflated at the quickest level, half the work of NumPy's; floats are noise and stored.
    """
    with atomic_open(path, sync=False) as file:
        _write_npz(file, arrays)


def _write_npz(file, arrays):
    with zipfile.ZipFile(file, "w") as archive:
        for number, array in enumerate(arrays):
            member = zipfile.ZipInfo(f"arr_{number}.npy")
            kind = zipfile.ZIP_DEFLATED if array.dtype == np.uint8 else zipfile.ZIP_STORED
            archive.writestr(member, npy_bytes(array), kind, compresslevel=1)


def load_npz(path: Path, shape: tuple | None = None) -> np.ndarray:
    """Read arr_0 (H, W) as uint8, float32 or float64, of the given shape if any, never unpickling anything.

    BadInput names a file that is missing, damaged, of another shape, before what it claims to hold is unpacked, or
    that holds a pixel that is no number in float32.
    """
    with _opened(path) as archive, archive.open("arr_0.npy") as member:
        (found, fortran, dtype), content = _read_start(path, archive, member)
        if shape and found != shape:
            raise BadInput(f"{path}: shape {found}, most canvases have {shape}")
        while part := member.read(2**20):
            content += part
        canvas = np.frombuffer(content, dtype).reshape(found, order="F" if fortran else "C")
    if canvas.dtype.kind == "f":
        canvas = canvas.astype(np.result_type(canvas.dtype, np.float32), copy=False)
        with np.errstate(over="ignore"):
            sound = np.isfinite(canvas.astype(np.float32, copy=False)).all()
        if not sound:
            raise BadInput(f"{path}: a pixel is infinite or not a number")
    return canvas


def canvas_shape(path: Path) -> tuple[int, int]:
    """(H, W) of a canvas, from its header; errors as of load_npz."""
    with _opened(path) as archive, archive.open("arr_0.npy") as member:
        return _read_start(path, archive, member)[0][0]


@contextlib.contextmanager
def _opened(path):
    """The archive of a canvas, to read from. BadInput names a file that is missing or damaged."""
    try:
        with open_input(path) as file:
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                if any(member.compress_type not in METHODS for member in archive.infolist()):
                    raise ValueError
                yield archive
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # damaged archives fail in many ways
        reason = getattr(error, "strerror", None) or "damaged, expected a canvas written by generate_data.py"
        raise BadInput(f"{path}: {reason}") from None


def _check_directory(file):
    """ValueError unless a zip file ends in a directory of few members; zipfile reads one of any size into memory."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 42))
    end = file.read()  # where large archives have a second directory, and the 22 bytes about the first
    if end[:4] == b"PK\6\7" or end[20:24] != b"PK\5\6" or int.from_bytes(end[32:36], "little") > MAX_HEADER:
        raise ValueError
    file.seek(0)


def _read_start(path, archive, member):
    """((shape, whether in Fortran's order, dtype), first bytes of the pixels) of arr_0.

    BadInput when it is no canvas, ValueError when it has another size than its shape says.
    """
    info, start = archive.getinfo("arr_0.npy"), io.BytesIO(member.read(MAX_HEADER))
    version = np.lib.format.read_magic(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header = shape, _, dtype = read(start)
    pixels = math.prod(shape)
    fits = dtype == np.uint8 or (dtype.kind == "f" and dtype.itemsize <= 8)
    if len(shape) != 2 or not fits or not 0 < pixels * dtype.itemsize <= MAX_BYTES:
        expected = f"a canvas (H, W) of uint8 or floats of up to {MAX_BYTES} bytes"
        raise BadInput(f"{path}: {dtype} array of shape {shape}, expected {expected}")
    if start.tell() + pixels * dtype.itemsize != info.file_size:
        raise ValueError
    return header, bytearray(start.read())
