"""What a round leaves of a split says where its highest instance lies, and what a random one would have found."""

import json

import numpy as np
import pandas as pd
import pytest

from mil import pseudo_labels, report, rounds
from mil.bags import Bags
from tests.mil.made import digit_bags

CORNERS = np.array([[0, 0], [0, 64], [64, 0], [64, 64]])


def four_tiles(truth, label=1):
    n = len(truth)
    return Bags(
        [f"bag_{i}" for i in range(n)],
        np.full(n, label),
        [np.zeros((4, 2), np.float32)] * n,
        [CORNERS] * n,
        [np.array(each, np.int8) for each in truth],
        64,
    )


def test_the_highest_instance_is_the_detection():
    bags = four_tiles([[0, 0, 1, 0], [0, 1, 0, 0], [-1, -1, -1, -1]])
    logits = np.array([-3.0, -1.0, 2.5, 0.0], np.float32)
    found = rounds.Scores(np.array([0.5, 0.25, 0.125]), [logits] * 3)
    rows = [report.row_of(i, bags, found, None, known=i < 2) for i in range(3)]
    assert [row["hit"] for row in rows] == [1, 0, None]
    assert {(row["peak_y"], row["peak_x"], row["cell"], row["confidence"]) for row in rows} == {(96, 32, 64, 2.5)}
    assert [row["score"] for row in rows] == [0.5, 0.25, 0.125]


def test_a_map_has_a_cell_for_each_tile_and_nan_where_there_is_none():
    cells = report.grid(np.array([1.0, 2.0, 3.0]), np.array([[64, 0], [0, 256], [64, 256]]))
    np.testing.assert_array_equal(cells, np.array([[np.nan, 2], [1, 3]], np.float32))


def test_random_cells_find_as_often_as_there_are_positive_tiles():
    """All bags positive and as sure: the average precision is the share of hits, times itself."""
    bags = four_tiles([[1, 0, 0, 0]] * 4000)
    found = rounds.Scores(np.zeros(4000), [np.zeros(4, np.float32)] * 4000)
    rows = [report.row_of(i, bags, found, None, known=True) for i in range(4000)]
    assert report.chance(rows) == pytest.approx(1 / 16, abs=0.005)


def test_a_random_tile_hits_what_a_detection_would_hit():
    """An object of an image that reaches a little into three more tiles is hit in each, whichever count as positive."""

    class Straddled:
        @staticmethod
        def object_mask(i):
            mask = np.zeros((128, 128), bool)
            mask[40:66, 40:66] = True
            return mask

    bags = four_tiles([[1, 0, 0, 0]] * 100)
    found = rounds.Scores(np.zeros(100), [np.eye(4, dtype=np.float32)[i % 4] for i in range(100)])
    rows = [report.row_of(i, bags, found, Straddled, known=True) for i in range(100)]
    assert all(row["hit"] for row in rows) and report.chance(rows) == 1


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    logdir, bags = tmp_path_factory.mktemp("run"), digit_bags(8, 12, size=5)["test"]
    rng = np.random.default_rng(0)
    instances = [(4 * truth + rng.normal(size=5)).astype(np.float32) for truth in bags.truth]
    found = rounds.Scores(np.array([logits.max() for logits in instances], float), instances)
    return logdir, bags, found, report.write(logdir, "test", bags, found, 2.0)


def test_instance_scores_are_read_back_as_pseudo_labels(written):
    logdir, bags, found, _ = written
    read = pseudo_labels.read(logdir / "scores" / "instances_test.csv")
    assert set(read) == set(bags.names)
    for name, logits in zip(bags.names, found.instances, strict=True):
        np.testing.assert_allclose([read[name][0, x] for x in range(5)], 1 / (1 + np.exp(-logits)), rtol=1e-6)


def test_truth_stands_beside_the_instance_scores(written):
    logdir, bags, _, _ = written
    table = pd.read_csv(logdir / "scores" / "instances_test.csv")
    assert table.truth.tolist() == np.concatenate(bags.truth).tolist()


def test_a_split_leaves_table_scores_maps_and_a_sheet(written):
    logdir, bags, found, scores = written
    table = pd.read_csv(logdir / "scores" / "test.csv")
    assert table.img_path.tolist() == bags.names
    assert table.score.tolist() == found.bags.tolist()
    assert json.loads((logdir / "scores" / "test.json").read_text())["threshold"] == 2.0
    np.testing.assert_array_equal(np.load(logdir / "scores" / "test" / "map_3.npy"), found.instances[3][None])
    assert (logdir / "scores" / "test" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    assert scores["acc"] == np.mean((found.bags >= 2.0) == bags.labels)
    assert scores["localization_ap"] > scores["localization_ap_chance"]


def test_the_sheet_says_above_which_probability_a_bag_is_positive(written, tmp_path, monkeypatch):
    _, bags, found, _ = written
    titles = []
    monkeypatch.setattr(report.pictures, "contact_sheet", lambda path, panels, said: titles.extend(said))
    report.sheet(tmp_path / "sheet.png", bags, found, 2.0, None)  # a logit; its sigmoid is .88
    assert titles[0] == "true positives\n(p > 0.88)" and titles[2] == "false negatives\n(p ≤ 0.88)"


def test_the_sheet_tints_the_instances_that_score_highest():
    bags, weights = four_tiles([[0, 0, 1, 0]]), np.array([0.0, 0.0, 1.0, 0.5])
    picture = report.panel(0, bags, weights, 0.5, None).image
    side = picture.shape[0] // 2
    corners = picture[[0, 0, side, side], [0, side, 0, side]]
    assert corners.tolist() == [[0, 0, 0], [0, 0, 0], [255, 0, 0], [128, 0, 0]]
