"""Losses that bring near-duplicates together and others apart (Koker 2020, equation 1); embeddings have norm 1."""

import torch.nn.functional as F
from torch import Tensor

MARGIN = 1.0
LEAST_SQUARE = 1e-12  # of a distance: the root of 0 has no gradient


def distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Euclidean distances (M, N) of unit vectors (M, D) and (N, D), whose gradients are finite at 0 too."""
    products = queries @ gallery.T
    return (2 - 2 * products).clamp(min=LEAST_SQUARE).sqrt()


def hardest(anchors: Tensor, copies: Tensor) -> Tensor:
    """Losses (B,) of pairs against the hardest negative of the batch, a copy of another anchor or the reverse.

    With D_ij = |a_i - b_j|: max(0, D_ii - min(min_{j != i} D_ij, min_{k != i} D_ki) + 1). A batch of one has no
    negative and the loss 0.
    """
    pairs = distances(anchors, copies)  # (B, B)
    others = pairs + 10 * pairs.new_ones(len(pairs)).diag()
    negatives = others.min(1).values.minimum(others.min(0).values)
    return F.relu(pairs.diagonal() - negatives + MARGIN)


def random(anchors: Tensor, copies: Tensor, others: Tensor) -> Tensor:
    """Losses (B,) of pairs against one other image each: max(0, |a - b| - |a - o| + 1)."""
    return F.relu(_rowwise(anchors, copies) - _rowwise(anchors, others) + MARGIN)


def _rowwise(a, b):
    return (a - b).square().sum(1).clamp(min=LEAST_SQUARE).sqrt()


LOSSES = {"hardest": hardest, "triplet": random}
