"""Cut whole slides into tiles and list them as bags: mil/tile_slides.py --slides WSI/NAME --out WSI/NAME/single

Slides lie in class folders, NAME/CLASS/[FOLDER/]SLIDE.svs as DSMIL has them, or anywhere below NAME with a table of
labels. OUT/CLASS/SLIDE/{column}_{row}.jpeg are tiles of the slide's DeepZoom pyramid; those stay whose edges, as PIL's
FIND_EDGES sees them, are strong enough on average. Two --magnifications give a pyramid: tiles of the higher one lie
in a folder named like their lower tile. --layout hnm names folders as HNM-WSI does and writes OUT/labels. OUT/bags.csv
lists the bags. A command that was interrupted goes on with the slide it was at.
"""

import functools
import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401, I001 (before torch)
import numpy as np

from common import cli, lock, parallel
from common.errors import BadInput
from common.files import (
    atomic_open,
    check_folder,
    files_below,
    make_folder,
    make_subfolder,
    read_json,
    read_table,
    write_json,
)
from data import SPLITS
from data.camelyon import slides
from data.slides import mask_tiff, pyramid
from data.slides.deepzoom import DeepZoom
from mil import bag_list, folds, hnm_layout, tiles

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif")
BOOK = "tiles.json"  # in a bag's folder, once it is whole
DECIDING = ("base_mag", "magnifications", "threshold", "tile_size", "quality", "objective", "min_lesion", "layout")
SHARES = {"train": 3, "val": 1, "test": 1}  # of the bags where no table says which is whose


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--slides", type=cli.path, required=True, help="folder of the slides")
    add("--out", type=cli.path, required=True, help="folder of the tiles")
    add("-b", "--base_mag", type=cli.positive_float, default=20, help="magnification whose halvings -m counts")
    add("-m", "--magnifications", type=cli.natural, nargs="+", default=[0], help="halvings; two, low first: a pyramid")
    add("-t", "--threshold", type=cli.nonnegative_float, default=15, help="mean edge strength above which a tile stays")
    add("--tile_size", type=cli.positive, default=224, help="side of a tile in px")
    add("-q", "--quality", type=cli.positive, default=70, help="of the JPEGs, up to 95")
    add("--objective", type=cli.positive_float, help="magnification of slides that do not say theirs")
    add("--label_path", type=cli.path, help="table slide,label[,split], or CAMELYON17's stage_labels.csv")
    add("--masks", type=cli.path, help="folder of SLIDE_mask.tif, 1 or 255 = lesion; tiles are named column_row_z then")
    add("--min_lesion", type=cli.share, default=0.0, help="share of a tile that is lesion for z = 1; 0: any pixel")
    add("--layout", choices=("dsmil", "hnm"), default="dsmil", help="folders by class, or HNM-WSI's with its lists")
    add("--seed", type=cli.natural, default=42, help="shares bags among splits where no table does")
    cli.add_workers_flag(parser, 4, help="slides cut at once, each in a process")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class TilingJob:
    """A slide, its place among the tiles, and what is known of it; split is "" where the seed decides it."""

    slide: Path
    bag: str
    label: int
    split: str
    mask: Path | None


def main(argv=None):
    args = parse_args(argv)
    if len(args.magnifications) > 2 or args.magnifications != sorted(set(args.magnifications), reverse=True):
        raise BadInput("--magnifications: expected one, or two with the lower magnification (more halvings) first")
    if len(args.magnifications) == 2 and (args.layout == "hnm" or args.masks):
        raise BadInput("--magnifications: a pyramid has no place for truth; leave --layout hnm and --masks out")
    jobs = shared_among_splits(find_jobs(args), args.seed)
    jobs = [hnm_job(job) for job in jobs] if args.layout == "hnm" else jobs
    with lock.held(args.out, "--out"):
        task = functools.partial(tile_slide, args=args)
        counts = dict(cli.progress(parallel.map_jobs(task, jobs, args.workers), len(jobs), "tiling", "slides"))
        empty = [job.slide for job in jobs if counts[job.bag] == 0]
        if empty:
            raise BadInput(f"{empty[0]}: none of its tiles has edges above --threshold {args.threshold:g}; lower it")
        rows = [(job.bag, job.label, job.split, args.out / job.bag) for job in jobs]
        bag_list.write(args.out / "bags.csv", rows)
        if args.layout == "hnm":
            write_labels(args.out, jobs)
    print(f"{sum(counts.values()):,} tiles of {len(jobs)} slides; the bags are listed in {args.out / 'bags.csv'}")


def find_jobs(args) -> list[TilingJob]:
    """The slides with their labels, sorted. BadInput when there are none, or one has no label."""
    check_folder(args.slides, "--slides")
    found = files_below(args.slides, SUFFIXES)
    found = [path for path in found if not path.stem.endswith(pyramid.MASK_ENDING)]
    if not found:
        raise BadInput(f"--slides {args.slides}: no slides in or below it ({', '.join(SUFFIXES)})")
    table = read_labels(args.label_path) if args.label_path else {}
    classes = sorted({path.relative_to(args.slides).parts[0] for path in found})
    jobs = []
    for path in found:
        if args.label_path:
            if path.stem not in table:
                raise BadInput(f"--label_path {args.label_path}: has no label of slide {path.stem}")
            label, split = table[path.stem]
            folder = f"class_{label}"
        else:
            folder, split = path.relative_to(args.slides).parts[0], ""
            label = classes.index(folder)
        jobs.append(TilingJob(path, f"{folder}/{path.stem}", label, split, mask_of(path, args)))
    twice = {job.bag for job in jobs if sum(other.bag == job.bag for other in jobs) > 1}
    if twice or len({job.label for job in jobs}) < 2:
        found = f"two slides called {min(twice)}" if twice else f"one class alone, {jobs[0].bag.split('/')[0]}"
        raise BadInput(f"--slides {args.slides}: {found}; expected slides of two classes or more, each name once")
    return jobs


def mask_of(path: Path, args) -> Path | None:
    """The mask of a slide with lesions; None without --masks and for a slide that has none."""
    mask = args.masks / f"{path.stem}{pyramid.MASK_ENDING}.tif" if args.masks else None
    return mask if mask is not None and mask.exists() else None


def read_labels(path: Path) -> dict[str, tuple[int, str]]:
    """Slide -> label and split, "" where the table has none."""
    table = read_table(path, dtype=str, keep_default_na=False)
    if {"patient", "stage"} <= set(table.columns):  # CAMELYON17's; some slides with outlined lesions count as negative
        stages = slides.read_labels(path).stages
        lesions = {name: stage != {"negative"} or name in slides.ANNOTATED for name, stage in stages.items()}
        return {name: (int(found), slides.SPLIT_OF_CENTRE[slides.centre_of(name)]) for name, found in lesions.items()}
    if not {"slide", "label"} <= set(table.columns):
        raise BadInput(f"--label_path {path}: expected columns slide,label[,split], found {','.join(table.columns)}")
    found = {}
    for line, row in enumerate(table.to_dict("records"), 2):
        split = row.get("split", "")
        if not row["label"].isdecimal() or split not in ("", *SPLITS):
            raise BadInput(
                f"--label_path {path}, line {line}: expected a label from 0 and a split of {', '.join(SPLITS)}"
            )
        found[Path(row["slide"]).stem] = int(row["label"]), split
    return found


def shared_among_splits(jobs: list[TilingJob], seed: int) -> list[TilingJob]:
    """The jobs with a split each; where some have none, all are shared anew, each class alike."""
    if all(job.split for job in jobs):
        return jobs
    try:
        splits = folds.share_out([job.label for job in jobs], SHARES, seed)
    except BadInput as error:
        raise BadInput(f"{error}; more slides, or a column split in --label_path") from None
    return [replace(job, split=split) for job, split in zip(jobs, splits, strict=True)]


def hnm_job(job: TilingJob) -> TilingJob:
    """The job under HNM-WSI's names: training/{normal|tumor}_SLIDE, testing/SLIDE."""
    kind = {label: name for name, label in hnm_layout.CLASSES.items()}
    if job.label not in kind:
        raise BadInput(f"{job.slide}: label {job.label}; --layout hnm has {' and '.join(hnm_layout.CLASSES)} alone")
    if job.label == 1 and job.mask is None:
        raise BadInput(f"{job.slide}: no mask of it in --masks, from which --layout hnm takes the truth of tiles")
    name = f"testing/{job.slide.stem}" if job.split == "test" else f"training/{kind[job.label]}_{job.slide.stem}"
    return replace(job, bag=name)


def tile_slide(job: TilingJob, args) -> tuple[str, int]:
    """Write the tiles of a slide, unless they are whole; returns the bag and their number."""
    folder = make_folder(args.out / job.bag)
    wanted = {name: getattr(args, name) for name in DECIDING} | {"bytes": job.slide.stat().st_size}
    wanted["mask"] = job.mask is not None
    book = folder / BOOK
    if os.path.lexists(book):
        found = read_json(book)
        if found.get("made_from") != wanted:
            raise BadInput(f"{folder}: holds tiles of another slide or made with other flags; choose another --out")
        return job.bag, int(found["tiles"])
    with DeepZoom(job.slide, args.tile_size, args.objective) as zoom:
        base = zoom.halvings(args.base_mag)
        levels = [base + m for m in args.magnifications]
        kept = write_tiles(zoom, levels[0], folder, job, args)
        if len(levels) == 2:
            write_inner_tiles(zoom, levels, kept, folder, args)
    write_json(book, {"made_from": wanted, "tiles": len(kept)})
    return job.bag, len(kept)


def write_tiles(zoom: DeepZoom, level: int, folder: Path, job: TilingJob, args) -> list[tuple[int, int]]:
    """Write the tiles of one level that show something; returns their columns and rows."""
    columns, rows = zoom.grid(level)
    named = args.masks is not None and (job.mask is not None or job.label == 0)
    truth, kept = mask_truth(job.slide, job.mask, level, args), []
    for row, column in itertools.product(range(rows), range(columns)):
        tile = zoom.read(level, column, row)
        if edge_strength(tile, args.tile_size) > args.threshold:
            z = f"_{truth(column, row)}" if named or args.layout == "hnm" else ""
            write_tile(folder / f"{column}_{row}{z}.jpeg", tile, args)
            kept.append((column, row))
    return kept


def write_inner_tiles(zoom: DeepZoom, levels: list[int], kept: list[tuple[int, int]], folder: Path, args) -> None:
    """Of a pyramid, write the tiles of the higher magnification into a folder named like the tile they lie in."""
    times = 2 ** (levels[0] - levels[1])
    columns, rows = zoom.grid(levels[1])
    for column, row in kept:
        inner = make_subfolder(folder, f"{column}_{row}")
        for y in range(row * times, min(rows, (row + 1) * times)):
            for x in range(column * times, min(columns, (column + 1) * times)):
                tile = zoom.read(levels[1], x, y)
                if edge_strength(tile, args.tile_size) > args.threshold:
                    write_tile(inner / f"{x}_{y}.jpeg", tile, args)


def edge_strength(tile, side: int) -> float:
    """The summed response of PIL's FIND_EDGES, as a mean over channels, divided by side ** 2. Source: DSMIL's tiler."""
    from PIL import ImageFilter, ImageStat

    return float(np.mean(ImageStat.Stat(tile.filter(ImageFilter.FIND_EDGES)).sum)) / side**2


def write_tile(path: Path, tile, args) -> None:
    """Write a tile as a JPEG; one at the slide's edge is resized to the others' side."""
    side = (args.tile_size, args.tile_size)
    with atomic_open(path, sync=False) as file:
        (tile if tile.size == side else tile.resize(side)).save(file, "JPEG", quality=args.quality)


def mask_truth(slide: Path, path: Path | None, level: int, args) -> Callable[[int, int], int]:
    """A slide's mask as (column, row) -> 1 where enough of a tile is lesion, else 0; without one it is 0 everywhere.

    Read is the level of that size, or the next finer one that both have. BadInput: as of `mask_from_tiff`.
    """
    if path is None:
        return lambda column, row: 0
    fits = level
    while fits and not (has_level(path, fits) and has_level(slide, fits)):
        fits -= 1
    side = args.tile_size * 2 ** (level - fits)
    with pyramid.Slide(slide, fits) as opened:
        mask = mask_tiff.mask_from_tiff(path, opened)

    def truth(column: int, row: int) -> int:
        share = mask.window(row * side, column * side, side, side).mean()
        return int(share > 0 and share >= args.min_lesion)

    return truth


def has_level(path: Path, level: int) -> bool:
    """Whether a slide has a level of 2 ** level times fewer rows."""
    try:
        with pyramid.Slide(path, level):
            return True
    except BadInput:
        return False


def write_labels(out: Path, jobs: list[TilingJob]) -> None:
    """Write OUT/labels as HNM-WSI's --labelroot: lists of bags, truth of tiles, bag_reference.csv."""
    labels = make_subfolder(out, "labels")
    rows = [bag_list.Row(job.bag, job.label, job.split, out / job.bag) for job in jobs]
    by_split = {split: [row for row in rows if row.split == split] for split in SPLITS}
    for split, found in by_split.items():
        hnm_layout.write_list(labels / f"{split}.txt", [row.bag for row in found])
    reference = {Path(row.bag).name: row.label for row in by_split["test"]}
    hnm_layout.write_reference(make_subfolder(labels, "testing") / "bag_reference.csv", reference)
    annotation = make_subfolder(labels, "annotation")
    for name, splits in (("train", ("train",)), ("large_train", ("train", "val")), ("test", ("test",))):
        found = [tiles.FolderTiles(by_split[split]) for split in splits if by_split[split]]
        hnm_layout.write_truth(annotation / f"gt_ins_labels_{name}.p", found)


if __name__ == "__main__":
    cli.run(main)
