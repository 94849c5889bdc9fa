"""What the extractors print and draw: counts beside Pawlowski 2019's, what a run would take, a picture per slide."""

import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common import cli
from common.errors import BadInput
from common.files import make_subfolder
from common.pictures import write_png
from data import SPLITS
from data.camelyon import crops
from data.camelyon.slides import SPLIT_OF_CENTRE
from data.slides.lesion_mask import LesionMask
from data.slides.pyramid import Slide

PREVIEW_SIDE = 1600  # pixels
OUTLINE, BOX = (0, 160, 0), (200, 0, 0)
WORKER_BYTES = 160e6  # Python and its libraries, and OpenSlide's tiles

# Pawlowski et al. 2019, tables 1 and 2: (size, low, high) -> lesions and crops of train, val and test
PAWLOWSKI_POSITIVES = {
    (128, 0.5, 1): ((20, 0, 8), (1000, 0, 400)),
    (256, 0.5, 1): ((27, 2, 13), (1350, 100, 650)),
    (512, 0.5, 1): ((23, 5, 13), (1150, 250, 650)),
    (128, 0.1, 0.5): ((84, 12, 16), (4200, 600, 800)),
    (256, 0.1, 0.5): ((101, 16, 15), (5050, 800, 750)),
    (512, 0.1, 0.5): ((68, 15, 17), (3400, 750, 850)),
    (128, 0.01, 0.1): ((176, 17, 18), (8686, 850, 900)),
    (256, 0.01, 0.1): ((227, 17, 18), (11270, 850, 900)),
    (512, 0.01, 0.1): ((235, 21, 15), (11750, 1050, 750)),
    (128, 0.001, 0.01): ((33, 5, 5), (1488, 247, 207)),
    (256, 0.001, 0.01): ((93, 16, 9), (4255, 800, 450)),
    (512, 0.001, 0.01): ((173, 20, 11), (8312, 965, 550)),
}
PAWLOWSKI_NEGATIVES = {128: (19608, 6000, 6100), 256: (19595, 6000, 6100), 512: (19574, 6000, 6100)}


def print_counts(records: list[dict], title: str, pawlowski: tuple[tuple[int, ...], ...] | None, lesions: bool) -> None:
    """Print slides, lesions (where there are any) and crops per split beside Pawlowski 2019's, then what was rejected.

    Args:
        pawlowski: numbers of train, val and test for each column but the slides; None where Pawlowski 2019 has none.
    """
    columns = ["lesions", "crops"] if lesions else ["crops"]
    print(title)
    print(f"{'split':8}{'slides':>8}" + "".join(f"{column:>10}{'Pawlowski 2019':>16}" for column in columns))
    for i, split in enumerate(SPLITS):
        own = [record for record in records if SPLIT_OF_CENTRE[record["centre"]] == split]
        counts = [sum(len(record["rows"]) for record in own)]
        if lesions:
            counts.insert(0, sum(record["lesions"] for record in own))
        pairs = zip(counts, [column[i] for column in pawlowski] if pawlowski else ["-"] * len(counts), strict=True)
        print(f"{split:8}{len(own):8}" + "".join(f"{ours:10}{theirs:>16}" for ours, theirs in pairs))
    totals = sum((Counter(record["counts"]) for record in records), Counter())
    for reason, count in sorted(totals.items()):
        print(f"{count:8} x {reason}")


def print_misfits(records: list[dict], args) -> None:
    """Print, for lesions too small and for those too large, what share of a crop they fill and which flags fit them."""
    low, high = f"--low_roir {args.low_roir:g}", f"--high_roir {args.high_roir:g}"
    for words, reason, flag in (("too small", crops.TOO_SMALL, low), ("too large", crops.TOO_LARGE, high)):
        found = [pair for record in records for pair in record.get("misfits", {}).get(reason, [])]
        if not found:
            continue
        areas, sides = np.array(found).T
        shares = areas / args.size**2
        size, n = crops.size_that_fits(areas, sides, args.low_roir, args.high_roir)
        advice = [f"--size {size} fits {n} of them"] * bool(n)
        if reason == crops.TOO_SMALL:
            below = 0.999 * shares.min()
            digit = 10.0 ** math.floor(math.log10(below))
            advice.append(f"--low_roir {math.floor(below / digit) * digit:g} all")
        print(f"{len(found)} lesions are {words} for --size {args.size} {flag}: their share of a crop is", end=" ")
        print(f"{shares.min():.2g} to {shares.max():.2g}, each by itself; {', '.join(advice) or 'no --size fits'}")


def print_problems(problems: list[str], stream) -> None:
    """One line for every slide that could not be used."""
    for problem in problems:
        print(cli.plain_line(problem), file=stream)
    if problems:
        print(f"{len(problems)} problems: what the lines above name was left out", file=stream)


def one_line(slide: str, error: Exception) -> str:
    """What went wrong with a slide."""
    if isinstance(error, MemoryError):
        return f"{slide}: out of memory: run again with fewer --workers"
    if isinstance(error, OSError):
        error = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
    text = cli.plain_line(error)
    return text if text.startswith(slide) else f"{slide}: {text}"


def print_plan(jobs, crops_of: Callable, crop_bytes: int, worker_pixels: int, folder: Path, args) -> list[str]:
    """Print what a run would read, write and take; returns the slides that cannot be read, a line each.

    Args:
        crops_of: (job, slide, args) -> at most how many crops the slide gives.
        worker_pixels: pixels of the largest window a worker holds.
    """
    problems, total = [], 0
    for job in jobs:
        try:
            with Slide(job.path, args.level) as slide:
                n_crops, (height, width) = crops_of(job, slide, args), slide.shape
        except (BadInput, OSError) as error:
            problems.append(one_line(job.name, error))
            continue
        total += n_crops
        print(f"{job.name}  {job.split:5}  {width} x {height} px  at most {n_crops} crops  {job.path}")
    memory = (WORKER_BYTES + 40 * worker_pixels) / 1e9
    parent = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(parent).free / 1e9
    print(f"would write at most {total} crops, {total * crop_bytes / 1e9:.3g} GB, to {folder} ({free:.3g} GB are free)")
    workers = max(1, min(args.workers, len(jobs)))
    print(f"memory: about {memory:.2g} GB for each of {workers} workers")
    return problems


def draw_preview(slide: Slide, mask: LesionMask | None, rows: list[list], size: int, path: Path) -> None:
    """Write a PNG: the slide with lesions outlined in green and crops as red boxes; rows are those of crops.csv."""
    from skimage.segmentation import find_boundaries

    step = max(1, -(-max(slide.shape) // PREVIEW_SIDE))
    image = slide.thumbnail(step).copy()
    if mask is not None:
        image[find_boundaries(mask.coarser(step).window(0, 0, *image.shape[:2]), mode="outer")] = OUTLINE
    for y, x in {(row[5] // step, row[6] // step) for row in rows}:
        _draw_box(image, y, x, max(1, size // step))
    write_png(make_subfolder(path.parents[1], path.parent.name) / path.name, image)


def _draw_box(image: np.ndarray, y: int, x: int, side: int):
    bottom, right = min(y + side, len(image) - 1), min(x + side, image.shape[1] - 1)
    image[[y, bottom], x : right + 1] = BOX
    image[y : bottom + 1, [x, right]] = BOX
