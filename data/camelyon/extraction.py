"""What both extractors share: flags, one process per slide, resuming, crops.csv.

A crop folder holds the crops, `records/SLIDE.json` for every finished slide, written after its crops, `extraction.json`
with the flags, and `crops.csv` and `manifest.json`, put together from the records at the end of every run. A finished
slide need not be at hand any more, so the slides may come and go centre by centre. `extraction.json` is written first:
a folder without it is somebody else's, and so is a `crops.csv` that is not as `manifest.json` says.
"""

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import cli, lock, manifest, parallel
from common.claim import differences
from common.errors import BadInput
from common.files import (
    atomic_open,
    errors_name,
    is_whole,
    make_subfolder,
    npy_bytes,
    open_own,
    read_json,
    sha256_of,
    write_json,
)
from data.camelyon.report import one_line
from data.camelyon.slides import SPLIT_FOLDERS, SPLIT_OF_CENTRE

COLUMNS = ["file", "slide", "centre", "split", "lesion", "y", "x", "o2i", "mpp"]
SETTINGS = "extraction.json"
WRITTEN = ("*.npy", "valid/*.npy", "test/*.npy", "crops.csv", "manifest.json", "records/*.json", "previews/*.png")
KILLED = "its worker process was killed, probably for lack of memory: run again with fewer --workers"


def add_flags(parser, k: int, k_help: str) -> None:
    """Declare the flags of both extractors."""
    parser.add_argument(
        "--base_path", type=cli.path, required=True, help="slides: center_C/patient_PPP_node_N.tif or flat images/"
    )
    parser.add_argument("--save_dir", type=cli.path, required=True, help="folder for the crops")
    parser.add_argument("--size", type=cli.positive, default=128, help="side of a crop, pixels of the level")
    parser.add_argument("--level", type=cli.natural, default=3, help="pyramid level, downsampled 2**level times")
    parser.add_argument("--k", type=cli.positive, default=k, help=k_help)
    parser.add_argument("--seed", type=cli.natural, default=42, help="decides where crops lie")
    cli.add_workers_flag(parser, 10, help="slides read at once, each in its own process")
    parser.add_argument("--dry_run", action="store_true", help="say what would be read and written, write nothing")
    parser.add_argument("--preview", action="store_true", help="draw previews/SLIDE.png with lesions and crops")


@dataclass(frozen=True)
class SlideJob:
    """A slide to extract crops from; `path` is None when it is not at hand, `annotation` is None for negatives."""

    name: str
    path: Path | None
    centre: int
    annotation: Path | None = None

    @property
    def split(self) -> str:
        return SPLIT_OF_CENTRE[self.centre]

    @functools.cached_property
    def source(self) -> dict:
        """Size of the slide, if at hand, and digest of the annotation; when one changes, the slide is done again."""
        source = {} if self.path is None else {"slide_bytes": self.path.stat().st_size}
        if self.annotation is not None:
            source["annotation"] = sha256_of(self.annotation)
        return source


class CropWriter:
    """Writes the crops of one slide and keeps their rows for crops.csv."""

    def __init__(self, folder: Path, job: SlideJob, level: int, mpp: float | None):
        self.folder, self.job, self.mpp = folder, job, mpp
        self.prefix = str(Path(SPLIT_FOLDERS[job.split]) / f"{job.name}_{level}_")
        self.rows: list[list] = []

    def add(self, suffixes: dict[str, np.ndarray], y: int, x: int, lesion: int | None = None, o2i: float | None = None):
        """Save one array per file-name ending; the first is the crop that crops.csv names."""
        for suffix, array in suffixes.items():
            path = self.folder / f"{self.prefix}{suffix}.npy"
            with errors_name(path), open_own(path, os.O_WRONLY | os.O_TRUNC, "wb") as file:
                file.write(npy_bytes(array))
        name = f"{self.prefix}{next(iter(suffixes))}.npy"
        self.rows.append([name, self.job.name, self.job.centre, self.job.split, lesion, int(y), int(x), o2i, self.mpp])


def run(
    jobs: list[SlideJob], extract: Callable, draw: Callable, folder: Path, settings: dict, args
) -> tuple[list[dict], list[str]]:
    """Extract the slides that are not finished and put crops.csv together.

    Args:
        extract: (job, folder, args) -> record, a dict with "rows"; a module's function, called in the workers.
        draw: (job, record, path, args) writes the slide's preview.
        settings: what must be the same whenever this folder is written.
    Returns: (the records of the finished slides by name, one line per slide that failed). BadInput when the folder
    was made with other settings.
    """
    _check_settings(folder, settings)
    with lock.held(folder, "--save_dir"):
        return _run(jobs, extract, draw, folder, settings, args)


def _run(jobs, extract, draw, folder, settings, args):
    todo, absent = outstanding(jobs, folder, settings, args)
    kept = _is_of_others(folder / "crops.csv")
    _open_folder(folder, settings)
    if todo and not kept:
        (folder / "crops.csv").unlink(missing_ok=True)  # its absence marks the folder as unfinished
    if args.preview:
        todo += [job for job in jobs if job.path and job not in todo and not _preview(job, folder).exists()]
    if jobs and not todo and not absent:
        print(f"nothing to do: all {len(jobs)} slides are done in {folder}")
    work = functools.partial(_work, extract=extract, draw=draw, folder=folder, args=args)
    results = parallel.map_jobs(work, todo, args.workers, killed=lambda job: f"{job.name}: {KILLED}")
    failures = [failure for failure in cli.progress(results, len(todo), "extracting", "slides") if failure]
    records = [record for job in sorted(jobs, key=lambda job: job.name) if (record := _record(job, folder, args))]
    problem = _write_table(records, folder, kept)
    _name_others(jobs, folder)
    problems = sorted(failures) + absent
    if problem and todo:
        problems.append(problem)
    elif problem:  # nothing is missing in the table
        print(cli.plain_line(problem))
    return records, problems


def outstanding(jobs: list[SlideJob], folder: Path, settings: dict, args) -> tuple[list[SlideJob], list[str]]:
    """The jobs that remain to be done, and a line for each whose slide is not at hand.

    BadInput when the folder was made with other settings.
    """
    _check_settings(folder, settings)
    left = [job for job in jobs if not _record(job, folder, args)]
    absent = sorted(job.name for job in left if job.path is None)
    lines = [f"{name}: expected one slide in {args.base_path}, found none" for name in absent]
    return [job for job in left if job.path is not None], lines


def _name_others(jobs, folder):
    """Say which slides were extracted earlier, by other labels or annotations, and so stay out of crops.csv."""
    others = sorted({path.stem for path in (folder / "records").glob("*.json")} - {job.name for job in jobs})
    if others:
        print(f"left out of crops.csv, since this command does not name them: {' '.join(others)}")


def _check_settings(folder: Path, settings: dict) -> None:
    """BadInput when the folder is not of this command, or holds crops made with other settings."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--save_dir: {folder} is not a folder")
    path = folder / SETTINGS
    if not os.path.lexists(path):
        found = next((each for pattern in WRITTEN for each in folder.glob(pattern)), None)
        if found:
            what = "crops" if found.suffix == ".npy" else found.relative_to(folder)
            raise BadInput(f"{folder}: holds {what} of another program; choose another --save_dir")
        return
    before = read_json(path)
    if before.keys() != settings.keys():
        what = "positive crops" if "low_roir" in before else "negative crops" if "k" in before else "another program"
        raise BadInput(f"{path}: is of {what}, not of this command; choose another --save_dir")
    changed = differences(before, settings)
    if changed and _holds_crops(folder):
        raise BadInput(f"{folder}: was made with {changed}; choose another --save_dir")


def _open_folder(folder, settings):
    if not _holds_crops(folder):
        write_json(folder / SETTINGS, settings)
    for name in ["records", *filter(None, SPLIT_FOLDERS.values())]:
        make_subfolder(folder, name)


def _holds_crops(folder):
    return any(any((folder / part).glob("*.npy")) for part in SPLIT_FOLDERS.values())


def _record_path(job, folder):
    return folder / "records" / f"{job.name}.json"


def _preview(job, folder):
    return folder / "previews" / f"{job.name}.png"


def _record(job, folder, args):
    """The record of a finished slide; None when there is none, when it is of another source or when crops are lost."""
    try:
        record = read_json(_record_path(job, folder))
        whole = job.source.items() <= record["source"].items() and _are_whole(record["rows"], folder, args.size)
    except (BadInput, OSError, KeyError, AttributeError):  # an annotation is not readable: the worker reports it
        return None
    return record if whole else None


def _are_whole(rows, folder, side):
    """Whether all crops of a slide, and the lesion masks of positives, are there."""
    shapes = {name: (side, side) if name.endswith("_seg.npy") else (side, side, 3) for name in _files_of(rows)}
    return all(is_whole(folder / name, shape, np.uint8) for name, shape in shapes.items())


def _files_of(rows):
    """Names of the files of a slide: the crops and the lesion masks of positives."""
    names = [name for name, *_ in rows]
    return names + [name.removesuffix("_img.npy") + "_seg.npy" for name in names if name.endswith("_img.npy")]


def _checksums(rows, folder):
    return {name: manifest.file_checksums(folder / name) for name in _files_of(rows)}


def _work(job: SlideJob, extract, draw, folder: Path, args) -> str | None:
    """Finish one slide; returns what went wrong in one line. Its record appears only when all its crops are there."""
    try:
        record = _record(job, folder, args)
        if not record:
            _remove(job, folder, args.level)
            record = {"slide": job.name, "source": job.source, **extract(job, folder, args)}
            record["crc32"] = _checksums(record["rows"], folder)
            write_json(_record_path(job, folder), record)
        if args.preview and not _preview(job, folder).exists():
            draw(job, record, _preview(job, folder), args)
    except (BadInput, OSError, MemoryError) as error:
        if not _record_path(job, folder).exists():
            _remove(job, folder, args.level)
        return one_line(job.name, error)


def _remove(job, folder, level):
    """Remove what an interrupted or failed attempt at this slide left, and nothing that only looks like it."""
    ending = "[0-9]+" if job.annotation is None else "[0-9]+_[0-9]+_(img|seg)"
    name = re.compile(rf"{re.escape(job.name)}_{level}_{ending}\.npy")
    crops = [path for path in (folder / SPLIT_FOLDERS[job.split]).iterdir() if name.fullmatch(path.name)]
    for stale in [_record_path(job, folder), _preview(job, folder), *crops]:
        if stale.is_file() and not stale.is_symlink():
            stale.unlink()


def _is_of_others(path):
    """Whether there is a table that is not as this command wrote it, by manifest.json."""
    written = manifest.Manifest(path.parent).entries.get(path.name)
    return os.path.lexists(path) and manifest.file_checksums(path) != written


def _write_table(records, folder, kept):
    """Write manifest.json and then crops.csv, unless they already say the same.

    A `kept` table of somebody else's stays, as does its line in manifest.json. Returns: what to say of it, or None.
    """
    import pandas as pd

    rows = [row for record in records for row in record["rows"]]
    table = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, lineterminator="\n").encode()
    path, ours = folder / "crops.csv", manifest.checksums(table)
    same = os.path.lexists(path) and manifest.file_checksums(path) == ours
    listed = ours if same or not kept else manifest.Manifest(folder).entries.get(path.name)
    sums = {path.name: listed} if listed else {}
    for record in records:  # those of earlier versions have no checksums
        sums |= record.get("crc32") or _checksums(record["rows"], folder)
    if not same and not kept:
        path.unlink(missing_ok=True)  # else a kill between the two would leave a table that nobody wrote
    manifest.write(folder, sums)
    if kept and not same:
        return f"{path}: kept, since it is not as this command wrote it; removed, it is written again"
    if not same:
        with atomic_open(path) as file:
            file.write(table)
    return None
