"""Gradients of a classifier's output with respect to its input."""

import torch
from torch import Tensor, nn

from models import background_saliency


def saliency_maps(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient maps, local predictions and logits of images (B, in, H, W).

    Returns: saliency (B, H, W) = sqrt(mean over channels of (d logit_1 / d input)^2); softmax of the local logits,
    positive class (B, h, w); logits (B, 2). Source: the paper, section C.4.
    """
    by_rows = background_saliency.gradients(model, images)
    gradient, local, logits = by_rows or _plain_gradients(model, images.detach())
    return gradient.square().mean(dim=1).sqrt(), local.softmax(dim=1)[:, 1], logits


def _plain_gradients(model, images):
    """Gradient of logit 1 for the images, local logits (B, 2, h, w), logits (B, 2)."""
    images.requires_grad_()
    embedding = model.cnn(images)
    logits = model.image_logits(embedding)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), images)
    return gradient, model.local_logits(embedding.detach()).detach(), logits.detach()
