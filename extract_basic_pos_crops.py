"""Cut nCAMELYON's positive crops, each around a whole lesion: extract_basic_pos_crops.py --data annotations --base_path
training --save_dir crops"""

import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

from common import cli
from common.errors import BadInput
from common.files import make_folder, make_subfolder
from data.camelyon import crops, extraction, report, slides
from data.camelyon.extraction import CropWriter, SlideJob
from data.slides import annotations
from data.slides.lesion_mask import Lesion, LesionMask
from data.slides.pyramid import Slide

NO_LESION = "annotation without a lesion on this level"


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=cli.path, required=True, help="annotations: SLIDE.xml (ASAP) or, without XML, SLIDE_mask.tif"
    )
    extraction.add_flags(parser, k=50, k_help="crops of every lesion")
    add = parser.add_argument
    add("--low_roir", type=cli.share, default=0.5, help="lesion share of a crop: more than this, 0 to 1")
    add("--high_roir", type=cli.share, default=1.0, help="lesion share of a crop: less than this, 0 to 1")
    args = parser.parse_args(argv)
    if args.low_roir >= args.high_roir:
        parser.error(f"--low_roir {args.low_roir:g} must be below --high_roir {args.high_roir:g}")
    return args


def find_jobs(args) -> tuple[list[SlideJob], list[str]]:
    """The annotated slides, and a line for each annotation or slide that cannot be used."""
    found = slides.find_slides(args.base_path)
    stages = [folder / "stages.csv" for folder in (args.base_path, args.base_path.absolute().parent)]
    labels = next((slides.read_labels(path) for path in stages if os.path.lexists(path)), None)  # of the public bucket
    jobs, problems = [], []
    for name, files in annotations.find_annotations(args.data, found).items():
        try:
            path, centre = slides.resolve_slide(name, found.get(name, []), labels)
            if len(files) > 1:
                raise BadInput(f"{name}: expected one annotation, found {' and '.join(map(str, files))}")
            jobs.append(SlideJob(name, path, centre, files[0]))
        except BadInput as error:
            problems.append(str(error))
    return jobs, problems


def extract_slide(job: SlideJob, folder: Path, args) -> dict:
    """Write the crops of every lesion of a slide; returns its record. BadInput when slide or annotation is bad."""
    with Slide(job.path, args.level) as slide:
        mask = annotations.read_mask(job.annotation, slide)
        writer = CropWriter(folder, job, args.level, slide.mpp)
        lesions, counts, used, misfits = mask.lesions(), Counter(mask.notes), 0, defaultdict(list)
        counts[NO_LESION] = int(not lesions)
        for lesion in lesions:
            found = crops_around(lesion, mask, slide, args)
            if isinstance(found, str):
                counts[found] += 1
                misfits[found].append((lesion.area, max(lesion.bottom - lesion.top, lesion.right - lesion.left)))
                continue
            used += 1
            counts["crop written twice or more, for lack of positions"] += write_crops(lesion, found, writer, job, args)
    return {"centre": job.centre, "lesions": used, "counts": +counts, "misfits": misfits, "rows": writer.rows}


def crops_around(lesion: Lesion, mask: LesionMask, slide: Slide, args):
    """The valid crop positions of one lesion and the pixels they need; reads the slide only around the lesion.

    Returns: (valid, corner, image, inside). Entry (i, j) of valid, bool (h, w), stands for the crop with top-left
        corner + (i, j); image, uint8 (h + S - 1, w + S - 1, 3), and inside, bool, its lesion pixels, start at corner.
        Or the reason why there is no position.
    """
    size = args.size
    box = crops.placements(lesion, size, mask.shape)
    if isinstance(box, str):
        return box
    inside = mask.window(box.top, box.left, box.height + size - 1, box.width + size - 1)
    valid = crops.in_range(crops.window_sums(inside, size), size, args.low_roir, args.high_roir)
    if isinstance(valid, str):
        return valid
    part = crops.bounding_box(valid)  # so that no pixel is read in vain
    valid = valid[part.top : part.bottom, part.left : part.right]
    inside = inside[part.top : part.bottom + size - 1, part.left : part.right + size - 1]
    corner = box.top + part.top, box.left + part.left
    image, unscanned = slide.read(*corner, *inside.shape)
    valid = valid & (crops.window_sums(unscanned, size) == 0)
    return (valid, corner, image, inside) if valid.any() else crops.ALL_UNSCANNED


def write_crops(lesion: Lesion, found, writer: CropWriter, job: SlideJob, args) -> int:
    """Draw k positions and write crop and lesion mask of each; returns how many positions repeat another."""
    valid, corner, image, inside = found
    rng = crops.generator(args.seed, job.name, lesion.number)
    positions, repeated = crops.draw_positions(valid, args.k, rng)
    for i, (y, x) in enumerate(positions):
        window = slice(y, y + args.size), slice(x, x + args.size)
        name = f"{lesion.number}_{i}"
        arrays = {f"{name}_img": image[window], f"{name}_seg": inside[window].astype("uint8")}
        share = float(inside[window].mean())
        writer.add(arrays, corner[0] + y, corner[1] + x, lesion.number, share)
    return repeated


def draw_preview(job: SlideJob, record: dict, path: Path, args) -> None:
    """Draw lesions and crops of a finished slide."""
    with Slide(job.path, args.level) as slide:
        report.draw_preview(slide, annotations.read_mask(job.annotation, slide), record["rows"], args.size, path)


def count_crops(job: SlideJob, slide: Slide, args) -> int:
    """At most how many crops the slide gives, judged from its annotation alone."""
    lesions = annotations.read_mask(job.annotation, slide).lesions()
    lesions = [lesion for lesion in lesions if lesion.area < args.high_roir * args.size**2]
    return args.k * sum(isinstance(crops.placements(lesion, args.size, slide.shape), crops.Box) for lesion in lesions)


def name_empty_slides(records: list[dict]) -> None:
    """Print the slides whose annotation holds no lesion."""
    for record in records:
        if NO_LESION in record["counts"]:
            print(f"{record['slide']}: {NO_LESION}")


def main(argv=None):
    args = parse_args(argv)
    jobs, problems = find_jobs(args)
    name = f"level{args.level}_size_{args.size}_ratio_{args.low_roir:g}_{args.high_roir:g}"
    folder = args.save_dir / name
    settings = {key: getattr(args, key) for key in ("size", "level", "k", "seed", "low_roir", "high_roir")}
    if args.dry_run:
        window, crop_bytes = (2 * args.size - 1) ** 2, 4 * args.size**2
        todo, absent = extraction.outstanding(jobs, folder, settings, args)
        problems += report.print_plan(todo, count_crops, crop_bytes, window, folder, args) + absent
    else:
        make_subfolder(make_folder(args.save_dir), name)
        records, failures = extraction.run(jobs, extract_slide, draw_preview, folder, settings, args)
        problems += failures
        name_empty_slides(records)
        chosen = (args.size, args.low_roir, args.high_roir)
        pawlowski = report.PAWLOWSKI_POSITIVES.get(chosen) if args.level == 3 else None
        report.print_counts(records, f"positives in {folder}", pawlowski, lesions=True)
        report.print_misfits(records, args)
        if args.preview:
            print(f"previews in {folder / 'previews'}")
    report.print_problems(problems, sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    cli.run(main)
