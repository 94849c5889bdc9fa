import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from common.errors import BadInput
from experiments import drawing, plot_results, results
from experiments.figures import FIGURES, SMALL
from tests.experiments.sweeps import size_needed, table_of


def panel(name, table, view=0):
    axis = Canvas().subplots()
    view = FIGURES[name].views[view]
    {"heat": drawing.draw_heat, "smallest": drawing.draw_smallest}.get(view.kind, drawing.draw_points)(
        axis, drawing.select(table, view), view
    )
    return axis


def test_points_are_means_over_runs_that_fit_between_their_seeds_and_hollow_where_none_does():
    table = table_of("figure7", lambda p: {"test_acc": 0.9 if p.receptive_field > 9 else 0.7}, SMALL, spread=0.1)
    table.loc[table["receptive_field"] == 177, "fits"] = False
    table.loc[(table["receptive_field"] == 9) & (table["seed"] == 3), "fits"] = False
    shown = drawing.means(table, FIGURES["figure7"].views[0]).set_index(["x", "hue"])
    assert shown.loc[("49", 33), "mean"] == pytest.approx(0.9)
    assert shown.loc[("49", 33), "sd"] == pytest.approx(0.1)
    assert shown.loc[("49", 9), ["mean", "fitted", "runs"]].tolist() == pytest.approx([0.65, 2, 3])
    assert shown.loc[("49", 177), ["mean", "sd", "hollow"]].tolist() == [pytest.approx(0.9), pytest.approx(0.1), True]
    at_paper = drawing.means(table.assign(setting="paper"), FIGURES["figure7"].views[0]).set_index(["x", "hue"])
    assert at_paper.loc[("49", 177), "mean"] == 0.5 and np.isnan(at_paper.loc[("49", 177), "sd"])
    axis = panel("figure7", table)
    lines = {
        round(float(line.get_segments()[0][0][1]), 6) for line in axis.collections if hasattr(line, "get_segments")
    }
    assert {0.65, 0.9} <= lines
    dots = [dots for dots in axis.collections if not hasattr(dots, "get_segments")]
    assert sorted(y for each in dots for _, y in each.get_offsets()) == pytest.approx(sorted(table["test_acc"]))
    hollow = sum((each.get_facecolor()[:, :3] == 1).all(axis=1).sum() for each in dots)
    assert hollow == (~table["fits"]).sum()
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["49"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("object-to-image ratio (%)", "test accuracy")


def test_seeds_that_do_not_fit_lie_below_the_legend():
    table = table_of("figure17", lambda p: {"localization_ap": 0.5, "fits": False}, SMALL)
    table.loc[table["seed"] == 1, "localization_ap"] = 0.9
    axis = panel("figure17", table)
    assert 0.85 * axis.get_ylim()[1] > 0.9 and max(axis.get_yticks()) == pytest.approx(1)


def test_counts_and_epochs_of_figure_9():
    table = table_of("figure9", lambda p: {"fits": p.canvas < 200, "epochs_to_fit": 10 if p.canvas < 200 else None})
    epochs, count = (
        drawing.means(drawing.select(table, v), v).set_index(["x", "hue"]) for v in FIGURES["figure9"].views[:2]
    )
    assert epochs.loc[("19.1", "max"), ["mean", "hollow"]].tolist() == [10, False]
    assert epochs.loc[("1.2", "max"), ["mean", "hollow"]].tolist() == [200, True]  # as many as were tried
    assert (count.loc[("19.1", "max"), "mean"], count.loc[("1.2", "max"), "mean"]) == (3, 0)


def test_heat_map_holds_means_of_the_runs_above_70_percent():
    table = table_of(
        "figure14", lambda p: {"val_acc": 0.6 + p.num_examples / 1e5, "train_acc": 0.6 if p.width < 1 else 1.0}
    )
    table.loc[table["width"] == -2, "val_acc"] = 0.1  # does not count
    axis = panel("figure14", table)
    cells = np.array([float(text.get_text()) for text in axis.texts]).reshape(6, 5)
    np.testing.assert_allclose(cells[:, 0], [0.83, 0.71, 0.68, 0.66, 0.63, 0.61], atol=0.011)  # 22552 first


def test_smallest_sets_are_those_of_the_means():
    table = table_of("figure15", lambda p: size_needed(p, True))
    shown = drawing.thresholds(table).set_index(["pooling", "level", "o2i"])["size"]
    assert shown["max", 0.7].loc[["19.1", "4.79", "1.2", "0.299", "0.0748"]].tolist() == [
        1400,
        2819,
        5638,
        11276,
        22552,
    ]
    lines = [line for line in panel("figure15", table).lines if len(line.get_xdata())]
    assert lines[0].get_ydata().tolist() == [1400, 2819, 5638, 11276, 22552]


def test_figures_are_drawn_from_their_tables_alone(tmp_path):
    names = ["figure4", "figure6", "figure9", "figure12", "precision"]  # every kind of panel
    for name in names:
        table = table_of(name, lambda p: {"epochs_to_fit": 3}, seeds=2)
        results.update(results.path_of(tmp_path, name), table.to_dict("records"))
        if name == "precision":
            lines = [row | {"epoch": e, "train_running_acc": e / 9} for row in table.to_dict("records") for e in (1, 2)]
            columns = results.CONFIGURATION + results.CURVE
            results.update(results.path_of(tmp_path, f"{name}_curves"), lines, columns)
    plot_results.main(["--out", str(tmp_path)])
    for name in names:
        assert (tmp_path / f"figures/{name}.png").stat().st_size < 300_000


def test_plot_results_names_the_figures_that_it_knows(tmp_path, capsys):
    with pytest.raises(SystemExit):
        plot_results.main(["--help"])
    said = capsys.readouterr().out
    assert "[]" not in said
    assert all(name in said for name in FIGURES)
    with pytest.raises(SystemExit):
        plot_results.main(["figure99"])
    assert "invalid choice: 'figure99' (choose from figure4, " in capsys.readouterr().err
    with pytest.raises(BadInput, match="no tables of figures in results/ there"):
        plot_results.main(["--out", str(tmp_path)])
