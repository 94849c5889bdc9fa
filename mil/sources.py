"""Where tiles come from. A source is a split's bags of tiles before any network has seen them:

names, labels    of its N bags
sizes            (N,) int64, tiles of each
tile             side of a tile in px of the image
at_once          tiles that are best read together; None = all of a bag
read(i, start, stop) -> (stop - start, C, t, t) float32 in [0, 1], some of bag i's tiles
corners(i)       (n, 2) int64, y and x of their upper left pixels
truth(i)         (n,) int8, whether each holds the object: 1, 0 or -1 where unknown
fingerprint()    hex digest of what it holds
"""

import hashlib

import numpy as np
from torch import Tensor

from common import cli
from common.errors import BadInput
from data import SPLITS, loaders, tiles
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from mil.bags import UNKNOWN

DATA = {"mnist": mnist, "camelyon": camelyon}


def add_flags(parser) -> None:
    """Declare the data sets' flags, `--tile`, `--stride`, `--min_lesion` and `--num_examples`."""
    mnist.add_flags(parser)
    camelyon.add_flags(parser)
    group = parser.add_argument_group("tiles")
    group.add_argument("--tile", type=cli.positive, default=64, help="side of a tile in px")
    group.add_argument("--stride", type=cli.positive, help="px from tile to tile (default: --tile)")
    group.add_argument(
        "--min_lesion",
        type=cli.nonnegative_float,
        default=0.05,
        help="share of a tile that the object must fill for the tile to count as positive, 0 = any pixel; a positive "
        "image's fullest tile always does; used for scores alone",
    )
    group.add_argument("--num_examples", type=cli.positive, help="training bags, half of them positive (default: all)")


def load_sources(args) -> dict[str, "ImageTiles"]:
    """The splits of --datatype mnist or camelyon as bags of tiles."""
    splits = DATA[args.datatype].load_splits(args, SPLITS)
    chosen = {name: np.arange(len(data)) for name, data in splits.items()}
    if args.num_examples:
        chosen["train"] = loaders.training_subset(splits["train"].labels, args.num_examples, None)
    return {name: ImageTiles(data, chosen[name], args) for name, data in splits.items()}


class ImageTiles:
    """Some of a data set's images (data/__init__.py), each cut into tiles on a grid. BadInput when none fits in."""

    at_once = None  # an image is read as a whole

    def __init__(self, data, chosen: np.ndarray, args):
        self.data, self.chosen, self.tile, self.least = data, chosen, args.tile, args.min_lesion
        self.names = [data.names[i] for i in chosen]
        self.labels = np.asarray(data.labels)[chosen].astype(np.int64)
        height, width = data[int(chosen[0])][0].shape[1:]
        self.grid = tiles.corners(height, width, args.tile, args.stride or args.tile)
        if len(self.grid) == 0:
            raise BadInput(f"--tile {args.tile}: no tile fits into images of {height} x {width} px")
        self.sizes = np.full(len(chosen), len(self.grid), np.int64)

    def image(self, i: int) -> Tensor:
        """Bag i as it was, (C, H, W)."""
        return self.data[int(self.chosen[i])][0]

    def object_mask(self, i: int) -> np.ndarray | None:
        """The pixels of bag i's object, bool (H, W); None without one and where unknown."""
        return self.data.object_mask(int(self.chosen[i])) if self.data.has_objects else None

    def read(self, i: int, start: int, stop: int) -> Tensor:
        return tiles.cut(self.image(i), self.grid[start:stop], self.tile)

    def corners(self, i: int) -> np.ndarray:
        return self.grid

    def truth(self, i: int) -> np.ndarray:
        if self.labels[i] == 0:
            return np.zeros(len(self.grid), np.int8)
        mask = self.object_mask(i)
        if mask is None:
            return np.full(len(self.grid), UNKNOWN, np.int8)
        return tiles.holds_object(mask, self.grid, self.tile, self.least).astype(np.int8)

    def fingerprint(self) -> str:
        text = f"{self.data.fingerprint()} {self.tile} {self.least}".encode()
        return hashlib.sha256(text + self.chosen.tobytes() + self.grid.tobytes()).hexdigest()
