"""Global poolings over all positions of an embedding: (B, C, h, w) -> (B, C). Source: Pawlowski 2019, appendix B.1."""

import torch
from torch import Tensor


def max_pool(embedding: Tensor) -> Tensor:
    """The largest value of every channel; its gradient reaches one position. Equation in the text of B.1."""
    return embedding.flatten(2).max(dim=2).values


def mean_pool(embedding: Tensor) -> Tensor:
    """The mean of every channel, equation (2)."""
    return embedding.flatten(2).mean(dim=2)


def logsumexp_pool(embedding: Tensor) -> Tensor:
    """log of the plain sum (not mean) of exponentials of every channel, equation (1)."""
    return embedding.flatten(2).logsumexp(dim=2)


def attention_pool(embedding: Tensor, scores: Tensor) -> Tensor:
    """Average the embedding over positions, weighted by a softmax of the scores, equations (3) and (4).

    Args:
        embedding: (B, C, h, w).
        scores: (B, h * w), one unnormalised score per position.
    Returns: (B, C). Source: Ilse et al. 2018.
    """
    weights = scores.softmax(dim=1)  # (B, h*w), rows sum to 1
    return torch.einsum("bcp,bp->bc", embedding.flatten(2), weights)


PLAIN_POOLINGS = {"max": max_pool, "mean": mean_pool, "logsumexp": logsumexp_pool}  # without weights


def generalized_mean_pool(embedding: Tensor, p=3.0) -> Tensor:
    """(mean of max(x, 1e-6)^p)^(1/p) of every channel; p = 1 is the mean, a large p the maximum.

    Args:
        p: a number or a tensor that learns. Source: Radenovic et al. 2018 (GeM).
    """
    return embedding.flatten(2).clamp(min=1e-6).pow(p).mean(dim=2).pow(1 / p)
