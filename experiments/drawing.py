"""A table of results -> what a panel shows (as a table) -> the panel."""

import textwrap
from pathlib import Path

import numpy as np

from common.files import atomic_open
from experiments.figures import LABELS, Figure, View
from experiments.results import LEVELS, smallest_sets, validation_means
from models import POOLINGS

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
            height, sd = CHANCE, np.nan
        if view.kind == "count":
            height, sd = len(fitted), np.nan
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
        made = ", made slides: a check of the programs only" if (select(table, view)["data"] == "made").any() else ""
        axis.set_title(f"{view.title}{made}", fontsize=10)
    for axis in axes[len(views) :]:
        axis.remove()
    canvas.suptitle(f"{figure.title}\n{describe(table)}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        FigureCanvasAgg(canvas).print_png(file)


def describe(table) -> str:
    """The setting in words and the number of seeds."""
    first = table.iloc[0]
    seeds = table.groupby(list(POINT), dropna=False)["seed"].nunique()
    count = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    widths, sizes = (
        " / ".join(f"{v:g}" for v in sorted(table[name].dropna().unique())) for name in ("width", "num_examples")
    )
    text = (
        f"setting: {first['setting']} (width {widths}, {sizes or 'all'} training images, {first['norm']},"
        f" {first['opt']} {first['lr']:g}, {table['epochs'].max()} epochs, images x {first['scale']:g});"
        f" mean and standard deviation over {count} seeds"
    )
    return "\n".join(textwrap.wrap(text, 90))


def in_order(values) -> list:
    """O2I from large to small, numbers ascending, poolings as the paper lists them."""
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
        at = xs.index(bar["x"]) + (hues.index(bar["hue"]) - (len(hues) - 1) / 2) * width
        style = {"hatch": "///", "facecolor": "white"} if bar["hatched"] else {"facecolor": palette[bar["hue"]]}
        axis.bar(
            at,
            bar["height"],
            0.9 * width,
            yerr=bar["sd"],
            capsize=2,
            edgecolor=palette[bar["hue"]],
            ecolor="black",
            **style,
        )
        if bar["fitted"] < bar["runs"] and view.kind != "count":
            top = bar["height"] + np.nan_to_num(bar["sd"])
            axis.annotate(
                f"{bar['fitted']}/{bar['runs']}", (at, top), (0, 2), textcoords="offset points", ha="center", fontsize=7
            )
    axis.set_xticks(range(len(xs)), [f"{x}" if isinstance(x, str) else f"{x:g}" for x in xs])
    axis.set(xlabel=LABELS[view.x], ylabel=LABELS[view.metric])
    if view.metric.endswith("_acc"):
        axis.set_ylim(0.4, 1.02)
        axis.axhline(CHANCE, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    if view.hue:
        add_legend(axis, palette, view.hue, shown["hatched"].any())


def add_legend(axis, palette, hue, hatched) -> None:
    """Colours of the bars, and what hatching means."""
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=f"{value}") for value, colour in palette.items()]
    if hatched:
        patches.append(Patch(facecolor="white", edgecolor="grey", hatch="///", label="no run fits"))
    axis.legend(handles=patches, title=LABELS[hue], fontsize=7, title_fontsize=7, framealpha=0.8)


def draw_heat(axis, table, view: View) -> None:
    """Mean validation accuracy over all runs above 70 % training accuracy."""
    import seaborn as sns

    means = validation_means(table)
    means = means[in_order(means.columns)].sort_index(ascending=False)
    means.index = [f"{size:g}" for size in means.index]
    sns.heatmap(
        means,
        vmin=CHANCE,
        vmax=1,
        annot=True,
        fmt=".2f",
        cmap="viridis",
        ax=axis,
        cbar_kws={"label": LABELS["val_acc"]},
    )
    axis.set(xlabel=LABELS["o2i"], ylabel=LABELS["num_examples"])


def draw_smallest(axis, table, view: View) -> None:
    """Smallest training set that reaches 70 % (solid) and 85 % (dashed); where none does there is no marker."""
    import seaborn as sns

    shown = thresholds(table)
    order = in_order(shown["o2i"])
    shown["place"] = shown["o2i"].map(order.index)
    shown["accuracy"] = shown["level"].map("{:.0%}".format)
    shown = shown[np.isfinite(shown["size"])]
    if len(shown):
        sns.lineplot(
            shown,
            x="place",
            y="size",
            hue="pooling",
            style="accuracy",
            markers=True,
            palette=colours(in_order(shown["pooling"])),
            ax=axis,
        )
        axis.set_yscale("log")
    axis.set_xticks(range(len(order)), order)
    axis.set(xlabel=LABELS["o2i"], ylabel=LABELS["num_examples"], xlim=(-0.3, len(order) - 0.7))


def draw_curves(axis, table, view: View) -> None:
    """The metric over epochs: mean and standard deviation over seeds."""
    import seaborn as sns

    palette = colours(in_order(table[view.hue]))
    sns.lineplot(table, x="epoch", y=view.metric, hue=view.hue, errorbar="sd", palette=palette, ax=axis)
    axis.set(xlabel=LABELS["epoch"], ylabel=LABELS[view.metric])
