"""Frozen networks that turn images into vectors, for every system; declared, built and described once."""

from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from common.errors import BadInput
from common.files import sha256_of
from models import encoder as encoders
from models import needle
from models import weights as pretrained
from models.bagnet import MIN_SIDE
from models.inception import InceptionResNetV2
from models.pooling import generalized_mean_pool, mean_pool
from models.vgg import VGG
from models.weights import Standardised

NAMES = (
    "pixels",
    "vgg16",
    "vgg19",
    "squeezenet",
    "resnet18",
    "resnet50",
    "bagnet",
    "encoder",
    "inception_resnet_v2",
)
POOLS = {"mean": mean_pool, "gem": generalized_mean_pool}
PIXELS = 32  # side of the picture that `pixels` compares
FLAT = 1e-2  # norm below which a picture shows nothing but rounding: half a grey level in a few pixels


def add_flags(
    parser,
    default: str = "pixels",
    aliases: tuple[str, ...] = (),
    names: tuple[str, ...] = NAMES,
    name_aliases: tuple[str, ...] = (),
) -> None:
    """Declare `--embedder`, one of `names`, `--embedder_weights` (each with a command's aliases), `--weights_input`."""
    group = parser.add_argument_group("embedder")
    group.add_argument(
        "--embedder",
        *name_aliases,
        dest="embedder",
        choices=names,
        default=default,
        help="frozen network that embeds images",
    )
    group.add_argument(
        "--embedder_weights",
        "--embedder_checkpoint",
        *aliases,
        dest="embedder_weights",
        type=pretrained.parse_source,
        metavar="imagenet|FILE|random",
        default="imagenet",
        help="its weights; of bagnet and encoder FILE is the best_checkpoint.pth of a run",
    )
    group.add_argument(
        "--weights_input",
        choices=pretrained.INPUTS,
        help="what was taken from RGB when the weights of FILE were trained (default: as known, else torchvision)",
    )


def build(args, pool: str = "mean", taps: tuple[str, ...] = ("r43",)) -> "Embedder":
    """The embedder that the flags ask for, frozen, on the CPU.

    Args:
        pool: mean or gem, over positions.
        taps: layers of VGG or InceptionResNetV2, whose vectors are joined; other networks have one.
    """
    name, source = args.embedder, args.embedder_weights
    if name == "pixels":
        if source != "imagenet":
            raise BadInput(f"--embedder_weights {source}: pixels has no weights; choose another --embedder")
        return Embedder(name, Pixels(), PIXELS * PIXELS, 1, {})
    if name == "bagnet":
        return _bagnet(source, pool)
    if name == "encoder":
        return _encoder(source, pool)
    weights = pretrained.fetch(name, source, input=args.weights_input)
    if name.startswith("vgg"):
        vgg = VGG(name, taps, weights)
        trunk = JoinedTaps(vgg)
        return Embedder(
            name, trunk, trunk.channels, max(16, vgg.smallest), weights.describe() | {"taps": list(taps)}, pool
        )
    if name == "inception_resnet_v2":
        trunk = InceptionResNetV2(taps, weights)
        return Embedder(name, trunk, trunk.channels, 1, weights.describe() | {"taps": list(taps)})
    trunk, channels = _squeezenet(weights) if name == "squeezenet" else _resnet(name, weights)
    return Embedder(
        name, nn.Sequential(Standardised(weights.mean, weights.std), trunk), channels, 32, weights.describe(), pool
    )


class Embedder(nn.Module):
    """Images (B, 1 or 3, H, W) in [0, 1] -> vectors (B, dim) float32, not normalised.

    Attributes: dim; smallest, the least side of an image in px; in_channels, of the trunk; facts, of its weights.
    """

    def __init__(
        self, name: str, trunk: nn.Module, dim: int, smallest: int, facts: dict, pool: str = "mean", in_channels=3
    ):
        super().__init__()
        self.name, self.trunk, self.dim, self.smallest, self.facts = name, trunk, dim, smallest, facts
        self.pool, self.in_channels = pool, in_channels
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True):
        return super().train(False)

    def describe(self) -> dict:
        """What config.json says of it, and what must be equal to compare vectors or go on with a run."""
        return {"embedder": self.name, "pool": self.pool, **self.facts}

    def check_tile(self, side: int) -> None:
        """BadInput when tiles of this side are too small."""
        if side < self.smallest:
            raise BadInput(f"--tile {side}: {self.name} takes {self.smallest} px or more")

    def features(self, images: Tensor) -> Tensor:
        """(B, dim, h, w). BadInput when images are too small."""
        if min(images.shape[-2:]) < self.smallest:
            raise BadInput(
                f"--embedder {self.name}: needs images of {self.smallest} px or more, found "
                f"{images.shape[-2]} x {images.shape[-1]} px"
            )
        if images.shape[1] != self.in_channels:
            images = images.mean(1, keepdim=True) if self.in_channels == 1 else images.expand(-1, 3, -1, -1)
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        return POOLS[self.pool](self.features(images)).float()


class Pixels(nn.Module):
    """Grey pictures of 32 x 32 px, of mean 0 and norm 1, as (B, 1024, 1, 1); a flat picture gives zeros."""

    def forward(self, images: Tensor) -> Tensor:
        small = F.interpolate(images.mean(1, keepdim=True), (PIXELS, PIXELS), mode="area").flatten(1)
        small = small - small.mean(1, keepdim=True)
        norm = small.norm(dim=1, keepdim=True)
        return torch.where(norm < FLAT, 0.0, small / norm.clamp(min=FLAT))[..., None, None]


class JoinedTaps(nn.Module):
    """The maps of VGG's taps, side by side at the size of the first."""

    def __init__(self, vgg: VGG):
        super().__init__()
        self.vgg, self.channels = vgg, sum(vgg.channels.values())

    def forward(self, images: Tensor) -> Tensor:
        maps = list(self.vgg(images).values())
        return torch.cat([maps[0], *(F.interpolate(m, maps[0].shape[-2:], mode="nearest") for m in maps[1:])], 1)


def _squeezenet(weights):
    """SqueezeNet 1.1 without its classifier, and its 512 channels."""
    trunk = pretrained.seeded(torchvision.models.squeezenet1_1).features
    pretrained.load(trunk, weights, "features.")
    return trunk, 512


def _resnet(name, weights):
    """A ResNet up to its last stage, and its channels."""
    whole = pretrained.seeded(getattr(torchvision.models, name))
    channels, whole.fc = whole.fc.in_features, nn.Identity()
    pretrained.load(whole, weights)
    return nn.Sequential(*list(whole.children())[:-2]), channels


class Contrastive(nn.Module):
    """The maps of an encoder that a contrastive loss trained."""

    def __init__(self, encoder: encoders.TileEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.maps(images)


def _encoder(source, pool):
    """The encoder that pretrain_simclr.py or finetune.py left."""
    if source in ("imagenet", "random"):
        raise BadInput("--embedder encoder: give --embedder_checkpoint, of a run of pretrain_simclr.py or finetune.py")
    path = Path(source).expanduser()
    encoder = encoders.load(path)
    facts = {"weights": path.name, "weights_sha256": sha256_of(path), "network": encoder.config.to_dict()}
    return Embedder("encoder", Contrastive(encoder), encoder.dim, encoders.SMALLEST, facts, pool)


def _bagnet(source, pool):
    """The extractor of a classifier that train_mnist.py or train_camelyon.py left."""
    if source in ("imagenet", "random"):
        raise BadInput("--embedder bagnet: give --embedder_checkpoint, the best_checkpoint.pth of a training run")
    path = Path(source).expanduser()
    model, _, _ = needle.load(path)
    facts = {"weights": path.name, "weights_sha256": sha256_of(path), "network": model.config.to_dict()}
    return Embedder("bagnet", model.cnn, model.cnn.out_channels, MIN_SIDE, facts, pool, model.config.in_channels)
