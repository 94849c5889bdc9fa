"""A table of results -> what a panel shows (as a table) -> the panel."""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from common.files import make_folder, make_subfolder
from common.pictures import write_figure
from experiments.figures import LABELS, PAPER, Figure, View
from experiments.results import LEVELS, smallest_sets, validation_means
from models.needle import POOLINGS

CHANCE = 0.5
POINT = ("data", "canvas", "ratio", "num_examples", "balance", "receptive_field", "pooling", "width", "precision")
PANEL_SIZE = (4.6, 3.4)  # inches


def select(table, view: View):
    """The rows a panel shows; crops of made slides stand in for nCAMELYON, and the panel's title says so."""
    for column, value in view.where:
        table = table[table[column].isin(["ncamelyon", "made"] if value == "ncamelyon" else [value])]
    return table


def means(table, view: View):
    """Columns x, hue, mean, sd, runs, fitted, hollow: the mean over the runs of a point that fit the training data.

    Where none fits the point is hollow: an accuracy at Pawlowski 2019's setting is then the random one, as there,
    anything else the mean of all runs (epochs that did not suffice where it counts epochs). Where runs are counted, the
    mean is their number. sd: NaN for what is no mean of several runs.
    """
    found = []
    for (x, hue), rows in table.groupby([view.x, view.hue or "data"]):
        fitted = rows[rows["fits"]]
        shown = rows if fitted.empty else fitted
        values = shown["epochs" if fitted.empty and view.metric == "epochs_to_fit" else view.metric]
        mean, sd = values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan
        if fitted.empty and view.metric.endswith("_acc") and (rows["setting"] == PAPER.label).all():
            mean, sd = CHANCE, np.nan
        if view.kind == "count":
            mean, sd = len(fitted), np.nan
        point = {"x": x, "hue": hue, "mean": mean, "sd": sd, "runs": len(rows), "fitted": len(fitted)}
        found.append(point | {"hollow": fitted.empty and view.kind != "count"})
    return pd.DataFrame(found)


def thresholds(table):
    """Columns o2i, pooling, level, size: the smallest training set that reaches the level; infinity: none does."""
    found = []
    for pooling, rows in table.groupby("pooling"):
        for level in LEVELS:
            sizes = smallest_sets(rows, level)
            found += [{"o2i": o2i, "pooling": pooling, "level": level, "size": size} for o2i, size in sizes.items()]
    return pd.DataFrame(found)


def draw(figure: Figure, table, curves, path: Path) -> None:
    """Write the panels for which there are results as PNG."""
    views = [view for view in figure.views if len(select(table, view))]
    columns = min(3, len(views)) if len(views) != 4 else 2
    rows = -(-len(views) // columns)
    canvas = Canvas(
        figsize=(max(5.6, PANEL_SIZE[0] * columns), PANEL_SIZE[1] * rows + 0.6), dpi=110, layout="constrained"
    )
    axes = np.ravel(canvas.subplots(rows, columns, squeeze=False))
    for axis, view in zip(axes, views, strict=False):
        source = curves if view.kind == "curves" else table
        {"heat": draw_heat, "smallest": draw_smallest, "curves": draw_curves}.get(view.kind, draw_points)(
            axis, select(source, view), view
        )
        made = (select(table, view)["data"] == "made").any()
        axis.set_title("made slides: a check of the programs, no result" if made else view.title, fontsize=10)
    for axis in axes[len(views) :]:
        axis.remove()
    words = "\n".join(textwrap.wrap(describe(table), int(17 * canvas.get_figwidth())))
    canvas.suptitle(f"{figure.title}\n{words}", fontsize=8)
    make_subfolder(make_folder(path.parent.parent), path.parent.name)
    write_figure(path, canvas)


def describe(table) -> str:
    """The setting in words and the number of seeds."""
    first = table.iloc[0]
    seeds = table.groupby(list(POINT), dropna=False)["seed"].nunique()
    count = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    widths, sizes, epochs = (
        " / ".join(f"{value:g}" for value in sorted(table[name].dropna().unique()))
        for name in ("width", "num_examples", "epochs")
    )
    return (
        f"setting: {first['setting']} (width {widths}, {sizes or 'all'} training images, {first['norm']},"
        f" {first['opt']} {first['lr']:g}, {epochs} epochs, images x {first['scale']:g});"
        f" mean and standard deviation over {count} seeds"
    )


def in_order(values) -> list:
    """O2I from large to small, numbers ascending, poolings as Pawlowski 2019 lists them."""
    values = list(dict.fromkeys(values))
    if set(values) <= set(POOLINGS):
        return sorted(values, key=POOLINGS.index)
    if all(isinstance(value, str) and value[0].isdigit() for value in values):
        return sorted(values, key=lambda text: -float(text.split("-")[-1]))
    return sorted(values)


def colours(values) -> dict:
    """Colours that the colour-blind tell apart; the two oranges of the palette lie far apart in it."""
    palette = sns.color_palette("colorblind")
    ordered = [palette[i] for i in (0, 1, 2, 4, 7, 9, 8, 5, 6, 3)]
    return dict(zip(values, ordered, strict=False))


def draw_points(axis, table, view: View) -> None:
    """Means with standard deviations between the single seeds; hollow ones did not fit the training data."""
    shown = means(table, view)
    xs, hues = in_order(shown["x"]), in_order(shown["hue"])
    palette, width = colours(hues), 0.8 / len(hues)
    runs = dict(list(table.groupby([view.x, view.hue or "data"])))
    for point in shown.to_dict("records"):
        at = xs.index(point["x"]) + (hues.index(point["hue"]) - (len(hues) - 1) / 2) * width
        if view.kind == "count":
            axis.bar(at, point["mean"], 0.9 * width, color=palette[point["hue"]])
        else:
            draw_seeds(axis, runs[point["x"], point["hue"]], view.metric, at, width, palette[point["hue"]])
            draw_mean(axis, point, at, width, palette[point["hue"]])
    axis.set_xticks(range(len(xs)), [f"{x}" if isinstance(x, str) else f"{x:g}" for x in xs])
    margin = max(0.5, 1.5 - 0.5 * len(xs))  # few points are not to lie far apart
    axis.set(xlabel=LABELS[view.x], ylabel=LABELS[view.metric], xlim=(-margin, len(xs) - 1 + margin))
    add_range(axis, view, shown, table)
    hollow = view.kind != "count" and not table["fits"].all()
    if view.hue or hollow:
        add_legend(axis, palette if view.hue else {}, view.hue, hollow)


def draw_seeds(axis, runs, metric: str, at: float, width: float, colour) -> None:
    """A dot for each seed, side by side around `at`, hollow where the run does not fit."""
    places = at + np.linspace(-0.3, 0.3, len(runs)) * width if len(runs) > 1 else [at]
    faces = [colour if fits else "white" for fits in runs["fits"]]
    axis.scatter(places, runs[metric], 22, color=faces, edgecolors=[colour], linewidths=1, alpha=0.8, zorder=3)


def draw_mean(axis, point: dict, at: float, width: float, colour) -> None:
    """A line at the mean, dashed where no run fits, with its standard deviation and "1/3" where only some runs fit."""
    style = "--" if point["hollow"] else "-"
    axis.hlines(point["mean"], at - 0.4 * width, at + 0.4 * width, color=colour, linestyle=style, linewidth=2)
    axis.errorbar(at, point["mean"], np.nan_to_num(point["sd"]), color="black", capsize=2, linewidth=0.8, zorder=2)
    if 0 < point["fitted"] < point["runs"]:
        top = at, point["mean"] + np.nan_to_num(point["sd"])
        text = {"ha": "center", "fontsize": 7, "textcoords": "offset points"}
        axis.annotate(f"{point['fitted']}/{point['runs']}", top, (0, 6), **text)


def add_range(axis, view: View, shown, table) -> None:
    """Accuracies from below chance, which is marked, to 1; whole numbers of runs; room for the legend on top."""
    if view.metric.endswith("_acc"):
        axis.set_ylim(0.4, 1.16 if view.hue else 1.02)
        axis.set_yticks(np.arange(0.4, 1.01, 0.1))
        axis.axhline(CHANCE, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    elif view.kind == "count":
        axis.set_ylim(0, 1.25 * shown["runs"].max())
        axis.set_yticks(range(shown["runs"].max() + 1))
    else:
        top = np.nanmax([*table[view.metric], *(shown["mean"] + shown["sd"].fillna(0))])
        axis.set_ylim(0, 1.25 * top or 1)
        if view.metric == "localization_ap":  # which ends at 1, whatever room the legend takes
            axis.set_yticks([tick for tick in axis.get_yticks() if tick <= min(1, axis.get_ylim()[1])])


def add_legend(axis, palette: dict, hue: str | None, hollow: bool) -> None:
    """Colours of the points, and what hollow ones mean."""
    dot = {"marker": "o", "linestyle": "", "markersize": 5}
    entries = [Line2D([], [], color=colour, label=f"{value}", **dot) for value, colour in palette.items()]
    if hollow:
        entries.append(Line2D([], [], color="grey", markerfacecolor="white", label="does not fit", **dot))
    style = {"fontsize": 7, "title_fontsize": 7, "loc": "upper center", "ncols": 3 if len(entries) > 5 else 5}
    axis.legend(handles=entries, title=LABELS.get(hue), frameon=False, columnspacing=1, handlelength=1.2, **style)


def draw_heat(axis, table, view: View) -> None:
    """Mean validation accuracy over all runs above 70 % training accuracy."""
    accuracies = validation_means(table)
    accuracies = accuracies[in_order(accuracies.columns)].sort_index(ascending=False)
    accuracies.index = [f"{size:g}" for size in accuracies.index]
    style = {"annot": True, "fmt": ".2f", "cmap": "viridis", "cbar_kws": {"label": LABELS["val_acc"]}}
    sns.heatmap(accuracies, vmin=CHANCE, vmax=1, ax=axis, **style)
    axis.tick_params(axis="y", rotation=0)
    axis.set(xlabel=LABELS["o2i"], ylabel=LABELS["num_examples"])


def draw_smallest(axis, table, view: View) -> None:
    """Smallest training set that reaches 70 % (solid) and 85 % (dashed); where none does there is no marker."""
    shown = thresholds(table)
    order, hues, sizes = in_order(shown["o2i"]), in_order(shown["pooling"]), sorted(table["num_examples"].unique())
    shown["place"], shown["accuracy"] = shown["o2i"].map(order.index), shown["level"].map("{:.0%}".format)
    style = {"hue": "pooling", "hue_order": hues, "palette": colours(hues), "style": "accuracy", "markers": True}
    sns.lineplot(shown[np.isfinite(shown["size"])], x="place", y="size", ax=axis, **style)
    axis.set_yscale("log")
    axis.set_yticks(sizes, [f"{size:g}" for size in sizes])
    axis.minorticks_off()
    axis.set_xticks(range(len(order)), order)
    axis.set(xlabel=LABELS["o2i"], ylabel=LABELS["num_examples"], xlim=(-0.3, len(order) - 0.7))
    if axis.get_legend():
        axis.legend(fontsize=7, loc="lower right", framealpha=0.8)


def draw_curves(axis, table, view: View) -> None:
    """The metric's mean over seeds in every epoch; at the last one also its standard deviation."""
    palette = colours(in_order(table[view.hue]))
    sns.lineplot(table, x="epoch", y=view.metric, hue=view.hue, errorbar=None, palette=palette, ax=axis)
    last = table[table["epoch"] == table["epoch"].max()]
    for i, (value, colour) in enumerate(palette.items()):
        ends = last[last[view.hue] == value][view.metric]
        at = table["epoch"].max() * (1.02 + 0.02 * i)
        axis.errorbar(at, ends.mean(), ends.std(ddof=1), color=colour, capsize=2, marker="o", markersize=3)
    axis.set(xlabel=LABELS["epoch"], ylabel=LABELS[view.metric])
