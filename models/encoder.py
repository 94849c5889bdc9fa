"""The encoder that contrastive losses train: ResNet-18 with a projection head, and weights of others by their names.

Source: HNM-WSI (2410.02212): InstanceNorm without parameters or statistics, so that training and use compute the same;
11,166,912 weights in convolutions and 393,984 in the head.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from common import checkpoint, torch_format
from common.errors import BadInput
from common.files import sha256_of
from models import weights as pretrained
from models.weights import Standardised

NORMS = {
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=False, track_running_stats=False),
    "batch": nn.BatchNorm2d,
}
STAGES = (64, 128, 256, 512)  # channels at width 1
PROJECTION = 256  # numbers that the contrastive loss compares
SMALLEST = 33  # px of an image: of 32, 1 x 1 is left, which InstanceNorm cannot normalise
WHERE = ("state_dict", "net", "model")  # in a checkpoint: MoCo's and SimCLR's, HNM-WSI's own, others'
INDEXED = {"0": "conv1", "1": "bn1", **{str(k + 3): f"layer{k}" for k in range(1, 5)}}  # of nn.Sequential, as DSMIL's
HEADS = {"fc.0": "head.0", "fc.2": "head.2", "l1": "head.0", "l2": "head.2"}  # MoCo's and HNM-WSI's; DSMIL's
WIDTHS = (1.0, 0.5, 0.25, 0.125)
RANDOM, IMAGENET = "random", "imagenet"


def add_flags(parser, default: str | None = None, aliases: tuple[str, ...] = ()) -> None:
    """Declare `--encoder_weights` (with a command's aliases; needed without default), `--norm`, `--encoder_width`."""
    group = parser.add_argument_group("encoder")
    group.add_argument(
        *("--encoder_weights", *aliases),
        dest="encoder_weights",
        metavar="FILE|imagenet|random",
        default=default,
        required=default is None,
        help="of MoCo, SimCLR, HNM-WSI or this software, told apart by their names; imagenet: torchvision's",
    )
    group.add_argument("--norm", choices=NORMS, help="normalisation (default: batch where the weights have it)")
    group.add_argument(
        "--encoder_width", type=float, choices=WIDTHS, help="factor on all channels (default: the weights', else 1)"
    )


@dataclass(frozen=True)
class Config:
    """What decides the network; mean and std are taken from RGB where the weights want it."""

    norm: str = "instance"
    width: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def to_dict(self) -> dict:
        """As a checkpoint holds it."""
        return {"kind": "encoder", **asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, content: dict) -> "Config":
        """KeyError, TypeError or ValueError where it is not a config."""
        mean, std = (tuple(float(value) for value in content[name]) for name in ("mean", "std"))
        if content["norm"] not in NORMS or len(mean) != 3 or len(std) != 3 or not 0 < content["width"] <= 1:
            raise ValueError("config of an encoder")
        return cls(content["norm"], float(content["width"]), mean, std)


class TileEncoder(nn.Module):
    """Images (B, 1 or 3, H, W) in [0, 1] -> features (B, dim); `project` gives what the loss compares (B, 256)."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        channels = [int(stage * config.width) for stage in STAGES]
        norm = NORMS[config.norm]
        self.conv1 = nn.Conv2d(3, channels[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(channels[0])
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(channels[0], channels[0], 1, norm)
        self.layer2, self.layer3, self.layer4 = (_stage(*channels[k - 1 : k + 1], 2, norm) for k in (1, 2, 3))
        self.dim = channels[3]
        self.head = nn.Sequential(nn.Linear(self.dim, self.dim), nn.ReLU(), nn.Linear(self.dim, PROJECTION))
        self.standardised = Standardised(config.mean, config.std)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, images: Tensor) -> Tensor:
        """Features by position, (B, dim, h, w). BadInput when images are too small."""
        if min(images.shape[-2:]) < SMALLEST:
            found = " x ".join(map(str, images.shape[-2:]))
            raise BadInput(f"the encoder needs tiles of {SMALLEST} px or more, found {found} px; see --tile_resize")
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.standardised(images)))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images).mean(dim=(2, 3))

    def project(self, images: Tensor) -> Tensor:
        return self.head(self(images))

    def convolutions(self) -> set[str]:
        """Names of the convolutions' weights."""
        return {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, nn.Conv2d)}


def _stage(channels_in, channels, stride, norm):
    """Two residual blocks, the first of which may change size."""
    shortcut = None
    if stride > 1:
        shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), norm(channels))
    first = BasicBlock(channels_in, channels, stride, shortcut, norm_layer=norm)
    return nn.Sequential(first, BasicBlock(channels, channels, norm_layer=norm))


@dataclass(frozen=True)
class Report:
    """What a file's tensors were to the network: numbers of names, and the file's digest."""

    source: str
    matched: int = 0
    missing: int = 0
    unexpected: int = 0
    sha256: str | None = None

    def __str__(self) -> str:
        if self.source == RANDOM:
            return "encoder: random weights"
        counts = f"{self.matched} matched, {self.missing} missing, {self.unexpected} unexpected"
        return f"encoder: weights of {self.source}: {counts}"


def build(args) -> tuple[TileEncoder, Report]:
    """The encoder that the flags ask for, its own weights drawn from the global generator; says what was loaded.

    BadInput when there is no such file or none of its tensors is one of the encoder's convolutions.
    """
    source, asked = args.encoder_weights, {"norm": args.norm, "width": args.encoder_width}
    asked = {name: value for name, value in asked.items() if value is not None}
    if source == RANDOM:
        return TileEncoder(Config(**asked)), Report(RANDOM)
    if source == IMAGENET:
        found = pretrained.fetch("resnet18", source, "--encoder_weights")
        encoder = TileEncoder(replace(Config("batch", mean=found.mean, std=found.std), **asked))
        return encoder, load_by_name(encoder, found.state, found.path, found.sha256, source)
    path = Path(source).expanduser()
    state, config = read_weights(path)
    if config is None:
        norms = any(name.endswith("running_mean") for name in _own_names(state))
        config = Config("batch" if norms else "instance")
    encoder = TileEncoder(replace(config, **asked))
    return encoder, load_by_name(encoder, state, path, sha256_of(path), path.name)


def read_weights(path: Path) -> tuple[dict[str, Tensor], Config | None]:
    """The tensors of a file by name, whoever wrote it, and the config where it is one of this software's."""
    content, _ = torch_format.read(path)
    content = content if isinstance(content, dict) else {}
    state = next((content[name] for name in WHERE if isinstance(content.get(name), dict)), content)
    state = {str(name): value for name, value in state.items() if torch.is_tensor(value)}
    if not state:
        raise BadInput(f"{path}: holds no weights, expected a state_dict, in it or in its {', '.join(WHERE)}")
    own = content.get("config")
    if isinstance(own, dict) and own.get("kind") == "encoder":
        with checkpoint.errors_name(path):
            return state, Config.from_dict(own)
    return state, None


def load(path: Path) -> TileEncoder:
    """The encoder of a checkpoint of this software, whole. BadInput for anything else."""
    state, config = read_weights(path)
    if config is None:
        raise BadInput(
            f"{path}: has no config of an encoder; expected a checkpoint of pretrain_simclr.py or finetune.py"
        )
    encoder = TileEncoder(config)
    checkpoint.load_weights(encoder, state, path)
    return encoder


def load_by_name(encoder: TileEncoder, state: dict[str, Tensor], path: Path, sha256: str | None, source: str) -> Report:
    """Load the tensors whose names are the encoder's. BadInput: no convolution is, or one has another shape."""
    own, named = encoder.state_dict(), _own_names(state)
    chosen = {}
    for name, value in named.items():
        if name not in own:
            continue
        if own[name].shape == value.shape:
            if not value.isfinite().all():
                raise BadInput(f"{path}: parameter {name} holds values that are not finite")
            chosen[name] = value.float() if value.is_floating_point() else value
        elif name in encoder.convolutions():
            raise BadInput(
                f"{path}: {name} has shape {tuple(value.shape)}, expected {tuple(own[name].shape)} of ResNet-18 at "
                f"--encoder_width {encoder.config.width:g}"
            )
    if not encoder.convolutions() & chosen.keys():
        found = ", ".join(sorted(state)[:3])
        raise BadInput(f"{path}: none of its {len(state)} tensors is a convolution of ResNet-18; it has {found} ...")
    encoder.load_state_dict(chosen, strict=False)
    missing = len(own.keys() - chosen.keys())
    return Report(source, len(chosen), missing, len(state) - len(chosen), sha256)


def _own_names(state):
    """The tensors by the encoder's names, whatever prefix and style theirs have; others under the prefix stay."""
    first = ("conv1.weight", "features.0.weight")
    prefixes = [name.removesuffix(ending) for name in state for ending in first if _ends(name, ending)]
    if not prefixes:
        return dict(state)
    prefix = min(prefixes, key=lambda text: ("encoder_k" in text, len(text)))  # MoCo's key encoder lags behind
    return {_own_name(name.removeprefix(prefix)): value for name, value in state.items() if name.startswith(prefix)}


def _ends(name, ending):
    """Whether a name is the first convolution's: block names end alike."""
    before = name.removesuffix(ending)
    return name.endswith(ending) and (not before or before.endswith(".")) and ".layer" not in f".{before}"


def _own_name(name):
    if name.startswith("features."):
        _, index, *rest = name.split(".")
        return ".".join([INDEXED.get(index, index), *rest])
    for theirs, ours in HEADS.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return name
