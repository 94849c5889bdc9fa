"""Black background computed once: the network on rows of active cells plus one background row per image.

Cells whose receptive field holds neither ink nor border are all alike. So a feature map is (B, R, C) here: row 0 of an
image stands for all its background cells, each further row for one active cell, and rows of weight 0 fill up images
that have fewer. 1x1 convolutions are matrix products of rows; norms and poolings weigh each row by the cells it stands
for; 3x3 convolutions go through the grid (B, h, w). Logits and gradients are those of the plain network up to rounding.
"""

import itertools
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import processes
from models.bagnet import MIN_SIDE

MOST_ACTIVE = 0.6  # share of active cells after the stem above which rows do not pay
GPU_SIDE, GPU_SIDE_TF32 = 256, 1024  # px from which rows were the faster way on an H100: benchmarks/README.md
BUCKETS = 1.25  # ratio of the numbers of rows that levels are padded to


def logits(model: nn.Module, images: Tensor, padded: bool | None = None) -> Tensor | None:
    """Logits (B, 2) of a NeedleClassifier for images (B, in, H, W) whose background is 0.

    None where rows do not apply: little background, batch norm, gradients wanted for the images, autocast; and where
    they are not wished: model.background is "dense", or it is "auto" on a GPU where the plain network is faster.

    Args: padded: whether numbers of rows are rounded up so that shapes repeat, by default where kernels are built or
        launched for them: on a GPU and with a compiled model.row_block.
    """
    if images.requires_grad or not applies(model, images.shape, images.device):
        return None
    row_block = bottleneck if model.cnn.recompute else model.row_block
    if padded is None:
        padded = images.device.type != "cpu" or row_block is not bottleneck
    levels = levels_of(model.cnn, images, padded)
    if levels is None:
        return None
    x = model.cnn.run(stem, model.cnn, patches(images, levels[0]), levels[0])  # (B, R, C)
    for block, (below, above) in zip(model.cnn.blocks(), itertools.pairwise(levels), strict=True):
        draws = model.training and isinstance(block.dropout, nn.Dropout2d)  # which a compiler would do differently
        x = model.cnn.run(bottleneck if draws else row_block, block, x, below, above)
    return model.mlp(pool(model, x, levels[-1].weight.to(x.dtype)))


def applies(model: nn.Module, shape: torch.Size, device: torch.device) -> bool:
    """Whether rows are possible (instance norm, no autocast, 11 px or more) and asked for, by the images' shape."""
    side = min(shape[-2:])
    if model.background == "auto" and device.type != "cpu":
        wished = side >= (GPU_SIDE_TF32 if processes.uses_tf32() else GPU_SIDE)
    else:
        wished = model.background != "dense" and side >= MIN_SIDE
    return wished and isinstance(model.cnn.bn1, nn.InstanceNorm2d) and not torch.is_autocast_enabled(device.type)


def levels_of(cnn: nn.Module, images: Tensor, padded: bool) -> list["Level"] | None:
    """The levels of a BagNet's stem and bottlenecks, one object where rows stay as they are.

    None where too many cells are active. A GPU is waited for once, for the numbers of rows.
    """
    actives = [reached(images.ne(0).any(dim=1), kernel=3)]
    for block in cnn.blocks():
        actives.append(reached_above(block, actives[-1]))
    distinct = {id(active): active for active in actives}
    rows = dict(zip(distinct, row_counts(distinct.values()), strict=True))
    if rows[id(actives[0])] > MOST_ACTIVE * actives[0][0].numel():
        return None
    levels = {key: Level(active, rows[key], padded) for key, active in distinct.items()}
    return [levels[id(active)] for active in actives]


def row_counts(actives: Iterable[Tensor]) -> list[int]:
    """Rows of every map of active cells (B, h, w): the background's and those of the image with the most."""
    return torch.stack([1 + active.flatten(1).sum(dim=1).max() for active in actives]).tolist()


def stem(cnn, pixels, level):
    """Rows (B, R, C) after the stem of a BagNet, from the pixels under its kernel (B, R, in * 9)."""
    return weighted_norm(F.linear(pixels, _merged_stem(cnn)), level, cnn.bn1)


def _merged_stem(cnn):
    """The stem's 1x1 and 3x3 convolution as one matrix, (C, in * 9)."""
    return torch.einsum("omij,mn->onij", cnn.conv2.weight, cnn.conv1.weight[:, :, 0, 0]).flatten(1)


def patches(images, level):
    """The pixels of images (B, in, H, W) under the stem's kernel at every row of its level, (B, R, in * 9)."""
    width, steps = images.shape[3], torch.arange(3, device=images.device)
    corner = level.place // (width - 2) * width + level.place % (width - 2)  # (B, R)
    pixel = corner[:, :, None] + (steps[:, None] * width + steps).flatten()  # (B, R, 9)
    taken = images.flatten(2).gather(2, pixel.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    return taken.unflatten(2, pixel.shape[1:]).transpose(1, 2).flatten(2)


def reached_above(block, active: Tensor) -> Tensor:
    """Active cells (B, h', w') of a bottleneck's output, from those of its input (B, h, w)."""
    kernel, stride = block.conv2.kernel_size[0], block.conv2.stride[0]
    return active if kernel == stride == 1 else reached(active, kernel, stride, kernel // 2)


def bottleneck(block, x, level, above, norm=None):
    """A models.bagnet.Bottleneck `block` on rows: (B, R, C) of its input's level -> (B, R', C') of its output's, above.

    The two are one object where the block has neither stride nor 3x3 convolution, so that rows stay as they are.
    """
    norm = norm or weighted_norm
    kernel, stride = block.conv2.kernel_size[0], block.conv2.stride[0]
    same = kernel == stride == 1
    shortcut = x if same else level.every(stride, x, above)
    out = norm(_conv1x1(x, block.conv1), level, block.bn1)
    if kernel == 3:
        out = above.to_rows(F.conv2d(level.to_grid(out), block.conv2.weight, None, stride, padding=1))
    else:
        out = _conv1x1(out if same else level.every(stride, out, above), block.conv2)
    out = norm(out, above, block.bn2)
    if not isinstance(block.dropout, nn.Identity):
        out = out * block.dropout(out.new_ones(len(out), out.shape[2], 1, 1)).flatten(2).transpose(1, 2)
    out = _conv1x1(out, block.conv3)
    if block.downsample is not None:
        conv, norm_below = block.downsample
        shortcut = norm(_conv1x1(shortcut, conv), above, norm_below, relu=False)
    return norm(out, above, block.bn3, shortcut)


def fusible_bottleneck(block, x, level, above):
    """The same for a compiler, which is to derive the backward pass."""
    return bottleneck(block, x, level, above, fusible_norm)


def weighted_norm(x, level, norm, residual=None, relu=True):
    """Norm of rows, plus the residual, then perhaps ReLU, with a backward pass by hand."""
    return _WeightedNorm.apply(x, level.weight, level.cells, norm.weight, norm.bias, norm.eps, residual, relu)


def fusible_norm(x, level, norm, residual=None, relu=True):
    """The same for a compiler, in operators from which it derives the backward pass.

    The variance does not depend on the mean to first order. Saying so leaves one pass of sums in the backward pass.
    """
    weight = level.weight.to(x.dtype)[:, :, None] / level.cells
    mean = (x * weight).sum(dim=1, keepdim=True)  # (B, 1, C)
    variance = ((x - mean.detach()).square() * weight).sum(dim=1, keepdim=True)
    out = (x - mean) * (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        out = out * norm.weight + norm.bias
    if residual is not None:
        out = out + residual
    return F.relu(out) if relu else out


def _conv1x1(x, conv):
    return F.linear(x, conv.weight.flatten(1))


def pool(model, x, weight):
    """A NeedleClassifier's global pooling (B, R, C) -> (B, C), rows counted by their weight (B, R)."""
    if model.pooling == "max":
        return x.masked_fill(weight[:, :, None] == 0, -torch.inf).max(dim=1).values
    if model.pooling == "mean":
        return (x * (weight / weight.sum(1, keepdim=True))[:, :, None]).sum(dim=1)
    log_weight = weight.log()  # -inf for rows that count for nothing
    if model.pooling == "logsumexp":
        return (x + log_weight[:, :, None]).logsumexp(dim=1)
    scores = model.sum_mlp(x.transpose(1, 2)).squeeze(1) + log_weight
    return (x * scores.softmax(dim=1)[:, :, None]).sum(dim=1)


def reached(active: Tensor, kernel: int, stride: int = 1, padding: int = 0) -> Tensor:
    """Cells (B, h', w') of a convolution's output that see an active cell (B, h, w) or the border."""
    edged = F.pad(active, (padding,) * 4, value=True).to(torch.float32)
    return F.max_pool2d(edged[:, None], kernel, stride)[:, 0] > 0


class Level:
    """One feature map's cells and rows: row 0 is that of all background cells, the others are the active cells'.

    Args: rows: how many, of row_counts(). padded: whether to round them up, to one of a few numbers.
    active (B, h, w): which cells have a row of their own. lookup (B, h * w): the row of each cell.
    place (B, R): a cell of each row. weight (B, R): the cells that a row stands for; 0 in rows that fill up.
    single (B, R): rows of active cells.
    """

    def __init__(self, active: Tensor, rows: int, padded: bool = False):
        flat = active.flatten(1)
        self.active, self.cells = active, flat.shape[1]
        self.rows = bucket(rows, self.cells + 1) if padded else rows
        self.lookup = flat.cumsum(dim=1) * flat
        ones = torch.ones_like(self.lookup)
        count = ones.new_zeros(len(flat), self.rows).scatter_add_(1, self.lookup, ones)
        self.weight = count.to(torch.get_default_dtype())
        self.single = count > 0
        self.single[:, 0] = False
        cells = torch.arange(self.cells, device=active.device).expand_as(flat)
        self.place = self.lookup.new_zeros(len(flat), self.rows).scatter_(1, self.lookup, cells)

    @property
    def kind(self) -> tuple:
        """What kernels that are built for the level depend on."""
        return self.active.shape, self.rows

    def to_grid(self, x: Tensor) -> Tensor:
        """(B, R, C) -> (B, C, h, w) in channels-last memory."""
        height, width = self.active.shape[1:]
        grid = _Take.apply(x, self.lookup, self.place, self.single, True)
        return grid.view(len(x), height, width, -1).permute(0, 3, 1, 2)

    def to_rows(self, grid: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, R, C)."""
        taken = (self.lookup > 0).scatter(1, self.place[:, :1], True)  # of the background, the cell that row 0 is at
        return _Take.apply(grid.permute(0, 2, 3, 1).flatten(1, 2), self.place, self.lookup, taken, False)

    def every(self, stride: int, x: Tensor, above: "Level") -> Tensor:
        """Rows (B, R', C) of the level above from x (B, R, C): each cell takes the one it is centred on."""
        width, above_width = self.active.shape[2], above.active.shape[2]
        cell = above.place // above_width * stride * width + above.place % above_width * stride  # (B, R')
        source = self.lookup.gather(1, cell) * (above.weight > 0)
        row, column = self.place // width, self.place % width  # (B, R)
        taker = above.lookup.gather(1, row // stride * above_width + column // stride)
        taken = self.single & (row % stride == 0) & (column % stride == 0)
        return _Take.apply(x, source, taker, taken, True)


def bucket(rows: int, most: int) -> int:
    """The least of most, most / BUCKETS, most / BUCKETS^2 ..., rounded up, that is not below rows."""
    return max(rows, math.ceil(most / BUCKETS ** int(math.log(most / rows, BUCKETS))))


def take(x: Tensor, index: Tensor) -> Tensor:
    """out[b, m] = x[b, index[b, m]], (B, N, C) -> (B, M, C)."""
    batch, n, channels = x.shape
    index = (index + torch.arange(batch, device=index.device)[:, None] * n).flatten()
    return x.reshape(-1, channels).index_select(0, index).view(batch, -1, channels)


class _Take(torch.autograd.Function):
    """take(x, index), index (B, M), whose gradient is taken by the inverse (B, N): nothing is scattered.

    taken (B, N): entries of x that go to one entry of the result, inverse[b, n]; the others' gradient is 0. If
    `shared`, entry 0 goes to all the rest of the result, and gets the sum.
    """

    @staticmethod
    def forward(ctx, x, index, inverse, taken, shared):
        ctx.save_for_backward(inverse, taken)
        ctx.shared = shared
        return take(x, index)

    @staticmethod
    def backward(ctx, grad):
        inverse, taken = ctx.saved_tensors
        if grad.shape[1] < inverse.shape[1]:  # most entries of x have no part: a row of zeros, soon in the cache
            total = take(F.pad(grad, (0, 0, 0, 1)), torch.where(taken, inverse, grad.shape[1]))
        else:
            total = take(grad, inverse).masked_fill_(~taken[:, :, None], 0)
        if ctx.shared:
            total[:, 0] = grad.sum(dim=1) - total.sum(dim=1)  # a product of matrices would lose digits
        return total, None, None, None, None


class _WeightedNorm(torch.autograd.Function):
    """Instance norm of rows x (B, R, C) of given weight (B, R) over `cells` cells, plus residual, then perhaps ReLU.

    Scale and shift (C,) and residual (B, R, C) may be None. The gradient of a row is that of all its cells together.
    """

    @staticmethod
    def forward(ctx, x, weight, cells, scale, shift, eps, residual, relu):
        weight = weight.to(x.dtype)[:, :, None] / cells
        # sums, not products of matrices, which add row by row and lose digits where there are many
        mean = (x * weight).sum(dim=1, keepdim=True)  # (B, 1, C)
        centred = x - mean
        factor = (centred.square().mul_(weight).sum(dim=1, keepdim=True) + eps).rsqrt()
        scaled = factor if scale is None else factor * scale
        out = centred.mul_(scaled) if shift is None else torch.addcmul(shift, centred, scaled, out=centred)
        if residual is not None:
            out += residual
        if relu:
            out.relu_()
        ctx.save_for_backward(x, weight, mean, factor, scaled, out if relu else None)
        ctx.affine, ctx.has_residual = scale is not None, residual is not None
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, mean, factor, scaled, out = ctx.saved_tensors
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        # y = s n + t with n = (x - mean) / deviation and rows weighted by w gives, for the gradient g of y,
        # dx = s / deviation (g - w (sum g + n sum g n)), ds = sum g n, dt = sum g
        normed = (x - mean).mul_(factor)
        total = grad.sum(dim=1, keepdim=True)  # (B, 1, C)
        product = (grad * normed).sum(dim=1, keepdim=True)
        common = torch.addcmul(total, normed, product, out=normed)  # by way of mean and variance, per cell
        grad_x = torch.addcmul(grad, common, weight, value=-1).mul_(scaled)
        affine = (product.sum(dim=(0, 1)), total.sum(dim=(0, 1))) if ctx.affine else (None, None)
        return grad_x, None, None, *affine, None, grad if ctx.has_residual else None, None
