"""InceptionResNetV2's layers are timm's; without timm one line says what to install."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from common.errors import BadInput
from models import embedders
from models.inception import CHANNELS, InceptionResNetV2
from models.weights import Weights

FLAGS = argparse.Namespace(embedder="inception_resnet_v2", embedder_weights="random", weights_input=None)


def test_all_layers_together_have_5680_channels():
    assert sum(CHANNELS.values()) == 5680


@pytest.mark.slow
def test_the_averages_are_those_of_timms_layers_and_its_head_is_not_needed():
    timm = pytest.importorskip("timm", reason="needs timm, an optional extra")
    whole = timm.create_model("inception_resnet_v2", pretrained=False).eval()
    weights = Weights("file", whole.state_dict(), Path("file"), input="inception")
    ours = InceptionResNetV2(tuple(CHANNELS), weights).eval()
    images = torch.rand(1, 3, 299, 299)
    with torch.no_grad():
        found = ours(images).flatten().split(list(CHANNELS.values()))
        x = 2 * images - 1
        for name, module in whole.named_children():
            x = module(x)
            if name in CHANNELS:
                torch.testing.assert_close(found[list(CHANNELS).index(name)], x.mean((2, 3))[0])
            if name == "conv2d_7b":
                torch.testing.assert_close(x, whole.forward_features(2 * images - 1))
                break


@pytest.mark.slow
def test_grey_images_of_any_size_are_scaled_and_nothing_is_computed_beyond_the_last_layer():
    pytest.importorskip("timm", reason="needs timm, an optional extra")
    embedder = embedders.build(FLAGS, taps=("conv2d_1a", "maxpool_3a"))
    assert embedder.dim == 96 and list(embedder.trunk.layers)[-1] == "maxpool_3a"
    grey = torch.rand(2, 1, 64, 48)
    scaled = F.interpolate(grey.expand(-1, 3, -1, -1), (299, 299), mode="bilinear", antialias=True)
    torch.testing.assert_close(embedder(grey), embedder(scaled))
    assert embedder.describe()["taps"] == ["conv2d_1a", "maxpool_3a"]
    assert embedder.describe()["weights_input"] == "inception"


def test_without_timm_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(BadInput, match=r"needs timm, an optional extra: pip install -r requirements-extra\.txt"):
        embedders.build(FLAGS, taps=("conv2d_7b",))


def test_a_layer_that_it_lacks_is_named():
    with pytest.raises(BadInput, match="layer r42: inception_resnet_v2 has conv2d_1a, "):
        embedders.build(FLAGS, taps=("r42",))
