"""Anomaly detectors beside each other: run_experiments.py anomaly --photos DIR --methods dpa deep_knn --preset small

Trains and scores the runs that are not done (interrupted ones continue), writes results/anomaly.csv, a row for each run
and range of the object's size, and draws figures/anomaly_{setting}.png. Places of data that are not given are left out.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from anomaly.methods import METHODS
from common import cli, pictures
from common.files import make_folder, read_json
from experiments import executors, plot_results
from experiments.anomaly_runs import (
    ABLATIONS,
    DATASETS,
    PRESETS,
    DetectorTrial,
    as_name,
    detector_trials,
    is_done,
)
from experiments.stats import read_numbers, update_table

KEY = ("setting", "dataset", "class", "method", "variant", "seed", "o2i")
VALUES = ("positives", "auc", "ap", "localization_ap", "seconds", "device")
TEXTS = ("setting", "dataset", "class", "method", "variant", "o2i", "device")
CHANCE = 0.5


def parse_args(argv=None):
    parser = cli.ArgumentParser(prog="run_experiments.py anomaly", description=__doc__)
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which")
    add("--datasets", nargs="+", choices=DATASETS, help="which (default: all whose place is given)")
    for name, data in DATASETS.items():
        add(f"--{name}", type=cli.path, nargs=data.paths, metavar="DIR", help=data.help)
    add(
        "--classes", nargs="+", help="which normal classes, of cifar10 and svhn 0 to 9, of nih AP and PA (default: all)"
    )
    add("--runs", type=cli.positive, default=3, help="seeds")
    add("--ablation", action="store_true", help=f"DPA also as {', '.join(ABLATIONS)}")
    add("--preset", choices=PRESETS, default="paper", help="Shvetsova 2021's settings, or minutes on a CPU")
    add("--side", type=cli.positive, help="scale images to so many px, and take them for tiles")
    add("--embedder", help="network of features, in place of the preset's")
    add("--embedder_weights", help="its weights: imagenet, FILE or random")
    add("--root", type=cli.path, default=Path("runs/anomaly"), help="folder of the run folders")
    plot_results.add_out_flag(parser)
    add("--dry_run", action="store_true", help="print the commands, and end")
    add("--jobs", type=cli.positive, help="runs at a time (default: a GPU each, or a CPU core)")
    cli.add_workers_flag(parser, 0, help="processes of each run that read images, 0 = none")
    return parser.parse_args(argv)


def rows(run: DetectorTrial) -> list[dict]:
    """A finished run's lines of the results: all sizes, then each range that has an AUC."""
    found, config = read_json(run.scores), read_json(run.logdir / "config.json")
    seconds = read_numbers(run.logdir / "stats.csv", ["seconds"])["seconds"].sum()
    about = {"setting": run.setting, "dataset": run.dataset, "class": run.normal, "method": run.method}
    about |= {"variant": run.variant, "seed": run.seed, "seconds": round(seconds, 1), "device": config.get("device")}
    lines = []
    for part in ({**found, "o2i": "all"}, *found.get("ranges", [])):
        if part.get("auc") is not None:
            lines.append({**about, **{name: part.get(name) for name in ("o2i", "positives", "auc", "ap")}})
            lines[-1]["localization_ap"] = part.get("localization_ap")
    return lines


def read(path: Path):
    """The table of results. BadInput when it is none."""
    numbers, gaps = ("seed", "positives", "auc", "ap", "seconds"), ("localization_ap",)
    table = read_numbers(path, numbers, gaps, TEXTS, dtype=dict.fromkeys(TEXTS, str))
    return table.fillna(dict.fromkeys(TEXTS, ""))


def update(path: Path, lines: list[dict]) -> None:
    """Add lines to the table, in place of those of the same run and range."""
    update_table(path, lines, KEY, KEY + VALUES, read)


def main(argv=None):
    args = parse_args(argv)
    runs = list(detector_trials(args))
    todo = [run for run in runs if not is_done(run)]
    print(f"anomaly ({runs[0].setting}): {len(runs)} runs, {len(todo)} to do", flush=True)
    if args.dry_run:
        for line in (shlex.join(words) for run in todo for words in run.commands()):
            print(f"python {line}")
        return
    table = args.out / "results" / "anomaly.csv"
    if table.exists():
        read(table)  # so that a damaged one is named before work begins
    failures = executors.settle_all(
        executors.run_local(todo, args.jobs), lambda run, how: None if is_done(run) else how
    )
    done = [line for run in runs if is_done(run) for line in rows(run)]
    if done:
        update(table, done)
        for path in draw(table, args.out / "figures"):
            print(f"wrote {path}")
    executors.raise_failures(failures)


def draw(path: Path, folder: Path) -> list[Path]:
    """Draw each setting of the table: a panel for each data set; returns the PNGs."""
    paths = []
    for setting, table in read(path).groupby("setting"):
        names = list(dict.fromkeys(table["dataset"]))
        canvas = Figure(figsize=(max(5.6, 4.6 * len(names)), 3.8), dpi=110, layout="constrained")
        for axis, name in zip(canvas.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            draw_panel(axis, table[table["dataset"] == name], name)
        n = table["seed"].nunique()
        seeds = "one seed" if n == 1 else f"mean and standard deviation over {n} seeds"
        canvas.suptitle(f"Anomaly detectors\nsetting: {setting}; {seeds}", fontsize=8)
        paths.append(make_folder(folder) / f"anomaly_{as_name(setting)}.png")
        pictures.write_figure(paths[-1], canvas)
    return paths


def upper_edge(o2i: str) -> float:
    """Where a range like (10-50] % or <= 0.01 % ends; all sizes come before all of them."""
    numbers = re.findall(r"[\d.]+", o2i)
    return float(numbers[-1]) if numbers else float("inf")


def draw_panel(axis, table, name: str) -> None:
    """AUC by range of the object's size, a colour for each method; over classes the mean of a seed is taken."""
    sizes = sorted(set(table["o2i"]), key=upper_edge, reverse=True)
    table = table.assign(label=(table["method"] + " " + table["variant"]).str.strip())
    labels = list(dict.fromkeys(table["label"]))
    colours, width = dict(zip(labels, sns.color_palette("colorblind", len(labels)), strict=True)), 0.8 / len(labels)
    for number, label in enumerate(labels):
        of_seeds = table[table["label"] == label].groupby(["o2i", "seed"])["auc"].mean().unstack()
        at = np.arange(len(sizes)) + (number - (len(labels) - 1) / 2) * width
        means, deviations = (getattr(of_seeds.reindex(sizes), name)(axis=1) for name in ("mean", "std"))
        axis.bar(at, means, 0.9 * width, yerr=deviations, color=colours[label], label=label, capsize=2)
    axis.axhline(CHANCE, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    axis.set_xticks(range(len(sizes)), sizes)
    axis.set(title=name, xlabel="object-to-image ratio", ylabel="AUC", ylim=(0, 1.3), xlim=(-0.7, len(sizes) - 0.3))
    axis.set_yticks(np.arange(0, 1.01, 0.25))
    axis.legend(fontsize=7, ncols=3, frameon=False, loc="upper center")
