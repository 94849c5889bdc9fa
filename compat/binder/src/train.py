"""BINDER's last src/train.py TRAIN VALID, by train_retrieval.py: its flags are theirs, but for --logdir."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import common  # noqa: F401 (before torch)
import train_retrieval
from common import cli
from compat.binder.src import translate
from models import near_duplicates


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("train_path", help="training images")
    add("valid_path", help="validation: a folder per group")
    add("--batch_size", type=cli.positive, default=256, help="pairs per batch")
    add("--learning_rate", type=cli.positive_float, default=3e-2, help="learning rate")
    add("--base", choices=("resnet50", "vgg19"), help="trunk (default: that of --resume, else resnet50)")
    add("--chunks", type=cli.natural, default=8, help="segments of gradient checkpointing; 0 = none")
    add("--epochs", type=cli.positive, default=100, help="epochs")
    add("--manipulations", default="with_noise.yml", help="YAML table")
    add("--synth_valid", action="store_true", help="validation pairs are made too")
    add("--filetype", default=".tif", help="ending of the images")
    add("--gpus", default="0", help="auto takes over where there is no such GPU")
    add("--resume", help="network to begin from instead of ImageNet weights, .ckpt or .pth")
    add("--weights", default="imagenet", help="imagenet, random or a FILE, to begin from without --resume (new)")
    add("--logdir", default="lightning_logs", help="run folder (new)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    base = args.base or (near_duplicates.load_network(args.resume).config["base"] if args.resume else "resnet50")
    flags = ["--train_path", args.train_path, "--valid_path", args.valid_path, "--logdir", args.logdir]
    flags += ["--base", base, "--chunks", str(args.chunks), "-b", str(args.batch_size), "--filetype", args.filetype]
    flags += ["--lr", str(args.learning_rate), "--epochs", str(args.epochs), "--weights", args.resume or args.weights]
    flags += ["--manipulations", translate.table(args.manipulations)]
    flags += ["--device", translate.device(f"cuda:{args.gpus}")]
    train_retrieval.main(flags + ["--synth_valid"] * args.synth_valid)


if __name__ == "__main__":
    cli.run(main)
