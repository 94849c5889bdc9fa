"""deep_if: an isolation forest (Liu et al. 2008) on features of a frozen network, averaged over the tile.

Random trees split the training features; what is abnormal is alone after few splits.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from anomaly.runs import arguments, check_same_network, embed_tiles, open_run
from common import checkpoint, cli
from common.errors import BadInput
from models import embedders, inception

TREES, SAMPLES = 100, 256  # of the forest, and of each tree at most; scikit-learn's defaults
NODES = 2 * SAMPLES - 1  # of a tree at most
DEPTH = math.ceil(math.log2(SAMPLES))
COLUMNS = {"epoch": None, "tiles": None, "seconds": None}


def add_flags(parser) -> None:
    """Declare the embedder, `--layers` and `--gallery`."""
    embedders.add_flags(parser, "vgg16", ("--vgg_weights", "--inception_weights"), name_aliases=("--vgg",))
    parser.add_argument(
        "--layers",
        help="layers of VGG or InceptionResNetV2 whose averages are joined, as r32,r42; concat: the 11 of the latter "
        "(default: r42, conv2d_7b)",
    )
    parser.add_argument(
        "--gallery", type=cli.positive, default=20_000, help="training tiles that are looked at, at most"
    )


class Forest(nn.Module):
    """The trees of a fitted IsolationForest as arrays, (100, 511) each, so that a checkpoint holds tensors only."""

    def __init__(self):
        super().__init__()
        for name in ("left", "right", "feature"):  # nodes' children, themselves at a leaf, and what they compare
            self.register_buffer(name, torch.zeros(TREES, NODES, dtype=torch.int64))
        for name in ("threshold", "length"):  # up to which left is taken; a leaf's depth, with what it leaves unsplit
            self.register_buffer(name, torch.zeros(TREES, NODES, dtype=torch.float64))
        self.register_buffer("usual_length", torch.ones((), dtype=torch.float64))

    def grow(self, features: np.ndarray, seed: int) -> None:
        """Fit to features (N, D) float32 with scikit-learn."""
        from sklearn.ensemble import IsolationForest

        seed %= 2**32  # scikit-learn takes no more
        fitted = IsolationForest(n_estimators=TREES, max_samples=min(SAMPLES, len(features)), random_state=seed)
        fitted.fit(features)
        for number, (tree, columns) in enumerate(zip(fitted.estimators_, fitted.estimators_features_, strict=True)):
            self._take(number, tree.tree_, torch.from_numpy(columns))
        self.usual_length.fill_(_unsplit_length(np.array([fitted.max_samples_]))[0])

    def _take(self, number, tree, columns):
        n, own = tree.node_count, torch.arange(tree.node_count)
        leaf = torch.from_numpy(tree.children_left < 0)
        self.left[number, :n] = torch.where(leaf, own, torch.from_numpy(tree.children_left))
        self.right[number, :n] = torch.where(leaf, own, torch.from_numpy(tree.children_right))
        self.feature[number, :n] = torch.where(leaf, 0, columns[torch.from_numpy(tree.feature).clamp_min(0)])
        self.threshold[number, :n] = torch.from_numpy(tree.threshold)
        depth = torch.from_numpy(tree.compute_node_depths() - 1)
        self.length[number, :n] = depth + torch.from_numpy(_unsplit_length(tree.n_node_samples))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) float32 -> 2 ** (-mean path length / usual length), (B,) float64 in (0, 1)."""
        trees = torch.arange(TREES, device=features.device)
        node = torch.zeros(len(features), TREES, dtype=torch.int64, device=features.device)
        for _ in range(DEPTH):
            value = features.gather(1, self.feature[trees, node])
            goes_left = value <= self.threshold[trees, node]
            node = torch.where(goes_left, self.left[trees, node], self.right[trees, node])
        return 2 ** (-self.length[trees, node].mean(1) / self.usual_length)


def _unsplit_length(n: np.ndarray) -> np.ndarray:
    """Mean path length of n samples in a random tree, 2 H(n - 1) - 2 (n - 1) / n (Liu et al. 2008, equation 1)."""
    n = n.astype(np.float64)
    more = np.maximum(n, 3)
    return np.select([n <= 1, n == 2], [0.0, 1.0], 2 * (np.log(more - 1) + np.euler_gamma) - 2 * (more - 1) / more)


class Detector(nn.Module):
    """A frozen embedder and a forest, which alone is saved."""

    def __init__(self, args):
        super().__init__()
        self.embedder, self.forest = embedders.build(args, taps=layers_of(args)), Forest()


def layers_of(args) -> tuple[str, ...]:
    """The layers that --layers names, or the embedder's usual one. BadInput for a network without a choice."""
    is_inception = args.embedder == "inception_resnet_v2"
    if args.layers and not is_inception and not args.embedder.startswith("vgg"):
        raise BadInput(f"--layers {args.layers}: {args.embedder} has one output; leave it out")
    if args.layers == "concat" and is_inception:
        return tuple(inception.CHANNELS)
    usual = "conv2d_7b" if is_inception else "r42"
    return tuple(dict.fromkeys((args.layers or usual).split(",")))


def fit(normals, val, args, device: torch.device) -> None:
    """Grow the forest on the features of --gallery tiles, or of as many as cover the images."""
    n = min(args.gallery, normals.n_images * normals.tiles_per_image)
    if n < 2:
        raise BadInput("deep_if needs two training tiles or more, found 1")
    detector = Detector(args).to(device)
    detector.embedder.check_tile(args.tile)
    seen = nn.Module()  # the tiles' features until the trees are grown
    seen.register_buffer("features", torch.zeros(n, detector.embedder.dim))
    state = {"forest": detector.forest, "seen": seen}
    n_batches = -(-n // args.batch_size)
    with open_run(
        args,
        normals,
        device,
        columns=COLUMNS,
        config=detector.embedder.describe(),
        state=state,
        sums=("tiles",),
        steps_per_epoch=n_batches,
        kept=("forest",),
    ) as run:
        for _ in run.epochs(1):
            embed_tiles(run, normals, detector.embedder, seen.features, args, device)
            detector.forest.grow(seen.features.numpy(), args.seed)
            run.end_epoch(run.sums)
    print(f"{TREES} trees on {n:,} training tiles' {detector.embedder.dim:,} features of {args.embedder}")


def load(saved: dict, path: Path, device: torch.device) -> Detector:
    """Embedder and forest, from the content of best_checkpoint.pth. BadInput where the embedder's weights differ."""
    detector = Detector(arguments(saved))
    check_same_network(detector.embedder.describe(), saved["config"], path)
    checkpoint.load_weights(detector.forest, saved["forest"], path)
    return detector.to(device)


@torch.inference_mode()
def score(detector: Detector, tiles: Tensor) -> tuple[Tensor, None]:
    """How soon a tile is alone, (B,): minus scikit-learn's score_samples."""
    return detector.forest(detector.embedder(tiles)).cpu(), None
