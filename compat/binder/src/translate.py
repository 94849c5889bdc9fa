"""What the commands of BINDER (Koker 2020) share: their devices, tables and defaults in ours."""

import sys
from pathlib import Path

import torch

from common.files import copy_file
from retrieval import manipulate

LOSSES = {"hardest": "hardest", "triplet": "random"}  # their --loss -> our kind of negatives


def device(name: str) -> str:
    """Their `cuda:N`, or `auto`, said in a line, where there is no such GPU."""
    index = name.removeprefix("cuda").removeprefix(":") or "0"
    if name.startswith("cuda") and not (index.isdigit() and int(index) < torch.cuda.device_count()):
        print(f"--device {name}: no such GPU here; going on with auto", file=sys.stderr)
        return "auto"
    return name


def table(name: str) -> str:
    """A table of manipulations: a file, or else ours of that name, .yml or .yaml; a.yml was never published."""
    ours = manipulate.DEFAULT.with_name(Path(name).with_suffix(".yml").name)
    if Path(name).exists() or not (ours.exists() or ours.name == "a.yml"):
        return name
    return str(ours if ours.exists() else manipulate.DEFAULT)


def add_save_flags(parser) -> None:
    """Declare `--save_roc`, `--save_farthest_dup` and `--save_closest_diff`."""
    parser.add_argument("--save_roc", type=Path, help=".npy file for the ROC curve, [fpr, tpr]")
    parser.add_argument("--save_farthest_dup", type=Path, help="PNG of the duplicates farthest from each other")
    parser.add_argument("--save_closest_diff", type=Path, help="PNG of the closest pairs that are no duplicates")


def copy_results(args, out: Path, kind: str) -> None:
    """Put the results in `out` where their flags want them."""
    wanted = {
        f"roc_{kind}.npy": args.save_roc,
        "farthest_duplicates.png": args.save_farthest_dup,
        "closest_different.png": args.save_closest_diff,
    }
    for name, target in wanted.items():
        if target is not None:
            copy_file(out / name, target)
