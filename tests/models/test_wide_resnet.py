"""The wide residual network has the published parameter counts and TensorFlow's padding."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import BadInput
from models.wide_resnet import SameConv2d, WideResNet


@pytest.mark.parametrize(("depth", "widen", "side", "count"), [(16, 8, 64, 11_103_768), (10, 4, 32, 1_214_744)])
def test_the_parameters_are_as_many_as_in_deep_geo(depth, widen, side, count):
    network = WideResNet(3, side, 72, depth, widen)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 72)


@pytest.mark.parametrize(("side", "first"), [(8, 1), (9, 0)])
def test_at_stride_2_an_even_side_is_padded_behind_only(side, first):
    """A kernel that passes its middle on shows which pixel it stands over first."""
    conv = SameConv2d(1, 1, 3, stride=2)
    nn.init.dirac_(conv.weight)
    ramp = torch.arange(float(side * side)).view(1, 1, side, side)
    torch.testing.assert_close(conv(ramp), ramp[:, :, first::2, first::2])


def test_at_stride_1_the_padding_is_pytorchs():
    conv, images = SameConv2d(2, 3, 3), torch.rand(2, 2, 7, 8)
    torch.testing.assert_close(conv(images), F.conv2d(images, conv.weight, padding=1))


def test_weights_are_drawn_as_the_source_says():
    network = WideResNet(3, 32, 72, 10, 4)
    conv = network.features[2].conv1  # 64 -> 128 channels, 3x3
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    bound = network.dense.in_features**-0.5
    assert 0.98 * bound < network.dense.weight.abs().max() <= bound
    assert not network.dense.bias.any()


@pytest.mark.parametrize(("options", "message"), [({"depth": 12}, "6n"), ({"side": 28}, "29 px or more")])
def test_a_network_that_cannot_be_is_refused(options, message):
    with pytest.raises(BadInput, match=message):
        WideResNet(**{"in_channels": 3, "side": 32, "n_classes": 72, "depth": 10, "widen": 4} | options)
