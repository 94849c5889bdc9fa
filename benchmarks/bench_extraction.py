"""Time and memory of cutting one slide's positive crops, against a version that loads the level and labels it whole.

Prints one table, then the seconds for several slides over --n_workers. Without --slide a slide of modest size is made;
nothing is kept on disk.
"""

import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure

import extract_basic_pos_crops as ours
from common import cli, limits
from data.camelyon import crops, extraction, make_slides, slides
from data.slides import annotations, lesion_mask
from data.slides.pyramid import Slide

RANGES = [(0.1, 0.5), (0.01, 0.1), (0.001, 0.01)]  # shares of a crop that its lesion takes
TRIES = 1000  # positions the baseline tries for a lesion; the first release tried ten times as many


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", type=Path, help="slide to measure (default: one is made, of --width x --height)")
    parser.add_argument("--annotation", type=Path, help="its XML or mask TIFF")
    parser.add_argument("--width", default="24576", help="level-0 pixels of the slide that is made")
    parser.add_argument("--height", default="24576", help="level-0 pixels of the slide that is made")
    parser.add_argument("--lesion_sets", default="4", help="sets of 15 lesions on the slide that is made")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[128, 512], help="sides of the crops, pixels of level 3"
    )
    parser.set_defaults(ranges=RANGES, slides=8)
    small = {"slides": 1, "width": "6144", "height": "6144", "lesion_sets": "1"}
    return measure.parse_args(parser, argv, sizes=[128], ranges=RANGES[1:2], **small)


def make_slide(folder: Path, args) -> extraction.SlideJob:
    """Paint a slide with its annotation into the folder."""
    name, sides = "patient_004_node_4", ["--width", args.width, "--height", args.height]
    options = make_slides.parse_args(["--out", str(folder), *sides, "--lesion_sets", args.lesion_sets])
    for part in ("training/center_0", "annotations", "masks"):
        (folder / part).mkdir(parents=True)
    make_slides.make_slide(name, {name: "many"}, make_slides.texture_squares(None), [], options)
    slide = folder / "training" / "center_0" / f"{name}.tif"
    return extraction.SlideJob(name, slide, 0, folder / "annotations" / f"{name}.xml")


def extract_whole(job: extraction.SlideJob, folder: Path, args) -> dict:
    """The baseline: level and mask as whole arrays, scipy's labels, random positions until k of a lesion are good."""
    from scipy import ndimage

    with Slide(job.path, args.level) as slide:
        image, unscanned = slide.read(0, 0, *slide.shape)
        mask = annotations.read_mask(job.annotation, slide).window(0, 0, *slide.shape)
        writer = extraction.CropWriter(folder, job, args.level, slide.mpp)
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    used, rng = 0, np.random.default_rng(args.seed)
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        lesion = lesion_mask.Lesion(number, rows.start, rows.stop, columns.start, columns.stop, 0)
        box, before = crops.placements(lesion, args.size, mask.shape), len(writer.rows)
        for _ in range(TRIES if isinstance(box, crops.Box) else 0):
            y, x = rng.integers(box.top, box.bottom), rng.integers(box.left, box.right)
            part = slice(y, y + args.size), slice(x, x + args.size)
            if args.low_roir < mask[part].mean() < args.high_roir and not unscanned[part].any():
                i = len(writer.rows) - before
                writer.add({f"{number}_{i}_img": image[part], f"{number}_{i}_seg": mask[part].astype("uint8")}, y, x)
                if i + 1 == args.k:
                    break
        used += len(writer.rows) > before
    return {"centre": job.centre, "lesions": used, "counts": Counter(), "rows": writer.rows}


def _measure(extract, job, args, results):
    """Runs in a process of its own, so that its peak memory is that of the extraction."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        record = extract(job, Path(folder), args)
        seconds = time.perf_counter() - start
    results.put((seconds, measure.most_resident() / 1e9, record["lesions"], len(record["rows"])))


def measured(extract, job: extraction.SlideJob, args) -> tuple[float, float, int, int]:
    """(seconds, peak memory in GB, lesions, crops) of one extraction."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_measure, args=(extract, job, args, results))
    process.start()
    process.join()
    if process.exitcode:
        return float("nan"), float("nan"), 0, 0
    return results.get()


def measure_scaling(job: extraction.SlideJob, n: int, args) -> Iterator[tuple[int, float]]:
    """Worker processes and seconds to extract n copies of the job, for 1, 2, 4 ... workers up to the cores."""
    jobs = [replace(job, name=name) for name in sorted(slides.ANNOTATED)[:n]]
    args.workers = 1
    while args.workers <= min(n, limits.cores()):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            extraction.run(jobs, ours.extract_slide, ours.draw_preview, Path(folder), {}, args)
            seconds = time.perf_counter() - start
        yield args.workers, seconds
        args.workers *= 2


def crop_flags(size: int, low: float, high: float):
    """The extractor's arguments for one size and range."""
    flags = ["--size", str(size), "--low_roir", str(low), "--high_roir", str(high)]
    return ours.parse_args(["--data", ".", "--base_path", ".", "--save_dir", ".", *flags])


def main(argv=None):
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        job = (
            extraction.SlideJob("slide", args.slide, 0, args.annotation)
            if args.slide
            else make_slide(Path(folder), args)
        )
        print(f"{'size':>5}  {'O2I':12}{'version':8}{'seconds':>9}{'peak GB':>9}{'lesions':>9}{'crops':>8}")
        for size in args.sizes:
            for low, high in args.ranges:
                for version, extract in [("ours", ours.extract_slide), ("whole", extract_whole)]:
                    seconds, memory, lesions, n = measured(extract, job, crop_flags(size, low, high))
                    share = f"{low:g}-{high:g}"
                    print(f"{size:5}  {share:12}{version:8}{seconds:9.1f}{memory:9.2f}{lesions:9}{n:8}", flush=True)
        print(f"\n{args.slides} such slides, size {args.sizes[0]}, O2I 0.01-0.1")
        print(f"{'workers':>8}{'seconds':>9}{'ratio':>7}")
        alone = None
        for workers, taken in measure_scaling(job, args.slides, crop_flags(args.sizes[0], 0.01, 0.1)):
            alone = alone or taken
            print(f"{workers:8}{taken:9.1f}{alone / taken:7.2f}", flush=True)


if __name__ == "__main__":
    cli.run(main)
