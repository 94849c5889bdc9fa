"""Prepare NIH's chest X-rays (ChestX-ray14): nih.py resize -i images -o small, nih.py folds --path_to_data_entry ..."""

import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.errors import BadInput, WorkFailed
from common.files import make_folder, read_table
from common.parallel import attempt_jobs
from common.pictures import write_png
from data import folds
from data.photos import list_images, read_image

VIEWS = ("AP", "PA")
NORMAL = "No Finding"
COLUMNS = {"Image Index": "name", "Finding Labels": "findings", "Patient ID": "patient", "View Position": "view"}


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="resize|folds")
    description = "Write every picture as a grey PNG, bilinear."
    resize = actions.add_parser("resize", help="make every picture grey and small", description=description)
    resize.add_argument("-i", "--input_dir", type=cli.path, required=True, help="pictures, perhaps in folders")
    resize.add_argument("-o", "--output_dir", type=cli.path, required=True, help="folder for the small ones")
    resize.add_argument("--size", type=cli.positive, default=300, help="side, px")
    cli.add_workers_flag(resize, help="pictures worked on at once, each in its own process")
    description = (
        "Write, for each view AP and PA, the lists {normal,anomaly}/{train,test} and folds of the training images, in "
        "which a patient's stay together. Normal is No Finding; a fold's anomalies are of the commonest single finding."
    )
    lists = actions.add_parser("folds", help="write lists and folds of each view", description=description)
    lists.add_argument("--path_to_data_entry", type=cli.path, required=True, help="Data_Entry_2017.csv")
    lists.add_argument("--path_to_train_val_list", type=cli.path, required=True, help="train_val_list.txt")
    lists.add_argument("--path_to_test_list", type=cli.path, required=True, help="test_list.txt")
    folds.add_flags(lists)
    return parser.parse_args(argv)


def shrink(job: tuple[Path, Path], size: int) -> None:
    """Write a picture as grey PNG of this side; (picture, result)."""
    from skimage.color import rgb2gray
    from skimage.transform import resize

    source, path = job
    grey = resize(rgb2gray(read_image(source)), (size, size), order=1, anti_aliasing=True)
    write_png(path, (grey * 255).round().astype(np.uint8))


def resize_pictures(args) -> None:
    """Make every picture small that is not there yet."""
    names = list_images(args.input_dir)
    double = [name for name, n in Counter(Path(name).stem for name in names).items() if n > 1]
    if double:
        raise BadInput(f"-i {args.input_dir}: holds more than one {double[0]}")
    make_folder(args.output_dir)
    jobs = [(args.input_dir / name, args.output_dir / f"{Path(name).stem}.png") for name in names]
    todo = [job for job in jobs if not job[1].exists()]
    problems = attempt_jobs(partial(shrink, size=args.size), todo, args.workers, "pictures")[1]
    print(f"{len(todo) - len(problems):,} pictures resized, {len(jobs) - len(todo):,} there already")
    if problems:
        raise WorkFailed(f"{problems[0]} ({len(problems)} of {len(jobs):,} pictures)")


def read_entries(path: Path):
    """Name, findings, patient and view of every image, as a table. BadInput when it is not NIH's."""
    table = read_table(path, dtype=str, keep_default_na=False)
    table.columns = table.columns.str.strip()
    absent = [column for column in COLUMNS if column not in table.columns]
    if absent:
        raise BadInput(f"--path_to_data_entry {path}: has no column {absent[0]!r}")
    table = table.rename(columns=COLUMNS)[list(COLUMNS.values())]
    return table.apply(lambda column: column.str.strip()).drop_duplicates("name").set_index("name")


def write_view(view: str, entries: dict, args) -> None:
    """Write the lists and folds of a view; entries: split -> table."""
    folder, parts = args.output_root / view, {}
    for split, table in entries.items():
        table = table[table["view"] == view]
        parts["normal", split] = table[table["findings"] == NORMAL]
        parts["anomaly", split] = table[table["findings"] != NORMAL]
    for (kind, split), table in parts.items():
        folds.write(folder / kind / split, folds.names_bytes(table.index))
    normal, anomaly = parts["normal", "train"], parts["anomaly", "train"]
    single = anomaly["findings"][~anomaly["findings"].str.contains("|", regex=False)]
    kind = min(Counter(single).items(), key=lambda item: (-item[1], item[0]), default=("none", 0))[0]
    anomaly = anomaly[anomaly["findings"] == kind]
    try:
        made = folds.make_folds(normal["patient"], anomaly["patient"], args.n_splits, [args.seed, VIEWS.index(view)])
    except ValueError as error:
        raise BadInput(f"{view}: {error}") from None
    folds.write_named_folds(folder, normal.index, anomaly.index, made)
    print(f"{view}: {args.n_splits} folds of {len(normal):,} normal images, anomalies: {kind}, in {folder}")


def write_folds(args) -> None:
    """Write the lists and folds of both views."""
    table, entries = read_entries(args.path_to_data_entry), {}
    for split, flag in (("train", "path_to_train_val_list"), ("test", "path_to_test_list")):
        names = folds.read_names(getattr(args, flag), f"--{flag}")
        unknown = set(names) - set(table.index)
        if unknown:
            raise BadInput(f"--{flag} {getattr(args, flag)}: {min(unknown)} is not in {args.path_to_data_entry}")
        entries[split] = table.loc[names]
    for view in VIEWS:
        write_view(view, entries, args)


def main(argv=None):
    args = parse_args(argv)
    (resize_pictures if args.action == "resize" else write_folds)(args)


if __name__ == "__main__":
    cli.run(main)
