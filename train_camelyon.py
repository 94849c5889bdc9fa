"""Train the needle classifier on nCAMELYON crops: train_camelyon.py --pos_path POS --neg_path NEG --logdir runs/512"""

import numpy as np

import common  # noqa: F401 (before torch)
import train
from common import cli, processes
from data import loaders
from data.camelyon import dataset
from models import needle


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    dataset.add_flags(parser)
    loaders.add_flags(parser)
    needle.add_flags(parser, receptive_field=9)  # Pawlowski 2019's best for nCAMELYON
    train.add_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select(args.device, args.precision, args.deterministic)
    splits = dataset.load_splits(args)
    dataset.note_splits(args)
    loaders.verify(args, args.pos_path, args.neg_path)
    processes.seed_everything(args.seed)  # before the weights are drawn
    model = needle.build_model(needle.ModelConfig.from_args(args, in_channels=3))
    size = len(splits["train"])
    draw = loaders.shuffles(size, args.seed)
    train.fit(model, loaders.make_loaders(splits, args, device, np.arange(size), draw), args, device)


if __name__ == "__main__":
    cli.run(main)
