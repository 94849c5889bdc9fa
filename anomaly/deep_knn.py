"""deep_knn: the distance to the nearest training features of a frozen network, the yardstick of every other detector.

The features are averaged over the tile and scaled to length 1. PatchCore and PANDA build on the same idea.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly.runs import arguments, check_same_network, embed_tiles, open_run
from common import checkpoint, cli
from common.errors import BadInput
from common.nearest import k_nearest
from models import embedders

COLUMNS = {"epoch": None, "tiles": None, "seconds": None}


def add_flags(parser) -> None:
    """Declare the embedder, `--layer`, `--k` and `--gallery`."""
    embedders.add_flags(parser, "vgg16", ("--vgg_weights",), name_aliases=("--vgg",))
    parser.add_argument("--layer", default="r42", help="layer of VGG whose features are compared")
    parser.add_argument("--k", type=cli.positive, default=5, help="nearest neighbours whose distances are averaged")
    parser.add_argument("--gallery", type=cli.positive, default=20_000, help="training tiles that are kept at most")


class Detector(nn.Module):
    """A frozen embedder; the gallery (N, dim) of the training tiles' features is all that is saved of it."""

    def __init__(self, args, n: int):
        super().__init__()
        self.embedder, self.k = embedders.build(args, taps=(args.layer,)), args.k
        self.gallery = nn.Module()
        self.gallery.register_buffer("features", torch.zeros(n, self.embedder.dim))

    @torch.inference_mode()
    def features(self, tiles: Tensor) -> Tensor:
        """(B, dim) of length 1."""
        return F.normalize(self.embedder(tiles), eps=1e-6)


def fit(normals, val, args, device: torch.device) -> None:
    """Fill the gallery with --gallery tiles, or with as many as cover the images."""
    n = min(args.gallery, normals.n_images * normals.tiles_per_image)
    if n < args.k:
        raise BadInput(f"--k {args.k}: there are {n} training tiles")
    detector = Detector(args, n).to(device)
    detector.embedder.check_tile(args.tile)
    config = {"gallery": n, **detector.embedder.describe()}
    n_batches = -(-n // args.batch_size)
    with open_run(
        args,
        normals,
        device,
        columns=COLUMNS,
        config=config,
        state={"gallery": detector.gallery},
        sums=("tiles",),
        steps_per_epoch=n_batches,
    ) as run:
        for _ in run.epochs(1):
            embed_tiles(run, normals, detector.features, detector.gallery.features, args, device)
            run.end_epoch(run.sums)
    print(f"{n:,} training tiles' features of {args.embedder} in {args.logdir}")


def load(saved: dict, path: Path, device: torch.device) -> Detector:
    args, config = arguments(saved), saved["config"]
    detector = Detector(args, config["gallery"])
    check_same_network(detector.embedder.describe(), config, path)
    checkpoint.load_weights(detector.gallery, saved["gallery"], path)
    return detector.to(device)


def score(detector: Detector, tiles: Tensor) -> tuple[Tensor, None]:
    """Mean Euclidean distance to the k nearest training features (B,), from 0 to 2."""
    distances, _ = k_nearest(detector.features(tiles), detector.gallery.features, detector.k, device=tiles.device)
    return torch.from_numpy(distances).mean(1), None
