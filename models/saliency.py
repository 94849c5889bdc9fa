"""Gradients of a classifier's output with respect to its input."""

import torch
from torch import Tensor, nn


def saliency_maps(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient maps, local predictions and logits of images (B, in, H, W).

    Returns: saliency (B, H, W) = sqrt(mean over channels of (d logit_1 / d input)^2); softmax of the local logits,
    positive class (B, h, w); logits (B, 2). Source: Pawlowski 2019, section C.4.
    """
    images = images.detach().requires_grad_()
    embedding = model.cnn(images)
    logits = model.image_logits(embedding)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), images)  # (B, in, H, W)
    local = model.local_logits(embedding.detach()).detach()  # (B, 2, h, w)
    return gradient.square().mean(dim=1).sqrt(), local.softmax(dim=1)[:, 1], logits.detach()
