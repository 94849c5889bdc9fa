"""Batches of nMNIST composed on the training device: the digits stay there, only their places follow."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from data.cluttered_mnist import render
from data.cluttered_mnist.recipe import Recipe


class DeviceRenderer:
    """Canvases of a recipe, bit for bit those of `Recipe.canvas`, composed on a device without waiting for it.

    The recipe must have scale 1: zooming is the CPU's.
    """

    def __init__(self, recipe: Recipe, device: torch.device):
        self.recipe, self.device = recipe, device
        self.banks = [torch.from_numpy(np.array(recipe.part(name))).to(device) for name in ("pool", "needles")]
        self.full_scale = torch.tensor(255.0, device=device)  # by a number, a GPU would multiply with its reciprocal

    def __call__(self, numbers: Sequence[int]) -> Tensor:
        """The images of these numbers, (B, 1, H, W) float32 in [0, 1]."""
        side, layers = self.recipe.canvas_side, []
        for bank, placed in zip(self.banks, self.recipe.batch_layers(numbers), strict=True):
            index, image, y, x = self._send(placed)
            layers.append((bank[index], image, y, x))
        return render.compose_batch(side, len(numbers), *layers)[:, None] / self.full_scale

    def _send(self, array):
        tensor = torch.from_numpy(array)
        tensor = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return tensor.to(self.device, non_blocking=True)


class RenderedBatches:
    """Loader of (images (B, 1, H, W) on the device, labels (B,)) for batches of indices into a data set.

    Args:
        numbers: (N,) the recipe's number of each image. labels: (N,) int64.
        batches: gives lists of indices, afresh at every iteration.
    """

    def __init__(self, renderer: DeviceRenderer, numbers: np.ndarray, labels: np.ndarray, batches):
        self.renderer, self.numbers, self.labels, self.batches = renderer, numbers, labels, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in self.batches:
            yield self.renderer(self.numbers[indices]), torch.from_numpy(self.labels[indices])
