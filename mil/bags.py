"""Bags of instances: an image or a slide as its tiles, of which training knows the bag's label alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import BadInput

UNKNOWN = -1  # in `truth`
FINITE_BLOCK = 2**24  # values whose finiteness is checked at a time
SAMPLED = 8  # instances of each bag whose bytes enter the fingerprint


@dataclass
class Bags:
    """The bags of a split. Everything is listed by bag, so that a split is part of another and bags differ in size.

    names: one for each of N bags, all different.
    labels: (N,) int64, 1 = at least one instance holds the object.
    features: for each bag (n, d) float16 or float32, in memory or in a memory map.
    corners: for each bag (n, 2) int64, each tile's upper left pixel (y, x) in the image; where tiles have no known
        place, they stand in one row: y = 0, x = their number, `tile` 1.
    truth: for each bag (n,) int8, whether the tile holds the object: 1, 0 or -1 where unknown.
    tile: side of a tile in px of the image.
    """

    names: list[str]
    labels: np.ndarray
    features: list[np.ndarray]
    corners: list[np.ndarray]
    truth: list[np.ndarray]
    tile: int = 1

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> np.ndarray:
        """(N,) int64, instances of each bag."""
        return np.array([len(features) for features in self.features], np.int64)

    @property
    def dim(self) -> int:
        """d, the numbers of a feature."""
        return self.features[0].shape[1]

    @property
    def truth_known(self) -> bool:
        """Whether every instance's own label is known."""
        return all((truth != UNKNOWN).all() for truth in self.truth)

    def subset(self, indices: Sequence[int]) -> "Bags":
        """Some of the bags, in the order of the indices; arrays are shared."""
        picked = [[part[i] for i in indices] for part in (self.names, self.features, self.corners, self.truth)]
        names, features, corners, truth = picked
        return Bags(names, self.labels[np.asarray(indices, int)], features, corners, truth, self.tile)

    def fingerprint(self) -> str:
        """Hex digest of names, labels, sizes and some features of every bag, wherever they lie."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        digest.update(self.labels.tobytes() + self.sizes.tobytes())
        for features in self.features:
            digest.update(features[np.linspace(0, len(features) - 1, SAMPLED).astype(int)].tobytes())
        return digest.hexdigest()


def unplaced(n: int) -> np.ndarray:
    """Corners (n, 2) of tiles without known places."""
    return np.stack([np.zeros(n, np.int64), np.arange(n)], axis=1)


def check(bags: Bags, split: str) -> None:
    """BadInput names the bag that has no tiles, another width, a value that is not finite, or the class that lacks."""
    for name, features in zip(bags.names, bags.features, strict=True):
        if features.ndim != 2 or len(features) == 0:
            raise BadInput(f"bag {name} of {split}: has no tiles, expected features (n, d), found {features.shape}")
        if features.shape[1] != bags.dim:
            raise BadInput(
                f"bag {name} of {split}: features have {features.shape[1]} numbers, expected {bags.dim} as in bag "
                f"{bags.names[0]}"
            )
        if not is_finite(features):
            raise BadInput(f"bag {name} of {split}: features hold NaN or infinities, expected finite numbers")
    classes = np.bincount(bags.labels, minlength=2)
    if classes.min() == 0:
        raise BadInput(f"{split}: need bags of both classes, found {classes[1]} positive and {classes[0]} negative")


def is_finite(features: np.ndarray) -> bool:
    """Whether all of (n, d) are finite; without a mask as large as the array."""
    rows = max(1, FINITE_BLOCK // features.shape[1])
    return all(np.isfinite(features[start : start + rows]).all() for start in range(0, len(features), rows))
