"""Write the features of tiles to a folder that train_mil.py reads: DIR/{train,val,test}.npy and DIR/bags.csv.

mil/extract_features.py --datatype mnist --data_path nmnist_256 --embedder squeezenet --out features/256
"""

import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401 (before torch)
from common import cli, lock, processes
from data import loaders
from mil import features, tiles
from models import embedders


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    tiles.add_flags(parser)
    embedders.add_flags(parser, default="squeezenet")
    features.add_flags(parser)
    processes.add_flags(parser)
    parser.add_argument("--seed", type=cli.natural, default=42, help="chooses the crops of a class")
    parser.add_argument("--out", type=cli.path, required=True, help="folder of the features")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select_alone("mil/extract_features.py", args.device, args.precision, args.deterministic)
    splits = tiles.load(args)
    loaders.verify(args, *filter(None, (args.data_path, args.pos_path, args.neg_path)))
    with lock.held(args.out, "--out"):
        found = features.extract_splits(splits, embedders.build(args), args.out, args, device)
    for split, bags in found.items():
        print(f"{split}: {len(bags)} bags, {bags.sizes.sum():,} tiles x {bags.dim}")
    bags = shlex.quote(str(args.out / "bags.csv"))
    print(f"features in {args.out}: train_mil.py --datatype features --bags {bags}")


if __name__ == "__main__":
    cli.run(main)
