"""Every data set that the testbed reads, by --datatype, a split at a time, as a detector sees it."""

from common import cli
from common.errors import BadInput
from data import transforms
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from data.transforms import Transform, Transformed

LOCATIONS = {"data_path": "mnist", "neg_path": "camelyon"}  # flag that says where the data are -> --datatype
NAMES = tuple(dict.fromkeys(LOCATIONS.values()))


def add_flags(parser) -> None:
    """Declare `--datatype` and every data set's own flags, and what happens to its images."""
    parser.add_argument("--datatype", choices=NAMES, help="what the images are (default: what the flag with them says)")
    mnist.add_flags(parser)
    camelyon.add_flags(parser)
    transforms.add_flags(parser)


def settle(args) -> None:
    """Set args.datatype by the flag that says where the data are. BadInput when there is none."""
    args.datatype = args.datatype or _given(args)
    if args.datatype is None:
        raise BadInput(f"no data: give one of {', '.join(f'--{name}' for name in LOCATIONS)}")


def take_flags_of_run(args, parser, trained_with: dict) -> None:
    """Let the data be a run's, as far as the flags do not say otherwise."""
    given, own = args.datatype or _given(args), cli.ArgumentParser()
    add_flags(own)
    for action in own._actions:
        saved = trained_with.get(action.dest)
        if (
            action.dest != "help"
            and getattr(args, action.dest) == parser.get_default(action.dest)
            and saved is not None
        ):
            setattr(args, action.dest, action.type(saved) if action.type and isinstance(saved, str) else saved)
    args.datatype = given or args.datatype
    settle(args)


def _given(args):
    return next((name for flag, name in LOCATIONS.items() if getattr(args, flag) is not None), None)


def load_normals(args, split: str) -> Transformed | None:
    """A split to train on: its images of label 0 are wanted, others may be absent. None where it has none."""
    negatives = camelyon.load_negatives(args, split) if args.datatype == "camelyon" else _load(args, split)
    return None if negatives is None else Transformed(negatives, Transform.from_args(args))


def load(args, split: str) -> Transformed:
    """A split to score, as its own commands see it; of nCAMELYON the negatives where --pos_path is not given."""
    if args.datatype == "camelyon" and args.pos_path is None:
        data = load_normals(args, split)
        if data is None:
            raise BadInput(f"--neg_path {args.neg_path}: no crops for the {split} split")
        return data
    return Transformed(_load(args, split), Transform.from_args(args))


def _load(args, split):
    return {"mnist": mnist, "camelyon": camelyon}[args.datatype].load_splits(args, [split])[split]
