"""Images of any size -> tiles in batches -> a detector's scores -> one score and one map per image."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common import scores
from common.errors import BadInput, WorkFailed
from data import tiles

AGGREGATES = {
    "max": lambda values: values.max(),
    "mean": lambda values: values.mean(),
    "top1pct": lambda values: np.sort(values)[-max(1, len(values) // 100) :].mean(),
}


class ScoredImage:
    """An image's tiles and what the detector says of them.

    Attributes: corners (N, 2), y and x of the tiles; scores (N,) float64, `left` of which are still to come.
    """

    def __init__(self, image: Tensor, name: str, tile: int, stride: int):
        self.image, self.name, self.tile, self.stride = image, name, tile, stride
        height, width = image.shape[-2:]
        self.corners = tiles.corners(height, width, tile, stride)
        if len(self.corners) == 0:
            raise BadInput(f"{name}: has {height} x {width} px, fewer than a tile of {tile}; see --resize")
        self.scores, self.left = np.zeros(len(self.corners)), len(self.corners)
        self.total = None

    def tiles(self) -> Iterator[tuple["ScoredImage", int, Tensor]]:
        """The tiles (C, t, t), views of the image, each with this object and its number."""
        for k, (y, x) in enumerate(self.corners):
            yield self, k, self.image[:, y : y + self.tile, x : x + self.tile]

    def add(self, k: int, score: float, tile_map: np.ndarray | None) -> None:
        """Take tile k's score and map, (t, t)."""
        if not np.isfinite(score):
            raise WorkFailed(f"{self.name}: the detector's score is not finite")
        self.scores[k] = score
        self.left -= 1
        if tile_map is not None:
            if self.total is None:
                self.total = np.zeros(self.image.shape[-2:], np.float32)
            y, x = self.corners[k]
            self.total[y : y + self.tile, x : x + self.tile] += tile_map

    def map(self) -> np.ndarray:
        """Mean over the tiles on a pixel, (H, W) float32; of a detector without maps the tiles' scores (ny, nx)."""
        starts = [tiles.starts(side, self.tile, self.stride) for side in self.image.shape[-2:]]
        if self.total is None:
            return self.scores.reshape(len(starts[0]), len(starts[1])).astype(np.float32)
        counts = [np.zeros(side, np.float32) for side in self.image.shape[-2:]]
        for count, begun in zip(counts, starts, strict=True):
            for start in begun:
                count[start : start + self.tile] += 1
        return self.total / np.outer(*counts)

    def pixels(self) -> np.ndarray:
        """The map at the image's size; a tile's score fills what is nearer to its middle than to another's."""
        values, shape = self.map(), self.image.shape[-2:]
        if self.total is not None:
            return values
        nearest = []
        for side in shape:
            middles = np.array(tiles.starts(side, self.tile, self.stride)) + self.tile / 2
            edges = (middles[1:] + middles[:-1]) / 2
            nearest.append(np.searchsorted(edges, np.arange(side) + 0.5))
        return values[np.ix_(*nearest)]

    def detection(self, mask: np.ndarray | None, label: int | None, known: bool) -> dict:
        """Where the map is largest, by common/scores.py: a pixel, or the cell of `stride` px in a tile's middle."""
        if self.total is not None:
            return scores.detection(self.map(), mask, label, known)
        cell = min(self.stride, self.tile)
        corners = self.corners + (self.tile - cell) // 2
        return scores.cell_detection(self.scores, corners, cell, mask, label, known)


def score_images(
    images: Iterable[tuple[Tensor, str]], tile: int, stride: int, batch_size: int, score: Callable
) -> Iterator[ScoredImage]:
    """Yield the images in order, all of their tiles scored; memory holds few images, whatever the number of tiles.

    Args:
        images: (C, H, W) float32 in [0, 1] each, with its name.
        score: tiles (B, C, t, t) -> scores (B,) and maps (B, h, w) or None. Batches reach over images.
    """
    waiting = deque()

    def all_tiles():
        for image, name in images:
            waiting.append(ScoredImage(image, name, tile, stride))
            yield from waiting[-1].tiles()

    stream = all_tiles()
    while batch := list(itertools.islice(stream, batch_size)):
        values, maps = score(torch.stack([pixels for _, _, pixels in batch]))
        if maps is not None:
            maps = F.interpolate(maps[:, None].float(), (tile, tile), mode="bilinear")[:, 0].cpu().numpy()
        for b, (owner, k, _) in enumerate(batch):
            owner.add(k, float(values[b]), None if maps is None else maps[b])
        while waiting and waiting[0].left == 0:
            yield waiting.popleft()
