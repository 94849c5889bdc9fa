"""The network that a command compares images with: a trained one of `--logdir`, or an embedder."""

from torch import nn

from common import cli
from common.errors import BadInput
from data import pairs
from models import embedders, near_duplicates


def add_flags(parser, default: str = "vgg16") -> None:
    """Declare `--logdir` beside the flags of embedders, of which one is the default."""
    parser.add_argument(
        "--logdir",
        "-l",
        "--weights_path",
        dest="logdir",
        type=cli.path,
        help="a trained network: run of train_retrieval.py or a checkpoint (.pth, .ckpt), in place of --embedder",
    )
    embedders.add_flags(parser, default, ("--weights",))


def load(args) -> nn.Module:
    """The network, frozen, on the CPU; `describe()` says what must be equal to compare vectors."""
    return embedders.build(args, pool="gem") if args.logdir is None else near_duplicates.load_network(args.logdir)


def load_for_views(args) -> nn.Module:
    """The network likewise. BadInput when it takes larger images than views are."""
    network = load(args)
    if network.smallest > pairs.SIZE:
        raise BadInput(f"--embedder {args.embedder}: needs images of {network.smallest} px, pairs have {pairs.SIZE}")
    return network
