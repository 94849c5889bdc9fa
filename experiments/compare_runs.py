"""Hold runs of any method against each other on the same images: compare_runs.py runs/a dpa=runs/b --out compared

Reads RUN/scores/SPLIT.csv of each. Writes comparison.csv, a row for each run and range of object-to-image ratio (O2I),
and comparison.png. Runs that are given one NAME count as its seeds.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd

from common import cli, scores
from common.errors import BadInput
from common.files import check_replaceable, make_folder, write_csv
from experiments import drawing, methods
from experiments.stats import read_near_duplicates

METRICS = ("auc", "ap", "localization_ap")
COLUMNS = ("name", "run", "o2i", "o2i_percent", "positives", *METRICS, "cell", "near_duplicates", "auc_without")
ALL, MOST_NAMES = "all", 10
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
    path = cli.path(run if separator else text)
    return (name if separator else path.absolute().name), path


def main(argv=None):
    args = parse_args(argv)
    table, picture = args.out / "comparison.csv", args.out / "comparison.png"
    check_replaceable(table, ",".join(COLUMNS).encode(), "a comparison")
    check_replaceable(picture, b"\x89PNG", "a PNG")
    names = {name for name, _ in args.runs}
    if len(names) > MOST_NAMES:
        raise BadInput(f"runs: {len(names)} names, expected {MOST_NAMES} at most, each with a colour of its own")
    tables = read_scores(args.runs, args.split)
    flags = read_near_duplicates(args.audit, args.split) if args.audit else None
    rows = [row for (name, run), own in tables.items() for row in rows_of(name, run, own, flags)]
    make_folder(args.out)
    write_csv(table, rows, COLUMNS)
    draw(pd.DataFrame(rows, columns=COLUMNS), picture, args.split)
    print(pd.DataFrame(rows, columns=COLUMNS).drop(columns="run").round(3).to_string(index=False, na_rep=""))
    print(f"wrote {table} and {picture}")


def read_scores(runs: list[tuple[str, Path]], split: str) -> dict:
    """(name, run) -> its table of scores. BadInput when two runs scored different images."""
    tables, first = {}, None
    for name, run in runs:
        path = run / "scores" / f"{split}.csv"
        table = scores.read(path)[0].reindex(columns=scores.COLUMNS)
        images = set(table["img_path"])
        first = first or (path, images)
        if images != first[1]:
            raise BadInput(
                f"{path}: has {len(images):,} images, {len(images & first[1]):,} of them among the {len(first[1]):,} of"
                f" {first[0]}; methods are compared on the same ones: train with equal --seed and --splits"
            )
        tables[name, run] = table
    return tables


def rows_of(name: str, run: Path, table: pd.DataFrame, flags: dict[str, bool] | None) -> list[dict]:
    """A run's lines: all images, then each range of O2I that has scores. BadInput: the audit lacks an image."""
    images = table.astype(object).where(table.notna(), None).to_dict("records")
    lost = [row["img_path"] for row in images if flags is not None and row["img_path"] not in flags]
    if lost:
        raise BadInput(f"--audit: lacks {lost[0]}, which {run} scored")
    fresh = [row for row in images if flags is not None and not flags[row["img_path"]]]
    without, rows = _parts(fresh), []
    for o2i, part in _parts(images).items():
        row = {"name": name, "run": str(run), "o2i": o2i} | {key: part[key] for key in ("positives", *METRICS)}
        low, high = EDGES.get(o2i, (-1, 1))
        own = [row for row in images if row["label"] == 1 and (o2i == ALL or low < (row["o2i"] or -1) <= high)]
        sizes = [row["o2i"] for row in own if row["o2i"] is not None]
        row["cell"] = max(row["cell"] for row in images)
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
    table["label"] = [f"{name}, cells of {cell} px" for name, cell in zip(table["name"], table["cell"], strict=True)]
    table["o2i_percent"] = table["o2i_percent"].astype(float).fillna(100)
    labels = list(dict.fromkeys(table["label"]))
    styles = {
        label: (colour, methods.MARKERS[k % len(methods.MARKERS)])
        for k, (label, colour) in enumerate(drawing.colours(labels).items())
    }
    title = "a marker for each run, mean and standard deviation of runs of one name"
    methods.draw_columns(path, {f"{split} images": table.astype(dict.fromkeys(METRICS, float))}, styles, title)


if __name__ == "__main__":
    cli.run(main)
