"""The relative perceptual L1 of images and their reconstructions (Shvetsova et al. 2021, eq. 3 to 5).

Of VGG's features f, per channel c, with mean mu_c and standard deviation sigma_c over ordinary images,

    fhat = (f - mu_c) / sigma_c        L(x, y) = mean |fhat(x) - fhat(y)| / mean |fhat(x)|,

means over channels and positions. mu cancels in the numerator and matters in the denominator.
"""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli
from common.errors import BadInput
from common.files import atomic_open, open_input
from models import embedders
from models import weights as pretrained
from models.vgg import VGG

EPSILON = 1e-8  # in both denominators
LEAST_STD = 0.01  # of a channel, as a share of its layer's mean: one that is dead on these images may live on others
MOST_BYTES = 2**24  # of a file of statistics


def add_flags(parser, layer: str) -> None:
    """Declare VGG and its weights, `--layer` and `--vgg_stats`."""
    embedders.add_flags(parser, "vgg19", ("--vgg_weights",), ("vgg16", "vgg19"), ("--vgg",))
    parser.add_argument(
        "--layer",
        type=layer_text,
        default=layer,
        help="of VGG, as r42; several with their weights as r32:0.5+r42:1 (c convolution, r ReLU, p pooling)",
    )
    parser.add_argument(
        "--vgg_stats",
        type=cli.path,
        help="statistics of the channels, written by anomaly/compute_vgg_stats.py (default: of the training images)",
    )


def layer_text(text: str) -> str:
    """Text that `layer_weights` reads (an argparse type)."""
    layer_weights(text)
    return text


def layer_weights(text: str) -> dict[str, float]:
    """Layers with their weights from text like r32:0.5+r42."""
    found = {}
    for part in text.split("+"):
        name, _, weight = part.partition(":")
        found[name] = cli.positive_float(weight or "1")
    return found


class Statistics(nn.Module):
    """Mean and standard deviation of each channel of some layers, (1, C, 1, 1) each; 0 and 1 until they are set."""

    def __init__(self, channels: dict[str, int]):
        super().__init__()
        for tap, n in channels.items():
            self.register_buffer(f"{tap}_mean", torch.zeros(1, n, 1, 1))
            self.register_buffer(f"{tap}_std", torch.ones(1, n, 1, 1))

    def set(self, tap: str, mean: Tensor, std: Tensor) -> None:
        """Set a layer's, (C,) each."""
        getattr(self, f"{tap}_mean").copy_(mean.view(1, -1, 1, 1))
        getattr(self, f"{tap}_std").copy_(std.view(1, -1, 1, 1))

    def normalise(self, tap: str, features: Tensor) -> Tensor:
        return (features - getattr(self, f"{tap}_mean")) / (getattr(self, f"{tap}_std") + EPSILON)


class Perceptual(nn.Module):
    """fhat of images (B, 1 or 3, R, R) in [-1, 1], and the distance of two by it.

    Args:
        taps: the layers that are used at all. weights: of VGG.
    Errors: BadInput for a layer that the network or its weights lack.
    """

    def __init__(self, network: str, taps: Iterable[str], weights: pretrained.Weights):
        super().__init__()
        self.vgg = VGG(network, tuple(sorted(set(taps))), weights)
        self.statistics = Statistics(self.vgg.channels)
        self.facts = {"embedder": network, **weights.describe()}

    @classmethod
    def from_args(cls, args, taps: Iterable[str]) -> "Perceptual":
        weights = pretrained.fetch(args.embedder, args.embedder_weights, "--vgg_weights", args.weights_input)
        return cls(args.embedder, taps, weights)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Layer -> fhat (B, C, h, w); with a graph where the images have one."""
        found = self.vgg(images.expand(-1, 3, -1, -1) / 2 + 0.5)
        return {tap: self.statistics.normalise(tap, features) for tap, features in found.items()}

    @torch.no_grad()
    def reference(self, images: Tensor) -> dict[str, Tensor]:
        """fhat without a graph: what reconstructions are compared with."""
        return self(images)

    def set_statistics(self, args, batches: Iterable[Tensor]) -> None:
        """Read --vgg_stats, or measure images (B, 1 or 3, R, R) in [-1, 1]."""
        if args.vgg_stats is not None:
            read_statistics(args.vgg_stats, self)
            return
        for tap, moments in measure(self.vgg, (images / 2 + 0.5 for images in batches)).items():
            self.statistics.set(tap, *moments)


def distance(reference: dict[str, Tensor], made: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """L of each image (B,), over several layers their weighted mean; no gradient reaches the reference.

    Args:
        reference, made: layer -> fhat. weights: of the layers that count.
    """
    return _weighted(reference, made, weights, lambda difference: difference.flatten(1).mean(1))


def distance_map(reference: dict[str, Tensor], made: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Where L comes from: (B, h, w) at the resolution of the first layer, with L as its mean if it is the only one."""
    side = reference[next(iter(weights))].shape[-1]

    def of_positions(difference):
        found = difference.mean(1, keepdim=True)
        return F.interpolate(found, (side, side), mode="bilinear")[:, 0] if found.shape[-1] != side else found[:, 0]

    return _weighted(reference, made, weights, of_positions)


def _weighted(reference, made, weights, reduce):
    total = 0
    for tap, weight in weights.items():
        x, y = reference[tap].detach(), made[tap]
        scale = x.abs().flatten(1).mean(1) + EPSILON  # (B,)
        part = reduce((x - y).abs())
        total = total + weight * part / scale.view(-1, *[1] * (part.dim() - 1))
    return total / sum(weights.values())


@torch.no_grad()
def measure(vgg: VGG, batches: Iterable[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> mean and standard deviation (C,) of its channels over all positions of images in [0, 1]; holds sums."""
    sums = {}
    for images in batches:
        for tap, features in vgg(images.expand(-1, 3, -1, -1)).items():
            parts = [values.sum((0, 2, 3), dtype=torch.float64) for values in (features, features.square())]
            n = features[:, 0].numel()  # positions
            sums[tap] = sums.get(tap, 0) + torch.stack([*parts, torch.full_like(parts[0], n)])
    moments = {}
    for tap, (total, squares, n) in sums.items():
        mean = total / n
        std = (squares / n - mean.square()).clamp_min(0).sqrt()
        moments[tap] = mean.float(), std.clamp_min(LEAST_STD * std.mean()).float()
    return moments


def write_statistics(path: Path, moments: dict, network: str, sha256: str | None) -> None:
    """Write statistics of layers, with the weights that they belong to, as .npz."""
    arrays = {f"{tap}_mean": mean.cpu().numpy() for tap, (mean, _) in moments.items()}
    arrays |= {f"{tap}_std": std.cpu().numpy() for tap, (_, std) in moments.items()}
    buffer = io.BytesIO()
    np.savez(buffer, network=np.array(network), weights_sha256=np.array(str(sha256)), **arrays)
    with atomic_open(path) as file:
        file.write(buffer.getbuffer())


def read_statistics(path: Path, perceptual: Perceptual) -> None:
    """Set a network's statistics. BadInput when the file is of other weights, lacks a layer or is damaged."""
    arrays = _read_npz(path)
    network, embedder = arrays.get("network"), perceptual.facts["embedder"]
    if str(network) != embedder:
        raise BadInput(f"--vgg_stats {path}: measured with {network}, not {embedder}")
    found, wanted = arrays.get("weights_sha256"), perceptual.facts["weights_sha256"]
    if str(found) != str(wanted):
        found, wanted = ("random" if str(digest) == "None" else str(digest)[:8] for digest in (found, wanted))
        raise BadInput(f"--vgg_stats {path}: measured with weights {found}, but VGG has {wanted}")
    for tap, n in perceptual.vgg.channels.items():
        pair = [arrays.get(f"{tap}_{name}") for name in ("mean", "std")]
        if any(a is None or a.shape != (n,) or a.dtype != np.float32 or not np.isfinite(a).all() for a in pair):
            raise BadInput(f"--vgg_stats {path}: no {n} finite means and standard deviations of layer {tap}")
        perceptual.statistics.set(tap, *map(torch.from_numpy, pair))


def _read_npz(path):
    with open_input(path, MOST_BYTES) as file:
        content = io.BytesIO(file.read())
    try:
        with zipfile.ZipFile(content) as archive:
            if sum(item.file_size for item in archive.infolist()) > MOST_BYTES:
                raise ValueError("too large")
        with np.load(content, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # damaged archives fail in many ways
        raise BadInput(f"{path}: not a file of statistics: {' '.join(str(error).split())[:100]}") from None
