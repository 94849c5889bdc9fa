"""Finished runs -> experiments/results/{figure}.csv, a row each: all that figures, claims and tables are made from."""

from dataclasses import asdict
from pathlib import Path

from common.errors import BadInput
from common.files import read_json
from experiments import runs
from experiments.runs import Trial
from experiments.stats import read_numbers, update_table

FITS = 0.99  # a run fits when its running training accuracy exceeds this in some epoch
LEVELS = (0.7, 0.85)  # validation accuracies of figures 6 and 15
LEARNT = 0.7  # figures 6, 14 and 15 count runs above this training accuracy
CONFIGURATION = (
    "setting",
    "data",
    "canvas",
    "ratio",
    "o2i",
    "clutter",
    "num_examples",
    "balance",
    "receptive_field",
    "pooling",
    "width",
    "precision",
    "norm",
    "opt",
    "lr",
    "batch_size",
    "scale",
    "epochs",
    "seed",
)
SCORES = (
    "best_epoch",
    "train_acc",
    "val_acc",
    "test_acc",
    "test_auc",
    "fits",
    "epochs_to_fit",
    "mean_running_acc",
    "localization_ap",
    "seconds",
    "device",
)
CURVE = ("epoch", "train_running_acc", "val_acc")
TEXTS = ("setting", "data", "ratio", "o2i", "pooling", "precision", "norm", "opt", "device")
O2I = r"(\d+\.?\d*-)?\d+\.?\d*"  # percent, or a range
GAPS = ("clutter", "num_examples", "epochs_to_fit", "test_auc", "localization_ap")  # numbers that a row may lack


def configuration(run: Trial) -> dict:
    """The columns that tell runs apart."""
    point, setting = run.point, run.setting
    known = asdict(setting) | asdict(point) | {"o2i": point.o2i, "seed": run.seed, "epochs": run.epochs}
    known |= {"setting": setting.label, "clutter": None if point.data != "nmnist" else runs.clutter(point, setting)}
    return {name: known[name] for name in CONFIGURATION}


def row(run: Trial) -> dict:
    """A finished run's line of the results."""
    stats = runs.history(run)
    best = stats.loc[stats["eval_acc"].idxmax()]
    if best[["train_acc", "test_acc"]].isna().any():
        raise BadInput(f"{run.logdir / 'stats.csv'}: no train_acc or test_acc in epoch {best['epoch']:g}, the best")
    fitted = stats["epoch"][stats["train_running_acc"] > FITS]
    device = read_json(run.logdir / "config.json").get("device")
    if not isinstance(device, str):
        raise BadInput(f"{run.logdir / 'config.json'}: device is {device!r}, expected a name")
    return configuration(run) | {
        "best_epoch": int(best["epoch"]),
        "train_acc": best["train_acc"],
        "val_acc": best["eval_acc"],
        "test_acc": best["test_acc"],
        "test_auc": best["test_auc"],
        "fits": len(fitted) > 0,
        "epochs_to_fit": None if fitted.empty else int(fitted.iloc[0]),
        "mean_running_acc": stats["train_running_acc"].mean(),
        "localization_ap": runs.localization(run),
        "seconds": round(stats["seconds"].sum(), 1),
        "device": device,
    }


def curve(run: Trial) -> list[dict]:
    """A finished run's epochs, a line each."""
    stats = runs.history(run).rename(columns={"eval_acc": "val_acc"})
    return [configuration(run) | line for line in stats[list(CURVE)].to_dict("records")]


def update(path: Path, rows: list[dict], columns=CONFIGURATION + SCORES) -> None:
    """Add rows to a table, in place of those of the same configuration (and epoch), sorted."""
    key = [name for name in (*CONFIGURATION, "epoch") if name in columns]
    update_table(path, rows, key, columns, lambda path: read(path, columns).fillna({"ratio": ""}))


def path_of(out: Path, name: str) -> Path:
    """Where the results of a figure lie."""
    return out / "results" / f"{name}.csv"


def load(out: Path, name: str, columns=CONFIGURATION + SCORES):
    """A figure's table of results, None when there is none."""
    path = path_of(out, name)
    return read(path, columns) if path.exists() else None


def load_curves(out: Path, name: str):
    """A figure's table of epochs, None when there is none."""
    return load(out, f"{name}_curves", CONFIGURATION + CURVE)


def read(path: Path, columns=CONFIGURATION + SCORES):
    """A table of results. BadInput when it has no rows, a column is missing or holds what does not belong there."""
    texts, gaps = [name for name in columns if name in TEXTS], [name for name in columns if name in GAPS]
    numbers = [name for name in columns if name not in (*TEXTS, *GAPS)]
    table = read_numbers(path, numbers, gaps, texts, dtype=dict.fromkeys(TEXTS, str))
    for name in texts:
        if name != "ratio" and not table[name].fillna("").str.fullmatch(O2I if name == "o2i" else ".+").all():
            raise BadInput(f"{path}: no table of results, by its column {name}")
    return table.astype({"fits": bool}) if "fits" in columns else table


def validation_means(table):
    """Mean validation accuracy of the runs above LEARNT: a row per training-set size, a column per O2I."""
    rows = table[table["train_acc"] > LEARNT]
    return rows.pivot_table(index="num_examples", columns="o2i", values="val_acc", aggfunc="mean")


def smallest_sets(table, level: float) -> dict[str, float]:
    """O2I -> the smallest training set whose mean validation accuracy reaches the level, infinity when none does."""
    means, sizes = validation_means(table), dict.fromkeys(table["o2i"], float("inf"))
    return sizes | {
        ratio: float(means.index[means[ratio] >= level].min()) for ratio in means if (means[ratio] >= level).any()
    }
