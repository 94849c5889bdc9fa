"""Norm, residual sum and ReLU as one function, plain or with a compiled pass each for statistics and for the result."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm_act(x: Tensor, norm: nn.Module, residual: Tensor | None = None, relu: bool = True) -> Tensor:
    """norm(x), plus the residual, then perhaps ReLU: all (B, C, h, w)."""
    out = norm(x)
    if residual is not None:
        out = out + residual  # out of place, as ReLU: autograd would clone what instance norm returns (a view)
    return F.relu(out) if relu else out


class FusedNorm:
    """norm_act for instance norms, forward and backward pass each built by a common.compilation.Compiler."""

    def __init__(self, compiler):
        self.forward, self.backward = compiler(forward), compiler(backward)

    def __call__(self, x: Tensor, norm: nn.Module, residual: Tensor | None = None, relu: bool = True) -> Tensor:
        if not isinstance(norm, nn.InstanceNorm2d):
            return norm_act(x, norm, residual, relu)
        inputs = x, norm.weight, norm.bias, residual
        if not self.forward.ready(*_detached(inputs), norm.eps, relu):
            return norm_act(x, norm, residual, relu)
        return _Fused.apply(*inputs, norm.eps, relu, self)


def forward(x, scale, shift, residual, eps, relu):
    """The result, and mean and 1 / deviation (B, C, 1, 1), which in 16 bit are computed in 32."""
    wide = _wide(x)
    variance, mean = torch.var_mean(wide, dim=(2, 3), correction=0, keepdim=True)
    factor = (variance + eps).rsqrt()
    out = (wide - mean) * factor
    if scale is not None:
        out = out * scale[:, None, None] + shift[:, None, None]
    if residual is not None:
        out = out + residual
    return (out.relu() if relu else out).to(x.dtype), mean, factor


def backward(grad, x, mean, factor, scale, out, has_residual):
    """The gradients of x, scale, shift and residual or None; `out` is what ReLU returned, None without.

    y = s n + t with n = (x - mean) / deviation gives, for the gradient g of y over N cells,
    dx = s / deviation (g - (sum g + n sum g n) / N), ds = sum g n, dt = sum g: sums in one pass, dx in another.
    """
    grad = _wide(grad)
    if out is not None:
        grad = torch.where(out > 0, grad, 0)
    normed = (_wide(x) - mean) * factor
    total = grad.sum(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    product = (grad * normed).sum(dim=(2, 3), keepdim=True)
    slope = factor if scale is None else factor * scale[:, None, None]
    grad_x = (grad - (total + normed * product) / (x.shape[2] * x.shape[3])) * slope
    affine = (None, None) if scale is None else (product.sum(dim=(0, 2, 3)), total.sum(dim=(0, 2, 3)))
    return grad_x.to(x.dtype), *affine, grad.to(x.dtype) if has_residual else None


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _detached(tensors):
    return [None if t is None else t.detach() for t in tensors]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift, residual, eps, relu, fused):
        out, mean, factor = fused.forward(*_detached((x, scale, shift, residual)), eps, relu)
        ctx.save_for_backward(x, mean, factor, scale, out if relu else None)
        ctx.fused, ctx.has_residual = fused, residual is not None
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, mean, factor, scale, out = _detached(ctx.saved_tensors)
        return *ctx.fused.backward(grad, x, mean, factor, scale, out, ctx.has_residual), None, None, None
