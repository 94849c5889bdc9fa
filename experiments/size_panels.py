"""AUC and localisation AP by object size, methods side by side at each size, each in a colour with a marker."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.pictures import write_figure
from experiments.drawing import CHANCE, colours

PANELS = {"auc": "AUC", "localization_ap": "localisation AP"}
MARKERS = "osD^v<>PhX"
EDGE, WIDEST = {"markeredgewidth": 0.4}, 3.0  # of markers; of the room of a size, as a factor of O2I


def styles(labels: list[str]) -> dict[str, tuple]:
    """Label -> its colour and marker, of at most ten."""
    return {label: (colour, marker) for (label, colour), marker in zip(colours(labels).items(), MARKERS, strict=False)}


def draw_columns(path: Path, columns: dict[str, pd.DataFrame], styles: dict, title: str) -> None:
    """Write a PNG with AUC above localisation AP for each table, whose rows have label, o2i, o2i_percent, chance_ap."""
    canvas = Figure(figsize=(5.2 * len(columns) + 1.8, 6.6), dpi=110, layout="constrained")
    axes = canvas.subplots(len(PANELS), len(columns), squeeze=False, sharex="col")
    for column, (heading, table) in enumerate(columns.items()):
        axes[0][column].set_title(heading, fontsize=10)
        for line, metric in enumerate(PANELS):
            draw_panel(axes[line][column], table, metric, styles)
        axes[-1][column].set_xlabel("object-to-image ratio (%, mean of the positives)")
    chance_known = any(table["chance_ap"].notna().any() for table in columns.values())
    canvas.legend(handles=legend(styles, chance_known), loc="outside right center", frameon=False, fontsize=8)
    canvas.suptitle(title, fontsize=8)
    write_figure(path, canvas)


def draw_panel(axis, table, metric: str, styles: dict) -> None:
    """A metric against O2I: methods side by side at each size, seeds, mean and deviation; dotted where chance is."""
    sizes = table.groupby("o2i")["o2i_percent"].mean().sort_values()
    nearest = (sizes.to_numpy()[1:] / sizes.to_numpy()[:-1]).min(initial=WIDEST)
    step = nearest ** (1 / (len(styles) + 1))  # factor of O2I from method to method
    for place, (label, (colour, marker)) in enumerate(styles.items()):
        for o2i, own in table[table["label"] == label].dropna(subset=metric).groupby("o2i"):
            at = sizes[o2i] * step ** (place - (len(styles) - 1) / 2)
            ends = at / step**0.4, at * step**0.4
            seeds = at * step ** np.linspace(-0.25, 0.25, len(own)) if len(own) > 1 else [at]
            axis.plot(seeds, own[metric], marker, color=colour, markersize=5, markeredgecolor="black", **EDGE)
            deviation = np.nan_to_num(own[metric].std())
            axis.errorbar(at, own[metric].mean(), deviation, color="black", capsize=2, linewidth=0.8, zorder=1)
            axis.hlines(own[metric].mean(), *ends, color=colour, linewidth=2, zorder=1)
            if metric == "localization_ap" and own["chance_ap"].notna().any():
                axis.hlines(own["chance_ap"].mean(), *ends, color=colour, linestyle=":", linewidth=1.5)
    if metric == "auc":
        axis.axhline(CHANCE, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    axis.set(xscale="log", ylabel=PANELS[metric], ylim=(0.2, 1.03) if metric == "auc" else (-0.03, 1.03))
    axis.set_xlim(sizes.min() / nearest**0.6, sizes.max() * nearest**0.6)
    axis.set_xticks(sizes, [f"{size:.2g}" for size in sizes])
    axis.minorticks_off()


def legend(styles: dict, chance_known: bool) -> list[Line2D]:
    """A marker for each method, and what dashes mean."""
    entries = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markeredgecolor="black", label=label, **EDGE)
        for label, (colour, marker) in styles.items()
    ]
    cells = [Line2D([], [], color="grey", linestyle=":", linewidth=1.5, label="random cell of its size")]
    return [
        *entries,
        Line2D([], [], color="grey", linewidth=2, label="mean of the seeds"),
        *(cells if chance_known else []),
        Line2D([], [], color="grey", linestyle="--", linewidth=0.8, label="chance"),
    ]
