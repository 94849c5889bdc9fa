"""Steps 1 and 2: annotations as JSON, and as masks of level 8, on which tumour is 127 and a cut-out 255."""

from functools import partial
from pathlib import Path

import numpy as np

from common.errors import BadInput
from common.files import read_json, write_json
from common.parallel import attempt_jobs
from common.pictures import write_png
from data.camelyon16 import steps
from data.camelyon16.scan import Scan, find_scans
from data.camelyon16.steps import Step
from data.slides.annotations import MAX_COORDINATE, read_outlines
from data.slides.lesion_mask import mask_from_polygons

TUMOR, NORMAL = 127, 255
CAMELYON16_SPLITS = ("train", "test")


def write_outlines(xml: Path, folder: Path) -> None:
    """Write FOLDER/SLIDE.json: {"tumor": [{"name", "vertices": [[x0, y0], ...]}, ...], "normal": [...]}."""
    found = {"tumor": [], "normal": []}
    for outline in read_outlines(xml)[0]:
        vertices = np.rint(outline.points).astype(int).tolist()
        found["tumor" if outline.is_lesion else "normal"].append({"name": outline.name, "vertices": vertices})
    write_json(folder / f"{xml.stem}.json", found)


def convert_annotations(args) -> list[str]:
    """Step 1."""
    problems = []
    for split in CAMELYON16_SPLITS:
        source, folder = getattr(args, f"input_{split}_xml_dir"), getattr(args, f"output_{split}_json_dir")
        files = {folder / f"{path.stem}.json": path for path in _listed(source, ".xml", f"input_{split}_xml_dir")}
        todo = [files[path] for path in steps.to_write(files)]
        problems += attempt_jobs(partial(write_outlines, folder=folder), todo, args.workers, "annotations")[1]
        print(f"{split}: {len(files)} annotations in {folder}")
    return problems


def _listed(folder, suffix, flag):
    found = sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))
    if not found:
        raise BadInput(f"--{flag} {folder}: no {suffix} files in it")
    return found


def read_rings(path: Path, kind: str) -> list[np.ndarray]:
    """The polygons (N, 2), level-0 x, y, of a kind, "tumor" or "normal". BadInput: not as step 1 writes it."""
    try:
        rings = [np.array(item["vertices"] or np.empty((0, 2)), float) for item in read_json(path)[kind]]
    except (KeyError, TypeError, ValueError):
        rings = None
    if rings is None or not all(ring.shape[1:] == (2,) and (np.abs(ring) <= MAX_COORDINATE).all() for ring in rings):
        raise BadInput(f"{path}: expected {kind}: a list of name and vertices [[x, y], ...]")
    return [ring for ring in rings if len(ring) >= 3]


def draw_mask(outlines: Path, level: int, shape: tuple[int, int]) -> np.ndarray:
    """The mask uint8 (h, w) of a level, scaled polygons over its pixels' centres; cut-outs lie over tumour."""
    centre = (2**level - 1) / 2  # of a pixel, in those of level 0
    mask = np.zeros(shape, np.uint8)
    for kind, value in (("tumor", TUMOR), ("normal", NORMAL)):
        rings = [ring - centre for ring in read_rings(outlines, kind)]
        mask[mask_from_polygons(rings, [], level, shape).window(0, 0, *shape)] = value
    return mask


def write_mask(job: tuple[Path, Path, Path]) -> str | None:
    """Write the mask of a slide; (outlines, slide, mask). Returns what had to be assumed of the slide."""
    outlines, slide, path = job
    with Scan(slide) as scan:
        write_png(path, draw_mask(outlines, scan.coarse_level, scan.coarse_shape))
        return scan.note and f"{slide.stem}: {scan.note}"


def draw_masks(args) -> list[str]:
    """Step 2."""
    problems = []
    for split in CAMELYON16_SPLITS:
        slides = find_scans(getattr(args, f"{split}_image_dir"), f"{split}_image_dir")
        outlines = _listed(getattr(args, f"{split}_json_dir"), ".json", f"{split}_json_dir")
        folder = getattr(args, f"output_{split}_mask_dir")
        jobs = {folder / f"{path.stem}.png": (path, slides[path.stem]) for path in outlines if path.stem in slides}
        todo = [(*jobs[path], path) for path in steps.to_write(jobs)]
        notes, failures = attempt_jobs(write_mask, todo, args.workers, "masks")
        problems += failures
        absent = [path.stem for path in outlines if path.stem not in slides]
        for note in sorted(filter(None, notes)):
            print(note)
        if absent:
            print(f"{split}: {len(absent)} annotations without a slide: {' '.join(absent)}")
        print(f"{split}: {len(jobs)} masks in {folder}")
    return problems


ANNOTATIONS = Step(
    "annotations, XML to JSON",
    convert_annotations,
    {
        "input_train_xml_dir": "training/lesion_annotations",
        "input_test_xml_dir": "testing/lesion_annotations",
        "output_train_json_dir": "training/lesion_json",
        "output_test_json_dir": "testing/lesion_json",
    },
)
MASKS = Step(
    "masks of tumour, from JSON",
    draw_masks,
    {
        "train_json_dir": "training/lesion_json",
        "test_json_dir": "testing/lesion_json",
        "train_image_dir": "training/tumor",
        "test_image_dir": "testing/images",
        "output_train_mask_dir": "training/lesion_masks",
        "output_test_mask_dir": "testing/lesion_masks",
    },
)
