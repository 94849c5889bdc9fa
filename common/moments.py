"""Running moments of gradients."""

import torch
from torch import Tensor, nn


class GradientVariance:
    """Variance over optimiser steps of each parameter's gradient (Welford's method).

    Steps whose gradients are not finite do not count: the loss scaler of fp16 skips them.
    """

    def __init__(self, model: nn.Module):
        self.parameters = dict(model.named_parameters())
        self.load_state_dict(None)

    def state_dict(self) -> dict:
        """Tensors and plain types, to go on from."""
        return {"steps": self.steps, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict | None) -> None:
        """Go on from the state of a variance of the same network, or begin anew."""
        self.mean = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.squares = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.steps = 0
        if state:
            self.steps = state["steps"]
            for name in self.parameters:
                self.mean[name].copy_(state["mean"][name])
                self.squares[name].copy_(state["squares"][name])

    def add(self) -> None:
        """Count the present gradients as one step."""
        if not torch.stack([p.grad.isfinite().all() for p in self.parameters.values()]).all():
            return
        self.steps += 1
        for name, p in self.parameters.items():
            deviation = p.grad - self.mean[name]
            self.mean[name] += deviation / self.steps
            self.squares[name] += deviation * (p.grad - self.mean[name])

    def values(self) -> list[tuple[str, Tensor]]:
        """(name, variance) of every parameter; zero after fewer than two steps."""
        return [(name, squares / max(1, self.steps - 1)) for name, squares in self.squares.items()]
