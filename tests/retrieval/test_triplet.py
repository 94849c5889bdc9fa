"""Losses of pairs: equation 1 of Koker 2020, and numbers that stay numbers."""

import torch
import torch.nn.functional as F

from retrieval import triplet


def units(n, dim=8, seed=0):
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_the_hardest_loss_is_that_of_a_double_loop():
    anchors, copies = units(7), units(7, seed=1)
    expected = []
    for i in range(7):
        gap = (anchors[i] - copies[i]).norm()
        negatives = [(anchors[i] - copies[j]).norm() for j in range(7) if j != i]
        negatives += [(anchors[k] - copies[i]).norm() for k in range(7) if k != i]
        expected.append(max(0.0, float(gap - min(negatives) + 1)))
    torch.testing.assert_close(triplet.hardest(anchors, copies), torch.tensor(expected, dtype=torch.float64))


def test_a_gap_of_one_everywhere_costs_nothing():
    corners = torch.eye(4)  # all 1.41 from each other
    assert triplet.hardest(corners, corners).sum() == 0
    assert triplet.random(corners, corners, corners.roll(1, 0)).sum() == 0


def test_the_random_loss_is_pytorchs():
    vectors = [units(6, seed=seed) for seed in range(3)]
    expected = F.triplet_margin_loss(*vectors, margin=1, reduction="none")
    torch.testing.assert_close(triplet.random(*vectors), expected, atol=1e-5, rtol=0)


def test_identical_images_give_finite_gradients():
    anchors = units(3).float().requires_grad_()
    same = anchors[:1].expand(3, -1)
    for losses in (triplet.hardest(same, same), triplet.random(same, same, same)):
        losses.sum().backward()
        assert losses.isfinite().all()
        assert anchors.grad.isfinite().all()


def test_near_duplicates_have_their_distance_though_products_cancel():
    anchors = units(1).float()
    moved = F.normalize(anchors + 1e-3 * units(1, seed=3).float())
    assert abs(triplet.distances(anchors, moved).item() - (anchors - moved).norm().item()) < 1e-4


def test_a_batch_of_one_has_no_negative():
    assert triplet.hardest(units(1), units(1, seed=1)).item() == 0
