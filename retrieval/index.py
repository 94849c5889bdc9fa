"""Images -> unit vectors on disk -> nearest neighbours. Embedding streams into a file, and continues there."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from common import cli, processes
from common.claim import changed
from common.errors import BadInput
from common.files import check_target, is_whole, make_folder, read_json, write_json
from common.nearest import k_nearest
from data import loaders
from data.image_set import ImageSet

SECONDS = 10  # between two notes of how far an embedding has come
QUERIES = 512  # images that are looked up at once, in all orientations
OBJECT_SIDE = 64  # px that an object's box is scaled to


def turned(images: Tensor, orientation: int) -> Tensor:
    """Images (..., H, W) in one of 8 orientations: mirrored from 4 on, then turned by quarters; 0 is as they are."""
    images = images.flip(-1) if orientation >= 4 else images
    return images.rot90(orientation % 4, (-2, -1))


class Objects(Dataset):
    """The boxes of a data set's objects as images (C, OBJECT_SIDE, OBJECT_SIDE); `indices` of the images they are in.

    BadInput when the data do not say where their objects are.
    """

    def __init__(self, data):
        if not data.has_objects:
            raise BadInput("--objects: these data do not say where their objects are")
        self.data, self.indices = data, np.flatnonzero(data.labels == 1)

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        image, label = self.data[int(self.indices[i])]
        mask = self.data.object_mask(int(self.indices[i]))
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if len(rows) == 0:
            raise BadInput(f"{self.data.names[self.indices[i]]}: its mask shows no object")
        box = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        side = (OBJECT_SIDE, OBJECT_SIDE)
        return F.interpolate(box[None], side, mode="bilinear", align_corners=False)[0], label


class Readable(ImageSet):
    """The images of a data set at some places, each with 1, or where it cannot be read, zeros with 0."""

    def __init__(self, data, order: np.ndarray):
        self.data, self.order = data, order
        self.blank = next(
            (torch.zeros_like(image) for image in map(self._read, range(len(order))) if image is not None), None
        )

    def __len__(self):
        return len(self.order)

    def __getitem__(self, i):
        image = self._read(i)
        return (self.blank, 0) if image is None else (image, 1)

    def _read(self, i):
        try:
            return self.data[int(self.order[i])][0]
        except BadInput:
            return None

    def problem(self, i: int) -> str:
        """Why an image cannot be read."""
        try:
            self.data[int(self.order[i])]
        except BadInput as error:
            return str(error)
        return f"image {i}: could not be read a moment ago"


@dataclass
class Vectors:
    """Unit vectors (N, orientations, D), a memory map, of the images at `places`.

    problems: row -> why its image could not be read.
    """

    places: np.ndarray
    array: np.ndarray
    problems: dict[int, str]

    @property
    def readable(self) -> np.ndarray:
        """(N,) bool."""
        good = np.ones(len(self.array), bool)
        good[list(self.problems)] = False
        return good


def embed(
    data, order: np.ndarray, network: nn.Module, orientations: int, path: Path, identity: dict, args, device
) -> Vectors:
    """Embed the images at the places `order` into `path` (.npy, with a .json beside it), or go on with what is there.

    Args:
        network: (B, C, H, W) in [0, 1] -> (B, D).
        identity: plain content that must be equal for the file to be gone on with; it says what network and data are.
        args: batch_size, workers and precision.
    Errors: BadInput when the file holds vectors of another network or of other data, or no image can be read.
    """
    if args.precision != "float32":
        identity = identity | {"precision": args.precision}
    book, images = path.with_suffix(".json"), Readable(data, order)
    if images.blank is None:
        raise BadInput(images.problem(0) if len(order) else f"{path.stem}: no images to embed")
    with torch.no_grad():
        dim = _unit(network(images.blank[None].to(device))).shape[1]
    shape = (len(order), orientations, dim)
    array, done, problems = _open(path, book, shape, identity)

    def note():
        array.flush()
        write_json(book, {"identity": identity, "done": done, "problems": {str(i): why for i, why in problems.items()}})

    left = np.arange(done, len(order))
    loader = loaders.ordered_loader(images, args, device, left) if len(left) else []
    noted = time.monotonic()
    try:
        for batch, good in cli.progress(loader, len(loader), f"embedding {path.stem}", "batch"):
            rows = slice(done, done + len(batch))
            array[rows] = _embed_batch(
                batch.to(device, non_blocking=True), network, orientations, device, args.precision
            )
            problems |= {done + i: images.problem(done + i) for i in np.flatnonzero(good.numpy() == 0).tolist()}
            done += len(batch)
            if time.monotonic() - noted > SECONDS:
                note()
                noted = time.monotonic()
    finally:
        if len(left):
            note()
    return Vectors(order, array, problems)


def _embed_batch(batch, network, orientations, device, precision):
    """(B, orientations, D) float32, one orientation at a time."""
    with torch.no_grad(), processes.autocast(device, precision):
        vectors = [_unit(network(turned(batch, o)).float()) for o in range(orientations)]
    return torch.stack(vectors, 1).cpu().numpy()


def _unit(vectors):
    """Unit length; a flat image, which `pixels` turns into zeros, is at a right angle to all others and like itself."""
    flat = vectors.norm(dim=1, keepdim=True) < 1e-12
    return torch.where(flat, vectors.shape[1] ** -0.5, F.normalize(vectors, dim=1))


def _open(path, book, shape, identity):
    """The vectors' memory map, how many rows are done, and what could not be read among them."""
    make_folder(path.parent)
    check_target(path)
    if os.path.lexists(book) and os.path.lexists(path):
        found = read_json(book)
        known = found.get("identity") if isinstance(found.get("identity"), dict) else {}
        other = sorted(changed(known, identity))
        if other:
            raise BadInput(
                f"{book}: index of other {', '.join(other)} than asked for; choose another folder or remove this one"
            )
        done, problems = found.get("done"), found.get("problems")
        if is_whole(path, shape) and isinstance(done, int) and isinstance(problems, dict) and 0 <= done <= shape[0]:
            return np.lib.format.open_memmap(path, mode="r+"), done, {int(i): str(why) for i, why in problems.items()}
    book.unlink(missing_ok=True)  # of vectors that are no more, of which it may say that they are done
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape), 0, {}


def search(
    queries: Vectors, gallery: Vectors, k: int, query_groups=None, gallery_groups=None, device="cpu", what="searching"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k nearest gallery images, in their first orientation, of each query in its best one.

    Returns: distances (M, k) float32, ascending, indices (M, k), orientations (M, k) of the query; inf, -1 and 0 where
    fewer are left, or where the query could not be read. Groups as in `k_nearest`.
    """
    places = np.flatnonzero(gallery.readable)
    vectors = gallery.array[:, 0] if len(places) == len(gallery.array) else gallery.array[places, 0]
    groups = None if gallery_groups is None else gallery_groups[places]
    m, n = queries.array.shape[:2]
    results = np.full((m, k), np.inf, np.float32), np.full((m, k), -1, np.int64), np.zeros((m, k), np.int64)
    starts = range(0, m, QUERIES)
    for first in cli.progress(starts, len(starts), what, "block"):
        rows = np.arange(first, min(first + QUERIES, m))
        rows = rows[queries.readable[rows]]
        own = None if query_groups is None else np.repeat(query_groups[rows], n)
        block = queries.array[rows].reshape(len(rows) * n, -1)
        distances, found = k_nearest(block, vectors, k, own, groups, device)
        for result, values in zip(results, _best_orientations(distances, found, len(rows), k), strict=True):
            result[rows] = values
    results[1][results[1] >= 0] = places[results[1][results[1] >= 0]]
    return results


def _best_orientations(distances, indices, m, k):
    """(m * orientations, k) -> (m, k) of the images, each gallery image once, and its orientation."""
    distances, indices = distances.reshape(m, -1).copy(), indices.reshape(m, -1)
    by_image = np.lexsort((distances, indices))  # of each gallery image the nearest orientation first
    ordered = np.take_along_axis(indices, by_image, 1)
    again = np.zeros_like(by_image, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    sorted_distances = np.take_along_axis(distances, by_image, 1)
    sorted_distances[again] = np.inf
    nearest = np.argsort(sorted_distances, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(sorted_distances, nearest, 1)
    found = np.where(np.isinf(best), -1, np.take_along_axis(ordered, nearest, 1))
    return best, found, np.where(found < 0, 0, np.take_along_axis(by_image, nearest, 1) // k)


def all_distances(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Distances (m, N) of queries (m, orientations, D), each in its best orientation, to all of the gallery (N, D)."""
    best = np.full((len(queries), len(gallery)), -np.inf, np.float32)
    for o in range(queries.shape[1]):
        np.maximum(best, queries[:, o] @ gallery.T, out=best)
    return np.sqrt(np.clip(2 - 2 * best, 0, None))
