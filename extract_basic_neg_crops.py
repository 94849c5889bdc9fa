"""Cut nCAMELYON's negative crops out of healthy slides: extract_basic_neg_crops.py --label_path stage_labels.csv
--base_path training --save_dir crops. The crops lie in --save_dir itself, in its valid/ and in its test/."""

import sys
from collections import Counter
from pathlib import Path

from common import cli
from common.errors import BadInput
from data.camelyon import crops, extraction, report, slides
from data.camelyon.extraction import CropWriter, SlideJob
from data.slides.pyramid import Slide

MAX_TRIES = 10_000  # positions tried on a slide


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--label_path", type=cli.path, required=True, help="stage_labels.csv or stages.csv: patient,stage[,center]"
    )
    extraction.add_flags(parser, k=100, k_help="crops of every slide")
    return parser.parse_args(argv)


def healthy_slides(labels: slides.Labels) -> tuple[list[str], list[str]]:
    """Slides labelled negative: those to use, and those left out because lesions are outlined in them; sorted."""
    negative = sorted(name for name, stages in labels.stages.items() if stages == {"negative"})
    return [name for name in negative if name not in slides.ANNOTATED], sorted(slides.ANNOTATED.intersection(negative))


def find_jobs(args) -> tuple[list[SlideJob], list[str]]:
    """The healthy slides, and a line for each slide or label that cannot be used."""
    found, labels = slides.find_slides(args.base_path), slides.read_labels(args.label_path)
    healthy, excluded = healthy_slides(labels)
    for name in excluded:
        print(f"{name}: left out, it is labelled negative but lesions are outlined in it")
    jobs, problems = [], labels.unclear(name for name in found if not slides.is_test_patient(name))
    healthy = [name for name in healthy if not slides.is_test_patient(name)]
    for name in healthy:
        try:
            jobs.append(SlideJob(name, *slides.resolve_slide(name, found.get(name, []), labels)))
        except BadInput as error:
            problems.append(str(error) if name in found else f"{args.label_path.name}: {error}")
    if not jobs and not problems:
        raise BadInput(f"--label_path {args.label_path}: no slide to use is labelled negative")
    return jobs, sorted(problems)


def extract_slide(job: SlideJob, folder: Path, args) -> dict:
    """Write up to k crops of scanned tissue, uniform over the slide, by rejection; returns the slide's record."""
    counts, rng = Counter(), crops.generator(args.seed, job.name)
    with Slide(job.path, args.level) as slide:
        writer = CropWriter(folder, job, args.level, slide.mpp)
        height, width = slide.shape
        if args.size > min(slide.shape):
            raise BadInput(f"{job.path}: level {args.level} is smaller than --size {args.size}: {width} x {height} px")
        for _ in range(MAX_TRIES):
            y, x = (int(rng.integers(side - args.size + 1)) for side in (height, width))
            image, unscanned = slide.read(y, x, args.size, args.size)
            reason = crops.reason_against(image, unscanned)
            if reason:
                counts[reason] += 1
                continue
            writer.add({str(len(writer.rows)): image}, y, x)
            if len(writer.rows) == args.k:
                break
    counts[f"crop not found in {MAX_TRIES} tries"] = args.k - len(writer.rows)
    return {"centre": job.centre, "counts": +counts, "rows": writer.rows}


def name_short_slides(records: list[dict], k: int) -> None:
    """Print the slides on which fewer than k crops were found."""
    for record in records:
        if len(record["rows"]) < k:
            print(f"{record['slide']}: only {len(record['rows'])} of {k} crops found in {MAX_TRIES:,} tries")


def draw_preview(job: SlideJob, record: dict, path: Path, args) -> None:
    """Draw the crops of a finished slide."""
    with Slide(job.path, args.level) as slide:
        report.draw_preview(slide, None, record["rows"], args.size, path)


def main(argv=None):
    args = parse_args(argv)
    jobs, problems = find_jobs(args)
    folder, settings = args.save_dir, {key: getattr(args, key) for key in ("size", "level", "k", "seed")}
    if args.dry_run:
        todo, absent = extraction.outstanding(jobs, folder, settings, args)
        problems += report.print_plan(todo, lambda *_: args.k, 3 * args.size**2, args.size**2, folder, args) + absent
    else:
        records, failures = extraction.run(jobs, extract_slide, draw_preview, folder, settings, args)
        problems += failures
        pawlowski = report.PAWLOWSKI_NEGATIVES.get(args.size) if args.level == 3 else None
        name_short_slides(records, args.k)
        report.print_counts(records, f"negatives in {folder}", pawlowski and (pawlowski,), lesions=False)
        if args.preview:
            print(f"previews in {folder / 'previews'}")
    report.print_problems(problems, sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    cli.run(main)
