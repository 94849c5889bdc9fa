"""What the steps of the preparation share: flags and places below --root, files that are missing, JPEG."""

import argparse
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import atomic_open, make_folder

PATCH_SETS = ("normal_train", "normal_test", "tumor_train", "tumor_test")
QUALITY = 75  # of JPEG


@dataclass(frozen=True)
class Step:
    """A step of the preparation.

    run(args) does what is missing and returns a line for each part that could not be done. `places`: the names of its
    path flags -> where they lie below --root. `own`: its other flags. A flag that begins with output_ is written to.
    """

    summary: str
    run: Callable[[argparse.Namespace], list[str]]
    places: dict[str, str]
    own: tuple[str, ...] = ()


def patch_places(prefix: str, folder: str) -> dict[str, str]:
    """The four flags of folders with patches, and where they lie below --root."""
    return {
        f"{prefix}{kind}_patches_{split}_dir": f"{folder}/{kind}/{split}"
        for kind, split in (name.split("_") for name in PATCH_SETS)
    }


def patches_in(args, flag: str) -> list[Path]:
    """The patches of a flag's folder, sorted."""
    return sorted(path for path in getattr(args, flag).glob("*.jpg") if not path.name.startswith("."))


def to_write(files: Iterable[Path]) -> list[Path]:
    """The files that are not there yet; makes the folders of all."""
    files = list(files)
    for folder in sorted({path.parent for path in files}):
        make_folder(folder)
    return [path for path in files if not os.path.lexists(path)]


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8."""
    import imageio.v3 as imageio

    with atomic_open(path) as file:
        imageio.imwrite(file, image, extension=".jpg", plugin="pillow", quality=QUALITY)
