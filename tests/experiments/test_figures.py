import pytest

from experiments import estimate
from experiments.figures import FIGURES, PAPER, SMALL
from tests.experiments.sweeps import plan

POINTS = {  # of Pawlowski 2019, nMNIST (and noise) + nCAMELYON
    "figure4": 5 + 11,
    "figure5a": 6 * 5,
    "figure5b": 4 * 5 - 1,
    "figure5c": 4 * 11,
    "figure6": 6 * 5 * 12,
    "figure7": 3 * (5 + 11),
    "figure8": 4 * (5 + 11),
    "figure9": 2 * 5 * 4,
    "figure12": 7 * 3 * 4,
    "figure13": 2 * 3 * 4,
    "figure14": 6 * 5 * 48,
    "figure15": 6 * 5 * 48,
    "figure17": 5 * 4 + 5 * 2,
    "precision": 4,
}


def values(name, axis):
    return sorted({getattr(point, axis) for point in FIGURES[name].points})


def test_every_figure_has_the_papers_points():
    assert {name: len(figure.points) for name, figure in FIGURES.items()} == POINTS
    assert all(len(set(figure.points)) == len(figure.points) for figure in FIGURES.values())


def test_the_axes_are_the_papers():
    networks = {(p.receptive_field, p.width, p.pooling) for p in FIGURES["figure14"].points}
    assert len(networks) == 48
    assert values("figure5a", "num_examples") == [1400, 2819, 5638, 7500, 11276, 22552]
    assert values("figure12", "balance") == [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
    assert values("figure13", "num_examples") == [2819, 11276]
    nmnist = [point for point in FIGURES["figure4"].points if point.data == "nmnist"]
    assert [(p.canvas, p.o2i) for p in nmnist] == [
        (64, "19.1"),
        (128, "4.79"),
        (256, "1.2"),
        (512, "0.299"),
        (1024, "0.0748"),
    ]
    assert {point.receptive_field for point in FIGURES["figure4"].points if point.data == "ncamelyon"} == {9}
    assert (PAPER.seeds, PAPER.epochs, PAPER.opt, PAPER.lr, PAPER.batch_size) == (6, 200, "rmsprop", 5e-5, 32)


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "figure5c"])
def test_the_small_preset_takes_90_minutes_at_most(name, tmp_path):
    assert 0 < sum(map(estimate.hours, plan(name, "--preset", "small", "--root", str(tmp_path)))) <= 1.5


def test_figures_replace_parts_of_a_presets_setting():
    small, paper = plan("precision", "--preset", "small")[0].setting, plan("precision")[0].setting
    assert (small.norm, small.epochs, small.seeds, small.label) == ("in_aff", 4, 3, "small")
    assert (paper.norm, paper.epochs, paper.seeds, paper.label) == ("in_aff", 200, 3, "paper")
    assert plan("figure4", "--preset", "small")[0].setting == SMALL
    assert plan("precision", "--preset", "small", "--epochs", "8")[0].setting.label == "small, --epochs 8"
