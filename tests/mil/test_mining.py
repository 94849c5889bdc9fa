"""Scores -> tiles: the sets of HNM-WSI's loop, by size and by member."""

import itertools

import numpy as np
import pytest

from common.errors import BadInput
from mil import mining
from mil.mining import Rule

BAGS = np.repeat(np.arange(4), 5)
POSITIVE = BAGS < 2
RULE = Rule(0.3)
SCORES = np.array([0.9, 0.5, 0.4, 0.1, 0.0, 0.7, 0.6, 0.31, 0.3, 0.2] + [k / 100 for k in range(5, 15)])


def select(rule=RULE, share=0.5, negative_share=0.25, uncertain=(), scores=SCORES):
    return mining.select(scores, BAGS, POSITIVE, rule, share, negative_share, uncertain)


def test_the_four_sets_of_made_up_scores():
    chosen = select()
    assert chosen.p_full.tolist() == [0, 1, 2, 5, 6, 7]  # above .3, not at it
    assert chosen.p.tolist() == [0, 5, 6]  # median .55
    assert chosen.n_clean.tolist() == [18, 19]  # the hardest 20 % of ten
    assert chosen.n.tolist() == [18, 19]


def test_uncertain_negatives_are_the_lowest_scores_of_positive_bags():
    chosen = select(uncertain=("n",))
    assert chosen.n.tolist() == [4, 18, 19]  # of .0 .1 .2 .3, up to the quartile .075
    assert chosen.n_clean.tolist() == [18, 19]
    everywhere = select(uncertain=("n", "n_clean"), negative_share=1.0)
    assert everywhere.n_clean.tolist() == [3, 4, 8, 9, 18, 19]


def test_without_the_filter_all_tiles_of_negative_bags_are_in():
    assert select(Rule(0.3, hardest=None)).n_clean.tolist() == list(range(10, 20))


def test_negatives_at_random_are_as_many_as_the_hardest_and_all_different():
    rule = Rule(0.3, hardest=0.9, at_random=True)
    draws = [mining.select(SCORES, BAGS, POSITIVE, rule, 0.5, 0.5, seed=(7, epoch)) for epoch in range(9)]
    assert {(len(draw.n_clean), len(set(draw.n_clean))) for draw in draws} == {(9, 9)}
    assert not POSITIVE[np.concatenate([draw.n_clean for draw in draws])].any()
    assert len({tuple(draw.n_clean) for draw in draws}) > 1


def test_quantiles_per_bag_give_every_bag_its_share():
    chosen = select(Rule(0.3, "per_bag"), share=0.3)
    assert {int(bag) for bag in BAGS[chosen.p]} == {0, 1}
    assert {int(bag) for bag in BAGS[chosen.n_clean]} == {2, 3}
    assert {int(bag) for bag in BAGS[select(share=0.1).p]} == {0}


@pytest.mark.parametrize("quantile", mining.QUANTILES)
def test_a_larger_share_never_loses_a_tile(quantile):
    sets = [set(select(Rule(0.3, quantile), share=share).p.tolist()) for share in np.linspace(0.05, 1, 20)]
    assert all(small <= large for small, large in itertools.pairwise(sets))
    assert sets[0] < sets[-1] == set(select().p_full.tolist())


def test_equal_scores_are_in_together():
    scores = np.where(np.arange(20) < 10, SCORES, 0.5)
    assert select(scores=scores).n_clean.tolist() == list(range(10, 20))


def test_an_empty_set_names_the_highest_score_and_the_threshold():
    with pytest.raises(BadInput, match=r"--threshold 0.95: no tile .* highest has 0.9;"):
        select(Rule(0.95))
    with pytest.raises(BadInput, match="no positive bag"):
        mining.select(SCORES, BAGS, np.zeros(20, bool), Rule(0.3), 0.5, 0.5)
    with pytest.raises(BadInput, match="no negative bag"):
        mining.select(SCORES, BAGS, np.ones(20, bool), Rule(0.3), 0.5, 0.5)


def test_positive_bags_whose_tiles_all_pass_have_no_uncertain_negatives():
    assert select(Rule(-1.0), uncertain=("n",)).n.tolist() == [18, 19]


def test_the_share_grows_from_the_end_of_the_warm_up_to_the_last_epoch():
    shares = [mining.share_at(epoch, epochs=20, warmup=5, start=0.2, end=0.8) for epoch in range(21)]
    assert shares[:6] == [0.2] * 6
    assert shares[20] == pytest.approx(0.8)
    np.testing.assert_allclose(np.diff(shares[5:]), 0.6 / 15)


def test_blended_scores_are_an_array_of_their_own():
    old, new = np.zeros(3), np.ones(3)
    assert mining.blended(old, new).tolist() == [0.7] * 3
    mining.blended(old, new)[:] = 9
    assert old.tolist() == [0, 0, 0]


def test_a_witness_rate_thins_one_kind_of_tile_in_positive_bags_alone():
    truth = (np.arange(20) % 5 < 2) & POSITIVE  # two of five
    fewer_negatives = mining.thinned(truth.astype(int), BAGS, POSITIVE, 1 / 3, seed=0)
    assert np.bincount(BAGS[fewer_negatives]).tolist() == [3, 3, 5, 5]
    assert fewer_negatives[truth].all()
    fewer_positives = mining.thinned(truth.astype(int), BAGS, POSITIVE, 100.0, seed=0)
    assert np.bincount(BAGS[fewer_positives & truth], minlength=4).tolist() == [1, 1, 0, 0]
    assert fewer_positives[~truth].all()
    with pytest.raises(BadInput, match="--witness_rate 2: needs every tile's truth"):
        mining.thinned(np.full(20, -1), BAGS, POSITIVE, 2.0, seed=0)


def test_batches_walk_a_set_in_a_new_order_each_time():
    batches = mining.epoch_batches(np.arange(10, 20), size=3, steps=7, seed=(0, 1))
    assert batches.shape == (7, 3)
    walks = [batches[k : k + 3].flatten().tolist() for k in (0, 3)]
    assert [len(set(walk)) for walk in walks] == [9, 9]
    assert walks[0] != walks[1]
    assert set(batches.flatten()) <= set(range(10, 20))


def test_batches_of_a_set_smaller_than_one_repeat_its_tiles():
    batches = mining.epoch_batches(np.array([4, 7]), size=5, steps=3, seed=(0,))
    assert batches.shape == (3, 5)
    assert set(batches.flatten()) == {4, 7}
