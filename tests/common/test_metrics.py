import numpy as np
import pytest

from common import metrics


def test_confusion_and_rates_of_a_hand_counted_case():
    counts = metrics.confusion([1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0])
    assert counts == (2, 1, 1, 3)
    assert metrics.rates(*counts) == {"acc": 5 / 7, "prec": 2 / 3, "recall": 2 / 3}


def test_rates_are_zero_where_nothing_was_predicted():
    assert metrics.rates(0, 0, 3, 1) == {"acc": 0.25, "prec": 0.0, "recall": 0.0}


def test_perfect_and_reversed_scores():
    labels = np.array([1, 0, 1, 0])
    assert metrics.classification(labels, np.array([2.0, -1.0, 1.0, -3.0]))["auc"] == 1
    reversed_scores = metrics.classification(labels, np.array([-2.0, 1.0, -1.0, 3.0]))
    assert (reversed_scores["auc"], reversed_scores["acc"]) == (0, 0)


def test_a_logit_of_zero_predicts_class_0():
    assert metrics.classification(np.array([1, 0]), np.zeros(2))["recall"] == 0


def test_one_class_has_no_auc():
    scores = metrics.classification(np.array([1, 1]), np.array([0.5, -0.5]))
    assert np.isnan(scores["auc"])
    assert scores["acc"] == 0.5


@pytest.mark.parametrize(
    ("hits", "confidences", "positives", "expected"),
    [
        # all found, ranked first
        ([1, 1, 0, 0], [4, 3, 2, 1], 2, 1.0),
        # hit, miss, hit of two positives: 1/2 * 1/1 + 1/2 * 2/3
        ([1, 0, 1], [3, 2, 1], 2, 1 / 2 + 1 / 3),
        # one of three positives missed its needle: recall ends at 2/3
        ([1, 0, 1], [3, 2, 1], 3, (1 / 3) * 1 + (1 / 3) * (2 / 3)),
        # a tie is one step: both counted at precision 1/2
        ([1, 0], [1, 1], 1, 1 / 2),
        # tie of three with two hits, then a miss
        ([1, 1, 0, 0], [2, 2, 2, 1], 2, 2 / 3),
        ([0, 0], [2, 1], 1, 0.0),
    ],
)
def test_localization_ap_of_hand_computed_cases(hits, confidences, positives, expected):
    found = metrics.localization_ap(np.array(hits), np.array(confidences, float), positives)
    assert found == pytest.approx(expected)


def test_chance_localises_as_often_as_its_cells_lie_on_the_object():
    labels, confidences = np.repeat([1, 0], 200), np.random.default_rng(1).random(400)
    at = {share: metrics.localization_ap_at_chance(share * labels, confidences, 200) for share in (0, 0.25, 1)}
    assert at[0] == 0 and at[1] == pytest.approx(metrics.localization_ap(labels, confidences, 200))
    assert at[0.25] == pytest.approx(0.25 * 0.25 * 0.5, rel=0.3)  # recall x precision, of which half are negatives


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([0, 0, 1, 1], [1, 2, 4, 5], 3.0),
        ([0, 1, 0, 1], [1, 2, 3, 4], 3.5),  # as good as 1.5, and higher
        ([1, 1, 0, 0], [1, 2, 3, 4], 1.0),  # the wrong way round: everything is called positive
        ([1, 0], [7, 7], 7.0),
        ([0, 1], [1.0, np.nextafter(1.0, 2)], 1.0),  # nothing lies between the two
    ],
)
def test_the_youden_threshold_separates_best(labels, scores, expected):
    threshold = metrics.youden_threshold(labels, np.array(scores, float))
    assert threshold == pytest.approx(expected)

    def gain(limit):
        predicted = np.array(scores) > limit
        return predicted[np.array(labels) == 1].mean() - predicted[np.array(labels) == 0].mean()

    assert gain(threshold) == max(map(gain, [0.0, *scores]))


def test_one_class_has_no_threshold():
    assert np.isnan(metrics.youden_threshold([1, 1], np.array([0.5, 1.0])))


def test_a_score_above_the_threshold_predicts_one_and_one_on_it_does_not():
    scores = metrics.at_threshold([1, 0, 1, 0], np.array([4.0, 4.0, 3.0, 3.0]), 3.0)
    assert scores == {"acc": 0.5, "prec": 0.5, "recall": 0.5, "f1": 0.5}
