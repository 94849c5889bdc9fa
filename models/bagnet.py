"""BagNet-style bottleneck ResNet-50: images (B, in, H, W) -> embeddings (B, C, h, w) of a chosen receptive field.

Source: Pawlowski et al. 2019, Table 3; Brendel & Bethge 2019. Parameter names are those of the first release.
"""

import torch
from torch import Tensor, nn

from common.errors import BadInput
from models import norms

BLOCKS = (3, 4, 6, 3)  # bottlenecks in each stage
PLANES = (64, 128, 256, 512)  # at width 0
STRIDES = (2, 2, 2, 1)  # of the first bottleneck in each stage
EXPANSION = 4
POINTWISE_FACTOR = 2.5  # widens a 1x1 middle convolution, so that removing 3x3s keeps the parameter count
MIN_SIDE = 11  # below, the last map has one cell, which InstanceNorm cannot normalise

KERNEL3_BY_RECEPTIVE_FIELD = {9: (1, 1, 0, 0), 33: (1, 1, 1, 1), 177: (3, 4, 6, 3)}


def receptive_field(kernel3: tuple[int, int, int, int]) -> int:
    """Side in input pixels of what one embedding cell sees, when stage s has kernel3[s] 3x3 convolutions."""
    field, jump = 3, 1  # after the stem
    for threes, stride in zip(kernel3, STRIDES, strict=True):
        if threes:
            field += 2 * jump  # the first block, which strides
        jump *= stride
        field += 2 * jump * max(threes - 1, 0)
    return field


def stage_channels(width: int) -> list[int]:
    """Planes of the four stages at width w: Pawlowski 2019's times 2^w."""
    return [int(planes * 2**width) for planes in PLANES]


def make_norm(norm: str, channels: int) -> nn.Module:
    """`in_aff`: instance norm with scale and shift (Pawlowski 2019's), `in`: without, `bn`: batch norm."""
    if norm == "bn":
        return nn.BatchNorm2d(channels)
    return nn.InstanceNorm2d(channels, affine=norm == "in_aff")


class Bottleneck(nn.Module):
    """1x1, k x k (stride), 1x1, each with norm, around a residual sum: (B, in, H, W) -> (B, 4 planes, H', W')."""

    norm_act = staticmethod(norms.norm_act)

    def __init__(self, in_channels, planes, kernel, stride, norm, dropout):
        super().__init__()
        middle = planes if kernel == 3 else int(planes * POINTWISE_FACTOR)
        out_channels = planes * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = make_norm(norm, planes)
        self.conv2 = nn.Conv2d(planes, middle, kernel, stride, padding=kernel // 2, bias=False)
        self.bn2 = make_norm(norm, middle)
        self.dropout = nn.Dropout2d(0.2) if dropout else nn.Identity()
        self.conv3 = nn.Conv2d(middle, out_channels, 1, bias=False)
        self.bn3 = make_norm(norm, out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), make_norm(norm, out_channels)
            )

    @property
    def kind(self) -> tuple:
        """What kernels that are built for the block depend on."""
        return self.conv1.weight.shape, self.conv2.weight.shape, self.conv2.stride, self.downsample is None

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm_act(self.conv1(x), self.bn1)
        out = self.dropout(self.norm_act(self.conv2(out), self.bn2))
        shortcut = x
        if self.downsample is not None:
            conv, norm = self.downsample
            shortcut = self.norm_act(conv(x), norm, relu=False)
        return self.norm_act(self.conv3(out), self.bn3, shortcut)


class BagNet(nn.Module):
    """Topological embedding extractor: (B, in, H, W) -> (B, C, h, w), C = 2048 * 2^width, h = ceil((H - 2) / 8).

    With `recompute` set, the backward pass computes the activations inside stem and bottlenecks once more, so that
    only those between them are kept.
    """

    recompute = False
    norm_act = staticmethod(norms.norm_act)

    def __init__(self, in_channels: int, kernel3=(1, 1, 1, 1), width: int = 0, norm: str = "in_aff", dropout=False):
        super().__init__()
        channels = stage_channels(width)
        self.conv1 = nn.Conv2d(in_channels, channels[0], 1, bias=False)
        self.conv2 = nn.Conv2d(channels[0], channels[0], 3, bias=False)
        self.bn1 = make_norm(norm, channels[0])
        stage_input = channels[0]
        for s in range(4):
            blocks = []
            for b in range(BLOCKS[s]):
                kernel = 3 if b < kernel3[s] else 1
                stride = STRIDES[s] if b == 0 else 1
                blocks.append(Bottleneck(stage_input, channels[s], kernel, stride, norm, dropout and b == 0))
                stage_input = channels[s] * EXPANSION
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))
        self.out_channels = stage_input
        self._initialise()

    def _initialise(self):
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # sqrt(2 / (k k out))

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < MIN_SIDE:
            size = "x".join(map(str, images.shape[-2:]))
            advice = "generate larger ones, or raise --data_scaling"
            raise BadInput(f"images must be at least {MIN_SIDE} px a side, got {size}: {advice}")
        x = self.run(self._stem, images)
        for block in self.blocks():
            x = self.run(block, x)
        return x

    def blocks(self):
        """The bottlenecks in order."""
        return [block for stage in (self.layer1, self.layer2, self.layer3, self.layer4) for block in stage]

    def run(self, part, *inputs):
        """part(*inputs), one of the parts between which activations are kept."""
        if self.recompute and torch.is_grad_enabled():
            from torch.utils.checkpoint import checkpoint  # older versions take most of a second to import it

            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)

    def _stem(self, images):
        return self.norm_act(self.conv2(self.conv1(images)), self.bn1)
