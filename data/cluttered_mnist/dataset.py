"""nMNIST and Gaussian noise as torch data sets, from files or from what decides their pixels."""

import contextlib
import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from common import cli, pictures
from common.errors import BadInput
from common.files import read_json, read_table
from common.manifest import Manifest
from data import SPLITS
from data.cluttered_mnist import canvas_files, render
from data.cluttered_mnist.device_render import DeviceRenderer, RenderedBatches
from data.cluttered_mnist.digits import SIDE
from data.cluttered_mnist.recipe import Noise, Recipe
from data.image_set import ImageSet

IN_CHANNELS = 1
SAMPLE = 9  # canvases of a split whose shapes decide which one all have
NUMBERS = {  # in args.json, by generator: least and largest value, int where a whole number is expected
    "nmnist": {
        "canvas": (SIDE + 1, render.MAX_SIDE),
        "patch-size": (0, render.MAX_SIDE),
        "scale": (0.5 / render.MAX_SIDE, float(render.MAX_SIDE)),
    },
    "noise": {
        "canvas": (1, render.MAX_SIDE),
        "seed": (0, 2**64 - 1),
        **{f"num_{split}": (1, 2**32) for split in SPLITS},
    },
}


def add_flags(parser) -> None:
    """Declare the flags that `load_splits` reads."""
    parser.add_argument("--data_path", "-d", type=cli.path, help="folder written by generate_data.py, with train.csv")
    parser.add_argument(
        "--data_scaling",
        type=cli.positive_float,
        default=1.0,
        help="zoom every nMNIST image by this factor at reading (cubic spline)",
    )
    cli.neutral(
        parser.add_argument(
            "--source",
            choices=("auto", "recipe", "files"),
            default="auto",
            help="compose nMNIST images from the recipe or read the .npz files, which is equal; auto: a recipe if any",
        )
    )


def load_splits(args, names: Sequence[str] = SPLITS) -> dict[str, "ClutteredMNIST"]:
    """The splits called for, by name, of args.data_path; BadInput names what is missing or not as expected."""
    path = args.data_path
    if path is None:
        raise BadInput("--data_path: missing, expected a folder written by generate_data.py")
    manifest = Manifest(path)
    settings = _read_settings(path / "args.json", manifest)
    splits = {}
    for split in names:
        table = _read_csv(path / f"{split}.csv", manifest, unfinished=bool(settings))
        source, rows = _open_source(path, split, settings, table.img_path.tolist(), args.source)
        data = ClutteredMNIST(source, rows, table, SIDE * settings.get("scale", 1), args.data_scaling)
        expected = f"a needle on the canvas of {data.canvas_shape[0]} x {data.canvas_shape[1]} px"
        _refuse_rows(path / f"{split}.csv", table, data.needles_outside(), expected)
        splits[split] = data
    return splits


class ClutteredMNIST(ImageSet):
    """A split of nMNIST or of noise. Item: image (1, H, W) float32, in [0, 1] unless noise, label 1 = needle.

    Args:
        source: gives canvas(number) as (H, W) uint8, or floats that are passed on as they are.
        numbers: (N,) the source's number of each image.
        table: columns img_path, label, needle_y, needle_x (top-left in px of the canvas, NaN where unknown).
        needle_side: rows and columns of the needle in px of the canvas.
        scaling: factor of a cubic-spline zoom at reading.
    """

    in_channels = IN_CHANNELS
    outline = pictures.NEEDLE

    def __init__(self, source, numbers: np.ndarray, table, needle_side: float, scaling: float = 1.0):
        self.source, self.numbers, self.scaling = source, numbers, scaling
        self.names = table["img_path"].tolist()
        self.labels = table["label"].to_numpy(np.int64)
        self.positions = table[["needle_y", "needle_x"]].to_numpy(np.float64)  # (N, 2)
        self.needle_side = needle_side
        self.canvas_shape = source.canvas(numbers[0]).shape
        self.shape = tuple(render.zoomed_side(side, scaling, "--data_scaling") for side in self.canvas_shape)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        canvas = self.source.canvas(self.numbers[i])
        if self.scaling != 1:
            canvas = canvas / 255 if canvas.dtype == np.uint8 else canvas
            canvas = render.zoom(canvas, self.scaling, clip=canvas.min() >= 0)  # noise keeps its tails
        return _to_float(canvas[None]), int(self.labels[i])

    def __getitems__(self, indices):
        """The items of one batch, converted together."""
        if self.scaling != 1:
            return [self[i] for i in indices]
        images = _to_float(np.stack([self.source.canvas(self.numbers[i]) for i in indices])[:, None])  # (B, 1, H, W)
        return list(zip(images, self.labels[indices].tolist(), strict=True))

    def batches_on(self, device: torch.device, batches):
        """Loader that composes the batches on a device; None where images are read from files, zoomed or noise."""
        if self.scaling != 1 or not isinstance(self.source, Recipe) or self.source.scale != 1:
            return None
        return RenderedBatches(DeviceRenderer(self.source, device), self.numbers, self.labels, batches)

    @functools.cached_property
    def has_objects(self) -> bool:
        """Whether the needles' positions are known."""
        return bool(np.isfinite(self.positions[self.labels == 1]).all())

    def needles_outside(self) -> np.ndarray:
        """Whose needle begins off the canvas, bool (N,); False where there is none or it is not known."""
        return ((self.positions < 0) | (self.positions >= self.canvas_shape)).any(axis=1)

    def needle_box(self, i: int) -> tuple[float, float, float, float] | None:
        """Needle's (y0, x0, y1, x1) in px of the item, ends exclusive; None on negatives and where unknown."""
        y, x = self.positions[i]
        if self.labels[i] == 0 or not np.isfinite(y + x):
            return None
        return tuple(float(edge * self.scaling) for edge in (y, x, y + self.needle_side, x + self.needle_side))

    def object_mask(self, i: int) -> np.ndarray | None:
        """The pixels of the needle's box, bool (H, W); None on negatives and where unknown."""
        box = self.needle_box(i)
        if box is None:
            return None
        mask = np.zeros(self.shape, bool)
        y0, x0, y1, x1 = (round(edge) for edge in box)
        mask[y0:y1, x0:x1] = True
        return mask

    def fingerprint(self) -> str:
        """Hex digest of labels, file names, needle positions and pixels, wherever the folder lies.

        Pixels enter by what decides them (the recipe, the seed of noise), else by the first and last canvas.
        """
        digest = hashlib.sha256("\n".join(map(_base_name, self.names)).encode())
        digest.update(self.labels.tobytes() + self.positions.tobytes() + self.source.digest())
        return digest.hexdigest()


class Files:
    """Canvases of one split in .npz files; `origin` is the recipe or noise they were written from, if known.

    A file that is not where the CSV says is looked for beside it, and so is every absolute path first, which may be of
    another machine.
    """

    def __init__(self, path: Path, names: list[str], origin=None):
        beside = {file.name for file in path.iterdir()}
        self.paths = [path / (_base_name(name) if _lies_beside(path, name, beside) else name) for name in names]
        missing = [file for file in self.paths if file.name not in beside and not os.path.lexists(file)]
        if missing:
            raise BadInput(f"{missing[0]}: no such file ({len(missing)} of {len(names)} canvases are missing)")
        self.origin, self.manifest = origin, Manifest(path)
        sample = {len(names) * i // SAMPLE for i in range(SAMPLE)}  # the first and others far apart
        shapes = Counter(canvas_files.canvas_shape(self.paths[i]) for i in sorted(sample))
        [(self.shape, _)] = shapes.most_common(1)

    def canvas(self, i: int) -> np.ndarray:
        """Image i, (H, W) uint8 or float; BadInput names a file that is damaged or not as large as most."""
        if self.paths[i].parent == self.manifest.folder:
            self.manifest.check(self.paths[i].name)
        return canvas_files.load_npz(self.paths[i], self.shape)

    def digest(self) -> bytes:
        """Digest of the origin, or of the first and last canvas."""
        if self.origin is not None:
            return self.origin.digest()
        return hashlib.sha256(self.canvas(0).tobytes() + self.canvas(-1).tobytes()).digest()


def _read_settings(path, manifest):
    """Settings of our generators by name; {} where there are none or they are another program's."""
    manifest.check(path.name)
    settings = read_json(path) if os.path.lexists(path) else {}
    needed = NUMBERS.get(str(settings.get("generator")), {})
    for name, (low, high) in needed.items():
        value = settings.get(name)
        if isinstance(value, bool) or not isinstance(value, type(low) | int) or not low <= value <= high:
            raise BadInput(f"{path}: {name} is {value!r}, expected a number of {low} or more, up to {high}")
    if settings.get("generator") == "nmnist":
        render.zoomed_side(settings["canvas"], settings["scale"], f"{path}: scale")
    return settings if needed else {}


def _open_source(path, split, settings, names, wanted):
    """(source, numbers): what gives the canvases of the named images, and the number of each image in it."""
    origin = None
    if settings.get("generator") == "noise":
        origin = Noise(split, settings)
    elif settings and os.path.lexists(path / "recipe"):
        with contextlib.suppress(BadInput) if wanted == "files" else contextlib.nullcontext():
            origin = Recipe(path, split, settings)
    matches = [re.fullmatch(rf"{split}_([0-9]{{1,9}})\.npz", _base_name(name)) for name in names]
    if origin is not None and None not in matches:
        numbers = np.array([int(match[1]) for match in matches])
        if wanted != "files" and numbers.max() < len(origin):
            return origin, numbers
    if wanted == "recipe":
        raise BadInput(f"--source recipe: {path} holds no recipe of the images in {split}.csv")
    return Files(path, names, origin), np.arange(len(names))


def _read_csv(path, manifest, unfinished):
    """Table with columns img_path, label (0 or 1), needle_y and needle_x (NaN where unknown)."""
    import pandas as pd

    if not os.path.lexists(path):
        hint = "unfinished, give the generate command again" if unfinished else "expected a folder written by"
        raise BadInput(f"{path.parent}: no {path.name}: {hint}{'' if unfinished else ' generate_data.py'}")
    manifest.check(path.name)
    table = read_table(path, dtype=str)
    if not {"img_path", "label"} <= set(table.columns) or table.empty:
        raise BadInput(f"{path}: expected rows of img_path,label, found {len(table)} of {','.join(table.columns)}")
    table = table.reindex(columns=["img_path", "label", "needle_y", "needle_x"])
    numbers = table.iloc[:, 1:].apply(pd.to_numeric, errors="coerce")
    positions = np.isfinite(numbers[["needle_y", "needle_x"]]).all(axis=1)
    marked = table[["needle_y", "needle_x"]].notna().any(axis=1)
    _refuse_rows(path, table, ~numbers["label"].isin((0, 1)) | table["img_path"].isna(), "a file name and label 0 or 1")
    _refuse_rows(path, table, table["img_path"].duplicated(), "every file once")
    _refuse_rows(path, table, marked & ~positions, "numbers needle_y,needle_x or none")
    if marked.any():
        _refuse_rows(path, table, (numbers["label"] == 1) & ~positions, "needle_y,needle_x on every positive")
    return table.assign(**numbers)


def _refuse_rows(path, table, wrong, expected):
    """BadInput with the first of the wrong rows, a bool per row."""
    if wrong.any():
        row = int(np.argmax(wrong))
        found = ",".join(table.iloc[row].fillna("").astype(str))
        raise BadInput(f"{path}, line {row + 2}: found {found}, expected {expected}")


def _lies_beside(path, name, beside):
    """Whether a canvas lies beside the CSV, whatever its path there says."""
    base = _base_name(name)
    return base in beside and (base == name or Path(name).is_absolute() or not os.path.lexists(path / name))


def _base_name(name):
    """The last part of a path written on any system."""
    return re.split(r"[/\\]", name)[-1]


def _to_float(canvases):
    """(..., H, W) uint8 scaled to [0, 1], or floats as they are, as a float32 tensor."""
    tensor = torch.from_numpy(canvases).float()
    return tensor.div_(255) if canvases.dtype == np.uint8 else tensor
