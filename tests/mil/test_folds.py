import numpy as np
import pytest

from common.errors import BadInput
from mil import folds

LABELS = np.array([0] * 33 + [1] * 12)


@pytest.mark.parametrize("scheme", folds.SCHEMES)
def test_no_bag_that_chooses_is_reported_or_trains(scheme):
    for fold in folds.make(LABELS, 5, 0, scheme):
        together = np.concatenate([fold["train"], fold["val"], fold["test"]])
        assert sorted(together) == list(range(45))
        for indices in fold.values():
            assert {0, 1} == set(LABELS[indices])


def test_in_cross_validation_every_bag_is_tested_once_and_chooses_once():
    made = folds.make(LABELS, 5, 0)
    for part in ("val", "test"):
        assert sorted(np.concatenate([fold[part] for fold in made])) == list(range(45))


def test_a_standalone_test_is_a_fifth_and_the_same_for_all():
    made = folds.make(LABELS, 5, 3, "cv-standalone-test")
    assert len({tuple(fold["test"]) for fold in made}) == 1
    assert np.bincount(LABELS[made[0]["test"]]).tolist() == [7, 2]
    assert sorted(np.concatenate([fold["val"] for fold in made])) == sorted(set(range(45)) - set(made[0]["test"]))


def test_the_seed_decides():
    def tested(seed):
        return [fold["test"].tolist() for fold in folds.make(LABELS, 5, seed)]

    assert tested(0) == tested(0)
    assert tested(0) != tested(1)


def test_a_class_with_too_few_bags_is_refused():
    with pytest.raises(BadInput, match="--folds 5: needs 5 bags or more of each class, found 6, 4"):
        folds.make([0] * 6 + [1] * 4, 5, 0)
    with pytest.raises(BadInput, match="--folds 2: expected 3 or more"):
        folds.make(LABELS, 2, 0)


def test_the_vote_is_of_every_bag_and_scores_decide_where_it_is_even():
    votes = np.array([[1, 1, 0, 1], [1, 0, 0, 0]])
    scores = np.array([[1.0, 0.5, -1, 0.5], [1.0, -0.2, -1, -0.9]])
    assert folds.majority(votes, scores).tolist() == [1, 1, 0, 0]
    assert folds.majority(np.array([[1, 0], [1, 0], [0, 1]]), np.zeros((3, 2))).tolist() == [1, 0]
