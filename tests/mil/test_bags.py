"""Bags that cannot be learnt from are refused by name."""

import numpy as np
import pytest

from common.errors import BadInput
from mil import bags
from tests.mil.made import digit_bags


@pytest.fixture
def some():
    return digit_bags(6, 4, size=5)["train"]


def with_features(found, i, features):
    found.features = [*found.features[:i], features, *found.features[i + 1 :]]
    return found


def test_whole_bags_of_both_classes_pass(some):
    bags.check(some, "train")


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (np.zeros((0, 64), np.float32), r"bag train_2 of train: has no tiles"),
        (
            np.zeros((5, 32), np.float32),
            r"bag train_2 of train: features have 32 numbers, expected 64",
        ),
        (np.full((5, 64), np.nan, np.float32), r"bag train_2 of train: features hold NaN"),
        (np.full((5, 64), np.inf, np.float16), r"bag train_2 of train: features hold NaN or infinities"),
    ],
)
def test_a_bag_that_cannot_be_learnt_from_is_named(some, features, said):
    with pytest.raises(BadInput, match=said):
        bags.check(with_features(some, 2, features), "train")


def test_one_class_in_a_split_is_refused(some):
    with pytest.raises(BadInput, match="val: need bags of both classes, found 3 positive and 0 negative"):
        bags.check(some.subset([1, 3, 5]), "val")


def test_the_one_value_that_is_not_finite_is_found_in_a_large_bag(monkeypatch):
    monkeypatch.setattr(bags, "FINITE_BLOCK", 64)
    features = np.zeros((1000, 7), np.float16)
    assert bags.is_finite(features)
    features[-1, -1] = np.nan
    assert not bags.is_finite(features)


def test_a_subset_shares_its_arrays_and_keeps_the_order_asked_for(some):
    part = some.subset([4, 1])
    assert part.names == ["train_4", "train_1"]
    assert part.labels.tolist() == [0, 1]
    assert part.features[0] is some.features[4]
    assert part.truth[1].sum() == 1


def test_the_fingerprint_tells_names_labels_and_features_apart(some):
    prints = {some.fingerprint(), some.subset([0, 1]).fingerprint()}
    some.labels = 1 - some.labels
    prints.add(some.fingerprint())
    prints.add(with_features(some, 0, some.features[0] + 1).fingerprint())
    assert len(prints) == 4
