"""Features made elsewhere, a file for each bag or one for many, as bags in a memory map.

.h5    CLAM's and TRIDENT's: `features` (n, d) or (1, n, d), `coords` (n, 2) x0, y0 of level 0
.pt    a tensor (n, d), or a dict of `features` and, if known, `coords`
.npz   `features` (n, d) and, if known, `tile` (n, 2) y, x and `truth` (n,) 1, 0 or -1
.csv   DSMIL's: a header, then a tile a line
.npy   one file of many bags, as mil/extract_features.py leaves it; it is used where it lies
"""

import contextlib
import hashlib
import itertools
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common import checkpoint, torch_format
from common.errors import BadInput
from common.files import make_folder, open_input, open_npy, read_json, write_json, write_npy
from mil.bag_list import Row
from mil.bags import UNKNOWN, Bags, unplaced
from mil.features import GrowingArray, tiles_path

SIDES = ("patch_size_level0", "patch_size")  # attributes of TRIDENT's and CLAM's coords
MOST_INFLATED = 1000  # times a file's size that what it holds may take
HASHED = 2**16  # bytes of a file's beginning and of its end that tell it from another


class Tiles(NamedTuple):
    """A bag's file: features (n, d) floats; corners (n, 2) int64 y, x; truth (n,) int8; a tile's side in px."""

    features: np.ndarray
    corners: np.ndarray
    truth: np.ndarray
    side: int


def load(rows: Sequence[Row], folder: Path, dtype: str) -> Bags:
    """The bags of a list, in its order; files of one bag each are gathered in `folder`, once.

    BadInput names a file that holds no features, or those of another width than the files before.
    """
    if all(row.file.suffix == ".npy" for row in rows):
        return _load_stored(rows)
    book, path = make_folder(folder) / "features.json", folder / "features.npy"
    wanted = {"bags": [[row.bag, row.label, _signature(row.file)] for row in rows], "feature_dtype": dtype}
    if os.path.lexists(book) and path.exists():
        if read_json(book).get("made_from") != wanted:
            raise BadInput(f"{book}: holds features of other files; choose another folder")
    else:
        write_json(book, {"made_from": wanted} | _gather(rows, path, dtype))
    found = read_json(book)
    with checkpoint.errors_name(book):
        cuts, tile = np.cumsum([int(n) for n in found["sizes"]])[:-1], int(found["tile"])
    places = np.array(open_npy(tiles_path(path)))
    corners, truth = np.split(places[:, :2].astype(np.int64), cuts), np.split(places[:, 2].astype(np.int8), cuts)
    labels = np.array([row.label for row in rows], np.int64)
    return Bags([row.bag for row in rows], labels, np.split(open_npy(path), cuts), corners, truth, tile)


def _signature(path):
    """Size, and digest of some bytes, of a file."""
    with open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(HASHED)
        file.seek(max(0, size - HASHED))
        return f"{size} {hashlib.sha256(start + file.read(HASHED)).hexdigest()}"


def _gather(rows, path, dtype):
    """Write the tiles of all files one after the other; returns the bags' sizes and a tile's usual side."""
    path.with_name(f".{path.name}.part").unlink(missing_ok=True)
    parts = (read(row.file, row.label) for row in rows)
    first = next(parts)
    dim, sizes, places, sides = first.features.shape[1], [], [], Counter()
    with GrowingArray(path, dim, dtype) as out:
        for row, found in zip(rows, itertools.chain([first], parts), strict=True):
            if found.features.shape[1] != dim:
                wrong = f"features have {found.features.shape[1]} numbers, expected {dim} as in bag {rows[0].bag}"
                raise BadInput(f"bag {row.bag}: {row.file}: {wrong}")
            out.append(found.features)
            sizes.append(len(found.features))
            places.append(np.column_stack([found.corners, found.truth]).astype(np.int32))
            sides[found.side] += 1
        write_npy(tiles_path(path), np.concatenate(places))
    return {"sizes": sizes, "tile": sides.most_common(1)[0][0]}


def read(path: Path, label: int) -> Tiles:
    """The features in a bag's file; where the truth is not in it, a negative bag's tiles are negative."""
    if path.suffix not in READERS:
        raise BadInput(f"{path}: expected features in {', '.join(READERS)} or .npy")
    features, corners, truth, side = READERS[path.suffix](path)
    features = features[0] if features.ndim == 3 and len(features) == 1 else features
    if features.ndim != 2 or 0 in features.shape:
        raise BadInput(f"{path}: has no tiles, expected features (n, d), found {features.shape}")
    if features.dtype.kind != "f":
        raise BadInput(f"{path}: expected features of type float, found {features.dtype}")
    finite = np.isfinite(features)
    if not finite.all():
        raise BadInput(
            f"{path}: expected features that are finite numbers, found {np.count_nonzero(~finite):,} NaN or "
            f"infinities, the first in tile {int(np.argmin(finite.all(axis=1)))}"
        )
    n = len(features)
    corners = unplaced(n) if corners is None else np.asarray(corners)
    truth = np.full(n, UNKNOWN if label else 0) if truth is None else np.asarray(truth)
    if corners.shape != (n, 2) or truth.shape != (n,) or not np.isin(truth, (UNKNOWN, 0, 1)).all():
        raise BadInput(
            f"{path}: {n} features with places {corners.shape} and truth {truth.shape}, expected ({n}, 2) and "
            f"({n},) of 1, 0 or {UNKNOWN}"
        )
    return Tiles(features, corners.astype(np.int64), truth.astype(np.int8), side or _spacing(corners))


def _spacing(corners):
    """The most frequent distance in px of neighbours in a row or column, the least of several; 1 without neighbours.

    Tissue in several pieces has a grid for each, and pieces lie at any distance.
    """
    gaps = []
    for along, across in ((0, 1), (1, 0)):
        ordered = corners[np.lexsort((corners[:, along], corners[:, across]))]
        steps = np.diff(ordered, axis=0)
        gaps.append(steps[(steps[:, across] == 0) & (steps[:, along] > 0), along])
    found, counts = np.unique(np.concatenate(gaps), return_counts=True)
    return int(found[counts.argmax()]) if len(found) else 1


def _read_h5(path):
    try:
        import h5py
    except ImportError:
        raise BadInput(f"{path}: reading .h5 needs h5py: pip install h5py") from None
    with open_input(path) as file, _damage_names(path), h5py.File(file, "r") as content:
        found = {name: _dataset(content, name, path) for name in ("features", "coords") if name in content}
        corners, side = None, None
        if "coords" in found:
            corners = found["coords"][()].reshape(-1, 2)[:, ::-1]
            side = next((int(found["coords"].attrs[name]) for name in SIDES if name in found["coords"].attrs), None)
        return found["features"][()], corners, None, side


def _dataset(content, name, path):
    """A data set in the file itself, of numbers. BadInput when it says it holds far more than the file."""
    import h5py

    if not isinstance(content.get(name, getlink=True), h5py.HardLink) or content[name].dtype.kind not in "fiu":
        raise BadInput(f"{path}: expected numbers in {name}")
    _refuse_inflated(path, content[name].nbytes)
    return content[name]


def _read_pt(path):
    content, _ = torch_format.read(path)
    parts = content if isinstance(content, dict) else {"features": content}
    arrays = {name: value.float().numpy() for name, value in parts.items() if isinstance(value, torch.Tensor)}
    if "features" not in arrays:
        raise BadInput(f"{path}: expected a tensor of features, or a dict with one under features")
    corners = arrays["coords"].reshape(-1, 2)[:, ::-1] if "coords" in arrays else None
    return arrays["features"], corners, None, None


def _read_npz(path):
    with open_input(path) as file, _damage_names(path):
        _refuse_inflated(path, sum(member.file_size for member in zipfile.ZipFile(file).infolist()))
        file.seek(0)
        with np.load(file, allow_pickle=False) as content:
            found = [content.get(name) for name in ("features", "tile", "truth")]
    if found[0] is None:
        raise BadInput(f"{path}: expected an array called features")
    return *found, None


def _read_csv(path):
    import pandas as pd

    with open_input(path) as file, _damage_names(path):
        return pd.read_csv(file, dtype=np.float32).to_numpy(), None, None, None


READERS = {".h5": _read_h5, ".pt": _read_pt, ".npz": _read_npz, ".csv": _read_csv}


def _refuse_inflated(path, n_bytes):
    """BadInput when a file's content would be so large that it can hold no features."""
    size = path.stat().st_size
    if n_bytes > MOST_INFLATED * size:
        raise BadInput(f"{path}: says it holds {n_bytes:,} bytes in {size:,}")


@contextlib.contextmanager
def _damage_names(path):
    """BadInput in place of the many errors of libraries that read a damaged file."""
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path}: not a readable file of features: {reason}") from None


def _load_stored(rows):
    """Bags in files of many; BadInput when a file has no such bag."""
    opened = {path: _open_stored(path) for path in sorted({row.file for row in rows})}
    features, corners, truth = [], [], []
    for row in rows:
        values, places, bags, _ = opened[row.file]
        if row.bag not in bags:
            raise BadInput(f"{row.file}: has no features of bag {row.bag}")
        first, n = bags[row.bag]
        features.append(values[first : first + n])
        corners.append(places[first : first + n, :2].astype(np.int64))
        truth.append(places[first : first + n, 2].astype(np.int8))
    labels = np.array([row.label for row in rows], np.int64)
    tile = next(iter(opened.values()))[3]
    return Bags([row.bag for row in rows], labels, features, corners, truth, tile)


def _open_stored(path):
    """Features and places of a file of many bags, bag -> (first row, rows), and a tile's side."""
    values, places, book = open_npy(path), open_npy(tiles_path(path)), path.with_suffix(".json")
    found = read_json(book)
    with checkpoint.errors_name(book):
        bags, tile = {name: (int(first), int(n)) for name, (first, n) in found["bags"].items()}, int(found["tile"])
    if places.shape != (len(values), 3) or sum(n for _, n in bags.values()) != len(values):
        raise BadInput(f"{path}: {values.shape} does not fit the bags in {book.name}")
    return values, places, bags, tile
