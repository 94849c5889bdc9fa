"""How a run's pace grows with the epochs, and which of its rounds did best."""

from types import SimpleNamespace

import pytest

from mil.self_paced import Pace
from tests.mil.test_mining import BAGS, POSITIVE, SCORES


def test_both_shares_grow_from_their_own_start():
    args = SimpleNamespace(epochs=20, warmup=5, ro=0.2, ro_neg=0.5, rT=0.8)
    pace = Pace({}, 0.2, 0.5)
    assert pace.grown(4, args) is pace
    grown = pace.grown(10, args)  # a third of the way
    assert (grown.share, grown.negative_share) == (pytest.approx(0.4), pytest.approx(0.6))


def test_each_epoch_draws_negatives_of_its_own_at_random():
    flags = {"negfilter": True, "neg_ratio": 0.5, "negatives": "random", "mask_uncertain_neg": True}
    args = SimpleNamespace(threshold=0.3, quantile="global", seed=0, **flags)
    data, pace = SimpleNamespace(bag_of=BAGS, positive=POSITIVE), Pace({"train": SCORES}, 0.2, 0.2)
    drawn = [pace.selection(data, ("train",), epoch, args).n_clean for epoch in range(5)]
    assert len({tuple(each) for each in drawn}) > 1


def test_the_best_round_is_the_first_of_the_highest_auc():
    rounds = tuple({"val_auc": auc, "val_f1": f1} for auc, f1 in ((0.5, 0.9), (0.8, 0.1), (0.8, 0.7)))
    assert Pace({}, 0.2, 0.2, rounds=rounds).best_round() is rounds[1]
