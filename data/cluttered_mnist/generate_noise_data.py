"""Write a data set without content: generate_noise_data.py --canvas 256 --num_train 11276 --out noise_256

Gaussian N(0, 1) images with labels 1, 0, 1, 0, ...: a network that fits them memorises (Pawlowski 2019, section 4,
after Zhang et al. 2017). Every image follows from the seed, its split and its number; an interrupted run continues with
the same command.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common import cli, lock
from common.errors import BadInput
from data.cluttered_mnist import canvas_files, folder, recipe

PAIRS = {"train": 11276, "val": 500, "test": 500}


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("-o", "--out", type=cli.path, required=True, help="folder to write")
    add("--canvas", type=cli.positive, default=512, help="rows and columns of an image in px")
    for split, pairs in PAIRS.items():
        note = ", of which training uses the first 11,276 images" if split == "train" else ""
        add(f"--num_{split}", type=cli.positive, default=pairs, help=f"pairs of {split} images, labels 1 and 0{note}")
    add("--seed", type=cli.natural, default=1234, help="of all images")
    add("--format", choices=("npz", "none"), default="npz", help="write float32 images, or draw them at reading")
    cli.add_workers_flag(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if 4 * args.canvas**2 > canvas_files.MAX_BYTES:
        raise BadInput(f"--canvas {args.canvas}: an image would have more than {canvas_files.MAX_BYTES} bytes")
    if args.seed >= 2**64:
        raise BadInput(f"--seed {args.seed}: expected less than 2^64")
    names = ["canvas", *(f"num_{split}" for split in PAIRS), "seed", "format"]
    settings = {"generator": "noise"} | {name: getattr(args, name) for name in names}
    if args.format == "npz":
        folder.check_space(args.out, 4 * args.canvas**2 * 2 * (args.num_train + args.num_val + args.num_test))
    sources, npz = {split: recipe.Noise(split, settings) for split in PAIRS}, args.format == "npz"
    with lock.held(args.out, "--out"):
        folder.claim(args.out, settings)
        if not sum(folder.write_split(args.out, split, source, npz, args.workers) for split, source in sources.items()):
            print(f"{args.out}: complete already, nothing to do")
    counts = ", ".join(f"{split} {2 * settings[f'num_{split}']:,}" for split in PAIRS)
    print(f"{args.out}: {counts} images of {args.canvas} px, N(0, 1), half of them labelled 1")
    folder.print_next(args.out)


if __name__ == "__main__":
    cli.run(main)
