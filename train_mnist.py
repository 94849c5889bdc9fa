"""Train the needle classifier on nMNIST canvases: train_mnist.py --data_path nmnist_256 --logdir runs/256"""

import common  # noqa: F401 (before torch)
import train
from common import cli, processes
from data import loaders
from data.cluttered_mnist import dataset
from models import needle


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    dataset.add_flags(parser)
    loaders.add_flags(parser)
    loaders.add_balance_flags(parser)
    needle.add_flags(parser, receptive_field=33)  # Pawlowski 2019's best for nMNIST
    train.add_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select(args.device, args.precision, args.deterministic)
    splits = dataset.load_splits(args)
    loaders.verify(args, args.data_path)
    processes.seed_everything(args.seed)  # before the weights are drawn
    model = needle.build_model(needle.ModelConfig.from_args(args, in_channels=1))
    labels = splits["train"].labels
    subset = loaders.training_subset(labels, args.num_examples, args.data_balance)
    draw = loaders.balanced_draws(labels, subset, args.seed)
    factor = loaders.shrinkage(args.num_examples)
    train.fit(model, loaders.make_loaders(splits, args, device, subset, draw, factor), args, device)


if __name__ == "__main__":
    cli.run(main)
