"""A table of results -> what a panel shows (as a table) -> the panel."""

import textwrap
from pathlib import Path

import numpy as np

from common.files import atomic_open, make_folder, make_subfolder
from experiments.figures import LABELS, Figure, View
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


def bars(table, view: View):
    """Columns x, hue, height, sd, runs, fitted, hatched: the mean over the runs of a bar that fit the training data.

    Where none fits the bar is hatched: an accuracy is then the random one, anything else the mean of all runs
    (epochs that did not suffice where it counts epochs).
    """
    import pandas as pd

    found = []
    for (x, hue), rows in table.groupby([view.x, view.hue or "data"]):
        fitted = rows[rows["fits"]]
        shown = rows if fitted.empty else fitted
        values = shown["epochs" if fitted.empty and view.metric == "epochs_to_fit" else view.metric]
        height, sd = values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan
        if fitted.empty and view.metric.endswith("_acc"):
            height = CHANCE
        if view.kind == "count":
            height = len(fitted)
        if view.kind == "count" or fitted.empty:
            sd = np.nan
        bar = {"x": x, "hue": hue, "height": height, "sd": sd, "runs": len(rows), "fitted": len(fitted)}
        found.append(bar | {"hatched": fitted.empty and view.kind != "count"})
    return pd.DataFrame(found)


def thresholds(table):
    """Columns o2i, pooling, level, size: the smallest training set that reaches the level; infinity: none does."""
    import pandas as pd

    found = []
    for pooling, rows in table.groupby("pooling"):
        for level in LEVELS:
            sizes = smallest_sets(rows, level)
            found += [{"o2i": o2i, "pooling": pooling, "level": level, "size": size} for o2i, size in sizes.items()]
    return pd.DataFrame(found)


def draw(figure: Figure, table, curves, path: Path) -> None:
    """Write the panels for which there are results as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    views = [view for view in figure.views if len(select(table, view))]
    columns = min(3, len(views)) if len(views) != 4 else 2
    rows = -(-len(views) // columns)
    canvas = Canvas(
        figsize=(max(5.6, PANEL_SIZE[0] * columns), PANEL_SIZE[1] * rows + 0.6), dpi=110, layout="constrained"
    )
    axes = np.ravel(canvas.subplots(rows, columns, squeeze=False))
    for axis, view in zip(axes, views, strict=False):
        source = curves if view.kind == "curves" else table
        {"heat": draw_heat, "smallest": draw_smallest, "curves": draw_curves}.get(view.kind, draw_bars)(
            axis, select(source, view), view
        )
        made = (select(table, view)["data"] == "made").any()
        axis.set_title("made slides: a check of the programs, no result" if made else view.title, fontsize=10)
    for axis in axes[len(views) :]:
        axis.remove()
    words = "\n".join(textwrap.wrap(describe(table), int(17 * canvas.get_figwidth())))
    canvas.suptitle(f"{figure.title}\n{words}", fontsize=8)
    make_subfolder(make_folder(path.parent.parent), path.parent.name)
    with atomic_open(path) as file:
        FigureCanvasAgg(canvas).print_png(file)


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
    import seaborn as sns

    return dict(zip(values, sns.color_palette("colorblind", len(values)), strict=True))


def draw_bars(axis, table, view: View) -> None:
    """Grouped bars with standard deviations; hatched where no run fits, with "1/3" above where only some do."""
    shown = bars(table, view)
    xs, hues = in_order(shown["x"]), in_order(shown["hue"])
    palette, width = colours(hues), 0.8 / len(hues)
    for bar in shown.to_dict("records"):
        colour = palette[bar["hue"]]
        at = xs.index(bar["x"]) + (hues.index(bar["hue"]) - (len(hues) - 1) / 2) * width
        style = {"hatch": "///", "facecolor": "white"} if bar["hatched"] else {"facecolor": colour}
        style |= {"edgecolor": colour, "ecolor": "black", "capsize": 2, "yerr": bar["sd"]}
        axis.bar(at, bar["height"], 0.9 * width, **style)
        if 0 < bar["fitted"] < bar["runs"] and view.kind != "count":
            top = at, bar["height"] + np.nan_to_num(bar["sd"])
            text = {"ha": "center", "fontsize": 7, "textcoords": "offset points"}
            axis.annotate(f"{bar['fitted']}/{bar['runs']}", top, (0, 2), **text)
    axis.set_xticks(range(len(xs)), [f"{x}" if isinstance(x, str) else f"{x:g}" for x in xs])
    margin = max(0.5, 1.5 - 0.5 * len(xs))  # few bars are not to be wide
    axis.set(xlabel=LABELS[view.x], ylabel=LABELS[view.metric], xlim=(-margin, len(xs) - 1 + margin))
    add_range(axis, view, shown)
    if view.hue:
        add_legend(axis, palette, view.hue, shown["hatched"].any())


def add_range(axis, view: View, shown) -> None:
    """Accuracies from below chance, which is marked, to 1; whole numbers of runs; room for the legend on top."""
    top = np.nanmax(shown["height"] + shown["sd"].fillna(0))
    if view.metric.endswith("_acc"):
        axis.set_ylim(0.4, 1.12 if view.hue else 1.02)
        axis.set_yticks(np.arange(0.4, 1.01, 0.1))
        axis.axhline(CHANCE, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    elif view.kind == "count":
        axis.set_ylim(0, 1.25 * shown["runs"].max())
        axis.set_yticks(range(shown["runs"].max() + 1))
    else:
        axis.set_ylim(0, 1.25 * top or 1)


def add_legend(axis, palette, hue, hatched) -> None:
    """Colours of the bars, and what hatching means."""
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=f"{value}") for value, colour in palette.items()]
    if hatched:
        patches.append(Patch(facecolor="white", edgecolor="grey", hatch="///", label="no run fits"))
    style = {"fontsize": 7, "title_fontsize": 7, "loc": "upper center", "ncols": 3 if len(patches) > 5 else 5}
    axis.legend(handles=patches, title=LABELS[hue], frameon=False, columnspacing=1, handlelength=1.2, **style)


def draw_heat(axis, table, view: View) -> None:
    """Mean validation accuracy over all runs above 70 % training accuracy."""
    import seaborn as sns

    means = validation_means(table)
    means = means[in_order(means.columns)].sort_index(ascending=False)
    means.index = [f"{size:g}" for size in means.index]
    style = {"annot": True, "fmt": ".2f", "cmap": "viridis", "cbar_kws": {"label": LABELS["val_acc"]}}
    sns.heatmap(means, vmin=CHANCE, vmax=1, ax=axis, **style)
    axis.tick_params(axis="y", rotation=0)
    axis.set(xlabel=LABELS["o2i"], ylabel=LABELS["num_examples"])


def draw_smallest(axis, table, view: View) -> None:
    """Smallest training set that reaches 70 % (solid) and 85 % (dashed); where none does there is no marker."""
    import seaborn as sns

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
    """The metric over epochs: mean and standard deviation over seeds."""
    import seaborn as sns

    palette = colours(in_order(table[view.hue]))
    sns.lineplot(table, x="epoch", y=view.metric, hue=view.hue, errorbar="sd", palette=palette, ax=axis)
    axis.set(xlabel=LABELS["epoch"], ylabel=LABELS[view.metric])
