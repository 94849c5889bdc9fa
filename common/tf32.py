"""TF32 on a CPU: matrix products and convolutions whose factors are rounded as a GPU's tensor cores round them.

Slower than float32; for learning curves where there is no GPU. Source: NVIDIA's A100 white paper, 8 bits of exponent
and 10 of mantissa, sums in float32; rounding to the nearest, halves away from zero, as PTX's cvt.rna.tf32 does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

PRODUCTS = {F.linear, F.conv1d, F.conv2d}


def rounded(x: Tensor) -> Tensor:
    """The nearest values with 10 bits of mantissa, float32 of any shape from float32."""
    return x.view(torch.int32).add(1 << 12).bitwise_and_(-1 << 13).view(torch.float32)


class Emulation(TorchFunctionMode):
    """Context in which PRODUCTS round their factors; their backward passes, also outside it, round what comes in.

    Both factors are float32 and given by position, as PyTorch's modules do.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        left, right, *rest = args
        return _RoundedGradient.apply(func(_Rounded.apply(left), _Rounded.apply(right), *rest, **(kwargs or {})))


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return rounded(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class _RoundedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return rounded(gradient)
