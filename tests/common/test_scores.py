import numpy as np
import pytest

from common import scores
from common.errors import BadInput
from common.files import sha256_of


def row(label, score, o2i=None, hit=0, confidence=1.0):
    return {"label": label, "score": score, "o2i": o2i, "hit": hit, "confidence": confidence}


def test_a_range_holds_its_upper_edge_and_stands_against_all_negatives():
    negatives = [row(0, 0.0) for _ in range(7)]
    sizes = {0.5: 1, 0.1: -1, 0.01: 1, 0.001: 1, 0.0001: 1, 0.00001: 1, 1.0: 1}
    positives = [row(1, score, o2i) for o2i, score in sizes.items() for _ in range(5)]
    by_size = {each["o2i"]: each for each in scores.summarise(positives + negatives)["ranges"]}
    assert [each["positives"] for each in by_size.values()] == [5, 5, 5, 5, 5, 10]
    assert by_size["(10-50] %"]["auc"] == 1.0
    assert by_size["(1-10] %"]["auc"] == 0.0  # of 0.1, all below the negatives


def test_another_table_of_the_name_is_refused_and_stays(tmp_path):
    scores.write(tmp_path, "val", [])
    scores.write(tmp_path, "val", [])  # its own is replaced
    (tmp_path / "scores" / "val.csv").write_text("img,thesis\n")
    with pytest.raises(BadInput, match=r"val\.csv: is there already and not a table of scores; move it elsewhere"):
        scores.write(tmp_path, "val", [])
    assert (tmp_path / "scores" / "val.csv").read_text() == "img,thesis\n"


def test_scores_of_a_checkpoint_that_was_replaced_are_refused(tmp_path):
    best = tmp_path / "best_checkpoint.pth"
    best.write_bytes(b"epoch 1")
    empty = dict.fromkeys(scores.COLUMNS)
    rows = [empty | row(label, 0.1 * label) | {"img_path": f"{label}.npy"} for label in (0, 1)]
    scores.write(tmp_path, "test", rows, 0.5, of_checkpoint=sha256_of(best))
    table, threshold = scores.read(tmp_path / "scores" / "test.csv")
    assert (table["label"].tolist(), table["score"].tolist(), threshold) == ([0, 1], [0, 0.1], 0.5)
    best.write_bytes(b"epoch 2")
    with pytest.raises(BadInput, match=r"test\.csv: of a network that has since been trained further"):
        scores.read(tmp_path / "scores" / "test.csv")


def test_few_positives_and_unknown_objects_have_no_scores():
    found = scores.summarise([row(1, 1.0, 0.3) for _ in range(4)] + [row(0, 0.0)])
    assert found["auc"] is found["ranges"][1]["auc"] is None
    found = scores.summarise([row(1, 1.0, hit=None) for _ in range(5)] + [row(0, 0.0, hit=None)])
    assert (found["auc"], found["localization_ap"]) == (1.0, None)
    assert all(each["positives"] == 0 for each in found["ranges"])


@pytest.mark.parametrize(
    ("mask", "known", "hit"), [(True, True, 1), (False, True, 0), (None, True, 0), (None, False, None)]
)
def test_a_detection_is_the_maps_maximum(mask, known, hit):
    values = np.zeros((4, 6))
    values[2, 5] = 3
    inside = None if mask is None else np.full((4, 6), mask)
    found = scores.detection(values, inside, label=1, known=known)
    o2i = None if mask is None else float(mask)
    assert found == {"o2i": o2i, "peak_y": 2, "peak_x": 5, "cell": 1, "confidence": 3.0, "hit": hit}


@pytest.mark.parametrize(("y", "x", "hit"), [(4, 8, 1), (7, 11, 1), (8, 8, 0), (4, 12, 0), (3, 8, 0), (4, 7, 0)])
def test_a_cell_is_hit_by_its_own_pixels_alone(y, x, hit):
    mask = np.zeros((16, 24), bool)
    mask[y, x] = True
    found = scores.cell_detection(np.array([0.0, 1.0]), np.array([[0, 0], [4, 8]]), 4, mask, label=1, known=True)
    assert (found["hit"], found["peak_y"], found["peak_x"]) == (hit, 6, 10)
