"""BINDER's src/main.py of March 2020, by train_retrieval.py and retrieval/evaluate_pairs.py: its flags are theirs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import common  # noqa: F401 (before torch)
import train_retrieval
from common import checkpoint, cli
from common.errors import BadInput
from common.files import copy_file, sha256_of
from compat.binder.src import translate
from models import near_duplicates
from retrieval import evaluate_pairs


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("action", choices=("train", "test"), help="what to do")
    add("--base", choices=("resnet50", "vgg19"), default="resnet50", help="trunk")
    add("--loss", choices=translate.LOSSES, default="triplet", help="triplet: random negatives; hardest: of the batch")
    add("--chunks", type=cli.natural, default=0, help="segments of gradient checkpointing; 0 = none")
    add("--bs", type=cli.positive, default=64, help="pairs per batch")
    add("--filetype", default=".tif", help="ending of the images")
    add("--device", default="cuda:0", help="auto takes over where there is no such GPU")
    add("--weights_path", type=Path, required=True, help="weights: of test, of --resume; train writes its best here")
    add("--lr", type=cli.positive_float, default=1e-3, help="learning rate")
    add("--epochs", type=cli.positive, default=1, help="epochs")
    add("--resume", action="store_true", help="begin from --weights_path instead of ImageNet weights")
    add("--weights", default="imagenet", help="imagenet, random or a FILE, to begin from without --resume (new)")
    add("--manipulations", default="manipulations/a.yml", help="YAML table")
    add("--train_path", help="training images")
    add("--valid_path", help="validation: a folder per group")
    add("--synth_valid", action="store_true", help="validation pairs are made too")
    add("--test_path", help="test: a folder per group")
    add("--n", type=cli.positive, default=1, help="passes over the test set")
    translate.add_save_flags(parser)
    add("--show", action="store_true", help="not used")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    needed = ("train_path", "valid_path") if args.action == "train" else ("test_path",)
    for name in needed:
        if not getattr(args, name):
            raise BadInput(f"--{name}: needed to {args.action}")
    run = args.weights_path.with_suffix("")  # the run folder, or that of the results, beside the file
    if args.action == "train" and args.resume:  # from weights that a run called so may have written
        run = run.with_name(f"{run.name}_{sha256_of(args.weights_path)[:8]}")
    common_flags = ["--filetype", args.filetype, "--device", translate.device(args.device), "-b", str(args.bs)]
    return (train if args.action == "train" else test)(args, run, common_flags)


def train(args, run: Path, flags: list[str]):
    flags += ["--train_path", args.train_path, "--valid_path", args.valid_path, "--logdir", str(run)]
    flags += ["--base", args.base, "--loss", args.loss, "--chunks", str(args.chunks), "--lr", str(args.lr)]
    flags += ["--epochs", str(args.epochs), "--manipulations", translate.table(args.manipulations)]
    flags += ["--weights", str(args.weights_path) if args.resume else args.weights]
    try:
        train_retrieval.main(flags + ["--synth_valid"] * args.synth_valid)
    except BaseException:  # interrupted, too
        if (run / checkpoint.BEST).exists() and not args.resume:  # which needs the file as it is to go on
            copy_file(run / checkpoint.BEST, args.weights_path)
        raise
    copy_file(run / checkpoint.BEST, args.weights_path)
    print(f"the best network in {args.weights_path}")


def test(args, run: Path, flags: list[str]):
    found = near_duplicates.load_network(args.weights_path).config["base"]
    if found != args.base:
        raise BadInput(f"--base {args.base}: {args.weights_path} holds a network of {found}")
    out = run.with_name(f"{run.name}_test")
    flags += ["--test_path", args.test_path, "--logdir", str(args.weights_path), "--n", str(args.n), "--out", str(out)]
    code = evaluate_pairs.main(flags)
    translate.copy_results(args, out, translate.LOSSES[args.loss])
    return code


if __name__ == "__main__":
    cli.run(main)
