"""Train a detector on normal images alone: train_anomaly.py --method dpa --photos DIR --logdir runs/dpa

The flags of the chosen --method are shown; `--method NAME --help` shows another's.
"""

from pathlib import Path

import common  # noqa: F401 (before torch)
from anomaly.methods import METHODS
from anomaly.settings import SETTINGS
from common import cli, processes, runfolder
from common.errors import BadInput
from data import datatypes, loaders, transforms
from data.normals import NormalTiles


def parse_args(argv=None):
    first = cli.ArgumentParser(add_help=False)
    add_method_flag(first)
    first.add_argument("--setting")
    chosen = first.parse_known_args(argv)[0]
    method = METHODS[chosen.method]
    parser = cli.ArgumentParser(description=__doc__)
    add_method_flag(parser)
    datatypes.add_flags(parser)
    transforms.add_training_flags(parser)
    parser.add_argument("--tile", type=cli.positive, default=64, help="px a side of what the detector sees at once")
    loaders.add_flags(parser, batch_size=128)
    runfolder.add_flags(parser)
    processes.add_flags(parser)
    parser.add_argument("--seed", type=cli.natural, default=42, help="seed of weights and draws")
    method.add_flags(parser)
    if chosen.method == "dpa":
        parser.set_defaults(**SETTINGS.get(chosen.setting, {}))
    args = parser.parse_args(argv)
    datatypes.settle(args)
    for name, value in vars(args).items():  # the run folder names the data, from wherever it is scored
        if isinstance(value, Path):
            setattr(args, name, value.absolute())
    return args


def add_method_flag(parser) -> None:
    parser.add_argument("--method", choices=METHODS, default="dpa", help="the detector")


def main(argv=None):
    args = parse_args(argv)
    device = processes.select_alone("train_anomaly.py", args.device, args.precision, args.deterministic)
    normals, val = (load_tiles(args, split) for split in ("train", "val"))
    datatypes.verify(args)
    if normals is None:
        place = f", expected them in {args.photos / 'train' / 'normal'}" if args.datatype == "photos" else ""
        raise BadInput(f"--datatype {args.datatype}: no normal training images{place}")
    if args.batch_size > normals.n_images:
        print(f"-b {args.batch_size}: the training split has {normals.n_images} normal images, so many are a batch")
        args.batch_size = normals.n_images
    processes.seed_everything(args.seed)  # before the weights are drawn
    METHODS[args.method].fit(normals, val, args, device)


def load_tiles(args, split: str) -> NormalTiles | None:
    """A split's normal images; None where there are none."""
    data = datatypes.load_normals(args, split)
    if data is None or not (data.labels == 0).any():
        return None
    augmented = split == "train"
    return NormalTiles(data, args.tile, args.seed, augmented and args.random_crop, augmented and args.flip)


if __name__ == "__main__":
    cli.run(main)
