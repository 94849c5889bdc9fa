"""Bags of pictures: the tiles of images or of folders, for whatever learns from pixels or embeds them."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import cli
from common.errors import BadInput
from data import SPLITS, loaders, tiles
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from data.image_set import ImageSet
from data.photos import list_images, read_image, size_of
from mil import bag_list
from mil.bags import UNKNOWN, Bags

IMAGES = {"mnist": mnist, "camelyon": camelyon}
TILE_NAME = re.compile(r"(\d{1,9})_(\d{1,9})(?:_([01]))?")  # x_y_z of HNM-WSI, column_row of DSMIL
PICTURES = (".jpeg", ".jpg", ".png")


def add_flags(parser, datatypes: tuple[str, ...] = (*IMAGES, "tiles")) -> None:
    """Declare what `load` reads, beside --seed."""
    group = parser.add_argument_group("tiles")
    add = group.add_argument
    add("--datatype", choices=datatypes, required=True, help="images that are cut, or folders of tiles")
    for images in IMAGES.values():
        images.add_flags(group)
    add("--bags", type=cli.path, help="bags.csv: the list of bags, as tile_slides.py writes it for tiles")
    add("--root_dir", type=cli.path, help="folder that the list's files are relative to (default: the list's own)")
    add("--tile", type=cli.positive, default=64, help="side of the tiles that images are cut into, px")
    add("--stride", type=cli.positive, help="px from tile to tile (default: --tile)")
    add(
        "--min_lesion",
        type=cli.share,
        default=0.05,
        help="share of a tile that the object must fill for the tile to count as positive, 0: any pixel; a positive "
        "image's fullest tile always does; used for scores alone",
    )
    add("--num_examples", type=cli.positive, help="training images, half of them positive (default: all)")


class TileBags(ImageSet):
    """The tiles of N bags, T in all, one bag after the other. Item t: picture (C, s, s) float32 in [0, 1], bag label.

    names, labels (N,), corners and truth by bag, tile: as of `mil.bags.Bags`.
    sizes (N,); ends (N,), the number of tiles up to each bag's last; bag_of (T,), the number of each tile's bag.
    """

    def __init__(
        self, names: list[str], labels: np.ndarray, corners: list[np.ndarray], truth: list[np.ndarray], tile: int
    ):
        self.names, self.labels, self.corners, self.truth, self.tile = names, labels, corners, truth, tile
        self.sizes = np.array(list(map(len, corners)), np.int64)
        self.ends = np.cumsum(self.sizes)
        self.bag_of = np.repeat(np.arange(len(names)), self.sizes)

    def __len__(self) -> int:
        return len(self.bag_of)

    def __getitem__(self, t: int):
        return self.__getitems__([t])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The items of one batch: an image that gives several is read once."""
        indices = np.asarray(indices)
        bags, found = self.bag_of[indices], [None] * len(indices)
        for bag in np.unique(bags):
            places = np.flatnonzero(bags == bag)
            numbers = indices[places] - (self.ends[bag] - self.sizes[bag])
            for place, picture in zip(places, self.pictures(bag, numbers), strict=True):
                found[place] = (picture, int(self.labels[bag]))
        return found

    def pictures(self, bag: int, numbers: np.ndarray) -> Tensor:
        """Some of a bag's tiles, (n, C, s, s) float32."""
        raise NotImplementedError

    @property
    def positive(self) -> np.ndarray:
        """(T,) bool, whether a tile's bag is positive."""
        return self.labels[self.bag_of] == 1

    @property
    def flat_truth(self) -> np.ndarray:
        """(T,) int8, 1, 0 or -1 where unknown."""
        return np.concatenate(self.truth)

    def with_features(self, features: np.ndarray) -> Bags:
        """The bags of these tiles with their features (T, d), of which they are views."""
        by_bag = np.split(features, self.ends[:-1])
        return Bags(self.names, self.labels, by_bag, self.corners, self.truth, self.tile)

    def fingerprint(self) -> str:
        """Hex digest of names, labels, places and truth of the tiles, and of what tells their pixels."""
        digest = hashlib.sha256("\n".join(self.names).encode() + self.labels.tobytes())
        digest.update(np.concatenate(self.corners).tobytes() + self.flat_truth.tobytes() + self.digest())
        return digest.hexdigest()

    def digest(self) -> bytes:
        """Of what tells the pixels."""
        raise NotImplementedError


class CutTiles(TileBags):
    """Images of a data set, each a bag of its tiles.

    Args:
        indices: of the images that are used.
        least: share of a tile that the object must fill; see data.tiles.
    Errors: BadInput when an image is smaller than a tile.
    """

    def __init__(self, data, indices: np.ndarray, tile: int, stride: int, least: float):
        self.data, self.indices = data, indices
        height, width = data[int(indices[0])][0].shape[1:]
        corners = tiles.corners(height, width, tile, stride)
        if not len(corners):
            raise BadInput(f"--tile {tile}: larger than the images of {height} x {width} px")
        labels = np.asarray(data.labels)[indices].astype(np.int64)
        truth = [self._truth(int(i), corners, tile, least) for i in indices]
        super().__init__([data.names[i] for i in indices], labels, [corners] * len(labels), truth, tile)

    def _truth(self, i, corners, tile, least):
        if self.data.labels[i] == 0:
            return np.zeros(len(corners), np.int8)
        mask = self.data.object_mask(i) if self.data.has_objects else None
        if mask is None:
            return np.full(len(corners), UNKNOWN, np.int8)
        return tiles.holds_object(mask, corners, tile, least).astype(np.int8)

    def image(self, bag: int) -> Tensor:
        """A bag as it was, (C, H, W)."""
        return self.data[int(self.indices[bag])][0]

    def object_mask(self, bag: int) -> np.ndarray | None:
        """The pixels of a bag's object, bool (H, W); None without one and where unknown."""
        return self.data.object_mask(int(self.indices[bag])) if self.data.has_objects else None

    def pictures(self, bag: int, numbers: np.ndarray) -> Tensor:
        return tiles.cut(self.image(bag), self.corners[bag][numbers], self.tile)

    def digest(self) -> bytes:
        return self.data.fingerprint().encode()


class FolderTiles(TileBags):
    """Folders of pictures, each a bag. Tiles stand in a grid by their names, column_row or x_y_z.

    The grid is the image, so that a tile is one px of it; z is the tile's truth. `sides`, of the first tile, height and
    width in px. BadInput names a folder without tiles, a tile of another name or in another's place, or one of another
    size than the first.
    """

    def __init__(self, rows: list[bag_list.Row]):
        self.files, corners, truth = [], [], []
        for row in rows:
            found = sorted((place_of(row.file / name), name) for name in list_tiles(row.file, row.bag))
            self.files.append([row.file / name for _, name in found])
            places = np.array([place for place, _ in found], np.int64)  # (n, 3)
            again = np.flatnonzero((places[1:, :2] == places[:-1, :2]).all(axis=1))
            if len(again):
                first, second = (found[again[0] + k][1] for k in (0, 1))
                raise BadInput(f"{row.file / second}: in the place of {first}")
            corners.append(places[:, :2])
            truth.append(places[:, 2].astype(np.int8) if row.label else np.zeros(len(found), np.int8))
        super().__init__([row.bag for row in rows], np.array([row.label for row in rows], np.int64), corners, truth, 1)
        self.sides = size_of(self.files[0][0])

    def pictures(self, bag: int, numbers: np.ndarray) -> Tensor:
        paths = [self.files[bag][n] for n in numbers]
        found = [torch.tensor(read_image(path)).permute(2, 0, 1).float() / 255 for path in paths]
        for path, picture in zip(paths, found, strict=True):
            if picture.shape[1:] != self.sides:
                sides = [f"{height} x {width} px" for height, width in (picture.shape[1:], self.sides)]
                raise BadInput(f"{path}: has {sides[0]}, expected {sides[1]} as the first tile has")
        return torch.stack(found)

    def digest(self) -> bytes:
        digest = hashlib.sha256()
        for files in self.files:
            digest.update(read_image(files[len(files) // 2]).tobytes())
        return digest.digest()


class Joined(TileBags):
    """The bags of several splits, one after the other."""

    def __init__(self, parts: list[TileBags]):
        self.parts, self.firsts = parts, np.cumsum([0, *(len(part.names) for part in parts)])
        lists = [[each for part in parts for each in getattr(part, name)] for name in ("names", "corners", "truth")]
        labels = np.concatenate([part.labels for part in parts])
        super().__init__(lists[0], labels, *lists[1:], parts[0].tile)

    def pictures(self, bag: int, numbers: np.ndarray) -> Tensor:
        part = int(np.searchsorted(self.firsts, bag, side="right")) - 1
        return self.parts[part].pictures(bag - int(self.firsts[part]), numbers)

    def digest(self) -> bytes:
        return b"".join(part.digest() for part in self.parts)


class Thinned(TileBags):
    """Bags without some of their tiles: `stay` (T,) bool says which are left."""

    def __init__(self, whole: TileBags, stay: np.ndarray):
        self.whole, self.kept = whole, [np.flatnonzero(part) for part in np.split(stay, whole.ends[:-1])]
        corners, truth = (
            [part[kept] for part, kept in zip(parts, self.kept, strict=True)] for parts in (whole.corners, whole.truth)
        )
        super().__init__(whole.names, whole.labels, corners, truth, whole.tile)

    def pictures(self, bag: int, numbers: np.ndarray) -> Tensor:
        return self.whole.pictures(bag, self.kept[bag][numbers])

    def digest(self) -> bytes:
        return self.whole.digest()


class Draws:
    """A batch sampler of the `batches`, lists of tiles, that it was last given."""

    def __init__(self, batches: Sequence[list[int]] = ()):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def list_tiles(folder: Path, bag: str) -> list[str]:
    """Names of a bag's tiles. BadInput when there are none."""
    try:
        names = [name for name in list_images(folder, PICTURES) if "/" not in name]
    except BadInput:
        names = []
    if not names:
        raise BadInput(f"bag {bag}: {folder}: has no tiles, expected pictures named column_row.jpeg")
    return names


def place_of(path: Path) -> tuple[int, int, int]:
    """Row, column and truth (-1 unknown) of a tile by its name."""
    match = TILE_NAME.fullmatch(path.stem)
    if not match:
        raise BadInput(f"{path}: expected a tile named column_row or x_y_z, z 0 or 1")
    x, y, z = match.groups()
    return int(y), int(x), UNKNOWN if z is None else int(z)


def load(args, names: Sequence[str] = SPLITS) -> dict[str, TileBags]:
    """The splits called for, by the flags of `add_flags`. BadInput: a flag is missing, a split lacks a class."""
    if args.datatype == "tiles":
        if args.bags is None:
            raise BadInput("--bags: missing, expected the list of bags that tile_slides.py writes")
        if args.num_examples:
            raise BadInput(f"--num_examples {args.num_examples}: goes with images, not with --datatype tiles")
        by_split = bag_list.by_split(bag_list.read(args.bags, folder=args.root_dir), args.bags, names)
        found = {name: FolderTiles(by_split[name]) for name in names}
        first = found[names[0]]
        for each in found.values():
            if each.sides != first.sides:
                paths = [str(part.files[0][0]) for part in (each, first)]
                raise BadInput(f"{paths[0]}: differs in size from {paths[1]}, which is of another split")
        return found
    found = {}
    for name, data in IMAGES[args.datatype].load_splits(args, names).items():
        indices = np.arange(len(data))
        if args.num_examples and name == "train":
            indices = loaders.training_subset(data.labels, args.num_examples, None)
        found[name] = CutTiles(data, indices, args.tile, args.stride or args.tile, args.min_lesion)
    return found
