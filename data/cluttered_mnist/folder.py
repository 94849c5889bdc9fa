"""A data set on disk: args.json (what it is), {split}.csv, canvases {split}_{i}.npz. Every file is whole or absent.

An interrupted command continues when it is given again: args.json is written first and a split's CSV after the
split's canvases and their checksums in manifest.json, so test.csv comes last. No file depends on the number of workers,
the time or the place.

What is at a name of ours is the command's own if manifest.json lists it, for these args.json; then it may be replaced.
Anything else is kept when it holds what would be written, and refused or, a table, left as it is when it does not.
"""

import functools
import os
import re
import shlex
import shutil
import time
from pathlib import Path

import numpy as np

from common import cli, manifest, parallel
from common.claim import differences
from common.errors import BadInput
from common.files import atomic_open, check_file, json_bytes, make_folder, read_json, write_json
from common.manifest import Manifest
from data.cluttered_mnist import canvas_files

CHUNK = 32  # canvases a worker writes between two reports
LISTING_SECONDS = 30  # between two lists of the canvases written so far
OURS = re.compile(r"manifest\.json|(train|val|test)(\.csv|_[0-9]+\.npz)")


def claim(out: Path, settings: dict) -> None:
    """Make `out` the folder of the data set that the settings (flag name -> value) describe.

    Errors: BadInput names the flags in which what is there differs, or a file there of unknown origin.
    """
    path, listed, ours = out / "args.json", _listed(out), manifest.checksums(json_bytes(settings))
    if listed.get(path.name) == ours:
        if not os.path.lexists(path) or manifest.file_checksums(path) != ours:  # lost or damaged
            write_json(path, settings)
    elif os.path.lexists(path):
        there = read_json(path)
        if there.get("generator") != settings["generator"]:
            raise BadInput(f"--out {out}: holds a data set of another kind ({there.get('generator')})")
        changed = differences(there, settings)
        if changed:
            raise BadInput(f"--out {out}: was made with {changed}; choose another folder")
        if listed and listed.get(path.name) != manifest.file_checksums(path):
            raise BadInput(f"{out / manifest.NAME}: of other settings than {path.name}; choose another folder")
    else:
        strangers = sorted(file.name for file in out.iterdir() if OURS.fullmatch(file.name))
        if strangers:
            raise unknown_origin(out, strangers[0])
        write_json(path, settings)
    manifest.write(out, listed | {path.name: manifest.file_checksums(path)})


def unknown_origin(out: Path, name: str) -> BadInput:
    """The error that a folder without args.json holds a file of a name that is to be written."""
    return BadInput(f"--out {out}: holds {name}, but no args.json that says how it was made; choose another folder")


def _listed(out):
    """The entries of manifest.json; none of a damaged one, which is made again."""
    try:
        return Manifest(out).entries
    except BadInput:
        check_file(out / manifest.NAME)
        return {}


def list_files(out: Path, names: list[str]) -> None:
    """Add files that were written to manifest.json."""
    manifest.write(out, Manifest(out).entries | {name: manifest.file_checksums(out / name) for name in names})


def print_next(out: Path) -> None:
    """Print the command that trains on the data set."""
    where = [f"--data_path={out}"] if str(out).startswith("-") else ["--data_path", str(out)]
    print(f"next: python {shlex.join(['train_mnist.py', *where, '--logdir', f'runs/{out.resolve().name}'])}")


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
    path, table, listed = out / f"{split}.csv", _table(split, len(source), positions), Manifest(out).entries
    names = [canvas_name(split, i) for i in range(len(source))] if npz else []
    there = os.path.lexists(path)
    whole = there and manifest.file_checksums(path) == manifest.checksums(table)
    edited = there and not whole and path.name not in listed
    if edited:
        print(f"{path}: changed by hand, as {manifest.NAME} does not list it, and kept")
    expected = {*names} if edited else {*names, path.name}
    if (whole or edited) and listed.keys() >= expected and _are_whole(out, names):
        return False
    if not edited and not path.is_symlink():
        path.unlink(missing_ok=True)
    sums = _write_canvases(out, split, source, workers, listed) if npz else {}
    os.sync()  # canvases are renamed into place but not synced one by one
    if edited:
        manifest.write(out, listed | sums)
        return True
    manifest.write(out, listed | sums | {path.name: manifest.checksums(table)})
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
    return all(os.path.lexists(out / name) and canvas_files.ends_as_zip(out / name) for name in names)


def check_space(out: Path, needed: int) -> None:
    """Raise BadInput when the disk lacks the `needed` bytes, less what `out` holds already of them."""
    there = [*make_folder(out).glob("*.npz"), *out.glob("recipe/*.npy")]
    needed -= sum(file.lstat().st_size for file in there)
    free = shutil.disk_usage(out).free
    if free < needed:
        raise BadInput(f"--out {out}: {free / 1e9:.3g} GB free, expected at least {needed / 1e9:.3g} GB")


def _write_canvases(out, split, source, workers, listed):
    """Write every canvas of the source that `out` does not hold whole; returns the checksums of all, by name."""
    write, sums, listing = functools.partial(_write_chunk, out, split, source), {}, time.monotonic()
    images = [(i, listed.get(canvas_name(split, i))) for i in range(len(source))]
    jobs = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    written = (item for chunk in parallel.map_jobs(write, jobs, workers) for item in chunk.items())
    for name, each in cli.progress(written, len(source), split, "images"):
        sums[name] = each
        if time.monotonic() - listing > LISTING_SECONDS:
            manifest.write(out, listed | sums)
            listing = time.monotonic()
    return sums


def _write_chunk(out, split, source, images):
    """Write canvases, given as (number, checksums if listed); returns their checksums by name."""
    sums = {}
    for i, listed in images:
        path = out / canvas_name(split, i)
        if not os.path.lexists(path):
            whole = False
        elif listed is not None:
            whole = manifest.file_checksums(path) == listed
        else:
            whole = canvas_files.holds(path, source.arrays(i))
        if not whole:
            canvas_files.save_npz(path, source.arrays(i))
        sums[path.name] = manifest.file_checksums(path)
    return sums
