"""Contrastive losses: SupCon in HNM-WSI's three modes, and NT-Xent."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FIRST_FALL = 10  # epochs at the full rate before the cosine schedule begins


def supcon(
    z: Tensor,
    labels: Tensor,
    mode: int = 0,
    uncertain: Tensor | None = None,
    temperature: float = 0.07,
    over_all_anchors: bool = False,
) -> Tensor:
    """Supervised contrastive loss of M images in V views.

        mean over anchors i of -mean over their positives p of log(exp(zi.zp / t) / sum_{a != i} exp(zi.za / t))

    Args:
        z: (V, M, d), embeddings of any length.
        labels: (M,) 0 or 1.
        mode: which pairs are positives: 0 of one label, 1 both labels 1, 2 both labels 0. Others repel.
        uncertain: bool (M,), images that leave the sum below the line, as neither label is sure.
        over_all_anchors: divide by all V * M anchors, as HNM-WSI does, and not by those that have positives. Without
            any positive the loss is 0.
    Returns: a scalar float32. Source: Khosla 2020, equation 2; the modes are HNM-WSI's.
    """
    views, images = z.shape[:2]
    labels = labels.repeat(views)
    z = F.normalize(z.reshape(views * images, -1).float(), dim=1)
    with torch.autocast(z.device.type, enabled=False):
        logits = z @ z.T / temperature  # (VM, VM)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positives = (labels[:, None] == labels) & ~itself
    if mode:
        positives &= (labels == (1 if mode == 1 else 0))[:, None]
    rivals = ~itself
    if uncertain is not None:
        rivals = rivals & ~uncertain.repeat(views)
    counts = positives.sum(dim=1)
    anchors = (counts > 0) & rivals.any(dim=1)
    left_out = anchors[:, None] & ~rivals  # rows that are no anchors stay finite; nothing is read from a GPU
    below = logits.masked_fill(left_out, -math.inf).logsumexp(dim=1)  # no overflow
    above = (logits * positives).sum(dim=1) / counts.clamp(min=1)
    total = (below - above).masked_fill(~anchors, 0).sum()
    return total / (len(z) if over_all_anchors else anchors.sum().clamp(min=1))


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """SimCLR's loss: each of 2B views finds the other view of its image among the 2B - 1 others.

    Args:
        first, second: (B, d), embeddings of two views, of any length.
    Returns: a scalar float32. Source: Chen 2020, equation 1.
    """
    z = F.normalize(torch.cat([first.float(), second.float()]), dim=1)
    with torch.autocast(z.device.type, enabled=False):
        logits = (z @ z.T / temperature).fill_diagonal_(-math.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(first))
    return F.cross_entropy(logits, partner)


def cosine_rate(lr: float, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch from 0: a half cosine over `epochs`, begun after FIRST_FALL epochs."""
    return lr * (1 + math.cos(math.pi * max(0, epoch - FIRST_FALL) / epochs)) / 2
