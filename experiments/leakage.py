"""The figure `leakage`: test accuracy of one classifier on the same crops, split by centre, by slide and at random.

    run_experiments.py leakage

The crops are of made slides: a check of the programs, no result. A random split leaves crops of one lesion on both
sides, so what accuracy gains by it is memory. audit_leakage.py says of each split how many test crops it flags.
"""

import shlex
import subprocess
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common import cli
from common.errors import WorkFailed
from common.files import atomic_open, make_folder, make_subfolder, read_json, write_csv
from experiments.runs import Children
from experiments.stats import read_numbers

NAME, BY = "leakage", ("centre", "slide", "random")
SEEDS, EPOCHS = 3, 8
SLIDES = "--own_tissue --annotated 2 --negative 2"
POSITIVES, NEGATIVES = "--low_roir 0.005 --high_roir 0.02 --k 20", "--k 60"
RATIO = "level3_size_64_ratio_0.005_0.02"  # folder of the positives
TRAIN = "--width -3 --norm bn --opt adam --lr 2e-3 -b 16 --receptive_field 33 --workers 0"
COLUMNS = ("by", "seed", "epochs", "best_epoch", "train_acc", "val_acc", "test_acc", "test_auc", "flagged", "seconds")


def run(root: Path, out: Path, seeds: int | None, epochs: int | None) -> None:
    """Make crops, then split, train and audit what is not done yet; write the table and draw it."""
    data, children = make_folder(root.absolute() / NAME), Children()
    folders = make_crops(data, children)
    plans, rows = [(by, seed) for seed in range(1, (seeds or SEEDS) + 1) for by in BY], []
    for by, seed in cli.progress(plans, len(plans), NAME, "runs"):
        rows.append(run_one(data, children, folders, by, seed, epochs or EPOCHS))
        print(f"done      {NAME}, split by {by}, seed {seed}: test accuracy {rows[-1]['test_acc']:.3f}", flush=True)
    write_csv(make_subfolder(make_folder(out), "results") / f"{NAME}.csv", rows, COLUMNS)
    picture = make_subfolder(out, "figures") / f"{NAME}.png"
    draw(rows, picture)
    print(f"wrote {picture}")


def call(children: Children, line: str) -> None:
    """Run a script of the project in silence. WorkFailed when it fails."""
    code = children.call(shlex.split(line), stdout=subprocess.DEVNULL)
    if code:
        raise WorkFailed(f"{line.split()[0]} ended with exit code {code}; the same command continues")


def make_crops(data: Path, children: Children) -> str:
    """Made slides and their crops, as flags that name them."""
    made, positives, negatives = (shlex.quote(str(data / name)) for name in ("slides", "pos", "neg"))
    base = f"--base_path {made}/training --size 64 --workers 1"
    call(children, f"data/camelyon/make_slides.py --out {made} --workers 1 {SLIDES}")
    call(children, f"extract_basic_pos_crops.py --data {made}/annotations {base} {POSITIVES} --save_dir {positives}")
    call(
        children,
        f"extract_basic_neg_crops.py --label_path {made}/stage_labels.csv {base} {NEGATIVES} --save_dir {negatives}",
    )
    return f"--pos_path {positives}/{RATIO} --neg_path {negatives}"


def run_one(data: Path, children: Children, folders: str, by: str, seed: int, epochs: int) -> dict:
    """Split, train and audit; returns the row of the table."""
    place = data / f"{by}_seed{seed}"
    splits, logdir, audit = (shlex.quote(str(place / name)) for name in ("splits.csv", "run", "audit"))
    make_folder(place)
    call(children, f"retrieval/split_crops.py {folders} --by {by} --seed {seed} --out {splits} --fractions .6,.2,.2")
    call(children, f"train_camelyon.py {folders} --splits {splits} --logdir {logdir} --seed {seed} -e {epochs} {TRAIN}")
    call(children, f"audit_leakage.py {folders} --splits {splits} --k 1 --out {audit} --workers 0")
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
    """Write test accuracy and the share that the audit flags: bars of the means over seeds, a dot for each seed."""
    canvas = Figure(figsize=(7.2, 3.4), dpi=110, layout="constrained")
    panels = {"test_acc": "test accuracy", "flagged": "test crops that the audit flags"}
    for axis, (column, label) in zip(canvas.subplots(1, 2), panels.items(), strict=True):
        for at, by in enumerate(BY):
            values = np.array([row[column] for row in rows if row["by"] == by])
            axis.bar(at, values.mean(), 0.6, color="#9ecae1")
            axis.plot(np.full(len(values), at), values, "o", color="black", markersize=4)
            axis.annotate(f"{values.mean():.3f}", (at, values.max() + 0.03), ha="center", fontsize=8)
        axis.set_xticks(range(len(BY)), [f"by {by}" if by != "random" else "at random" for by in BY])
        axis.set(ylabel=label, ylim=(0, 1.1))
    n = len({row["seed"] for row in rows})
    canvas.suptitle(f"Made slides: a check of the programs, no result. One classifier, {n} seeds", fontsize=9)
    with atomic_open(path) as file:
        FigureCanvasAgg(canvas).print_png(file)
