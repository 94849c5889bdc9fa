"""The 48 architectures of Pawlowski 2019 as one configuration: ModelConfig, the flags that fill it, build_model."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from common import checkpoint, cli
from common.errors import BadInput
from models.bagnet import BLOCKS, KERNEL3_BY_RECEPTIVE_FIELD, BagNet, receptive_field
from models.classifier import NeedleClassifier

POOLINGS = ("max", "mean", "logsumexp", "attention")
FIRST_RELEASE_POOLINGS = {
    "max_forward": "max",
    "mean_forward": "mean",
    "logsumexp_forward": "logsumexp",
    "soft_mil_att_forward": "attention",
}
WIDTHS = range(-4, 3)
NORMS = ("in_aff", "in", "bn")


@dataclass(frozen=True)
class ModelConfig:
    """All that decides a network's shape; the defaults are Pawlowski 2019's best for nMNIST.

    kernel3: 3x3 convolutions in each of the four stages. width: planes times 2^width, -2 to 1 in Pawlowski 2019.
    """

    in_channels: int
    kernel3: tuple[int, int, int, int] = (1, 1, 1, 1)
    width: int = 0
    pooling: str = "max"
    norm: str = "in_aff"
    dropout: bool = False

    @classmethod
    def from_args(cls, args: argparse.Namespace, in_channels: int) -> "ModelConfig":
        return cls(in_channels, args.kernel3, args.width, args.pooling, args.norm, args.dropout)

    @classmethod
    def from_dict(cls, config: dict) -> "ModelConfig":
        """From a checkpoint's plain dict; unknown keys and values raise TypeError or ValueError."""
        if config.get("kind", "needle") != "needle":
            raise ValueError(f"it is of a network of kind {config['kind']!r}, not of a needle network")
        config = {**config, "kernel3": _read_kernel3(config["kernel3"])}
        config.pop("kind", None)
        parse_pooling(config["pooling"])
        if config["width"] not in WIDTHS or config["norm"] not in NORMS:
            raise ValueError(f"width {config['width']}, norm {config['norm']}")
        return cls(**config)

    def to_dict(self) -> dict:
        return {"kind": "needle", **asdict(self), "kernel3": list(self.kernel3)}


def build_model(config: ModelConfig) -> NeedleClassifier:
    """A freshly initialised network that carries its config; the weights depend on torch's global random state."""
    extractor = BagNet(config.in_channels, config.kernel3, config.width, config.norm, config.dropout)
    model = NeedleClassifier(extractor, config.pooling)
    model.config = config
    return model


def describe(model: NeedleClassifier) -> str:
    """One line for the console: receptive field, pooling, norm, width and parameter count."""
    config = model.config
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"network: RF {receptive_field(config.kernel3)}, {config.pooling} pooling, norm {config.norm}, "
        f"width {config.width}, {parameters:,} parameters"
    )


def parse_kernel3(text: str) -> tuple[int, int, int, int]:
    """Parse a receptive field (9, 33, 177) or the number of 3x3 convolutions of each stage (1_1_0_0)."""
    if text.isdigit() and int(text) in KERNEL3_BY_RECEPTIVE_FIELD:
        return KERNEL3_BY_RECEPTIVE_FIELD[int(text)]
    counts = text.split("_")
    if len(counts) != 4 or not all(c.isdigit() and int(c) <= most for c, most in zip(counts, BLOCKS, strict=True)):
        raise argparse.ArgumentTypeError(f"expected 9, 33, 177 or four counts up to 3_4_6_3, got {text!r}")
    return tuple(map(int, counts))


def _read_kernel3(value):
    """A checkpoint's kernel3, four numbers or what the flag takes."""
    if isinstance(value, str):
        return parse_kernel3(value)
    try:
        return parse_kernel3("_".join(map(str, value)))
    except (TypeError, argparse.ArgumentTypeError):
        raise ValueError(f"kernel3 is {value!r}, expected four counts up to 3_4_6_3") from None


def parse_pooling(text: str) -> str:
    """Parse a pooling's name, the first release's (max_forward) or the short one (max)."""
    pooling = FIRST_RELEASE_POOLINGS.get(text, text)
    if pooling not in POOLINGS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(POOLINGS)}, got {text!r}")
    return pooling


def add_flags(parser: argparse.ArgumentParser, receptive_field: int = 33, pooling: str = "max") -> None:
    """Declare the network's flags with a data set's defaults."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "--receptive_field",
        "--kernel3",
        dest="kernel3",
        type=parse_kernel3,
        default=str(receptive_field),
        help="receptive field in px (9, 33 or 177), or the number of 3x3 convolutions in each stage (1_1_0_0)",
    )
    group.add_argument(
        "--pooling",
        "--network_att_type",
        dest="pooling",
        type=parse_pooling,
        default=pooling,
        help=f"global pooling: {', '.join(POOLINGS)}; the first release's names ({', '.join(FIRST_RELEASE_POOLINGS)})",
    )
    group.add_argument(
        "--width",
        "--network_width",
        type=int,
        choices=WIDTHS,
        metavar="W",
        default=0,
        help="channels times 2^W; Pawlowski 2019: -2 to 1, here -4 to 2",
    )
    group.add_argument(
        "--norm", choices=NORMS, default="in_aff", help="instance norm with or without scale, batch norm"
    )
    group.add_argument(
        "--dropout",
        "--network_dropout",
        action="store_true",
        help="drop 20 %% of the channels in the first block of each stage",
    )
    # accepted without effect, as are two classes
    cli.neutral(group.add_argument("--network_k", help=argparse.SUPPRESS))
    cli.neutral(group.add_argument("--num_classes", type=int, choices=[2], default=2, help=argparse.SUPPRESS))


def load(path: Path) -> tuple[NeedleClassifier, dict, bool]:
    """The network of a best checkpoint, the checkpoint itself, and whether the first release wrote it.

    BadInput names a file that holds no such network.
    """
    content, first_release = checkpoint.load_any(path)
    config = read_config(content["config"], first_release, path)
    with checkpoint.errors_name(path):
        model = build_model(config)
        checkpoint.load_weights(model, content["state_dict"], path)
    return model, content, first_release


def read_config(config: dict, first_release: bool, path) -> ModelConfig:
    """The network a checkpoint's config describes; BadInput names the checkpoint when it describes none."""
    try:
        return ModelConfig.from_dict(_translate(config) if first_release else config)
    except (KeyError, TypeError, ValueError, argparse.ArgumentTypeError) as error:
        raise BadInput(f"{path}: no network can be built from its config ({error})") from None


def _translate(config):
    """The first release's flags as ours; it had no flag for the norm at first."""
    return {
        "in_channels": int(config["input_channels"]),
        "kernel3": config["kernel3"],
        "width": int(config.get("network_width", 0)),
        "pooling": parse_pooling(config["network_att_type"]),
        "norm": config.get("norm", "in_aff"),
        "dropout": bool(config.get("network_dropout", False)),
    }
