"""Instance scores are joined by name and place, never by their order."""

import pickle

import numpy as np
import pytest

from common.errors import BadInput
from mil import pseudo_labels
from mil.tiles import TileBags

CORNERS = [np.array([[0, 0], [0, 64], [64, 0]]), np.array([[0, 0]])]
TRUTH = [np.array([0, 1, -1]), np.array([0])]
SCORES = [np.array([0.1, 0.9, 0.5]), np.array([0.25])]


@pytest.fixture
def tiles():
    return TileBags(["training/a", "training/b"], np.array([1, 0]), CORNERS, TRUTH, 64)


def table(tmp_path, *lines):
    path = tmp_path / "instances_train.csv"
    path.write_text("\n".join(["bag,y,x,score,truth", *lines, ""]))
    return path


ROWS = ("training/b,0,0,0.25,0", "training/a,64,0,0.5,", "training/a,0,0,0.1,0", "training/a,0,64,0.9,1")


def test_a_table_and_hnm_wsis_pickle_give_the_same_scores(tmp_path, tiles):
    path = tmp_path / "labels.p"
    pseudo_labels.write_pickle(path, tiles.names, CORNERS, TRUTH, SCORES)
    for each in (table(tmp_path, *ROWS), path):
        scores = pseudo_labels.align(pseudo_labels.read(each), tiles, each, set())
        np.testing.assert_array_equal(scores, [0.1, 0.9, 0.5, 0.25])


def test_the_pickle_is_as_hnm_wsi_reads_it(tmp_path, tiles):
    path = tmp_path / "labels.p"
    pseudo_labels.write_pickle(path, tiles.names, CORNERS, TRUTH, SCORES)
    content = pickle.loads(path.read_bytes())
    assert content == {"/training/a": {"0_0_0": 0.1, "64_0_1": 0.9, "0_64_0": 0.5}, "/training/b": {"0_0_0": 0.25}}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (ROWS[1:], "has no scores of bag training/b, which is among the bags"),
        (ROWS[:3], r"bag training/a: no score of tile 64_0 \(1 of 3"),
        ((*ROWS, "training/c,0,0,0.5,1"), "names bag training/c, which is not among the bags"),
        ((*ROWS, "training/a,0,0,1.5,1"), "tile 0_0: score 1.5, expected one from 0 to 1"),
        ((*ROWS, "training/a,0,0,nan,1"), "expected a table of bag,y,x,score: "),
        ((*ROWS, "training/a,0,0,high,1"), "expected a table of bag,y,x,score: "),
    ],
)
def test_scores_that_do_not_fit_the_bags_are_refused(tmp_path, tiles, lines, said):
    path = table(tmp_path, *lines)
    with pytest.raises(BadInput, match=said):
        pseudo_labels.align(pseudo_labels.read(path), tiles, path, set())


def test_scores_of_validation_bags_may_be_in_the_same_file(tmp_path, tiles):
    path = table(tmp_path, *ROWS, "training/c,0,0,0.5,1")
    scores = pseudo_labels.align(pseudo_labels.read(path), tiles, path, {"/training/c"})
    assert len(scores) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "expected a pickled dict of bags"),
        ({"/training/a": [1]}, "expected a pickled dict of bags"),
        ({"/training/a": {"0_0_0": "high"}}, "expected a number for each tile"),
        ({"/training/a": {"first": 0.5}}, "expected a tile named"),
        ({"/training/a": {"in/a/folder": 0.5}}, "expected a tile named"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path, content, said):
    path = tmp_path / "labels.p"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(BadInput, match=said):
        pseudo_labels.read(path)
