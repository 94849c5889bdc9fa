"""BINDER's last src/retrieve.py FOLDER CHECKPOINT, by retrieval/retrieve.py: its flags are theirs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import common  # noqa: F401 (before torch)
from common import cli
from retrieval import retrieve


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="images to find")
    parser.add_argument("checkpoint", help="trained network, .ckpt or .pth")
    parser.add_argument("--filetype", default=".tif", help="ending of the images")
    parser.add_argument("--k", type=cli.positive, default=5, help="neighbours of an image, without itself")
    parser.add_argument("--o", default="out.csv", help="table to write")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    flags = ["--filetype", args.filetype, "--k", str(args.k), "--out", args.o]
    return retrieve.main(["--folder", args.folder, "--logdir", args.checkpoint, *flags])


if __name__ == "__main__":
    cli.run(main)
