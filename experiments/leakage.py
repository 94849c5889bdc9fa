"""The figure `leakage`: test accuracy of one classifier on the same crops, split by centre, by slide and at random.

    run_experiments.py leakage

The crops are of made slides: a check of the programs, no result. A random split leaves crops of one lesion on both
sides, so what accuracy gains by it is memory. audit_leakage.py says of each split how many test crops it flags.
"""

import shlex
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common import cli
from common.files import make_folder, make_subfolder, read_json, write_csv
from common.pictures import write_figure
from experiments import made, plot_results
from experiments.runs import Children
from experiments.stats import read_numbers

NAME, BY = "leakage", ("centre", "slide", "random")
SEEDS, EPOCHS = 3, 8
SLIDES = "--own_tissue --annotated 2 --negative 2"
SIZE, RATIO, K = 64, "0.005_0.02", (20, 60)  # px of a crop, its O2I, and crops of a lesion and of a healthy slide
TRAIN = "--width -3 --norm bn --opt adam --lr 2e-3 -b 16 --receptive_field 33 --workers 0"
COLUMNS = ("by", "seed", "epochs", "best_epoch", "train_acc", "val_acc", "test_acc", "test_auc", "flagged", "seconds")


def parse_args(argv=None):
    parser = cli.ArgumentParser(prog=f"run_experiments.py {NAME}", description=__doc__)
    parser.add_argument("--seeds", type=cli.positive, default=SEEDS, help="how many seeds")
    parser.add_argument("--epochs", "-e", type=cli.positive, default=EPOCHS, help="epochs of each run")
    parser.add_argument("--root", type=cli.path, default=Path("runs/paper"), help="folder of crops and run folders")
    plot_results.add_out_flag(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Make crops, then split, train and audit what is not done yet; write the table and draw it."""
    args = parse_args(argv)
    data, children, out = make_folder(args.root.absolute() / NAME), Children(), args.out
    made.make_crops(data, children, SLIDES, SIZE, RATIO, K)
    folders = made.crop_flags(data, SIZE, RATIO)
    plans, rows = [(by, seed) for seed in range(1, args.seeds + 1) for by in BY], []
    for by, seed in cli.progress(plans, len(plans), NAME, "runs"):
        rows.append(run_one(data, children, folders, by, seed, args.epochs))
        print(f"done      {NAME}, split by {by}, seed {seed}: test accuracy {rows[-1]['test_acc']:.3f}", flush=True)
    write_csv(make_subfolder(make_folder(out), "results") / f"{NAME}.csv", rows, COLUMNS)
    picture = make_subfolder(out, "figures") / f"{NAME}.png"
    draw(rows, picture)
    print(f"wrote {picture}")


def run_one(data: Path, children: Children, folders: str, by: str, seed: int, epochs: int) -> dict:
    """Split, train and audit; returns the row of the table."""
    place = data / f"{by}_seed{seed}"
    splits, logdir, audit = (shlex.quote(str(place / name)) for name in ("splits.csv", "run", "audit"))
    make_folder(place)
    made.call(
        children, f"retrieval/split_crops.py {folders} --by {by} --seed {seed} --out {splits} --fractions .6,.2,.2"
    )
    made.call(
        children, f"train_camelyon.py {folders} --splits {splits} --logdir {logdir} --seed {seed} -e {epochs} {TRAIN}"
    )
    made.call(children, f"audit_leakage.py {folders} --splits {splits} --k 1 --out {audit} --workers 0")
    needed = ["epoch", "eval_acc", "seconds"]
    stats = read_numbers(place / "run" / "stats.csv", needed, ["train_acc", "test_acc", "test_auc"]).head(epochs)
    best = stats.loc[stats["eval_acc"].idxmax()]
    scores = {name: round(float(best[name]), 5) for name in ("train_acc", "test_acc", "test_auc")}
    flagged = read_json(place / "audit" / "summary.json")["splits"]["test"]["near_duplicates"]["share"]
    row = {
        "by": by,
        "seed": seed,
        "epochs": epochs,
        "best_epoch": int(best["epoch"]),
        "val_acc": round(best["eval_acc"], 5),
    }
    return row | scores | {"flagged": round(flagged, 5), "seconds": round(stats["seconds"].sum(), 1)}


def draw(rows: list[dict], path: Path) -> None:
    """Write test accuracy and the share that the audit flags: a line at the mean over seeds, a dot for each seed."""
    canvas = Figure(figsize=(7.2, 3.4), dpi=110, layout="constrained")
    panels = {"test_acc": "test accuracy", "flagged": "test crops that the audit flags"}
    for axis, (column, label) in zip(canvas.subplots(1, 2), panels.items(), strict=True):
        for at, by in enumerate(BY):
            values = np.array([row[column] for row in rows if row["by"] == by])
            axis.hlines(values.mean(), at - 0.3, at + 0.3, color="#0072b2", linewidth=3)
            axis.plot(np.full(len(values), at), values, "o", color="black", markersize=4)
            axis.annotate(f"{values.mean():.3f}", (at, values.max() + 0.03), ha="center", fontsize=8)
        axis.set_xticks(range(len(BY)), [f"by {by}" if by != "random" else "at random" for by in BY])
        axis.set(ylabel=label, ylim=(0, 1.1))
    n = len({row["seed"] for row in rows})
    canvas.suptitle(f"{made.TITLE.capitalize()}, no result. One classifier, {n} seeds", fontsize=9)
    write_figure(path, canvas)
