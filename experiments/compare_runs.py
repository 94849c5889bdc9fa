"""Hold runs of any method against each other on the same images: compare_runs.py runs/a dpa=runs/b --out compared

Reads RUN/scores/SPLIT.csv of each. Writes comparison.csv, a row for each run and range of object-to-image ratio (O2I),
and comparison.png. Runs that are given one NAME count as its seeds.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd

from common import cli, scores
from common.errors import BadInput
from common.files import check_replaceable, make_folder, write_csv
from experiments import size_panels
from experiments.stats import read_near_duplicates

METRICS = ("auc", "ap", "localization_ap")
COLUMNS = ("name", "run", "o2i", "o2i_percent", "positives", *METRICS, "cell", "near_duplicates", "auc_without")
NUMBERS = ("o2i", "cell", "confidence", "hit")  # that may be missing
ALL, MOST_NAMES = "all", 10
SAME_SIZE = 0.3  # share by which mean O2I may differ on the same images: older tables hold those of resized masks
EDGES = {name: (low, high) for name, low, high in scores.RANGES}


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=_named_run, metavar="[NAME=]RUN", help="run folders with scores/")
    add("--split", default="test", help="which scores: scores/SPLIT.csv")
    add("--audit", type=cli.path, help="folder of audit_leakage.py on these images, to score without near-duplicates")
    add("--out", "-o", type=cli.path, required=True, help="folder for comparison.csv and comparison.png")
    return parser.parse_args(argv)


def _named_run(text):
    name, separator, run = text.partition("=")
    if not separator or "/" in name or Path(text).exists():
        return None, cli.path(text)
    if not name:
        raise argparse.ArgumentTypeError(f"expected NAME=RUN, got {text!r}")
    return name, cli.path(run)


def main(argv=None):
    args = parse_args(argv)
    table, picture = args.out / "comparison.csv", args.out / "comparison.png"
    check_replaceable(table, ",".join(COLUMNS).encode(), "a comparison")
    check_replaceable(picture, b"\x89PNG", "a PNG")
    tables = read_scores(with_names(args.runs), args.split)
    flags = read_near_duplicates(args.audit, args.split) if args.audit else None
    scored = set(next(iter(tables.values()))["img_path"])  # the same by all
    if flags is not None and not scored <= flags.keys():
        raise BadInput(
            f"--audit {args.audit}: has no {args.split} image {min(scored - flags.keys())}, which was scored"
        )
    rows = [row for (name, run), own in tables.items() for row in rows_of(name, run, own, flags)]
    make_folder(args.out)
    write_csv(table, rows, COLUMNS)
    draw(pd.DataFrame(rows, columns=COLUMNS), picture, args.split)
    print(pd.DataFrame(rows, columns=COLUMNS).drop(columns="run").round(3).to_string(index=False, na_rep=""))
    print(f"wrote {table} and {picture}")


def with_names(runs: list[tuple[str | None, Path]]) -> list[tuple[str, Path]]:
    """The runs, those without a name called by their folders. BadInput: two folders of one name, too many names."""
    named = [(name or run.absolute().name, run) for name, run in runs]
    counts = Counter(name for name, _ in named)
    for (given, run), (name, _) in zip(runs, named, strict=True):
        if given is None and counts[name] > 1:
            raise BadInput(f"{run}: another run is called {name} too; give it a name, as NAME={run}")
    if len(counts) > MOST_NAMES:
        raise BadInput(f"runs: {len(counts)} names, expected {MOST_NAMES} at most, each with a colour of its own")
    return named


def read_scores(runs: list[tuple[str, Path]], split: str) -> dict:
    """(name, run) -> its table of scores. BadInput when two runs scored different images."""
    tables, first = {}, None
    for name, run in runs:
        path = run / "scores" / f"{split}.csv"
        table = scores.read(path)[0].reindex(columns=scores.COLUMNS)
        for column in NUMBERS:
            numbers = pd.to_numeric(table[column], errors="coerce")
            if (numbers.isna() & table[column].notna()).any():
                raise BadInput(f"{path}: {column} holds what is no number")
            table[column] = numbers
        first = first or (path, table)
        _refuse_other_images(path, table, *first)
        tables[name, run] = table
    return tables


def _refuse_other_images(path, table, first_path, first):
    """BadInput unless both tables have the same images, by name and label, and objects as large on average."""
    images, expected = (set(zip(each["img_path"], each["label"], strict=True)) for each in (table, first))
    if images != expected:
        raise BadInput(
            f"{path}: has {len(images):,} images, {len(images & expected):,} of them among the {len(expected):,} of"
            f" {first_path}; methods are compared on the same ones: train with equal --seed and --splits"
        )
    sizes = table["o2i"].mean(), first["o2i"].mean()
    if abs(sizes[0] - sizes[1]) > SAME_SIZE * max(sizes):
        raise BadInput(
            f"{path}: its objects take {sizes[0]:.2%} of an image on average, {sizes[1]:.2%} in {first_path}; methods"
            f" are compared on the same images"
        )


def rows_of(name: str, run: Path, table: pd.DataFrame, flags: dict[str, bool] | None) -> list[dict]:
    """A run's lines: all images, then each range of O2I that has scores.

    Args: flags: image -> whether it has a near-duplicate in training; None without an audit.
    """
    images = table.astype(object).where(table.notna(), None).to_dict("records")
    fresh = [row for row in images if flags is not None and not flags[row["img_path"]]]
    without, rows = _parts(fresh), []
    for o2i, part in _parts(images).items():
        row = {"name": name, "run": str(run), "o2i": o2i} | {key: part[key] for key in ("positives", *METRICS)}
        low, high = EDGES.get(o2i, (-1, 1))
        own = [row for row in images if row["label"] == 1 and (o2i == ALL or low < (row["o2i"] or -1) <= high)]
        sizes = [row["o2i"] for row in own if row["o2i"] is not None]
        row["cell"] = None if table["cell"].isna().all() else int(table["cell"].max())
        row["o2i_percent"] = 100 * sum(sizes) / len(sizes) if sizes else None
        if flags is not None and own:
            row["near_duplicates"] = sum(flags[each["img_path"]] for each in own) / len(own)
            row["auc_without"] = without[o2i]["auc"]
        rows.append(row)
    return [row for row in rows if row["o2i"] == ALL or row["auc"] is not None]


def _parts(images: list[dict]) -> dict[str, dict]:
    """All images and each range -> their scores."""
    found = scores.summarise(images)
    return {ALL: found} | {part["o2i"]: part for part in found["ranges"]}


def draw(table: pd.DataFrame, path: Path, split: str) -> None:
    """Draw the ranges' AUC and localisation AP, or those of all images where sizes are not known."""
    sizes = table[table["o2i"] != ALL]
    table = (table if sizes.empty else sizes).assign(chance_ap=float("nan"))
    cells = [f", cells of {cell:.0f} px" if cell == cell else "" for cell in table["cell"].astype(float)]
    table["label"] = table["name"] + cells
    table["o2i_percent"] = table["o2i_percent"].astype(float).fillna(100)
    labels = list(dict.fromkeys(table["label"]))
    styles = size_panels.styles(labels)
    title = "a marker for each run, mean and standard deviation of runs of one name"
    size_panels.draw_columns(path, {f"{split} images": table.astype(dict.fromkeys(METRICS, float))}, styles, title)


if __name__ == "__main__":
    cli.run(main)
