"""Pairs of near-duplicates: made on the fly from any images, or found in a folder that has a group of them each.

An item is a tuple of views (1, 128, 128) float32 in [0, 1], grey: query, duplicate and, for triplets, another image.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from common import cli
from common.errors import BadInput
from data import fingerprints, photos
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from data.image_set import ImageSet

SIZE = 128  # px of a view
SOURCE_SIDE = 256  # px of what pairs are made from


def add_flags(parser) -> None:
    """Declare `--train_path`, `--neg_path`, `--valid_path`, `--synth_valid` and `--filetype`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--train_path", type=cli.path, help="images to make pairs from: a folder (also those below it), or nMNIST's"
    )
    source.add_argument("--neg_path", type=cli.path, help="folder of negative nCAMELYON crops, in place of it")
    parser.add_argument(
        "--valid_path",
        type=cli.path,
        help="validation: a folder per group of near-duplicates, or with --synth_valid any images (default: the "
        "val split of nMNIST or of the crops, with pairs made)",
    )
    parser.add_argument("--synth_valid", action="store_true", help="make the validation pairs too, once")
    add_filetype_flag(parser)


def add_filetype_flag(parser) -> None:
    """Declare `--filetype`."""
    parser.add_argument("--filetype", help="ending of the images that count, like .tif (default: all images)")


class Pictures:
    """Images of a folder by number. `names` are relative to it."""

    def __init__(self, folder: Path, names: list[str]):
        self.folder, self.names = Path(folder), names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8. BadInput names a file that is no image."""
        return photos.read_image(self.folder / self.names[i])

    def fingerprint(self) -> str:
        """Digest of the names and of some of the files' bytes, wherever the folder lies."""
        paths = [self.folder / name for name in self.names]
        return fingerprints.of_files("\n".join(self.names).encode(), paths, photos.MOST_BYTES)


class Canvases(Pictures):
    """The canvases of an nMNIST split by number."""

    def __init__(self, dataset: Dataset):
        self.dataset, self.names = dataset, dataset.names

    def read(self, i: int) -> np.ndarray:
        canvas = self.dataset[i][0][0].numpy()  # (H, W); noise leaves [0, 1]
        return np.repeat((canvas.clip(0, 1) * 255).round().astype(np.uint8)[..., None], 3, axis=2)

    def fingerprint(self) -> str:
        return self.dataset.fingerprint()


def open_pictures(folder: Path, flag: str, filetype: str | None = None) -> Pictures:
    """All images in and below a folder. BadInput names flag and folder when there are none with the ending."""
    try:
        names = photos.list_images(folder)
    except BadInput as error:
        raise BadInput(f"{flag} {error}") from None
    if filetype is None:
        return Pictures(folder, names)
    chosen = [name for name in names if name.lower().endswith(filetype.lower())]
    if not chosen:
        endings = ", ".join(f"{n} {ending}" for ending, n in Counter(Path(name).suffix for name in names).items())
        raise BadInput(f"--filetype {filetype}: no such images in {folder}, which holds {endings}")
    return Pictures(folder, chosen)


def open_split(args, split: str) -> Pictures | None:
    """The images of a split of nMNIST or of negative crops; None where the data are a folder without splits."""
    if args.neg_path is not None:
        names = camelyon.list_crops(args.neg_path, "neg_path")[split]
        if not names:
            raise BadInput(f"--neg_path {args.neg_path}: no crops for the {split} split")
        return Pictures(args.neg_path, names)
    if (args.train_path / "train.csv").is_file():
        flags = argparse.Namespace(data_path=args.train_path, data_scaling=1.0, source="auto")
        return Canvases(mnist.load_splits(flags, [split])[split])
    return None


def load_splits(args, manipulate: Callable, triplets: bool) -> dict[str, Dataset]:
    """Pairs by split, "train" and "val", of the flags and args.seed.

    Args:
        manipulate: (image (H, W, 3) uint8, generator) -> anchor and copy.
    Errors: BadInput: a folder without images, without validation, with a group of one.
    """
    train = open_split(args, "train") or open_pictures(args.train_path, "--train_path", args.filetype)
    if len(train) < 2:
        given = f"--train_path {args.train_path}" if args.train_path else f"--neg_path {args.neg_path}"
        raise BadInput(f"{given}: holds one image; negatives need two or more")
    return {
        "train": MadePairs(train, manipulate, args.seed, triplets),
        "val": _load_validation(args, manipulate, triplets),
    }


def _load_validation(args, manipulate, triplets):
    if args.valid_path is not None and not args.synth_valid:
        pictures = open_pictures(args.valid_path, "--valid_path", args.filetype)
        return GroupPairs(pictures, groups_of(pictures.names, f"--valid_path {args.valid_path}"), args.seed, triplets)
    if args.valid_path is not None:
        pictures = open_pictures(args.valid_path, "--valid_path", args.filetype)
    else:
        pictures = open_split(args, "val")
    if pictures is None:
        raise BadInput("--valid_path: needed beside a --train_path that has no val split of its own")
    if len(pictures) < 2:
        raise BadInput(f"--valid_path {args.valid_path or '(val split)'}: holds one image; negatives need two or more")
    return MadePairs(pictures, manipulate, args.seed, triplets)


def groups_of(names: list[str], source: str) -> dict[str, list[int]]:
    """Group -> numbers of its files; a group is the folder of a file, by its whole relative name.

    BadInput names the source and a group of one file; groups that are fewer than two.
    """
    groups = {}
    for i, name in enumerate(names):
        groups.setdefault(Path(name).parent.as_posix(), []).append(i)
    single = [group for group, files in groups.items() if len(files) == 1]
    if single:
        raise BadInput(
            f"{source}: group {single[0]!r} has one file ({len(single)} of {len(groups)} groups have); "
            "a group is a folder of two or more near-duplicates"
        )
    if len(groups) < 2:
        raise BadInput(
            f"{source}: one group, {next(iter(groups))!r}; negatives need two folders of near-duplicates or more "
            "(--synth_valid, --synth_test: any images, of which pairs are made)"
        )
    return groups


def draw_pairs(groups: dict[str, list[int]], rng: np.random.Generator) -> np.ndarray:
    """One pair a group, (N, 2): the numbers of two different files of it in random order."""
    return np.array([rng.choice(files, 2, replace=False) for files in groups.values()])


def draw_others(n: int, rng: np.random.Generator) -> np.ndarray:
    """For each of n groups the number of another one, (n,)."""
    return (np.arange(n) + rng.integers(1, n, n)) % n


class MadePairs(ImageSet):
    """Anchor and copy of each image; a generator of (seed, epoch, number) draws the manipulations.

    Items by (epoch, number), or by number alone for epoch 0: views are flipped, each for itself.
    """

    def __init__(self, pictures: Pictures, manipulate: Callable, seed: int, triplets: bool = False):
        self.pictures, self.manipulate, self.seed, self.triplets = pictures, manipulate, seed, triplets

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, ...]:
        epoch, i = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng((self.seed, epoch, i))
        views = list(self.manipulate(fit(self.pictures.read(i), SOURCE_SIDE), rng))
        if self.triplets:
            other = (i + int(rng.integers(1, len(self)))) % len(self)
            views.append(self.manipulate(fit(self.pictures.read(other), SOURCE_SIDE), rng)[1])
        return tuple(to_tensor(_flip(view, rng)) for view in views)

    def fingerprint(self) -> str:
        return self.pictures.fingerprint()


class Views(ImageSet):
    """Each image's centre as a view. Item: view (1, 128, 128), label -1 = not known."""

    def __init__(self, pictures: Pictures):
        self.pictures, self.names = pictures, pictures.names

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return to_tensor(fit(self.pictures.read(i), SIZE)), -1

    def fingerprint(self) -> str:
        return self.pictures.fingerprint()


class MadeViews(Views):
    """Anchor and copy of each image in turn, 2 i and 2 i + 1. Item: as of Views."""

    def __init__(self, pairs: "MadePairs"):
        self.pairs, self.names = pairs, [f"{name}{end}" for name in pairs.pictures.names for end in ("", " (copy)")]

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.pairs[i // 2][i % 2], -1

    def fingerprint(self) -> str:
        return self.pairs.fingerprint()


class GroupPairs(ImageSet):
    """A pair of each group of near-duplicates, drawn once from the seed."""

    def __init__(self, pictures: Pictures, groups: dict[str, list[int]], seed: int, triplets: bool = False):
        rng = np.random.default_rng(seed)
        self.views, self.files = Views(pictures), draw_pairs(groups, rng)
        if triplets:
            others = self.files[draw_others(len(groups), rng), rng.integers(0, 2, len(groups))]
            self.files = np.column_stack([self.files, others])  # (N, 3)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        return tuple(self.views[int(k)][0] for k in self.files[i])

    def fingerprint(self) -> str:
        return self.views.fingerprint()


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """The centre (side, side, 3) of an image (H, W, 3) uint8 whose shorter side was made that long."""
    height, width = image.shape[:2]
    if min(height, width) != side:
        height, width = (max(side, side * length // min(height, width)) for length in (height, width))
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    y, x = (height - side) // 2, (width - side) // 2
    return image[y : y + side, x : x + side]


def _flip(view, rng):
    """The view, flipped or not in x and in y."""
    view = view[:, ::-1] if rng.random() < 0.5 else view
    return view[::-1] if rng.random() < 0.5 else view


def to_tensor(image: np.ndarray) -> Tensor:
    """(1, H, W) float32 in [0, 1], grey, of an image (H, W) or (H, W, 3) uint8."""
    grey = np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))
    return torch.from_numpy(grey[None].astype(np.float32) / 255)
