"""Every method on the same images, AUC and localisation AP against O2I: run_experiments.py methods --preset small

Makes nMNIST, crops of made slides (a check of the programs, no result) and their audits, trains and scores the runs
that are not done (interrupted ones continue), writes results/methods.csv after each and draws figures/methods.png.
"""

import shlex
from pathlib import Path

import numpy as np
import pandas as pd

from common import cli, metrics
from common.errors import BadInput
from common.files import make_folder, make_subfolder, read_json, write_csv
from data import tiles
from experiments import executors, made, plot_results, runs, size_panels
from experiments.anomaly_runs import as_name
from experiments.method_runs import DETECTORS, FEATURES, PRESETS, MethodTrial, estimate, trials
from experiments.runs import Children
from experiments.stats import read_numbers, update_table
from models.needle import POOLINGS
from retrieval import audit

NAME = "methods"
KEY = ("setting", "data", "size", "o2i", "method", "variant", "seed")
SCORES = ("o2i_percent", "positives", "auc", "ap", "near_duplicates")
GAPS = ("localization_ap", "chance_ap", "cell", "auc_with_near_duplicate", "auc_without")  # numbers a row may lack
COLUMNS = (*KEY, *SCORES, *GAPS, "seconds", "device", "weights")
TEXTS = ("setting", "data", "o2i", "method", "variant", "device", "weights")
TITLES = {"nmnist": "nMNIST", "made": made.TITLE}
LABELS = [*(f"classifier {pooling}" for pooling in POOLINGS), "dsmil", "hnm", *DETECTORS]


def parse_args(argv=None):
    parser = cli.ArgumentParser(prog=f"run_experiments.py {NAME}", description=__doc__)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="small", help="hours of a CPU, or minutes, to see that it runs")
    add("--methods", nargs="+", choices=FEATURES, default=list(FEATURES), help="which")
    add("--seeds", type=cli.positive, help="how many seeds (default: the preset's)")
    add("--mnist", help="folder of the four MNIST files, or 'digits' (default: generate_data.py's)")
    add("--root", type=cli.path, default=Path("runs/methods"), help="folder of data sets and run folders")
    plot_results.add_out_flag(parser)
    add("--dry_run", action="store_true", help="print the commands and the hours, and end")
    add("--jobs", type=cli.positive, help="runs at a time (default: a GPU each, or a CPU core)")
    return parser.parse_args(argv)


# --- the table ---


def row(run: MethodTrial) -> dict:
    """A finished run's line of the results; writes images.csv, its scores beside the audit's verdicts."""
    table = read_numbers(
        run.logdir / "scores" / "test.csv", ["label", "score", "confidence", "cell"], ["o2i", "hit"], ["img_path"]
    )
    found = read_json(run.logdir / "scores" / "test.json")
    table["near_duplicate"] = table["img_path"].map(run.data.near_duplicates)
    if table["near_duplicate"].isna().any():
        raise BadInput(f"{run.data.audit}: lacks images of {run.logdir}; remove the folder, so that it is made again")
    flagged, labels = table["near_duplicate"].to_numpy(bool), table["label"].to_numpy()
    columns = ["img_path", "label", "o2i", "score", "confidence", "hit", "near_duplicate"]
    write_csv(run.logdir / "images.csv", table[columns].to_dict("records"))
    parts = audit.score_parts(labels, table["score"].to_numpy(), flagged, None)
    shares = np.array([cells_on_object(run, name, int(cell)) for name, cell in table[["img_path", "cell"]].to_numpy()])
    chance = metrics.localization_ap_at_chance(shares, table["confidence"].to_numpy(), int(labels.sum()))
    return {
        "setting": run.setting,
        "data": run.data.table_name,
        "size": run.data.side,
        "o2i": run.data.o2i,
        "method": run.method,
        "variant": run.variant,
        "seed": run.seed,
        "o2i_percent": 100 * table.loc[labels == 1, "o2i"].mean(),
        **{name: found[name] for name in ("positives", "auc", "ap", "localization_ap")},
        "chance_ap": chance,
        "cell": int(table["cell"].max()),
        "near_duplicates": flagged.mean(),
        "auc_with_near_duplicate": parts["with_near_duplicate"]["auc"],
        "auc_without": parts["without"]["auc"],
        "seconds": round(runs.seconds(run), 1),
        "device": read_json(run.logdir / "config.json").get("device"),
        "weights": run.features,
    }


def cells_on_object(run: MethodTrial, name: str, cell: int) -> float:
    """The share of the method's cells in an image that hold a pixel of the object."""
    mask = run.data.masks.get(name)
    if mask is None or cell == 1:
        return 0.0 if mask is None else float(mask.mean())
    tile, stride = run.preset.tile, cell if run.method in DETECTORS else run.preset.stride
    corners = tiles.corners(*mask.shape, tile, stride) + (tile - cell) // 2
    return float(tiles.holds_object(mask, corners, cell).mean())


def read(path: Path):
    """The table of results. BadInput when it is none."""
    table = read_numbers(path, ("size", "seed", "seconds", *SCORES), GAPS, TEXTS, dtype=dict.fromkeys(TEXTS, str))
    return table.fillna(dict.fromkeys(TEXTS, ""))


def tabulate(path: Path, done: list[MethodTrial]) -> None:
    """Write finished runs into the table."""
    if done:
        update_table(path, [row(run) for run in done], KEY, COLUMNS, read)


def is_in(table, run: MethodTrial) -> bool:
    """Whether the table has the run's line."""
    own = (run.setting, run.data.table_name, run.data.side, run.data.o2i, run.method, run.variant, run.seed)
    return bool((table[list(KEY)] == pd.Series(own, KEY)).all(axis=1).any())


def main(argv=None):
    args = parse_args(argv)
    planned, path = trials(args), args.out / "results" / f"{NAME}.csv"
    todo = [run for run in planned if not run.is_done]
    hours = sum(map(estimate, todo)) / 3600
    print(f"{NAME} ({planned[0].setting}): {len(planned)} runs, {len(todo)} to do, about {hours:.1f} h of one core")
    print("frozen features: " + ", ".join(sorted({run.features for run in planned if run.weights})), flush=True)
    if args.dry_run:
        for line in (shlex.join(words) for run in todo for words in run.commands()):
            print(f"python {line}")
        return
    known = read(path) if path.exists() else pd.DataFrame(columns=COLUMNS)  # one that is damaged is named here
    children = Children()
    for data in dict.fromkeys(run.data for run in todo):
        print(f"making    {data.name} and its audit", flush=True)
        data.make(children, todo[0].preset)
    tabulate(path, [run for run in planned if run.is_done and not is_in(known, run)])

    def settle(run, how):
        if not run.is_done:
            return how
        tabulate(path, [run])

    failures = executors.settle_all(executors.run_local(todo, args.jobs), settle)
    if path.exists():
        for picture in draw(path, args.out / "figures"):
            print(f"wrote {picture}")
        print("\n".join(verdicts(path)))
    executors.raise_failures(failures)


def verdicts(path: Path) -> list[str]:
    """A line for each method and data: the O2I at which AUC is above chance by two standard errors.

    They are those of the seeds' mean and of AUC without skill on P images of each class, sqrt((2 P + 1) / (12 P^2)),
    which all seeds share. Source: Mann & Whitney 1947.
    """
    lines = []
    for (setting, data, method, variant), own in read(path).groupby(["setting", "data", "method", "variant"]):
        sizes = own.groupby("o2i").agg(
            size=("o2i_percent", "mean"), auc=("auc", "mean"), error=("auc", "sem"), n=("positives", "mean")
        )
        error = np.sqrt(sizes["error"] ** 2 + (2 * sizes["n"] + 1) / (12 * sizes["n"] ** 2))
        found = sizes["size"][sizes["auc"] - 2 * error > size_panels.CHANCE].sort_values()
        said = f"above chance at O2I {', '.join(f'{size:.2g}' for size in found)} %" if len(found) else "at chance"
        said = "undecided, one seed" if sizes["error"].isna().all() else said
        tried = ", ".join(f"{row.size:.2g} %: {row.auc:.3f}" for row in sizes.sort_values("size").itertuples())
        lines.append(f"{NAME} ({setting}), {TITLES[data]}, {f'{method} {variant}'.strip()}: {said} (AUC {tried})")
    return lines


# --- the figure ---


def draw(path: Path, folder: Path) -> list[Path]:
    """Draw each setting of the table: AUC and localisation AP, on nMNIST and on made slides; returns the PNGs."""
    pictures = []
    for setting, table in read(path).groupby("setting"):
        table = table.assign(label=(table["method"] + " " + table["variant"]).str.strip())
        present = set(table["label"])
        styles = {label: style for label, style in size_panels.styles(LABELS).items() if label in present}
        columns = {TITLES[kind]: table[table["data"] == kind] for kind in TITLES if kind in set(table["data"])}
        n = table["seed"].nunique()
        title = f"setting: {setting}; a marker for each of {n} seed{'s' * (n > 1)}, their mean and standard deviation"
        name = NAME if setting == "small" else f"{NAME}_{as_name(setting)}"
        pictures.append(make_subfolder(make_folder(folder.parent), folder.name) / f"{name}.png")
        size_panels.draw_columns(pictures[-1], columns, styles, title)
    return pictures
