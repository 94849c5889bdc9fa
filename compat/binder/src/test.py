"""BINDER's last src/test.py TEST CHECKPOINT, by retrieval/evaluate_pairs.py: its flags are theirs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import common  # noqa: F401 (before torch)
from common import cli
from compat.binder.src import translate
from retrieval import evaluate_pairs


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("test_path", help="a folder per group")
    parser.add_argument("checkpoint", type=Path, help="trained network, .ckpt or .pth")
    parser.add_argument("--filetype", default=".tif", help="ending of the images")
    translate.add_save_flags(parser)
    parser.add_argument("--random", action="store_true", help="not used: both kinds of negatives are scored")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    out = args.checkpoint.with_name(f"{args.checkpoint.stem}_test")
    flags = ["--test_path", args.test_path, "--logdir", str(args.checkpoint), "--filetype", args.filetype]
    code = evaluate_pairs.main([*flags, "--out", str(out)])
    translate.copy_results(args, out, "hardest")
    return code


if __name__ == "__main__":
    cli.run(main)
