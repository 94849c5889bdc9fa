"""The test protocol of Koker 2020, held against loops, and on vectors whose scores are known."""

import dataclasses

import numpy as np
import pytest

from retrieval import protocol


def vectors(n, orientations=1, dim=64, seed=0):
    found = np.random.default_rng(seed).normal(size=(n, orientations, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=2, keepdims=True)


def compare(images, both_sides=False, seed=0):
    pairs = np.arange(len(images)).reshape(-1, 2)
    return protocol.compare(images, pairs, np.random.default_rng(seed), both_sides)


def test_the_hardest_negative_is_the_nearest_duplicate_of_another_group():
    images = vectors(20)
    found = compare(images)
    for i in range(10):
        distances = [np.linalg.norm(images[2 * i, 0] - images[2 * j + 1, 0]) if j != i else np.inf for j in range(10)]
        assert found.negative["hardest"][i] == 2 * np.argmin(distances) + 1
        assert found.distances["hardest"][i] == pytest.approx(min(distances), abs=1e-5)
        assert found.distances["duplicate"][i] == pytest.approx(np.linalg.norm(images[2 * i] - images[2 * i + 1]))
        assert found.rank[i] == min(5, sum(d < found.distances["duplicate"][i] for d in distances))


def test_with_both_sides_every_image_is_a_query_and_a_candidate():
    images = vectors(12)
    found = compare(images, both_sides=True)
    assert found.query.tolist() == [*range(12)]
    for i in range(12):
        distances = np.linalg.norm(images[i] - images[:, 0], axis=1)
        distances[[i, i ^ 1]] = np.inf
        assert found.negative["hardest"][i] == distances.argmin()
        assert found.duplicate[i] == i ^ 1
        assert found.negative["random"][i] // 2 != i // 2


def test_a_query_counts_in_its_best_orientation():
    images = vectors(20, orientations=4)
    images[::2, 3] = images[1::2, 0]  # turned thrice, each query is its duplicate
    scores = protocol.scores(compare(images))
    assert scores["hardest_auc"] == scores["recall@1"] == 1
    assert protocol.scores(compare(images[:, :3]))["hardest_auc"] < 0.2


def test_random_vectors_are_near_zero_against_hardest_negatives_not_at_a_half():
    scores = protocol.scores(compare(vectors(400)))
    assert scores["hardest_auc"] < 0.2
    assert 0.4 < scores["random_auc"] < 0.6


def test_copies_are_found_at_distance_zero():
    images = vectors(40)
    images[1::2] = images[::2]
    found = compare(images)
    scores = protocol.scores(found)
    assert found.distances["duplicate"].max() == 0
    assert (
        scores["hardest_auc"]
        == scores["hardest_ap"]
        == scores["recall@1"]
        == scores["hardest_recall_at_threshold"]
        == 1
    )


def test_identical_images_score_as_chance_without_nan():
    scores = protocol.scores(compare(np.repeat(vectors(1), 20, axis=0)))
    assert scores["hardest_auc"] == scores["random_auc"] == 0.5
    assert scores["hardest_threshold"] is None
    assert all(np.isfinite(value) for value in scores.values() if value is not None)


def test_the_threshold_is_the_last_with_99_percent_precision():
    labels = np.array([1] * 99 + [0] + [1] + [0] * 9)
    found = protocol.working_points(labels, np.arange(110) / 100)
    assert found["threshold"] == pytest.approx(1.0)  # 100 of 101
    assert found["recall_at_threshold"] == 1
    assert found["precision_at_recall_90"] == 1
    nothing = protocol.working_points(1 - labels, np.arange(110) / 100)
    assert (nothing["threshold"], nothing["recall_at_threshold"]) == (None, 0)


def test_precision_at_a_recall_is_the_best_from_there_on():
    found = protocol.working_points(np.array([0] * 10 + [1] * 100), np.arange(110))
    assert found["precision_at_recall_90"] == pytest.approx(100 / 110)  # that of all


def test_recall_at_k_counts_duplicates_among_the_first_k():
    found = protocol.scores(dataclasses.replace(compare(vectors(8)), rank=np.array([0, 1, 4, 5])))
    assert (found["recall@1"], found["recall@5"]) == (0.25, 0.75)


def test_a_median_of_draws_is_none_where_one_has_none():
    assert protocol.median([{"a": 1, "b": None}, {"a": 5, "b": 2}, {"a": 2, "b": 2}]) == {"a": 2, "b": None}
