"""Black background computed once: the network on rows of active cells plus one background row per image.

Cells whose receptive field holds neither ink nor border are all alike. So a feature map is (B, R, C) here: row 0 of an
image stands for all its background cells, each further row for one active cell, and rows of weight 0 fill up images
that have fewer. 1x1 convolutions are matrix products of rows; norms and poolings weigh each row by the cells it stands
for; 3x3 convolutions go through the grid (B, h, w). Logits and gradients are those of the plain network up to rounding.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.bagnet import MIN_SIDE

MOST_ACTIVE = 0.6  # share of active cells after the stem above which rows do not pay


def logits(model: nn.Module, images: Tensor) -> Tensor | None:
    """Logits (B, 2) of a NeedleClassifier for images (B, in, H, W) whose background is 0.

    None where rows do not apply: little background, batch norm, gradients wanted for the images, autocast; and where
    they are not wished: model.background is "dense", or it is "auto" and on a GPU, where they were not measured yet.
    """
    if images.requires_grad or not applies(model, images):
        return None
    level = Level(reached(images.ne(0).any(dim=1), kernel=3))
    if level.rows > MOST_ACTIVE * level.cells:
        return None
    levels = [level]  # all before the network runs, for which a GPU would have to wait at each
    for block in model.cnn.blocks():
        levels.append(_level_above(block, levels[-1]))
    x = model.cnn.run(stem, model.cnn, patches(images, level), level)  # (B, R, C)
    for block, (below, above) in zip(model.cnn.blocks(), itertools.pairwise(levels), strict=True):
        x = model.cnn.run(bottleneck, block, x, below, above)
    return model.mlp(pool(model, x, levels[-1].weight.to(x.dtype)))


def applies(model: nn.Module, images: Tensor) -> bool:
    """Whether rows are possible (instance norm, no autocast, 11 px or more) and asked for."""
    kind = images.device.type
    if model.background == "dense" or (model.background == "auto" and kind != "cpu"):
        return False
    large = min(images.shape[-2:]) >= MIN_SIDE
    return large and isinstance(model.cnn.bn1, nn.InstanceNorm2d) and not torch.is_autocast_enabled(kind)


def stem(cnn, pixels, level):
    """Rows (B, R, C) after the stem of a BagNet, from the pixels under its kernel (B, R, in * 9)."""
    return _norm(F.linear(pixels, _merged_stem(cnn)), level, cnn.bn1)


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


def _level_above(block, level):
    """The level of a bottleneck's output."""
    active = reached_above(block, level.active)
    return level if active is level.active else Level(active)


def reached_above(block, active: Tensor) -> Tensor:
    """Active cells (B, h', w') of a bottleneck's output, from those of its input (B, h, w)."""
    kernel, stride = block.conv2.kernel_size[0], block.conv2.stride[0]
    return active if kernel == stride == 1 else reached(active, kernel, stride, kernel // 2)


def bottleneck(block, x, level, above):
    """A models.bagnet.Bottleneck `block` on rows: (B, R, C) of its input's level -> (B, R', C') of its output's, above.

    The two are one object where the block has neither stride nor 3x3 convolution, so that rows stay as they are.
    """
    kernel, stride = block.conv2.kernel_size[0], block.conv2.stride[0]
    shortcut = x if above is level else level.every(stride, x, above)
    out = _norm(_conv1x1(x, block.conv1), level, block.bn1)
    if kernel == 3:
        out = above.to_rows(F.conv2d(level.to_grid(out), block.conv2.weight, None, stride, padding=1))
    else:
        out = _conv1x1(out if above is level else level.every(stride, out, above), block.conv2)
    out = _norm(out, above, block.bn2)
    if not isinstance(block.dropout, nn.Identity):
        out = out * block.dropout(out.new_ones(len(out), out.shape[2], 1, 1)).flatten(2).transpose(1, 2)
    out = _conv1x1(out, block.conv3)
    if block.downsample is not None:
        conv, norm = block.downsample
        shortcut = _norm(_conv1x1(shortcut, conv), above, norm, relu=False)
    return _norm(out, above, block.bn3, shortcut)


def _conv1x1(x, conv):
    return F.linear(x, conv.weight.flatten(1))


def _norm(x, level, norm, residual=None, relu=True):
    return _WeightedNorm.apply(x, level.weight, level.cells, norm.weight, norm.bias, norm.eps, residual, relu)


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

    active (B, h, w): which cells have a row of their own. lookup (B, h * w): the row of each cell.
    place (B, R): a cell of each row. weight (B, R): the cells that a row stands for; 0 in rows that fill up.
    """

    def __init__(self, active: Tensor):
        flat = active.flatten(1)
        self.active, self.cells = active, flat.shape[1]
        self.lookup = flat.cumsum(dim=1) * flat
        self.rows = 1 + int(flat.sum(dim=1).max())
        ones = torch.ones_like(self.lookup)
        count = ones.new_zeros(len(flat), self.rows).scatter_add_(1, self.lookup, ones)
        self.weight = count.to(torch.get_default_dtype())
        cells = torch.arange(self.cells, device=active.device).expand_as(flat)
        self.place = self.lookup.new_zeros(len(flat), self.rows).scatter_(1, self.lookup, cells)

    def to_grid(self, x: Tensor) -> Tensor:
        """(B, R, C) -> (B, C, h, w) in channels-last memory."""
        height, width = self.active.shape[1:]
        grid = _Take.apply(x, self.lookup, self.lookup > 0, True)
        return grid.view(len(x), height, width, -1).permute(0, 3, 1, 2)

    def to_rows(self, grid: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, R, C)."""
        return _Take.apply(grid.permute(0, 2, 3, 1).flatten(1, 2), self.place, self.weight > 0, False)

    def every(self, stride: int, x: Tensor, above: "Level") -> Tensor:
        """Rows (B, R', C) of the level above from x (B, R, C): each cell takes the one it is centred on."""
        width, above_width = self.active.shape[2], above.active.shape[2]
        cell = above.place // above_width * stride * width + above.place % above_width * stride  # (B, R')
        source = self.lookup.gather(1, cell) * (above.weight > 0)
        return _Take.apply(x, source, source > 0, True)


def take(x: Tensor, index: Tensor) -> Tensor:
    """out[b, m] = x[b, index[b, m]], (B, N, C) -> (B, M, C)."""
    batch, n, channels = x.shape
    return x.reshape(-1, channels).index_select(0, _flat(index, n)).view(batch, -1, channels)


def _flat(index, n):
    """Indices (B, M) into n entries of each of B images as indices into all of them, (B * M,)."""
    return (index + torch.arange(len(index), device=index.device)[:, None] * n).flatten()


class _Take(torch.autograd.Function):
    """take(x, index) for an index (B, M) without repeats but of entry 0, the row that all background cells share.

    single (B, M): entries whose gradient goes to their own row of x. If `shared`, the others' sum goes to row 0.
    """

    @staticmethod
    def forward(ctx, x, index, single, shared):
        ctx.save_for_backward(index, single)
        ctx.n, ctx.shared = x.shape[1], shared
        return take(x, index)

    @staticmethod
    def backward(ctx, grad):
        index, single = ctx.saved_tensors
        batch, _, channels = grad.shape
        last = batch * ctx.n  # a row more, which takes what is not single and counts for nothing
        row = torch.where(single.flatten(), _flat(index, ctx.n), last)
        total = grad.new_zeros(last + 1, channels).index_copy_(0, row, grad.reshape(-1, channels))[:last]
        total = total.view(batch, ctx.n, channels)
        if ctx.shared:
            total[:, 0] = grad.sum(dim=1) - total.sum(dim=1)  # a product of matrices would lose digits
        return total, None, None, None


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
