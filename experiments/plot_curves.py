"""Draw the accuracies of runs over epochs: plot_curves.py runs/64 --out curve.png"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common import cli
from common.errors import BadInput
from common.files import check_replaceable, make_folder
from common.pictures import write_figure
from experiments.stats import read_numbers

CURVES = {"train_running_acc": "training (running)", "eval_acc": "validation", "test_acc": "test"}


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("logdirs", type=Path, nargs="+", help="run folders, each with a stats.csv")
    parser.add_argument("--out", "-o", type=Path, required=True, help="PNG to write")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_replaceable(args.out, b"\x89PNG", "a PNG")
    table = read_curves(args.logdirs)
    make_folder(args.out.absolute().parent)
    draw(table, args.out)
    print(f"wrote {args.out}")


def read_curves(logdirs: list[Path]):
    """Table with columns epoch, accuracy, split, run: one row for each value in the runs' stats.csv."""
    tables = []
    for logdir in logdirs:
        path = logdir / "stats.csv"
        if not path.exists():
            raise BadInput(f"{logdir}: no stats.csv, expected the folder of a run")
        stats = read_numbers(path, ["epoch"], list(CURVES)).rename(columns=CURVES)
        curves = stats.melt("epoch", list(CURVES.values()), "split", "accuracy").dropna()
        tables.append(curves.assign(run=logdir.name))
    return pd.concat(tables, ignore_index=True)


def draw(table, path: Path) -> None:
    """Write accuracy over epochs as PNG, a colour per split, a dash pattern per run, chance as a grey line."""
    figure = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
    axis = figure.subplots()
    style = {"style": "run"} if table["run"].nunique() > 1 else {}
    sns.lineplot(table, x="epoch", y="accuracy", hue="split", palette="colorblind", marker="o", ax=axis, **style)
    axis.axhline(0.5, color="grey", linewidth=0.8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    first, last = table["epoch"].min(), table["epoch"].max()
    axis.set(xlabel="epoch", ylabel="accuracy", xlim=(first - 0.5, last + 0.5))
    write_figure(path, figure)


if __name__ == "__main__":
    cli.run(main)
