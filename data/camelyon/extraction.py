"""What both extractors share: flags, one process per slide, resuming, crops.csv.

A crop folder holds the crops, `records/SLIDE.json` for every finished slide, written after its crops, `extraction.json`
with the flags, and `crops.csv`, put together from the records at the end of every run.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import cli, parallel
from common.cli import BadInput
from common.files import atomic_open, make_folder, npy_bytes, read_json, write_json
from data.camelyon.report import one_line
from data.camelyon.slides import SPLIT_FOLDERS, SPLIT_OF_CENTRE

COLUMNS = ["file", "slide", "centre", "split", "lesion", "y", "x", "o2i", "mpp"]
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
class Job:
    """A slide to extract crops from; `annotation` is None for negatives."""

    name: str
    path: Path
    centre: int
    annotation: Path | None = None

    @property
    def split(self) -> str:
        return SPLIT_OF_CENTRE[self.centre]

    @functools.cached_property
    def source(self) -> str:
        """Digest of the annotation and the size of the slide: when it changes, the slide is done again."""
        digest = hashlib.sha256(str(self.path.stat().st_size).encode())
        if self.annotation is not None:
            with self.annotation.open("rb") as file:
                while part := file.read(2**20):
                    digest.update(part)
        return digest.hexdigest()


class CropWriter:
    """Writes the crops of one slide and keeps their rows for crops.csv."""

    def __init__(self, folder: Path, job: Job, level: int, mpp: float | None):
        self.folder, self.job, self.mpp = folder, job, mpp
        self.prefix = str(Path(SPLIT_FOLDERS[job.split]) / f"{job.name}_{level}_")
        self.rows: list[list] = []

    def add(self, suffixes: dict[str, np.ndarray], y: int, x: int, lesion: int | None = None, o2i: float | None = None):
        """Save one array per file-name ending; the first is the crop that crops.csv names."""
        for suffix, array in suffixes.items():
            path = self.folder / f"{self.prefix}{suffix}.npy"
            try:
                path.write_bytes(npy_bytes(array))
            except OSError as error:  # a full disk does not name the file
                raise OSError(error.errno, error.strerror, str(path)) from None
        name = f"{self.prefix}{next(iter(suffixes))}.npy"
        self.rows.append([name, self.job.name, self.job.centre, self.job.split, lesion, int(y), int(x), o2i, self.mpp])


def run(jobs: list[Job], extract: Callable, draw: Callable, folder: Path, settings: dict, args) -> list[str]:
    """Extract the slides that are not finished and put crops.csv together.

    Args:
        extract: (job, folder, args) -> record, a dict with "rows"; a module's function, called in the workers.
        draw: (job, record, path, args) writes the slide's preview.
        settings: what must be the same whenever this folder is written.
    Returns: one line per slide that failed. BadInput when the folder was made with other settings.
    """
    _open_folder(folder, settings)
    todo = [job for job in jobs if not _is_finished(job, folder)]
    if todo:
        (folder / "crops.csv").unlink(missing_ok=True)  # its absence marks the folder as unfinished
    if args.preview:
        todo += [job for job in jobs if job not in todo and not _preview(job, folder).exists()]
    if jobs and not todo:
        print(f"nothing to do: all {len(jobs)} slides are done in {folder}")
    work = functools.partial(_work, extract=extract, draw=draw, folder=folder, args=args)
    results = parallel.map_jobs(work, todo, args.workers, killed=lambda job: f"{job.name}: {KILLED}")
    failures = [failure for failure in cli.progress(results, len(todo), "extracting", "slides") if failure]
    _write_table(jobs, folder)
    _name_others(jobs, folder)
    return sorted(failures)


def read_records(jobs: list[Job], folder: Path) -> list[dict]:
    """The records of the jobs that are finished, by name."""
    finished = sorted((job for job in jobs if _is_finished(job, folder)), key=lambda job: job.name)
    return [read_json(_record(job, folder)) for job in finished]


def _name_others(jobs, folder):
    """Say which slides were extracted earlier, by another list of slides or labels, and so stay out of crops.csv."""
    others = sorted({path.stem for path in (folder / "records").glob("*.json")} - {job.name for job in jobs})
    if others:
        print(f"left out of crops.csv, since this command does not name them: {' '.join(others)}")


def _open_folder(folder, settings):
    path = make_folder(folder) / "extraction.json"
    if path.exists() and any((folder / "records").glob("*.json")):
        before = read_json(path)
        changed = [f"--{key} {before.get(key)} (now {new})" for key, new in settings.items() if before.get(key) != new]
        if changed:
            raise BadInput(f"{folder}: was made with {', '.join(changed)}; choose another --save_dir")
    elif not path.exists() and any(folder.glob("*.npy")):
        raise BadInput(f"{folder}: holds crops of another program; choose another --save_dir")
    else:
        write_json(path, settings)
    for name in ["records", *filter(None, SPLIT_FOLDERS.values())]:
        make_folder(folder / name)


def _record(job, folder):
    return folder / "records" / f"{job.name}.json"


def _preview(job, folder):
    return folder / "previews" / f"{job.name}.png"


def _is_finished(job, folder):
    path = _record(job, folder)
    try:
        return path.exists() and read_json(path).get("source") == job.source
    except OSError:  # the annotation is not readable: the worker reports it
        return False


def _work(job: Job, extract, draw, folder: Path, args) -> str | None:
    """Finish one slide; returns what went wrong in one line. Its record appears only when all its crops are there."""
    try:
        if not _is_finished(job, folder):
            _remove(job, folder, args.level)
            record = extract(job, folder, args)
            write_json(_record(job, folder), {"slide": job.name, "source": job.source, **record})
        if args.preview and not _preview(job, folder).exists():
            draw(job, read_json(_record(job, folder)), _preview(job, folder), args)
    except (BadInput, OSError, MemoryError) as error:
        if not _record(job, folder).exists():
            _remove(job, folder, args.level)
        return one_line(job.name, error)


def _remove(job, folder, level):
    """Remove what an interrupted or failed attempt at this slide left."""
    for stale in [_record(job, folder), _preview(job, folder)]:
        stale.unlink(missing_ok=True)
    for crop in (folder / SPLIT_FOLDERS[job.split]).glob(f"{job.name}_{level}_*.npy"):
        crop.unlink()


def _write_table(jobs, folder):
    """Write crops.csv unless it already says the same."""
    import pandas as pd

    rows = [row for record in read_records(jobs, folder) for row in record["rows"]]
    table = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, lineterminator="\n").encode()
    path = folder / "crops.csv"
    if not path.exists() or path.read_bytes() != table:
        with atomic_open(path) as file:
            file.write(table)
