"""Steps 7 to 9: lists of the patches, all of them in one folder, and at x20 and x10."""

from functools import partial
from pathlib import Path

import numpy as np

from common.files import atomic_open, copy_file, make_folder
from common.parallel import attempt_jobs
from data.camelyon16 import steps
from data.camelyon16.steps import PATCH_SETS, Step
from data.photos import read_image

LISTS = {  # below --output_split_root, one file name a line
    "normal_train": "healthy/normal/train",
    "normal_test": "healthy/normal/test",
    "tumor_train": "healthy/anomaly/train",
    "tumor_test": "healthy/anomaly/test",
}
FACTORS = {"output_dir_x20": 2, "output_dir_x10": 4}


def _patch_sets(args):
    """Set -> its patches."""
    return {name: steps.patches_in(args, "{}_patches_{}_dir".format(*name.split("_"))) for name in PATCH_SETS}


def write_lists(args) -> list[str]:
    """Step 7; a list that has changed is written again."""
    for name, patches in _patch_sets(args).items():
        path = args.output_split_root / LISTS[name]
        text = "".join(f"{patch.name}\n" for patch in patches)
        make_folder(path.parent)
        if not path.is_file() or path.read_text() != text:
            with atomic_open(path, "w") as file:
                file.write(text)
        print(f"{path}: {len(patches):,} names")
    return []


def copy(job: tuple[Path, Path]) -> None:
    """Copy one file to another."""
    copy_file(*job)


def copy_patches(args) -> list[str]:
    """Step 8."""
    files = {args.output_dir / patch.name: patch for patches in _patch_sets(args).values() for patch in patches}
    todo = [(files[path], path) for path in steps.to_write(files)]
    problems = attempt_jobs(copy, todo, args.workers, "patches")[1]
    print(f"{len(todo):,} patches copied, {len(files) - len(todo):,} there already, in {args.output_dir}")
    return problems


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 so many times smaller, smoothed before it is sampled."""
    from skimage.transform import rescale

    return rescale(image, 1 / factor, anti_aliasing=True, channel_axis=2, preserve_range=True).round().astype(np.uint8)


def rescale_patch(patch: Path, folders: dict[Path, int]) -> None:
    """Write a patch so many times smaller into each folder where it is missing."""
    image = read_image(patch)
    for path in steps.to_write(folder / patch.name for folder in folders):
        steps.write_jpeg(path, shrink(image, folders[path.parent]))


def rescale_patches(args) -> list[str]:
    """Step 9."""
    folders = {getattr(args, flag): factor for flag, factor in FACTORS.items()}
    patches = steps.patches_in(args, "image_dir_x40")
    absent = {path.name for path in steps.to_write(folder / patch.name for patch in patches for folder in folders)}
    todo = [patch for patch in patches if patch.name in absent]
    problems = attempt_jobs(partial(rescale_patch, folders=folders), todo, args.workers, "patches")[1]
    where = " and ".join(map(str, folders))
    print(f"{len(todo):,} patches rescaled, {len(patches) - len(todo):,} there already, in {where}")
    return problems


NORMALISED_PATCHES = steps.patch_places("", "normalised")
SPLIT_LISTS = Step("lists of the patches", write_lists, {**NORMALISED_PATCHES, "output_split_root": "splits"})
X40 = Step("all patches in one folder", copy_patches, {**NORMALISED_PATCHES, "output_dir": "x40"})
SCALES = Step(
    "patches at x20 and x10",
    rescale_patches,
    {"image_dir_x40": "x40", "output_dir_x20": "x20", "output_dir_x10": "x10"},
)
