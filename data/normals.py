"""The training data of every detector: an endless, seeded sequence of tiles of a split's normal images."""

import copy
import functools

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import BadInput
from data import loaders
from data.image_set import ImageSet
from data.transforms import Transformed


class NormalTiles(ImageSet):
    """Item n: tile (C, t, t) float32 in [0, 1], the number of its image, and its version, a number below `versions`.

    Every pass takes each version of each image once, in another order. A tile lies anywhere in its image, where that is
    larger. Item n depends on seed and n alone, whatever the batch size and the processes, wherever a run was stopped.

    Args:
        data: a split; of its images those of label 0 are taken.
        tile: t. random_crop, flip: whether `--crop` is cut out anywhere, and mirrored tiles are as likely.
    Attributes: n_images, of label 0; in_channels; is_fixed, whether an image always gives the same tile.
    Errors: BadInput when there is no normal image or the first is smaller than a tile.
    """

    def __init__(self, data: Transformed, tile: int, seed: int, random_crop: bool = False, flip: bool = False):
        self.data, self.tile, self.seed, self.random_crop, self.flip = data, tile, seed, random_crop, flip
        self.numbers, self.versions = np.flatnonzero(data.labels == 0), 1  # which images of the split are normal
        self.n_images, self.in_channels = len(self.numbers), data.in_channels
        if self.n_images == 0:
            raise BadInput("no normal image (label 0) in the split; a detector is trained on these alone")
        first = data[self.numbers[0]][0]
        self._check(first, self.numbers[0])
        sides = first.shape[-2:]
        self.is_fixed = sides == (tile, tile) and not random_crop and not flip
        self.tiles_per_image = -(-sides[0] // tile) * -(-sides[1] // tile)  # that cover it

    def in_versions(self, versions: int) -> "NormalTiles":
        """The same with so many versions of every image, which the method makes of it."""
        other = copy.copy(self)
        other.versions = versions
        return other

    def __len__(self):
        """Items of one pass."""
        return self.n_images * self.versions

    def __getitem__(self, n: int) -> tuple[Tensor, int, int]:
        epoch, place = divmod(n, len(self))
        image, version = divmod(int(_order(self.seed, epoch, len(self))[place]), self.versions)
        rng = np.random.default_rng((self.seed, 1, n))
        pixels, label = (
            self.data.random(self.numbers[image], rng) if self.random_crop else self.data[self.numbers[image]]
        )
        assert label == 0, f"{self.data.names[self.numbers[image]]} is not normal"
        self._check(pixels, self.numbers[image])
        return self._cut(pixels, rng), image, version

    def _check(self, image, number):
        sides = image.shape[-2:]
        if min(sides) < self.tile:
            raise BadInput(f"--tile {self.tile}: {self.data.names[number]} has {sides[0]} x {sides[1]} px, fewer")

    def _cut(self, image, rng):
        """A tile of the image, anywhere and perhaps mirrored."""
        room = [side - self.tile for side in image.shape[-2:]]
        y, x = (int(rng.integers(space + 1)) for space in room)
        tile = image[:, y : y + self.tile, x : x + self.tile]
        axes = [axis for axis in (1, 2) if self.flip and rng.integers(2)]
        return (tile.flip(axes) if axes else tile).contiguous()

    def batches(self, args, device: torch.device, first: int, n: int) -> DataLoader:
        """The first n items in batches of args.batch_size, from batch `first` on; the last one may be smaller.

        Yields: tiles (B, C, t, t), images (B,) and versions (B,) int64.
        """
        starts = range(0, n, args.batch_size)[first:]
        return loaders.batch_loader(self, args, device, [range(n)[at : at + args.batch_size] for at in starts])

    def fingerprint(self) -> str:
        return self.data.fingerprint()


@functools.lru_cache(2)  # two batches may be under way
def _order(seed, epoch, n):
    """The order of an epoch's n items."""
    return np.random.default_rng((seed, 0, epoch)).permutation(n)
