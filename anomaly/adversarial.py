"""Wasserstein critics with gradient penalty, for PIAD and for DPA's adversarial ablation (Gulrajani et al. 2017).

A critic D is trained to be high on real samples and low on made ones; it minimises

    -(E D(real) - E D(made)) + 10 E (||grad D(mixed)|| - 1)^2 + 0.001 (E D(real)^2 + E D(made)^2)

and a generator minimises -E D(made).
"""

import torch
from torch import Tensor, nn

PENALTY = 10.0  # on the gradient's norm
DRIFT = 1e-3  # keeps the critic's outputs near zero


def critic_loss(critic: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """The loss above, a scalar; no gradient reaches what made the samples.

    Args:
        critic: (B, ...) -> a number per sample, in any shape.
        real, made: (B, ...) of one shape.
    """
    real, made = real.detach(), made.detach()
    on_real, on_made = critic(real).flatten(), critic(made).flatten()
    distance = on_real.mean() - on_made.mean()
    drift = on_real.square().mean() + on_made.square().mean()
    return -distance + PENALTY * gradient_penalty(critic, real, made) + DRIFT * drift


def gradient_penalty(critic: nn.Module, real: Tensor, made: Tensor, mix: Tensor | None = None) -> Tensor:
    """E (||grad D(mixed)|| - 1)^2 at one point between each real and each made sample, with a graph.

    Args: mix: (B,) in [0, 1], the share of `real` in that point, drawn when it is not given.
    """
    mix = torch.rand(len(real), device=real.device) if mix is None else mix
    mix = mix.view(-1, *[1] * (real.dim() - 1))
    between = (mix * real + (1 - mix) * made).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def generator_loss(critic: nn.Module, made: Tensor) -> Tensor:
    """-E D(made), a scalar with a graph to what made the samples."""
    return -critic(made).mean()
