"""Weights and inputs by formula, so that reference outputs need no stored tensors."""

import math

import numpy as np
import torch


def u01(n: int, stream: int) -> np.ndarray:
    """n float64 values in [0, 1), multiples of 2^-24: splitmix64 of the counters stream * 2^32 + 1, ..."""
    with np.errstate(over="ignore"):
        z = (np.arange(n, dtype=np.uint64) + np.uint64(stream * 2**32 + 1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2.0**24


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Give the model float32 weights that depend on names, shapes and order of its state alone."""
    state = model.state_dict()
    for i, (name, tensor) in enumerate(state.items()):
        if not tensor.is_floating_point():
            continue
        values = 2.0 * u01(tensor.numel(), i) - 1.0
        if tensor.ndim >= 2:
            values *= math.sqrt(6.0 / (tensor.numel() // tensor.shape[0]))
        elif name.endswith(("weight", "running_var")):
            values = 1.0 + 0.2 * values
        else:
            values *= 0.1
        if name.endswith("bn3.weight"):
            values *= 0.5
        if name == "mlp.weight":
            values *= 0.1
        state[name] = torch.from_numpy(values.astype(np.float32)).view(tensor.shape)
    model.load_state_dict(state)
    return model


def make_input(n: int, c: int, h: int, w: int) -> torch.Tensor:
    """(n, c, h, w) float32 in [0, 1], about half of the pixels zero."""
    y = torch.linspace(0, 1, h, dtype=torch.float64).view(1, 1, h, 1)
    x = torch.linspace(0, 1, w, dtype=torch.float64).view(1, 1, 1, w)
    b = torch.arange(n, dtype=torch.float64).view(n, 1, 1, 1)
    k = torch.arange(c, dtype=torch.float64).view(1, c, 1, 1)
    waves = torch.sin(50 * y * y + b + k) * torch.cos(65 * x + 100 * y * y * x + 2 * k)
    return waves.clamp(0, 1).float()
