"""Tiles -> features on disk: embedded by batches across bags, streamed to a file that grows, gone on with when stopped.

A folder of features holds, for each split,
{split}.npy         (T, d) float16 or float32, the tiles of all bags one after the other
{split}_tiles.npy   (T, 3) int32, y and x of a tile's upper left pixel and its truth (1, 0, or -1 unknown)
{split}.json        what decides them, the tile's side, and the first row and number of rows of every bag
and bags.csv, the list of all bags.
"""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli, processes
from common.claim import changed
from common.errors import BadInput, WorkFailed
from common.files import check_target, errors_name, make_folder, open_npy, open_own, read_json, write_json, write_npy
from data import loaders
from mil import bag_list
from mil.bags import Bags
from mil.tiles import TileBags

HEADER = 128  # bytes of the header of a .npy file that grows


def add_flags(parser) -> None:
    """Declare `--tile_resize`, `--tile_batch`, `--feature_dtype`, `--workers` and `--verify`."""
    group = parser.add_argument_group("features")
    add_resize_flag(group)
    cli.neutral(group.add_argument("--tile_batch", type=cli.positive, default=64, help="tiles embedded at a time"))
    group.add_argument(
        "--feature_dtype", choices=("float32", "float16"), default="float32", help="numbers of the features on disk"
    )
    loaders.add_reading_flags(group)


def add_resize_flag(parser) -> None:
    """Declare `--tile_resize`."""
    parser.add_argument("--tile_resize", type=cli.positive, help="enlarge tiles to this side in px")


def extract_splits(splits: dict[str, TileBags], embedder, folder: Path, args, device) -> dict[str, Bags]:
    """The features of all splits in a folder, memory-mapped; what is there already is not computed again.

    Args:
        embedder: a network (B, C, t, t) -> (B, dim) with dim, smallest and describe(), see models/embedders.py.
    Errors: BadInput when tiles are too small for the embedder, or the folder holds features of other tiles or of
        another embedder.
    """
    for tiles in splits.values():  # before anything is written that would bind the folder to this size
        side = args.tile_resize or tiles[0][0].shape[-1]
        if side < embedder.smallest:
            raise BadInput(f"--tile_resize: the embedder needs images of {embedder.smallest} px or more, found {side}")
    folder = make_folder(folder)
    for split, tiles in splits.items():
        _open_book(folder / f"{split}.json", tiles, settings_of_features(tiles, embedder, args))
    found = {split: extract(tiles, embedder, folder / f"{split}.npy", args, device) for split, tiles in splits.items()}
    rows = [
        (name, label, split, folder / f"{split}.npy")
        for split, tiles in splits.items()
        for name, label in zip(tiles.names, tiles.labels.tolist(), strict=True)
    ]
    bag_list.write(folder / "bags.csv", rows)
    return found


def settings_of_features(tiles: TileBags, embedder, args) -> dict:
    """What decides the features."""
    flags = {name: getattr(args, name) for name in ("tile_resize", "feature_dtype", "precision")}
    return {"data": tiles.fingerprint(), **embedder.describe(), **flags}


def _open_book(path, tiles, wanted):
    """Note what is about to be computed. BadInput when the folder holds something else."""
    if os.path.lexists(path):
        found = read_json(path).get("made_from")
        found = found if isinstance(found, dict) else {}
        other = changed(found, wanted)
        if other:
            raise BadInput(f"{path}: holds features that differ in {', '.join(other)}; choose another folder")
    rows = np.column_stack([tiles.ends - tiles.sizes, tiles.sizes]).tolist()
    bags = dict(zip(tiles.names, rows, strict=True))
    if len(bags) < len(rows):
        raise BadInput(f"{path.stem}: two of its {len(rows)} bags have the same name")
    write_json(path, {"made_from": wanted, "tile": tiles.tile, "bags": bags})


def extract(tiles: TileBags, embedder, path: Path, args, device) -> Bags:
    """The features of all tiles, written to a .npy file; independent of workers and, but for rounding, of batches."""
    if not path.exists():
        places = np.column_stack([np.concatenate(tiles.corners), tiles.flat_truth])
        write_npy(tiles_path(path), places.astype(np.int32))
        embedder = embedder.to(device)
        with GrowingArray(path, embedder.dim, args.feature_dtype, args.tile_batch) as file:
            for vectors in embed(tiles, embedder, file.rows, args, device, f"embedding {path.stem}"):
                file.append(vectors)
    features = open_npy(path)
    if features.shape != (len(tiles), embedder.dim):
        raise BadInput(f"{path}: expected features {(len(tiles), embedder.dim)}, found {features.shape}; remove it")
    return tiles.with_features(features)


def tiles_path(path: Path) -> Path:
    """Beside features, the places and the truth of their tiles."""
    return path.with_name(f"{path.stem}_tiles.npy")


@torch.inference_mode()
def embed(tiles: TileBags, embedder, first: int, args, device, desc: str) -> Iterator[np.ndarray]:
    """Features (b, d) float32 of batches of --tile_batch tiles, whatever their bags, from the first-th tile on."""
    reading = argparse.Namespace(batch_size=args.tile_batch, workers=args.workers)
    loader = loaders.ordered_loader(tiles, reading, device, np.arange(first, len(tiles)))
    for pictures, _ in processes.progress_on_rank_0(loader, len(loader), desc, "batch"):
        pictures = resize(pictures.to(device, non_blocking=True), args.tile_resize)
        with processes.autocast(device, args.precision):
            yield embedder(pictures).float().cpu().numpy()


def resize(pictures: Tensor, side: int | None) -> Tensor:
    """(B, C, t, t) at another side, bilinear; as they are without one."""
    if side is None:
        return pictures
    return F.interpolate(pictures, (side, side), mode="bilinear", antialias=side < pictures.shape[-1])


class GrowingArray(contextlib.AbstractContextManager):
    """A .npy file (rows, dim) that is written row by row under a temporary name, `.{name}.part`, until it is whole.

    What an interrupted run left is kept by whole batches, so that the rest is computed in the same batches.
    WorkFailed when a value is not finite in the file's type.
    """

    def __init__(self, path: Path, dim: int, dtype: str, batch: int = 1):
        self.path, self.part = path, path.with_name(f".{path.name}.part")
        self.dim, self.dtype = dim, np.dtype(dtype)
        check_target(path)
        self.file = open_own(self.part, os.O_RDWR, "r+b")
        row = dim * self.dtype.itemsize
        self.rows = max(0, os.fstat(self.file.fileno()).st_size - HEADER) // row // batch * batch
        with errors_name(self.part):
            self.file.truncate(HEADER + self.rows * row)
            self.file.seek(0, os.SEEK_END)

    def append(self, vectors: np.ndarray) -> None:
        """Write further rows (b, dim)."""
        with np.errstate(over="ignore"):
            values = vectors.astype(self.dtype)
        if not np.isfinite(values).all():
            found = "not finite" if not np.isfinite(vectors).all() else f"too large for --feature_dtype {self.dtype}"
            raise WorkFailed(f"{self.path}: features are {found}; take --precision and --feature_dtype float32")
        with errors_name(self.part):
            self.file.write(values.tobytes())
            self.file.flush()
        self.rows += len(values)

    def __exit__(self, kind, error, trace):
        with self.file:
            if kind is None:
                with errors_name(self.part):
                    self.file.seek(0)
                    self._write_header()
                    self.file.flush()
                    os.fsync(self.file.fileno())
                self.part.replace(self.path)

    def _write_header(self):
        fields = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, self.dim)}
        np.lib.format.write_array_header_1_0(self.file, fields)
        assert self.file.tell() == HEADER  # NumPy fills it up with blanks
