"""A round learns, stops and goes on, and chooses its epoch and threshold by validation bags alone."""

import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from common import checkpoint, metrics, signals
from common.errors import BadInput
from mil import rounds
from tests.mil.made import digit_bags, make_args

CPU = torch.device("cpu")
SIZES = [2, 3, 4, 1]
LABELS = torch.tensor([1.0, 1.0, 0.0, 0.0])  # two pairs: bags 0 and 2, bags 1 and 3


def ranking_loss(top, *flags):
    """The part of the loss that ranks, of bags whose instances all have the logit `top`, with the other weights 0."""
    args = make_args("unused", "--ranking_loss", "--loss_weight_bag", 0, "--loss_weight_ranking", 1, *flags)
    logits = torch.cat([torch.full((n,), value) for n, value in zip(SIZES, top, strict=True)])
    return rounds.round_loss(torch.zeros(4), logits, SIZES, LABELS, 1.0, 0.0, args).item()


def test_a_pair_whose_top_instances_are_one_apart_has_no_ranking_loss():
    assert ranking_loss([1.5, 2.0, 0.5, 1.0]) == 0
    assert ranking_loss([1.0, 2.0, 0.5, 1.0]) == pytest.approx(0.25)  # one pair is half too close


def test_a_bag_of_fewer_than_k_instances_is_ranked_by_all_it_has():
    assert ranking_loss([0.0, 0.0, 1.0, 1.0], "--rank_k", 10) == pytest.approx(2.0)


@pytest.mark.parametrize(("k", "expected"), [(1, 1 + 1 - 3), (2, 1 + 0.75 - 2), (3, 1 + 0.5 + 1)])
def test_only_the_top_k_instances_are_ranked(k, expected):
    flags = ["--ranking_loss", "--loss_weight_bag", 0, "--loss_weight_ranking", 1, "--rank_k", k]
    logits = torch.tensor([3.0, 1.0, -7.0, 0.5, 0.0, 1.0])
    labels, args = torch.tensor([1.0, 0.0]), make_args("unused", *flags)
    loss = rounds.round_loss(torch.zeros(2), logits, [3, 3], labels, 1.0, 0.0, args)
    assert loss.item() == pytest.approx(max(0, expected))


def test_the_loss_is_the_weighted_sum_of_its_terms():
    args = make_args("unused", "--loss_weight_bag", 0.7)
    bag_logits, logits = torch.randn(4), torch.randn(10)
    loss = rounds.round_loss(bag_logits, logits, SIZES, LABELS, 3.0, 0.2, args)
    highest = torch.stack([bag.max() for bag in logits.split(SIZES)])

    def entropy(values):  # positives count three times
        return (-3 * values[:2].sigmoid().log().sum() - (-values[2:]).sigmoid().log().sum()) / 4

    torch.testing.assert_close(loss, 0.7 * entropy(bag_logits) + 0.2 * entropy(highest))


def test_pairs_are_balanced_drawn_once_and_as_many_as_the_smaller_class():
    labels = np.array([1, 0, 0, 1, 0, 0, 1, 0])
    args = make_args("unused", "--ranking_loss", "-b", 2)
    steps = rounds.epoch_steps(labels, args, epoch=3)
    assert [len(step) for step in steps] == [4, 2]
    for step in steps:
        assert labels[step].tolist() == [1] * (len(step) // 2) + [0] * (len(step) // 2)
    drawn = np.concatenate(steps)
    assert len(set(drawn.tolist())) == 6
    assert not np.array_equal(drawn, np.concatenate(rounds.epoch_steps(labels, args, epoch=4)))


def test_without_pairs_every_bag_is_drawn_once():
    steps = rounds.epoch_steps(np.arange(7) % 2, make_args("unused", "-b", 3), epoch=0)
    assert [len(step) for step in steps] == [3, 3, 1]
    assert sorted(np.concatenate(steps).tolist()) == list(range(7))


@pytest.mark.parametrize(
    ("flags", "weight"), [([], 3.0), (["--ranking_loss"], 1.0), (["--ranking_loss", "--pos_weight_in_pairs"], 3.0)]
)
def test_positives_weigh_as_much_as_negatives_once(flags, weight):
    bags = digit_bags(8, 4, size=2)["train"].subset([0, 1, 2, 4, 6, 3, 2, 0])
    assert np.bincount(bags.labels).tolist() == [6, 2]
    assert rounds.pos_weight(bags, make_args("unused", *flags)) == weight


def test_the_validation_loss_is_the_bags_cross_entropy():
    bags, logits = digit_bags(4, 6, size=3)["val"], np.linspace(-3, 2, 6)
    found = rounds.evaluate(bags, rounds.Scores(logits, [np.zeros(3, np.float32)] * 6), 0.0)
    expected = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(bags.labels).double())
    assert found["loss"] == pytest.approx(expected.item())


def test_instances_of_positive_bags_are_scored_apart():
    """Those of negative bags score highest, and in a positive bag the object does."""
    bags = digit_bags(4, 6, size=3)["val"]
    instances = [truth if label else truth + 5 for label, truth in zip(bags.labels, bags.truth, strict=True)]
    found = rounds.evaluate(bags, rounds.Scores(np.zeros(6), instances), 0.0)
    assert found["instance_auc_positive_bags"] == 1 > found["instance_auc"]


def test_the_rate_halves_every_75_epochs_and_no_sooner():
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    rates = [rounds.set_learning_rate(optimizer, 0.4, epoch) for epoch in (0, 37, 74, 75, 149, 150)]
    assert rates == [0.4, 0.4, 0.4, 0.2, 0.2, 0.1]
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_an_epoch_to_extract_that_is_never_reached_is_refused_at_the_start(tmp_path):
    args = make_args(tmp_path, "--num_epoch_mil", 5, "--epoch_to_extract_mil", 5)
    with pytest.raises(BadInput, match="--epoch_to_extract_mil 5: counts from 0 and must be below --num_epoch_mil 5"):
        rounds.train(digit_bags(8, 4), args, tmp_path, CPU)
    assert not list(tmp_path.iterdir())


# --- whole rounds ---


FLAGS = ("--num_epoch_mil", 3, "--lr_mil", 1e-2, "--epoch_to_extract_mil", 1)


def train(logdir, *flags, splits=None, stop_at=None):
    """A round of few bags; SIGTERM comes as step number `stop_at` is taken."""
    with pytest.MonkeyPatch.context() as patch:
        taken, step = [], rounds.step

        def counted(*args):
            taken.append(1)
            if len(taken) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*args)

        patch.setattr(rounds, "step", counted)
        args = make_args("elsewhere", *FLAGS, *flags)
        return rounds.train(splits or digit_bags(12, 8, size=5), args, logdir, CPU)


def content(logdir):
    table = pd.read_csv(logdir / "stats.csv").drop(columns=["seconds", "bags_per_s"])
    names = (checkpoint.BEST, checkpoint.LATEST, rounds.EXTRACT)
    weights = [checkpoint.load(logdir / name)["state_dict"] for name in names]
    return table.to_csv(), [{name: tensor.tolist() for name, tensor in each.items()} for each in weights]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("whole")
    return logdir, train(logdir)


@pytest.mark.parametrize("stop_at", [5, 12, 20])
def test_a_round_stopped_at_any_step_ends_as_if_it_had_not_been(whole, tmp_path, stop_at):
    with pytest.raises(signals.Terminated):
        train(tmp_path, stop_at=stop_at)
    train(tmp_path)
    assert content(tmp_path) == content(whole[0])


def test_a_complete_round_is_read_not_trained(whole, capsys):
    logdir, first = whole
    before = (logdir / checkpoint.LATEST).read_bytes()
    again = train(logdir)
    assert "complete after epoch 3" in capsys.readouterr().out
    assert (logdir / checkpoint.LATEST).read_bytes() == before
    assert (again.threshold, again.best, again.f1) == (first.threshold, first.best, first.f1)


def test_the_network_returned_is_of_the_best_validation_epoch_with_its_threshold(whole):
    logdir, result = whole
    table = pd.read_csv(logdir / "stats.csv")
    assert result.best["epoch"] == table.epoch[table.eval_auc.idxmax()]
    assert result.f1 == table.eval_f1.max()
    products, sums = table.eval_prec * table.eval_recall, table.eval_prec + table.eval_recall
    np.testing.assert_allclose(table.eval_f1 * sums, 2 * products)
    val = digit_bags(12, 8, size=5)["val"]
    scores = rounds.predict(result.model, val, CPU)
    assert metrics.youden_threshold(val.labels, scores.bags) == result.threshold
    found = rounds.evaluate(val, scores, result.threshold)
    assert found["auc"] == result.best["eval_auc"]
    assert found["instance_auc"] == result.best["eval_instance_auc"]


def test_the_weights_for_pseudo_labels_are_those_of_the_epoch_asked_for(whole, tmp_path):
    train(tmp_path, "--num_epoch_mil", 2)  # its last epoch is the one that the other round extracted
    saved = checkpoint.load(tmp_path / checkpoint.LATEST)["state_dict"]
    for name, tensor in whole[1].extracted.state_dict().items():
        assert torch.equal(tensor, saved[name])


def test_test_bags_have_no_part_in_a_round(whole, tmp_path):
    splits = digit_bags(12, 8, size=5)
    del splits["test"]
    train(tmp_path, splits=splits)
    assert content(tmp_path) == content(whole[0])


def test_other_bags_or_flags_are_refused_by_name(whole):
    with pytest.raises(BadInput, match="differs in other data"):
        train(whole[0], splits=digit_bags(12, 8, size=5, seed=1))
    with pytest.raises(BadInput, match=r"differs in aggregator dsmil \(now max\)"):
        train(whole[0], "--aggregator", "max")


def test_scores_do_not_depend_on_how_many_bags_are_scored_at_a_time(whole, monkeypatch):
    bags = digit_bags(12, 8, size=5)["train"]
    together = rounds.predict(whole[1].model, bags, CPU)
    monkeypatch.setattr(rounds, "EVALUATED", 11)
    assert list(rounds.blocks(np.array([5, 5, 5, 30, 1]))) == [[0, 1], [2], [3], [4]]
    apart = rounds.predict(whole[1].model, bags, CPU)
    np.testing.assert_allclose(apart.bags, together.bags, rtol=1e-5)
    np.testing.assert_allclose(
        np.concatenate(apart.instances), np.concatenate(together.instances), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("flags", ["--aggregator mean", "--aggregator attention", "--ranking_loss -b 2"])
def test_every_kind_of_round_ends_in_finite_scores(tmp_path, flags):
    splits = digit_bags(12, 8, size=5)
    result = train(tmp_path, *flags.split(), splits=splits)
    scores = rounds.predict(result.model, splits["test"], CPU)
    assert np.isfinite(scores.bags).all()
    assert np.isfinite(rounds.evaluate(splits["test"], scores, result.threshold)["loss"])


def test_instance_scores_of_a_hand_counted_case():
    truth, logits = [np.array([0, 1]), np.array([0, 0])], [np.array([0.1, 0.9]), np.array([0.5, 0.95])]
    found = rounds.instance_scores(truth, logits)
    assert found["instance_auc"] == pytest.approx(2 / 3)
    assert found["instance_ap"] == pytest.approx(1 / 2)
    assert found["instance_f1"] == pytest.approx(2 / 3)  # at .9: one of two is right, all are found
    assert found["instance_threshold"] == pytest.approx(0.9)


@pytest.mark.slow
def test_bags_of_twenty_digits_are_learnt(tmp_path):
    """300 bags, a 3 in every second one."""
    splits = digit_bags(300, 100)
    args = make_args("elsewhere", "--num_epoch_mil", 30, "--lr_mil", 1e-3, "-b", 4)
    result = rounds.train(splits, args, tmp_path, CPU)
    scores = rounds.predict(result.model, splits["test"], CPU)
    assert rounds.evaluate(splits["test"], scores, result.threshold)["auc"] > 0.9
