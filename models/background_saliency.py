"""Gradients of the images with black background computed once: the rows of models.background, cell by cell.

Training needs only the sum of a background's gradients. Here every cell needs its own, and a background cell's hangs on
who looks at it: on whether an active cell does, and on where the strides fall. So more cells are active, all that feed
an active cell of the level above; and the background has a row for every position between the strides, 8 x 8 of them
after the stem, 1 after the last stride. A row's gradient is that of all its cells together, which share it evenly.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import background
from models.background import Level, take

MOST_ACTIVE = 0.95  # share of cells with a row of their own after the stem above which rows do not pay


def gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Gradient of logit 1 for images (B, in, H, W), local logits (B, 2, h, w) and logits (B, 2) of a NeedleClassifier.

    Of equal maxima in the background max pooling takes the first; which of them the plain network takes hangs on its
    rounding. None where rows do not apply (models.background.applies) or too few cells are background.
    """
    if not background.applies(model, images):
        return None
    levels = _levels(model.cnn, images)
    if levels[0].rows > MOST_ACTIVE * levels[0].cells:
        return None
    patches = background.patches(images, levels[0]).requires_grad_()  # (B, R, in * 9)
    x = background.stem(model.cnn, patches, levels[0])
    for block, (level, above) in zip(model.cnn.blocks(), itertools.pairwise(levels), strict=True):
        x = background.bottleneck(block, x, level, above)
    top = levels[-1]
    counted = top.weight.clone()
    if model.pooling == "max":
        counted[:, : top.background] = 0  # the first background cell has a row of its own
    logits = model.mlp(background.pool(model, x, counted.to(x.dtype)))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), patches)
    by_cell = take(levels[0].shared(gradient), levels[0].lookup).transpose(1, 2)  # (B, in * 9, h * w)
    local = take(model.mlp(x), top.lookup).transpose(1, 2).unflatten(2, top.active.shape[1:])
    return F.fold(by_cell, images.shape[2:], kernel_size=3), local.detach(), logits.detach()


def _levels(cnn, images):
    """The levels after the stem and every bottleneck."""
    blocks = cnn.blocks()
    reached = [background.reached(images.ne(0).any(dim=1), kernel=3)]
    for block in blocks:
        reached.append(background.reached_above(block, reached[-1]))
    active, period = _with_first_background(reached[-1]), 1
    levels = [CellLevel(active)]
    for block, below in zip(reversed(blocks), reached[-2::-1], strict=True):
        kernel, stride = block.conv2.kernel_size[0], block.conv2.stride[0]
        if kernel == stride == 1:
            levels.append(levels[-1])
            continue
        active, period = _feeding(active, below, kernel, stride), period * stride
        levels.append(CellLevel(active, period))
    return levels[::-1]


def _with_first_background(active):
    """Cells (B, h, w) with the first one that is not active, if any, made active."""
    flat = active.flatten(1)
    first = flat.int().argmin(dim=1, keepdim=True)
    return flat.scatter(1, first, True).view_as(active)


def _feeding(above: Tensor, below: Tensor, kernel: int, stride: int) -> Tensor:
    """Cells (B, h, w) active below, or seen by a convolution's output cell that is active above or beyond the edge."""
    height, width = below.shape[1:]
    windows = F.pad(above, (1,) * 4, value=True).to(torch.float32)[:, None]
    fed = F.conv_transpose2d(windows, windows.new_ones(1, 1, kernel, kernel), stride=stride)
    start = stride + kernel // 2  # the cell beyond the edge, and the convolution's padding
    fed = F.pad(fed, (0, start + width - fed.shape[3], 0, start + height - fed.shape[2]))
    return below | (fed[:, 0, start : start + height, start : start + width] > 0)


class CellLevel(Level):
    """A level whose rows share their gradients evenly among their cells."""

    def shared(self, gradient: Tensor) -> Tensor:
        """Gradient of one cell of every row, (B, R, C)."""
        return gradient / self.weight.clamp(min=1).to(gradient.dtype)[:, :, None]

    def to_grid(self, x: Tensor) -> Tensor:
        """(B, R, C) -> (B, C, h, w) in channels-last memory."""
        return take(x, self.lookup).unflatten(1, self.active.shape[1:]).permute(0, 3, 1, 2)

    def to_rows(self, grid: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, R, C)."""
        return _Read.apply(grid.permute(0, 2, 3, 1).flatten(1, 2), self)

    def every(self, stride: int, x: Tensor, above: "CellLevel") -> Tensor:
        """Rows (B, R', C) of the level above from x (B, R, C): each cell takes the one it is centred on."""
        centres = self.lookup.view_as(self.active)[:, ::stride, ::stride].flatten(1)
        return _Read.apply(take(x, centres), above)


class _Read(torch.autograd.Function):
    """Rows (B, R, C) from the cells (B, h * w, C) of a level; a row's gradient goes to all its cells alike."""

    @staticmethod
    def forward(ctx, cells, level):
        ctx.level = level
        return take(cells, level.place)

    @staticmethod
    def backward(ctx, gradient):
        return take(ctx.level.shared(gradient), ctx.level.lookup), None
