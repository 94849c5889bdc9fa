"""The wide residual network of deep_geo (Golan & El-Yaniv 2018), with the padding that TensorFlow gives it.

Groups of pre-activation blocks (Zagoruyko & Komodakis 2016) behind one convolution:

    conv3x3(16) - group(16k) - group(32k, stride 2) - group(64k, stride 2) - BN ReLU - AvgPool 8x8 - dense
"""

import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import BadInput

POOL = 8  # side of the last average pool: not a global one, a larger image gives the dense layer more inputs


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's "same": an even side gets one zero behind at stride 2."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1):
        super().__init__(in_channels, channels, kernel, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        top, bottom = _same_padding(x.shape[-2], kernel, stride)
        left, right = _same_padding(x.shape[-1], kernel, stride)
        return super().forward(F.pad(x, (left, right, top, bottom)))


def _same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a side of this length; the odd one comes after."""
    total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
    return total // 2, total - total // 2


class Block(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))); a 1x1 convolution of relu(bn(x)) for x where channels change."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(channels)
        self.conv1, self.conv2 = SameConv2d(in_channels, channels, 3, stride), SameConv2d(channels, channels, 3)
        self.shortcut = None if in_channels == channels else SameConv2d(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(activated)
        return skip + self.conv2(F.relu(self.norm2(self.conv1(activated))))


class WideResNet(nn.Module):
    """(B, in_channels, side, side) -> logits (B, n_classes). BadInput for a side or depth that does not fit.

    Args:
        depth: 6n + 4, with n blocks in each of the three groups.
        widen: factor k on the channels 16, 32, 64.
    """

    def __init__(self, in_channels: int, side: int, n_classes: int, depth: int, widen: int):
        super().__init__()
        n_blocks, rest = divmod(depth - 4, 6)
        if rest or n_blocks < 1:
            raise BadInput(f"--wrn_depth {depth}: expected 6n + 4, as 10 or 16")
        reduced = -(-side // 4) // POOL  # cells a side that reach the dense layer
        if reduced < 1:
            raise BadInput(f"--tile {side}: the wide residual network takes {4 * POOL - 3} px or more")
        layers, channels = [SameConv2d(in_channels, 16, 3)], 16
        for width, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            for block in range(n_blocks):
                layers.append(Block(channels, width, stride if block == 0 else 1))
                channels = width
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), nn.AvgPool2d(POOL))
        self.dense = nn.Linear(channels * reduced**2, n_classes)  # PyTorch's init of weights is U(+-1/sqrt(fan_in))
        nn.init.zeros_(self.dense.bias)
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")  # N(0, sqrt(2 / fan_in))

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(self.features(images).flatten(1))
