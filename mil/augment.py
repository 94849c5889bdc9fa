"""Random views of tiles for contrastive learning, drawn from a torch generator: a batch's views depend on it alone.

Source: SimCLR (Chen 2020, appendix A), with HNM-WSI's strengths; the kinds are those of its --augment_transform.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from data.transforms import RGB_TO_GREY

KINDS = (0, 1, 2)
SIMCLR, FLIP = 0, 2
CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
JITTER, JITTER_HUE, JITTER_P = 0.8, 0.2, 0.8
GREY_P = 0.2
BLUR_KERNEL, BLUR_SIGMA, BLUR_P = 13, (0.1, 2.0), 0.5


def add_flag(parser) -> None:
    """Declare `--augment_transform`."""
    help = "0 SimCLR, 1 flip, grey, blur, 2 flip"
    parser.add_argument("--augment_transform", type=int, choices=KINDS, default=SIMCLR, help=help)


def views(images: Tensor, kind: int, generator: torch.Generator, n: int = 2) -> Tensor:
    """n random views of every image, (n, B, 3, S, S) in [0, 1].

    Args:
        images: (B, 1 or 3, S, S) in [0, 1].
        kind: 0 crop, flip, colour, grey, blur; 1 flip, grey, blur; 2 flip.
        generator: on the CPU, so that a GPU draws the same.
    """
    images = images.expand(-1, 3, -1, -1)
    return torch.stack([_view(images, kind, generator) for _ in range(n)])


def _view(images, kind, generator):
    images = crop_and_flip(images, generator, crop=kind == SIMCLR)
    if kind == SIMCLR:
        images = jitter(images, generator)
    if kind != FLIP:
        images = blur(grey(images, generator), generator)
    return images


def _uniform(images, generator, low=0.0, high=1.0):
    """A number per image, (B, 1, 1, 1) on its device."""
    drawn = torch.rand(len(images), generator=generator) * (high - low) + low
    return drawn.to(images.device)[:, None, None, None]


def crop_and_flip(images: Tensor, generator: torch.Generator, crop: bool) -> Tensor:
    """A random rectangle of each image, resized to the whole, half of them mirrored; without `crop` the whole."""
    flip = torch.where(_uniform(images, generator) < 0.5, -1.0, 1.0)
    if not crop:
        return torch.where(flip < 0, images.flip(-1), images)
    area = _uniform(images, generator, *CROP_AREA)
    ratio = _uniform(images, generator, *map(math.log, CROP_RATIO)).exp()  # width by height
    width, height = ((area * factor).sqrt().clamp(max=1) for factor in (ratio, 1 / ratio))
    left, top = (_uniform(images, generator) * (1 - side) for side in (width, height))
    scale = torch.cat([flip * width, height], dim=1)[:, :, 0, 0]  # (B, 2)
    shift = torch.cat([2 * left + width - 1, 2 * top + height - 1], dim=1)[:, :, 0, 0]
    theta = torch.cat([torch.diag_embed(scale), shift[:, :, None]], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue of most images, in an order drawn for the batch."""
    chosen = _uniform(images, generator) < JITTER_P
    changed = images
    for change in torch.randperm(4, generator=generator).tolist():
        if change == 3:
            changed = shift_hue(changed, _uniform(images, generator, -JITTER_HUE, JITTER_HUE))
            continue
        factor = _uniform(images, generator, 1 - JITTER, 1 + JITTER)
        anchor = (torch.zeros_like(factor), luma(changed).mean(dim=(2, 3), keepdim=True), luma(changed))[change]
        changed = (anchor + factor * (changed - anchor)).clamp(0, 1)
    return torch.where(chosen, changed, images)


def luma(images: Tensor) -> Tensor:
    """(B, 1, S, S) of (B, 3, S, S)."""
    return torch.tensordot(images, images.new_tensor(RGB_TO_GREY), ([1], [0]))[:, None]


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn every pixel's hue by a share of the circle, (B, 1, 1, 1); value and saturation stay."""
    high, low = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    chroma = high - low
    red, green, blue = images.split(1, dim=1)
    safe = chroma.clamp(min=1e-8)
    sixths = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = (sixths / 6 + turns) % 1 * 6
    offsets = images.new_tensor([5.0, 3.0, 1.0])[:, None, None]  # HSV to RGB: f(n) = V - C max(0, min(k, 4 - k, 1))
    k = (offsets + sixths) % 6
    return high - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def grey(images: Tensor, generator: torch.Generator) -> Tensor:
    """A fifth of the images without colour."""
    return torch.where(_uniform(images, generator) < GREY_P, luma(images), images)


def blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images under a Gaussian of their own width."""
    batch, channels, height, width = images.shape
    sigma = _uniform(images, generator, *BLUR_SIGMA)
    chosen = _uniform(images, generator) < BLUR_P
    half = min(BLUR_KERNEL // 2, height - 1, width - 1)  # a mirror shows no more than the image
    x = torch.arange(-half, half + 1, device=images.device)
    kernel = (-0.5 * (x / sigma[:, 0, 0]) ** 2).exp()  # (B, k)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)[:, None, None]
    flat = F.pad(images, [half] * 4, mode="reflect").reshape(1, batch * channels, height + 2 * half, width + 2 * half)
    flat = F.conv2d(flat, kernel, groups=batch * channels)
    flat = F.conv2d(flat, kernel.transpose(2, 3), groups=batch * channels)
    return torch.where(chosen, flat.reshape(images.shape), images)
