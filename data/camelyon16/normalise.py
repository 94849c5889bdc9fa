"""Steps 5 and 6: a region of a slide as stain target, and patches in its stains."""

from functools import partial
from pathlib import Path

import numpy as np

from common.errors import BadInput
from common.files import copy_file, make_folder, read_json, write_json
from common.parallel import attempt_jobs
from common.pictures import write_png
from data.camelyon16 import stain, steps
from data.camelyon16.scan import Scan
from data.camelyon16.steps import PATCH_SETS, Step
from data.photos import read_image

TARGET = {"x": 120832, "y": 23808, "w": 2816, "h": 2816}  # of normal_056; x is the row, y the column, as in names
TARGET_FILE = "stain_target.json"  # beside normalised patches: the target's atoms


def add_flags(parser) -> None:
    """Declare where the stain target lies."""
    meanings = {"x": "row of its corner", "y": "column of its corner", "w": "width", "h": "height"}
    for name, what in meanings.items():
        parser.add_argument(f"--{name}", type=int, help=f"stain target: {what}, px of x40 (default: {TARGET[name]})")


def cut_target(args) -> list[str]:
    """Step 5."""
    y, x, width, height = (TARGET[name] if getattr(args, name) is None else getattr(args, name) for name in "xywh")
    path = args.output_stain_target_image_path
    write = {".png": write_png, ".jpg": steps.write_jpeg, ".jpeg": steps.write_jpeg}.get(path.suffix.lower())
    if write is None:
        raise BadInput(f"--output_stain_target_image_path {path}: expected a name that ends in .png or .jpg")
    if not steps.to_write([path]):
        print(f"stain target: {path} is there already")
        return []
    with Scan(args.source_image_path) as scan:
        rows, columns = scan.shape
        if min(y, x) < 0 or min(width, height) < 1 or y + height > rows or x + width > columns:
            where = f"--x {y} --y {x} --w {width} --h {height}"
            raise BadInput(f"{where}: not within {args.source_image_path}, which has {rows} rows and {columns} columns")
        image = scan.read(y, x, height, width)
    if stain.atoms_of(image) is None:
        raise BadInput(f"--x {y} --y {x}: this region of {args.source_image_path} holds no tissue")
    write(path, image)
    print(f"stain target: {path}")
    return []


def normalise(job: tuple[Path, Path], target: np.ndarray) -> bool:
    """Write a patch in the target's stains, job = (patch, result); one of glass alone as it is. Returns if it was."""
    source, path = job
    image = stain.normalised(read_image(source), target)
    if image is not None:
        steps.write_jpeg(path, image)
        return False
    copy_file(source, path)
    return True


def normalise_patches(args) -> list[str]:
    """Step 6."""
    target = stain.atoms_of(read_image(args.stain_target_image_path))
    if target is None:
        raise BadInput(f"--stain_target_image_path {args.stain_target_image_path}: holds no tissue")
    problems = []
    for name in PATCH_SETS:
        kind, split = name.split("_")
        folder = getattr(args, f"output_{kind}_patches_{split}_dir")
        files = {folder / path.name: path for path in steps.patches_in(args, f"{kind}_patches_{split}_dir")}
        todo = [(files[path], path) for path in steps.to_write(files)]
        _check_target(make_folder(folder) / TARGET_FILE, target)
        glass, failures = attempt_jobs(partial(normalise, target=target), todo, args.workers, "patches")
        problems += failures
        done = f"{len(glass) - sum(glass):,} patches normalised, {sum(glass):,} of glass alone left as they are"
        print(f"{kind} {split}: {done}, {len(files) - len(todo):,} there already, in {folder}")
    return problems


def _check_target(path, target):
    """Write down the target's atoms. BadInput when the patches beside them were normalised to others."""
    atoms = target.round(5).tolist()
    if not path.exists():
        write_json(path, {"atoms": atoms})
    elif read_json(path).get("atoms") != atoms:
        raise BadInput(f"{path}: its patches were normalised to another stain target; choose another folder")


STAIN_TARGET = Step(
    "stain target, a region of a slide",
    cut_target,
    {"source_image_path": "training/normal/normal_056.tif", "output_stain_target_image_path": "stain_target.png"},
    ("x", "y", "w", "h"),
)
NORMALISED = Step(
    "patches in the target's stains",
    normalise_patches,
    {
        **steps.patch_places("", "patches"),
        **steps.patch_places("output_", "normalised"),
        "stain_target_image_path": "stain_target.png",
    },
)
