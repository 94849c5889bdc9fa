"""SupCon and NT-Xent equal their sums written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from mil.contrastive import cosine_rate, nt_xent, supcon
from tests.tape import Tape

MODES = (0, 1, 2)
LABELS = torch.tensor([0, 1, 1, 0, 0])
UNCERTAIN = torch.tensor([True, False, False, False, False])


def written_out(z, labels, mode, uncertain, t):
    """The mean over anchors with positives, term by term."""
    views = len(z)
    z, labels = F.normalize(z, dim=2).flatten(0, 1), labels.repeat(views)
    left_out = [False] * len(z) if uncertain is None else uncertain.repeat(views).tolist()
    wanted = {0: (0, 1), 1: (1,), 2: (0,)}[mode]
    losses = []
    for i in range(len(z)):
        below = sum(torch.exp(z[i] @ z[a] / t) for a in range(len(z)) if a != i and not left_out[a])
        terms = [
            -torch.log(torch.exp(z[i] @ z[p] / t) / below)
            for p in range(len(z))
            if p != i and labels[p] == labels[i] and int(labels[i]) in wanted
        ]
        if terms:
            losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses), len(losses) / len(z)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("uncertain", [None, UNCERTAIN])
def test_supcon_equals_a_double_loop(mode, uncertain):
    z = torch.randn(2, 5, 8)
    expected, share = written_out(z, LABELS, mode, uncertain, 0.07)
    torch.testing.assert_close(supcon(z, LABELS, mode, uncertain), expected)
    over_all = supcon(z, LABELS, mode, uncertain, over_all_anchors=True)
    torch.testing.assert_close(over_all, expected * share)


def test_supcon_of_unique_labels_is_nt_xent():
    z = torch.randn(2, 6, 8)
    torch.testing.assert_close(supcon(z, torch.arange(6), temperature=0.5), nt_xent(*z, temperature=0.5))


@pytest.mark.parametrize("mode", MODES)
def test_shuffled_images_change_nothing(mode):
    z, order = torch.randn(2, 5, 8), torch.randperm(5)
    shuffled = supcon(z[:, order], LABELS[order], mode, UNCERTAIN[order])
    torch.testing.assert_close(shuffled, supcon(z, LABELS, mode, UNCERTAIN))


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_and_a_low_temperature_stay_finite(mode):
    z = (torch.randn(2, 5, 8) * 100).half().requires_grad_()
    loss = supcon(z, LABELS, mode, UNCERTAIN, temperature=0.01)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nt_xent(z[0], z[0].flip(0), temperature=0.01).isfinite()


def test_a_batch_without_positives_has_no_loss_and_no_gradient():
    z = torch.randn(2, 3, 8, requires_grad=True)
    loss = supcon(z, torch.zeros(3), mode=1)
    loss.backward()
    assert loss == 0
    assert (z.grad == 0).all()


def test_a_batch_whose_rivals_are_all_uncertain_has_no_loss():
    z = torch.randn(2, 2, 8, requires_grad=True)
    loss = supcon(z, torch.zeros(2), 2, torch.ones(2, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_supcon_reads_nothing_from_the_device(mode):
    z = torch.randn(2, 5, 8, requires_grad=True)
    with Tape():  # which refuses it
        supcon(z, LABELS, mode, UNCERTAIN).backward()
    assert z.grad.isfinite().all()


def test_the_rate_is_whole_for_ten_epochs_and_falls_along_a_cosine():
    assert [cosine_rate(0.01, epoch, 100) for epoch in (0, 10)] == [0.01, 0.01]
    assert cosine_rate(0.01, 60, 100) == pytest.approx(0.01 * (1 + math.cos(math.pi / 2)) / 2)
    rates = [cosine_rate(0.01, epoch, 100) for epoch in range(100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0
