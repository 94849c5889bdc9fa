"""A data set on disk: args.json (what it is), {split}.csv, canvases {split}_{i}.npz. Every file is whole or absent.

An interrupted command continues when it is given again: args.json is written first and a split's CSV after the
split's canvases and their checksums in manifest.json, so test.csv comes last. No file depends on the number of workers,
the time or the place.
"""

import functools
import math
import os
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np

from common import cli, manifest, parallel
from common.errors import BadInput
from common.files import atomic_open, json_bytes, make_folder, npy_bytes, read_json, write_json
from common.manifest import Manifest

SPLITS = ("train", "val", "test")
MAX_BYTES = 2**29  # of a canvas: 16,384 px a side as uint8 have half of that, 8,192 px as float64 all
CHUNK = 32  # canvases a worker writes between two reports


def claim(out: Path, settings: dict) -> None:
    """Make `out` the folder of the data set that the settings (flag name -> value) describe.

    Errors: BadInput names the flags in which what is there differs.
    """
    path, listed = out / "args.json", _listed(out).get("args.json")
    if listed == manifest.checksums(json_bytes(settings)):
        if not path.exists() or manifest.file_checksums(path) != listed:  # damaged
            write_json(path, settings)
    elif path.exists():
        there = read_json(path)
        if there.get("generator") != settings["generator"]:
            raise BadInput(f"--out {out}: holds a data set of another kind ({there.get('generator')})")
        names = [name for name in settings | there if settings.get(name) != there.get(name)]
        if names:
            found = ", ".join(f"--{name} {there.get(name)} (now {settings.get(name)})" for name in names)
            raise BadInput(f"--out {out}: holds a data set with other settings: {found}")
    elif any((out / f"{split}.csv").exists() for split in SPLITS):
        raise BadInput(f"--out {out}: holds a data set without args.json; choose another folder")
    else:
        write_json(path, settings)


def _listed(out):
    """The entries of manifest.json, which is removed when it is damaged, to be made again."""
    try:
        return Manifest(out).entries
    except BadInput:
        (out / manifest.NAME).unlink()
        return {}


def print_next(out: Path) -> None:
    """Print the command that trains on the data set."""
    words = ["train_mnist.py", "--data_path", str(out), "--logdir", f"runs/{out.resolve().name}"]
    print(f"next: python {shlex.join(words)}")


def canvas_name(split: str, i: int) -> str:
    """File name of image i of a split, also its identifier where no file is written."""
    return f"{split}_{i}.npz"


def write_split(out: Path, split: str, source, npz: bool, workers: int, positions: np.ndarray | None = None) -> bool:
    """Write a split's canvases (if npz) and then its CSV, which marks the split as complete. Labels are 1, 0, 1, ...

    Returns whether there was anything to write: what is there already, whole, is left alone.

    Args:
        source: has `len` and `arrays(i)`, the tuple of arrays in the file of image i; picklable.
        positions: (N, 2) top-left (y, x) of the needle in px, written for label 1 only; without it, no such columns.
    """
    path, table = out / f"{split}.csv", _table(split, len(source), positions)
    names = [canvas_name(split, i) for i in range(len(source))] if npz else []
    if path.exists() and path.read_bytes() == table and _are_whole(out, names) and _are_listed(out, path.name, names):
        return False
    path.unlink(missing_ok=True)
    sums = _write_canvases(out, split, source, workers) if npz else {}
    os.sync()  # canvases are renamed into place but not synced one by one
    for file in [out / "args.json", *out.glob(f"recipe/{split}_*.npy")]:
        sums[file.relative_to(out).as_posix()] = manifest.file_checksums(file)
    manifest.write(out, Manifest(out).entries | sums | {path.name: manifest.checksums(table)})
    with atomic_open(path) as file:
        file.write(table)
    return True


def _table(split, images, positions):
    """The bytes of a split's CSV."""
    lines = ["img_path,label" if positions is None else "img_path,label,needle_y,needle_x"]
    for i in range(images):
        line = f"{canvas_name(split, i)},{1 - i % 2}"
        if positions is not None:
            line += ",," if i % 2 else ",{:g},{:g}".format(*positions[i])
        lines.append(line)
    return "\n".join([*lines, ""]).encode()


def _are_whole(out, names):
    """Whether no canvas is absent or cut short; the end of a zip file tells, a checksum of all would take minutes."""
    return all((out / name).exists() and zipfile.is_zipfile(out / name) for name in names)


def _are_listed(out, table, names):
    """Whether manifest.json has what this version writes, for earlier ones wrote none."""
    return {"args.json", table, *names} <= Manifest(out).entries.keys()


def check_space(out: Path, needed: int) -> None:
    """Raise BadInput when the disk lacks the `needed` bytes, less what `out` holds already of them."""
    there = [*make_folder(out).glob("*.npz"), *out.glob("recipe/*.npy")]
    needed -= sum(file.stat().st_size for file in there)
    free = shutil.disk_usage(out).free
    if free < needed:
        raise BadInput(f"--out {out}: {free / 1e9:.3g} GB free, expected at least {needed / 1e9:.3g} GB")


def _write_canvases(out, split, source, workers):
    """Write every canvas of the source that `out` does not hold whole; returns the checksums of all, by name."""
    write, sums = functools.partial(_write_chunk, out, split, source), {}
    chunks = parallel.map_jobs(write, list(range(0, len(source), CHUNK)), workers)
    written = (item for chunk in chunks for item in chunk.items())
    for name, each in cli.progress(written, len(source), split, "images"):
        sums[name] = each
    return sums


def _write_chunk(out, split, source, start):
    """Write the canvases start ... start + CHUNK - 1; returns their checksums by name."""
    sums = {}
    for i in range(start, min(start + CHUNK, len(source))):
        path = out / canvas_name(split, i)
        if not (path.exists() and _is_whole(path)):
            save_npz(path, source.arrays(i))
        sums[path.name] = manifest.file_checksums(path)
    return sums


def _is_whole(path):
    """Whether every member's checksum holds; a power cut may leave a renamed file without its content."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # damaged archives fail in many ways
        return False


def save_npz(path: Path, arrays: tuple) -> None:
    """Write arr_0, arr_1, ... as NumPy does, but dated 1980, so that equal arrays are equal bytes.

    Bytes are deflated at the quickest level, half the work of NumPy's; floats are noise and stored.
    """
    with atomic_open(path, sync=False) as file, zipfile.ZipFile(file, "w") as archive:
        for number, array in enumerate(arrays):
            member = zipfile.ZipInfo(f"arr_{number}.npy")
            kind = zipfile.ZIP_DEFLATED if array.dtype == np.uint8 else zipfile.ZIP_STORED
            archive.writestr(member, npy_bytes(array), kind, compresslevel=1)


def load_npz(path: Path, shape: tuple | None = None) -> np.ndarray:
    """Read arr_0 (H, W), of the given shape if any, never unpickling anything.

    BadInput names a file that is missing, damaged or of another shape, before what it claims to hold is unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            with archive.open("arr_0.npy") as member:
                _check_header(path, member, archive.getinfo("arr_0.npy").file_size, shape)
            with archive.open("arr_0.npy") as member:
                return np.lib.format.read_array(member, allow_pickle=False)
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # damaged archives fail in many ways
        reason = getattr(error, "strerror", None) or "damaged, expected a canvas written by generate_data.py"
        raise BadInput(f"{path}: {reason}") from None


def _check_header(path, member, size, wanted):
    """BadInput when an array is no canvas, is not of the wanted shape or has another size than its shape says."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    pixels = math.prod(shape)
    if len(shape) != 2 or dtype.kind not in "uf" or not 0 < pixels * dtype.itemsize <= MAX_BYTES:
        raise BadInput(f"{path}: {dtype} array of shape {shape}, expected a canvas (H, W) of up to {MAX_BYTES} bytes")
    if wanted and shape != wanted:
        raise BadInput(f"{path}: shape {shape}, the first canvas has {wanted}")
    if member.tell() + pixels * dtype.itemsize != size:
        raise ValueError
