"""Where canvases come from when no file is read: a recipe on disk, or the seed of Gaussian noise.

A recipe lies in the folder `recipe` of a data set, as plain .npy files that are read memory-mapped, per split:
    {split}_pool.npy     (P, s, s) uint8, clutter digits in the size in which they are placed
    {split}_needles.npy  (M, 28, 28) uint8
    {split}_clutter.npy  (K, 3) uint16 or uint32, rows (pool index, y, x), image after image in the order drawn
    {split}_offsets.npy  (N + 1,) int64, image i has rows offsets[i] ... offsets[i + 1] - 1
    {split}_needle.npy   (N, 3) int32, rows (needles index, y, x); negatives have index -1 and a drawn position
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import cli, manifest
from common.errors import BadInput
from common.files import atomic_open, make_subfolder, open_npy, write_npy
from common.manifest import Manifest
from data import SPLITS
from data.cluttered_mnist import placements, render
from data.cluttered_mnist.digits import Digits
from data.cluttered_mnist.folder import unknown_origin

PARTS = ("pool", "needles", "clutter", "offsets", "needle")
MAX_IMAGES = 2**22  # of a split; more than a CSV may list
FILES = [f"recipe/{split}_{part}.npy" for split in SPLITS for part in PARTS]


class Recipe:
    """The canvases of one split, composed when asked for. Cheap to pickle: the files are opened again.

    Args:
        folder: the data set's folder. settings: its args.json.
    Errors: BadInput names a part that is missing or damaged, or says that the parts do not belong together.
    """

    def __init__(self, folder: Path, split: str, settings: dict):
        self.folder, self.split = Path(folder) / "recipe", split
        self.canvas_side, self.patch_size, self.scale = (settings[name] for name in ("canvas", "patch-size", "scale"))
        self.manifest, self._files = Manifest(folder), {}
        if not self._fits():
            shapes = {name: self.part(name).shape for name in PARTS}
            raise BadInput(f"{self.folder}: the files of {split} do not belong together: {shapes}")

    def _fits(self):
        """Whether the parts have the shapes and kinds of numbers of one recipe."""
        pool, needles, clutter, offsets, needle = map(self.part, PARTS)
        squares = all(part.ndim == 3 and 0 < part.shape[1] == part.shape[2] for part in (pool, needles))
        tables = all(part.ndim == 2 and part.shape[1] == 3 for part in (clutter, needle)) and offsets.ndim == 1
        kinds = [part.dtype.kind for part in (pool, needles, clutter, offsets, needle)] == list("uuuii")
        if not (squares and tables and kinds and pool.itemsize == needles.itemsize == 1):
            return False
        ends = len(offsets) == len(needle) + 1 <= MAX_IMAGES and offsets[0] == 0 and offsets[-1] == len(clutter)
        return ends and bool((np.diff(offsets) >= 0).all())

    def __getstate__(self):
        return self.__dict__ | {"_files": {}}

    def part(self, name: str) -> np.ndarray:
        """One of the arrays above, memory-mapped; BadInput names a file that is missing or damaged.

        All of it is checked when it is first opened in a process; of the clutter the beginning: see `clutter`.
        """
        key = os.getpid(), name
        if key not in self._files:
            path = self.folder / self._file(name)
            array = np.asarray(open_npy(path, "expected a recipe written by generate_data.py"))
            self.manifest.check(f"recipe/{path.name}", 0, 1 if name == "clutter" else None)
            self._files[key] = array
        return self._files[key]

    def clutter(self, start: int, stop: int) -> np.ndarray:
        """Rows of the clutter, (k, 3); BadInput when they are not as they were written."""
        whole, name = self.part("clutter"), self._file("clutter")
        rows, header = whole[start:stop], (self.folder / name).stat().st_size - whole.nbytes
        first = header + start * whole.strides[0]
        self.manifest.check(f"recipe/{name}", first, first + rows.nbytes)
        return rows

    def _file(self, name):
        return f"{self.split}_{name}.npy"

    def __len__(self):
        return len(self.part("needle"))

    def layers(self, i: int) -> list[tuple]:
        """Digits of image i for `render.compose`: the clutter, then the needle if there is one."""
        start, stop = self.part("offsets")[i : i + 2].tolist()
        clutter = self.clutter(start, stop)
        digits = [(self.part("pool")[clutter[:, 0]], clutter[:, 1], clutter[:, 2])]
        needle = self.part("needle")[i : i + 1]
        if needle[0, 0] >= 0:
            digits.append((self.part("needles")[needle[:, 0]], needle[:, 1], needle[:, 2]))
        return digits

    def batch_layers(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Where the digits of several images stand: clutter, then needles.

        Returns: two (4, k) int64, rows index into pool or needles, place in `numbers`, y, x. BadInput when digits lie
        outside or are not in the pool.
        """
        offsets, needle = self.part("offsets"), np.asarray(self.part("needle")[numbers], np.int64)  # (B, 3)
        clutter = [self.clutter(*offsets[i : i + 2].tolist()) for i in numbers]
        place = np.repeat(np.arange(len(numbers)), [len(rows) for rows in clutter])
        shown = np.flatnonzero(needle[:, 0] >= 0)
        placed = (np.concatenate(clutter).astype(np.int64), place), (needle[shown], shown)
        layers = tuple(np.stack([rows[:, 0], image, rows[:, 1], rows[:, 2]]) for rows, image in placed)
        for name, (index, place, y, x) in zip(("pool", "needles"), layers, strict=True):
            digits = self.part(name)
            room = self.canvas_side - digits.shape[-1]
            for values, most in ((index, len(digits) - 1), (y, room), (x, room)):
                wrong = (values < 0) | (values > most)
                if wrong.any():
                    raise self._misfit(f"image {numbers[place[wrong.argmax()]]}")
        return layers

    def canvas(self, i: int) -> np.ndarray:
        """Image i as its file holds it, (H, W) uint8; BadInput when digits lie outside or are not in the pool."""
        try:
            canvas = render.compose(self.canvas_side, *self.layers(i))
        except (IndexError, ValueError):
            raise self._misfit(f"image {i}") from None
        return render.zoom_uint8(canvas, self.scale)

    def _misfit(self, image):
        return BadInput(f"{self.folder}: {self.split} {image} does not fit the pool or the canvas")

    def arrays(self, i: int) -> tuple:
        """What the file of image i holds: the canvas and, where needles were drawn on a grid, the patch map."""
        if self.patch_size == 0:
            return (self.canvas(i),)
        index, y, x = self.part("needle")[i].tolist()
        return self.canvas(i), render.patch_map(self.canvas_side, self.patch_size, (y, x) if index >= 0 else None)

    def digest(self) -> bytes:
        """SHA-256 over everything that decides the pixels."""
        digest = hashlib.sha256(f"{self.canvas_side} {self.scale}".encode())
        self.clutter(0, len(self.part("clutter")))
        for name in PARTS:
            digest.update(np.ascontiguousarray(self.part(name)).data)
        return digest.digest()


class Noise:
    """The canvases of one split of Gaussian noise: image i is drawn from (seed, split, i), N(0, 1), float32."""

    def __init__(self, split: str, settings: dict):
        self.canvas_side, self.seed, self.split = settings["canvas"], settings["seed"], split
        self.images = 2 * settings[f"num_{split}"]

    def __len__(self):
        return self.images

    def canvas(self, i: int) -> np.ndarray:
        """Image i, (H, W) float32."""
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), i))
        return rng.standard_normal((self.canvas_side,) * 2, dtype=np.float32)

    def arrays(self, i: int) -> tuple:
        """What the file of image i holds."""
        return (self.canvas(i),)

    def digest(self) -> bytes:
        """SHA-256 over everything that decides the pixels."""
        return hashlib.sha256(f"noise {self.canvas_side} {self.seed} {self.split} {self.images}".encode()).digest()


def refuse_strangers(out: Path, settings: dict) -> None:
    """BadInput when files lie where a new data set's recipe goes, unless they are a recipe: that is written anew."""
    if not os.path.lexists(out / "recipe") or any(os.path.lexists(out / name) for name in ("args.json", manifest.NAME)):
        return
    make_subfolder(out, "recipe")
    there = [name for name in FILES if os.path.lexists(out / name)]
    try:
        for split in SPLITS if there else ():
            Recipe(out, split, settings)
    except BadInput:
        raise unknown_origin(out, there[0]) from None


def is_whole(folder: Path, settings: dict) -> bool:
    """Whether a data set's folder holds the recipe of all splits, its own and undamaged: as manifest.json has it."""
    if not Manifest(folder).entries.keys() >= set(FILES):
        return False
    try:
        return all(Recipe(folder, split, settings).digest() for split in SPLITS)
    except BadInput:
        return False


def write(out: Path, splits: dict[str, Digits], layout: placements.Layout, digit: int, passes: int, seed: int) -> None:
    """Draw the recipe of every split from one stream and save it.

    Args:
        digit: class of the needles, each of which stands on one positive per pass. Clutter are the other classes.
    """
    folder, rng = make_subfolder(out, "recipe"), np.random.RandomState(seed)
    for split, (images, labels) in splits.items():
        needles, pool = images[labels == digit], images[labels != digit]
        number = 2 * passes * len(needles)
        draws = placements.draw_split(rng, layout, len(pool), number)
        draws = cli.progress(draws, number, f"placing {split}", "images")
        offsets = np.append(0, np.cumsum(layout.clutter + np.arange(number) % 2))  # one digit more on negatives
        with atomic_open(folder / f"{split}_clutter.npy") as file:
            dtype = np.uint16 if max(len(pool), layout.canvas) <= 2**16 else np.uint32
            needle = _save_clutter(file, draws, int(offsets[-1]), dtype)
        needle[::2, 0] = np.arange(number // 2) % len(needles)
        pool = render.zoom_stack(pool, layout.clutter_side)
        for name, array in (("pool", pool), ("needles", needles), ("offsets", offsets), ("needle", needle)):
            write_npy(folder / f"{split}_{name}.npy", array)


def _save_clutter(file, draws, rows, dtype):
    """Write the clutter (rows, 3) as it is drawn, so that memory stays small; returns the needles, index -1."""
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows, 3)}
    np.lib.format.write_array_header_1_0(file, header)
    needle = []
    for y, x, clutter in draws:
        file.write(clutter.astype(dtype).tobytes())
        needle.append((-1, y, x))
    return np.array(needle, np.int32)
