"""Crops of made slides, for figures that check the programs: textures with painted blobs, not histology."""

import shlex
import subprocess
from pathlib import Path

from common.errors import WorkFailed
from experiments.runs import Children

TITLE = "made slides: a check of the programs"  # what a panel of such crops says


def call(children: Children, line: str) -> None:
    """Run a script of the project in silence. WorkFailed when it fails."""
    code = children.call(shlex.split(line), stdout=subprocess.DEVNULL)
    if code:
        raise WorkFailed(f"{line.split()[0]} ended with exit code {code}; the same command continues")


def make_crops(folder: Path, children: Children, slides: str, size: int, ratio: str, k: tuple[int, int]) -> None:
    """Make what is missing of slides and of their crops of `size` px, where `crop_flags` looks for them.

    Args:
        slides: flags of make_slides.py. ratio: of O2I, as 0.01_0.1. k: positives of a lesion, negatives of a slide.
    """
    made, positives, negatives = (shlex.quote(str(folder / name)) for name in ("slides", "pos", "neg"))
    base, (low, high) = f"--base_path {made}/training --size {size} --workers 1", ratio.split("_")
    call(children, f"data/camelyon/make_slides.py --out {made} --workers 1 {slides}")
    call(
        children,
        f"extract_basic_pos_crops.py --data {made}/annotations {base} --low_roir {low} --high_roir {high} --k {k[0]}"
        f" --save_dir {positives}",
    )
    call(
        children,
        f"extract_basic_neg_crops.py --label_path {made}/stage_labels.csv {base} --k {k[1]} --save_dir {negatives}",
    )


def crop_flags(folder: Path, size: int, ratio: str) -> str:
    """The flags that name the crops."""
    positives = folder / "pos" / f"level3_size_{size}_ratio_{ratio}"
    return f"--pos_path {shlex.quote(str(positives))} --neg_path {shlex.quote(str(folder / 'neg'))}"
