"""Detectors trained on noise, which are to find the squares in other noise."""

import os
import signal

import numpy as np
import pandas as pd
import torch

import train_anomaly
from anomaly import runs
from common import checkpoint, metrics, processes
from data.normals import NormalTiles
from data.photos import Arrays
from data.transforms import Transform, Transformed
from tests.synthetic import Squares


def parse(method: str, tile: int, logdir, *flags: str):
    """Arguments of train_anomaly.py, whose data are given by `normal_squares`."""
    where = ["--data_path", "unused", "--logdir", str(logdir), "--workers", "0", "--device", "cpu"]
    return train_anomaly.parse_args(["--method", method, "--tile", str(tile), *where, *flags])


class Stopping(NormalTiles):
    """Tiles of which the one number `stop_at` that is read, from 1, brings a SIGTERM with it."""

    stop_at, read = None, 0

    def __getitem__(self, n):
        self.read += 1
        if self.read == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(n)


def scaled_squares(n: int, seed: int, side: int) -> Transformed:
    """Images (1, side, side), every other one with a square."""
    data = Squares(n, seed)
    data.names = [f"squares_{i}" for i in range(n)]
    return Transformed(data, Transform(resize=side))


def normal_squares(n: int, args, stop_at: int | None = None, seed: int = 0) -> NormalTiles:
    """The normal images, half of n, of a data set of squares, scaled to a tile."""
    tiles = Stopping(scaled_squares(n, seed, args.tile), args.tile, args.seed)
    tiles.stop_at = stop_at
    return tiles


def squares_apart(method, detector, tile: int = 24, n: int = 60) -> float:
    """AUC of a detector on other squares; a score is asserted to be finite and the same in any batch."""
    data = scaled_squares(n, 9, tile)
    tiles = torch.stack([data[i][0] for i in range(n)])
    scores, _ = method.score(detector, tiles)
    alone, _ = method.score(detector, tiles[5:6])
    torch.testing.assert_close(scores[5:6], alone, rtol=1e-4, atol=1e-5)
    assert scores.isfinite().all()
    return metrics.classification(data.labels, scores.numpy())["auc"]


def content(logdir, *parts: str):
    """The table without its times, and the kept tensors of these parts: what must not depend on interruptions."""
    table = pd.read_csv(logdir / "stats.csv").drop(columns="seconds")
    best = checkpoint.load(logdir / checkpoint.BEST)
    return table.to_csv(), [tensor.tolist() for part in parts for tensor in best[part].values()]


def faces(args) -> tuple[NormalTiles, torch.Tensor, np.ndarray]:
    """scikit-image's lfw_subset, scaled to a tile: 60 faces to train on; 40 others and 100 non-faces, with labels."""
    from skimage.data import lfw_subset

    images = np.repeat((lfw_subset() * 255).round().astype(np.uint8)[..., None], 3, axis=3)
    names, labels = [f"lfw_{i}" for i in range(200)], np.repeat([0, 1], 100)
    data = Transformed(Arrays(images, names, labels.tolist()), Transform(resize=args.tile))
    training = Transformed(Arrays(images[:60], names[:60], [0] * 60), Transform(resize=args.tile))
    tiles = torch.stack([data[i][0] for i in range(60, 200)])
    return NormalTiles(training, args.tile, args.seed), tiles, labels[60:]


def faces_apart(method, args) -> float:
    """AUC of a detector trained on faces, non-faces being abnormal."""
    processes.seed_everything(args.seed)
    normals, tiles, labels = faces(args)
    method.fit(normals, None, args, torch.device("cpu"))
    detector = method.load(*runs.read_run(args.logdir), torch.device("cpu"))
    scores = torch.cat([method.score(detector, batch)[0] for batch in tiles.split(35)])
    return metrics.classification(labels, scores.numpy())["auc"]
