"""Every data set that the testbed reads, by --datatype, a split at a time, as a detector sees it."""

from pathlib import Path

from common import cli
from common.errors import BadInput
from data import loaders, photos, transforms
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from data.transforms import Transform, Transformed

# flag that says where the data are -> --datatype
LOCATIONS = {"data_path": "mnist", "neg_path": "camelyon", "photos": "photos", "root": "list"}
BELOW_ROOT = ("list", "nih", "cifar10", "svhn")
NAMES = ("mnist", "camelyon", "photos", *BELOW_ROOT)


def add_flags(parser) -> None:
    """Declare `--datatype` and every data set's own flags, and what happens to its images."""
    parser.add_argument("--datatype", choices=NAMES, help="what the images are (default: what the flag with them says)")
    mnist.add_flags(parser)
    camelyon.add_flags(parser)
    photos.add_flags(parser)
    transforms.add_flags(parser)


def settle(args) -> None:
    """Set args.datatype by the flag that says where the data are. BadInput when there is none."""
    args.datatype = args.datatype or _given(args)
    if args.datatype is None:
        raise BadInput(f"no data: give one of {', '.join(f'--{name}' for name in LOCATIONS)}")


def add_flags_of_run(parser) -> None:
    """Declare the same flags for a command that takes them from a run: None where they are not given."""
    add_flags(parser)
    parser.set_defaults(**dict.fromkeys(_actions()))


def take_flags_of_run(args, trained_with: dict) -> None:
    """Let the data be a run's, as far as flags of `add_flags_of_run` do not say otherwise."""
    kind = args.datatype or _given(args)
    if args.datatype is None and kind == "list" and trained_with.get("datatype") in BELOW_ROOT:
        kind = trained_with["datatype"]  # --root alone says where such data are, not what they are
    for name, action in _actions().items():
        if getattr(args, name) is None:
            saved = trained_with.get(name, action.default)
            setattr(args, name, action.type(saved) if action.type and isinstance(saved, str) else saved)
    args.datatype = kind or args.datatype
    settle(args)


def _actions():
    """Name -> the parser's action, of every flag of `add_flags`."""
    parser = cli.ArgumentParser(add_help=False)
    add_flags(parser)
    return {action.dest: action for action in parser._actions}


def _given(args):
    return next((name for flag, name in LOCATIONS.items() if getattr(args, flag) is not None), None)


def load_normals(args, split: str) -> Transformed | None:
    """A split to train on: its images of label 0 are wanted, others may be absent. None where it has none."""
    return _load(args, split, normals=True)


def load(args, split: str) -> Transformed:
    """A split to score, as its own commands see it; of nCAMELYON the negatives where --pos_path is not given."""
    data = _load(args, split, normals=args.datatype == "camelyon" and args.pos_path is None)
    if data is None:
        raise BadInput(f"--datatype {args.datatype}: no images of the {split} split")
    return data


def load_unlabelled(args, folder: Path) -> Transformed:
    """All pictures below a folder."""
    return _transformed(photos.load_unlabelled(folder), args)


def verify(args) -> None:
    """With --verify, check the files of nMNIST and nCAMELYON against their checksums. BadInput names a bad one."""
    folders = {"mnist": [args.data_path], "camelyon": [args.neg_path, args.pos_path]}.get(args.datatype, [])
    loaders.verify(args, *(folder for folder in folders if folder is not None))


def _load(args, split, normals):
    if args.datatype == "mnist":
        data = mnist.load_splits(args, [split])[split]
    elif args.datatype == "camelyon":
        data = camelyon.load_negatives(args, split) if normals else camelyon.load_splits(args, [split])[split]
    else:
        read = {"photos": photos.load_folder, "list": photos.load_lists, "nih": photos.load_lists}
        data = read.get(args.datatype, photos.load_arrays)(args, split)
    return None if data is None else _transformed(data, args)


def _transformed(data, args):
    """The data set under the flags' transformations; NIH's pictures are grey. BadInput: files differ in size."""
    transform = Transform(args.grey or args.datatype == "nih", args.crop, args.equalize, args.resize)
    if isinstance(data, photos.Photos) and not (transform.resize or transform.crop):
        data.check_one_size()
    return Transformed(data, transform)
