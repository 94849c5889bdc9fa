"""Progressive growing (Karras et al. 2018): the stages of a training, and what a network sees of images in each.

A stage of resolution R is a fade, in which R comes in with a share a = 1/n ... 1, or it is stable, with a = 1. All of
them are one sequence of epochs of at most `val_iter` steps, each within one stage.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from models.autoencoder import double, resolutions


@dataclass(frozen=True)
class Stage:
    """So many steps at a resolution, in a fade or stable."""

    resolution: int
    is_fade: bool
    steps: int

    def __str__(self):
        return f"{'fade' if self.is_fade else 'stable'} {self.resolution}"


@dataclass(frozen=True)
class Epoch:
    """Steps [first, last) of a stage, which is numbered from 0; `before` steps were taken in earlier stages."""

    stage: Stage
    stage_number: int
    first: int
    last: int
    before: int

    def share(self, step: int) -> float:
        """a at a step of the epoch, from 0."""
        return (self.first + step + 1) / self.stage.steps if self.stage.is_fade else 1.0


def stages(initial: int, final: int, steps: tuple[int, ...]) -> list[Stage]:
    """stable R0, then fade R and stable R for each doubling, with so many steps each, or as many for all.

    ValueError when the number of `steps` fits neither.
    """
    kinds = [(side, fade) for side in resolutions(initial, final) for fade in (True, False)][1:]
    steps = steps * len(kinds) if len(steps) == 1 else steps
    return [Stage(side, fade, n) for (side, fade), n in zip(kinds, steps, strict=True)]


def epochs(stages: list[Stage], val_iter: int) -> list[Epoch]:
    """The stages cut into epochs of at most val_iter steps."""
    found, before = [], 0
    for number, stage in enumerate(stages):
        for first in range(0, stage.steps, val_iter):
            found.append(Epoch(stage, number, first, min(first + val_iter, stage.steps), before))
        before += stage.steps
    return found


def shrunk(images: Tensor, side: int, downscale: str = "area") -> Tensor:
    """Images (B, C, R, R) at `side` px, by averages of areas; `bilinear` reads the middle 2 x 2 px of each alone."""
    if images.shape[-1] == side:
        return images
    options = {} if downscale == "area" else {"align_corners": False}
    return F.interpolate(images, (side, side), mode=downscale, **options)


def seen(images: Tensor, side: int, share: float, downscale: str = "area") -> Tensor:
    """What a network sees of full-size images at a resolution that has this share: (B, C, side, side)."""
    full = shrunk(images, side, downscale)
    if share == 1:
        return full
    return (1 - share) * double(shrunk(images, side // 2, downscale)) + share * full
