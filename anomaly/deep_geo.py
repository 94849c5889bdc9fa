"""deep_geo (Golan & El-Yaniv 2018): a network learns which of 72 transformations an image underwent.

On an abnormal image it is less sure. How sure it is on normal ones, a Dirichlet distribution per transformation says.
"""

import itertools

import torch
from torch import Tensor, nn

from models.wide_resnet import WideResNet

N_TRANSFORMS = 72
LEAST = 1e-12  # below which a probability counts as this in the fit
GAMMA = 0.5772156649015329  # -psi(1)


def source_pixels(side: int, shift: int) -> Tensor:
    """For each transformation, the pixel of the image that every pixel of the result shows.

    The transformations are mirror left to right, shift in y, shift in x (0, -shift, +shift) and quarter turns, in this
    order and nested in it; number 0 changes nothing.

    Returns: (72, side * side) int64, flat positions.
    """
    pixels, tables = torch.arange(side * side).view(side, side), []
    for mirror, down, across, turns in itertools.product((0, 1), (0, -shift, shift), (0, -shift, shift), range(4)):
        moved = pixels.flip(1) if mirror else pixels
        moved = moved[_shifted(side, down)][:, _shifted(side, across)]
        tables.append(torch.rot90(moved, turns).flatten())
    return torch.stack(tables)


def _shifted(side, shift):
    """Positions i + shift for i in range(side), reflected at the edges, whose pixels come twice."""
    positions = (torch.arange(side) + shift) % (2 * side)
    return torch.where(positions < side, positions, 2 * side - 1 - positions)


def transformed(images: Tensor, transforms: Tensor, pixels: Tensor) -> Tensor:
    """Every image (B, C, S, S) under its own transformation (B,), by the table of `source_pixels`."""
    sources = pixels[transforms].unsqueeze(1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, sources).view_as(images)


def inverse_digamma(y: Tensor) -> Tensor:
    """x > 0 with psi(x) = y, by five Newton steps (Minka 2000, appendix C)."""
    x = torch.where(y >= -2.22, y.exp() + 0.5, -1 / (y + GAMMA))
    for _ in range(5):
        x = x - (torch.digamma(x) - y) / torch.polygamma(1, x)
    return x


def fit_dirichlet(mean: Tensor, mean_log: Tensor) -> Tensor:
    """Maximum-likelihood parameters of Dirichlet distributions, (T, k) each.

    The fixed point alpha = psi^-1(psi(sum alpha) + mean log p) of Minka 2000, from the start of Wicker et al. 2008,

        alpha = mean p (k - 1) (-psi(1)) / sum_j mean p_j (log mean p_j - mean log p_j).

    Args: mean, mean_log: (T, k) float64, averages of p and log p over the samples.
    """
    spread = (mean * (mean.log() - mean_log)).sum(1, keepdim=True).clamp_min(LEAST)  # 0 if all samples are equal
    alpha = mean * (mean.shape[1] - 1) * GAMMA / spread
    for _ in range(1000):
        before, alpha = alpha, inverse_digamma(torch.digamma(alpha.sum(1, keepdim=True)) + mean_log)
        if torch.allclose(alpha, before, rtol=1e-9, atol=1e-9):
            break
    return alpha


class DeepGeo(nn.Module):
    """The network with the Dirichlet parameters `alpha` (72, 72) of its outputs on normal images, 1 before a fit."""

    def __init__(self, in_channels: int, side: int, shift: int, depth: int, widen: int):
        super().__init__()
        self.network = WideResNet(in_channels, side, N_TRANSFORMS, depth, widen)
        self.register_buffer("pixels", source_pixels(side, shift), persistent=False)
        self.register_buffer("alpha", torch.ones(N_TRANSFORMS, N_TRANSFORMS, dtype=torch.float64))

    def forward(self, images: Tensor, transforms: Tensor) -> Tensor:
        """Logits (B, 72) of images (B, C, S, S) in [0, 1], each under its transformation (B,)."""
        return self.network(transformed(2 * images - 1, transforms, self.pixels))

    def log_probabilities(self, images: Tensor, transform: int) -> Tensor:
        """(B, 72) float64 of images that all undergo one transformation."""
        transforms = torch.full((len(images),), transform, device=images.device)
        return self(images, transforms).double().log_softmax(dim=1)

    def anomaly_scores(self, images: Tensor) -> Tensor:
        """(B,) float64, minus the mean over transformations t of sum_j (alpha_tj - 1) log(p_tj + 1e-6)."""
        total = 0
        for transform, alpha in enumerate(self.alpha):
            total = total - (self.log_probabilities(images, transform).exp() + 1e-6).log() @ (alpha - 1)
        return total / N_TRANSFORMS

    @torch.inference_mode()
    def fit_normality(self, batches) -> None:
        """Fit `alpha` to batches of normal images (B, C, S, S); holds sums only, whatever the number of images."""
        total, logs, n = torch.zeros_like(self.alpha), torch.zeros_like(self.alpha), 0
        for images in batches:
            for transform in range(N_TRANSFORMS):
                found = self.log_probabilities(images, transform).exp().clamp_min(LEAST)
                total[transform] += found.sum(0)
                logs[transform] += found.log().sum(0)
            n += len(images)
        self.alpha.copy_(fit_dirichlet(total / n, logs / n))
