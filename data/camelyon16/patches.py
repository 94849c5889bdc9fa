"""Steps 3 and 4: patches of normal and of tumour tissue, 768 px of x40, up to --per_slide a slide.

A patch is named after its place, `{slide}_{normal|tumor}_x_{row}_y_{col}_w_768_h_768.jpg`: x is the row, y the column.
`records/SLIDE.json` in the same folder says that a slide is finished, which patches it gave and by which flags.
"""

import glob
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from common.errors import BadInput
from common.files import make_folder, make_subfolder, read_json, read_table, write_json
from common.parallel import attempt_jobs
from data.camelyon16 import steps
from data.camelyon16.outlines import TUMOR
from data.camelyon16.scan import COARSE, Scan, find_scans
from data.camelyon16.steps import Step
from data.camelyon16.tissue import CELL, full_cells, tissue_mask
from data.photos import read_image

SIDE = CELL * 2**COARSE  # px of x40
NAME = re.compile(r"(.+)_(?:normal|tumor)_x_\d+_y_\d+_w_\d+_h_\d+\.jpg")
FLAGS = ("seed", "border", "per_slide")  # that decide which patches a slide gives
EXCLUDED = {  # slides of CAMELYON16
    **dict.fromkeys(["normal_027", "normal_045"], "tiny tissue"),
    **dict.fromkeys(["normal_108", "normal_150"], "black"),
    "normal_144": "black background",
    "normal_158": "blurred",
    "test_114": "not all of its tumour is outlined",
}


@dataclass(frozen=True)
class PatchJob:
    """A slide to cut patches of a kind, "normal" or "tumor", from; `mask` is that of its tumour, or None."""

    name: str
    slide: Path
    kind: str
    folder: Path
    mask: Path | None = None

    @property
    def record(self) -> Path:
        return self.folder / "records" / f"{self.name}.json"


def patch_name(slide: str, kind: str, row: int, column: int) -> str:
    """The name of a patch, by the place of its corner, in pixels of x40."""
    return f"{slide}_{kind}_x_{row}_y_{column}_w_{SIDE}_h_{SIDE}.jpg"


def slide_of(name: str) -> str | None:
    """The slide of a patch by its name; None when it is not the name of a patch."""
    match = NAME.fullmatch(name)
    return match and match[1]


def read_reference(path: Path) -> dict[str, str]:
    """Slide of the test set -> "normal" or "tumor", of CAMELYON16's reference.csv. BadInput when it is not one."""
    table = read_table(path, dtype=str, keep_default_na=False, header=None)
    kinds = {}
    for i, (first, *others) in enumerate(table.itertuples(index=False)):
        found = [text.strip().lower() for text in others if text.strip().lower() in ("normal", "tumor")]
        if found:
            kinds[first.strip().removesuffix(".tif")] = found[0]
        elif i:  # the first row may be a header
            raise BadInput(f"--test_reference_path {path}: row {i + 1} says neither Normal nor Tumor")
    if not kinds:
        raise BadInput(f"--test_reference_path {path}: no row says Normal or Tumor")
    return kinds


def cut_slide(job: PatchJob, flags: dict) -> str | None:
    """Write the patches of a slide and then its record; returns what had to be assumed of the slide.

    Args:
        flags: the values of FLAGS.
    BadInput: the slide or its mask is not usable, or the folder holds other patches of the slide.
    """
    with Scan(job.slide) as scan:
        inside = tissue_mask(*scan.coarse(), flags["border"])
        if job.mask is not None:
            inside &= _tumour(job.mask, inside.shape)
        cells = np.random.default_rng([flags["seed"], *job.name.encode()]).permutation(full_cells(inside))
        corners = (SIDE * cells[: flags["per_slide"]]).tolist()
        patches = {job.folder / patch_name(job.name, job.kind, *corner): corner for corner in corners}
        own = job.folder.glob(f"{glob.escape(job.name)}_{job.kind}_x_*.jpg")
        stranger = next((path for path in sorted(own) if path not in patches), None)
        if stranger:
            raise BadInput(f"{stranger}: is there, but not a patch that these flags give; choose another folder")
        for path in steps.to_write(patches):
            steps.write_jpeg(path, scan.read(*patches[path], SIDE, SIDE))
        names = sorted(path.name for path in patches)
        write_json(job.record, {**flags, "patches": names})
        return scan.note and f"{job.name}: {scan.note}"


def _tumour(path, shape):
    """Where a mask says tumour, bool of this shape."""
    mask = read_image(path)[..., 0]
    if mask.shape != shape:
        sizes = " and ".join("{1} x {0}".format(*each) for each in (mask.shape, shape))
        raise BadInput(f"{path}: mask and level {COARSE} of the slide differ: {sizes} px")
    return mask == TUMOR


def cut(jobs: list[PatchJob], folder: Path, kind: str, split: str, args) -> list[str]:
    """Cut the slides that are not finished. BadInput when the folder's patches were cut by other flags."""
    make_subfolder(make_folder(folder), "records")
    todo = [job for job in jobs if not _is_finished(job, args)]
    notes, problems = attempt_jobs(partial(cut_slide, flags=_flags(args)), todo, args.workers, "slides")
    for note in sorted(filter(None, notes)):
        print(note)
    counts = [len(read_json(job.record)["patches"]) for job in jobs if job.record.exists()]
    print(f"{kind} {split}: {sum(counts):,} patches of {sum(map(bool, counts))} slides in {folder}")
    return problems


def _flags(args):
    return {key: getattr(args, key) for key in FLAGS}


def _is_finished(job, args):
    if not job.record.exists():
        return False
    record = read_json(job.record)
    before = {key: record.get(key) for key in FLAGS}
    if before != _flags(args):
        made = " ".join(f"--{key} {value}" for key, value in before.items())
        raise BadInput(f"{job.folder}: its patches were cut with {made}; choose another folder")
    return not steps.to_write(job.folder / name for name in record["patches"])


def _used(slides):
    """The slides but for those that are excluded, which are named."""
    left_out = sorted(EXCLUDED.keys() & slides)
    for name in left_out:
        print(f"{name}: left out: {EXCLUDED[name]}")
    return {name: path for name, path in slides.items() if name not in EXCLUDED}


def _test_slides(args, kind):
    slides, kinds = find_scans(args.test_dir, "test_dir"), read_reference(args.test_reference_path)
    unknown = sorted(slides.keys() - kinds)
    if unknown:
        raise BadInput(f"--test_reference_path {args.test_reference_path}: has no row of {unknown[0]}")
    return _used({name: path for name, path in slides.items() if kinds[name] == kind})


def cut_normal(args) -> list[str]:
    """Step 3."""
    train = _used(find_scans(args.normal_train_dir, "normal_train_dir"))
    problems = []
    for split, slides in (("train", train), ("test", _test_slides(args, "normal"))):
        folder = getattr(args, f"output_normal_patches_{split}_dir")
        jobs = [PatchJob(name, path, "normal", folder) for name, path in slides.items()]
        problems += cut(jobs, folder, "normal", split, args)
    return problems


def cut_tumor(args) -> list[str]:
    """Step 4."""
    train = _used(find_scans(args.tumor_train_dir, "tumor_train_dir"))
    problems = []
    for split, slides in (("train", train), ("test", _test_slides(args, "tumor"))):
        folder, masks = getattr(args, f"output_tumor_patches_{split}_dir"), getattr(args, f"{split}_masks_dir")
        jobs = [PatchJob(name, path, "tumor", folder, masks / f"{name}.png") for name, path in slides.items()]
        problems += cut(jobs, folder, "tumor", split, args)
    return problems


def _cut_places(kind):
    return {
        f"{kind}_train_dir": f"training/{kind}",
        "test_dir": "testing/images",
        "test_reference_path": "testing/reference.csv",
        **{f"output_{kind}_patches_{split}_dir": f"patches/{kind}/{split}" for split in ("train", "test")},
    }


NORMAL_PATCHES = Step("patches of normal tissue", cut_normal, _cut_places("normal"))
TUMOR_PATCHES = Step(
    "patches of tumour",
    cut_tumor,
    {**_cut_places("tumor"), "train_masks_dir": "training/lesion_masks", "test_masks_dir": "testing/lesion_masks"},
)
