import numpy as np
import pytest
import torch

from retrieval import audit
from retrieval.index import turned
from tests.retrieval.crops import slide_texture


def test_the_threshold_flags_one_in_a_hundred_and_is_lowered_to_find_99_of_100_known_duplicates():
    nearest = np.random.default_rng(0).uniform(0.5, 1, 5000)
    threshold = audit.automatic_threshold(nearest)
    assert np.mean(nearest <= threshold) == pytest.approx(0.01, abs=1e-3)
    duplicates = np.linspace(0.1, 0.3, 1000)
    assert np.mean(duplicates <= audit.automatic_threshold(nearest, duplicates)) == pytest.approx(0.99, abs=2e-3)
    assert audit.automatic_threshold(nearest, np.full(100, 0.9)) == threshold
    assert audit.automatic_threshold(np.zeros(10)) == audit.ROUNDING  # copies alone


def test_overlap_is_intersection_over_union_of_squares():
    corners, sides = np.array([[0.0, 0.0], [5, 0], [10, 10], [np.nan, 0]]), np.full(4, 10.0)
    found = audit.overlap(corners[:, None], sides[:, None], corners[None], sides[None])
    assert found[0].tolist()[:3] == pytest.approx([1, 50 / 150, 0])
    assert np.isnan(found[0, 3]) and np.isnan(found[3]).all()
    inside = audit.overlap(np.array([2.0, 2]), np.array(5.0), np.array([0.0, 0]), np.array(10.0))
    assert inside == pytest.approx(0.25)


def pairs(n, seed=0):
    """Distances (n, n) of which the diagonal is of duplicates, and those two masks."""
    rng, own = np.random.default_rng(seed), np.eye(n, dtype=bool)
    return np.where(own, rng.uniform(0.1, 0.6, (n, n)), rng.uniform(0.5, 1.5, (n, n))), own, ~own


def test_truth_does_not_depend_on_the_blocks_and_equals_its_definition():
    distances, duplicate, other = pairs(400)
    whole, parts = (audit.Truth(distances.size, np.random.default_rng(1)) for _ in range(2))
    whole.add(distances, duplicate, other)
    for rows in np.array_split(np.arange(400), 7):
        parts.add(distances[rows], duplicate[rows], other[rows])
    assert whole.summary() == parts.summary()
    result, within = whole.summary(), np.sort(distances[other])[int(1e-4 * other.sum())]
    assert result["sensitivity_at_fpr_0.0001"] == np.mean(distances[duplicate] < within)
    assert result["sensitivity_at_fpr_1e-06"] is None  # 0.16 pairs
    hardest = np.where(other, distances, np.inf).min(axis=1)
    wins = np.mean(np.diag(distances)[:, None] < hardest[None])
    assert result["hardest_auc"] == pytest.approx(wins) and result["random_auc"] > result["hardest_auc"]


def test_shares_by_class_and_by_size_count_their_images():
    flagged, labels = np.array([1, 0, 1, 0, 0], bool), np.array([1, 1, 0, 0, 0])
    found = audit.shares(flagged, labels, [0.3, 0.003, None, None, None])
    assert (found["images"], found["flagged"], found["share"]) == (5, 2, 0.4)
    assert found["by_class"]["1"]["share"] == 0.5 and found["by_class"]["0"]["share"] == pytest.approx(1 / 3)
    assert found["by_o2i"] == {
        "(10-50] %": {"images": 1, "flagged": 1, "share": 1.0},
        "(0.1-1] %": {"images": 1, "flagged": 0, "share": 0.0},
    }


def test_unknown_labels_are_no_class():
    assert audit.shares(np.ones(3, bool), np.full(3, -1), [None] * 3)["by_class"] == {}


def test_a_method_is_scored_with_and_without_near_duplicates():
    labels, flagged = np.array([1, 0, 1, 0]), np.array([True, True, False, False])
    found = audit.score_parts(labels, np.array([0.9, 0.1, 0.2, 0.8]), flagged, 0.5)
    assert (found["with_near_duplicate"]["auc"], found["without"]["auc"]) == (1, 0)
    assert [found[part]["accuracy"] for part in found] == [0.5, 1, 0]
    assert audit.score_parts(labels, labels, np.zeros(4, bool), None)["with_near_duplicate"]["auc"] is None


def test_a_score_on_the_threshold_predicts_class_0():
    found = audit.score_parts(np.array([0, 0, 1]), np.array([0.5, 0.1, 0.9]), np.zeros(3, bool), 0.5)
    assert found["all"]["accuracy"] == 1


@pytest.mark.parametrize("orientation", range(8))
def test_a_shifted_turned_recoloured_copy_correlates_and_other_tissue_does_not(orientation):
    texture = torch.from_numpy(slide_texture(0)).float().mean(2)
    query, copy = texture[40:88, 40:88], texture[58:106, 29:77]
    copy = turned(copy, orientation) ** 1.1 + 7
    assert audit.best_correlation(query, copy) > 0.99
    other = torch.from_numpy(slide_texture(1)).float().mean(2)[40:88, 40:88]
    assert audit.best_correlation(query, other) < 0.8


def test_a_shift_beyond_half_a_side_is_no_copy():
    texture = torch.from_numpy(slide_texture(0)).float().mean(2)
    assert audit.best_correlation(texture[:48, :48], texture[:48, 24:72], 1) > 0.99
    assert audit.best_correlation(texture[:48, :48], texture[:48, 30:78], 1) < 0.9


def test_correlation_is_finite_for_flat_images():
    flat, texture = torch.full((16, 16), 0.3), torch.rand(16, 16)
    assert audit.best_correlation(flat, flat + 0.2) == 1
    assert audit.best_correlation(flat, texture) == 0
    assert audit.best_correlation(texture, texture) == pytest.approx(1)


def test_images_of_different_sizes_correlate():
    texture = torch.from_numpy(slide_texture(0)).float().mean(2)
    assert audit.best_correlation(texture[10:40, 20:60], texture[:64, :64]) > 0.99


def test_components_join_near_duplicates_of_near_duplicates():
    numbers = audit.components(6, np.array([[0, 1], [1, 4], [3, 3]]))
    assert numbers[0] == numbers[1] == numbers[4]
    assert len({numbers[0], numbers[2], numbers[3], numbers[5]}) == 4
    assert len(set(audit.components(3, np.empty((0, 2), int)))) == 3
