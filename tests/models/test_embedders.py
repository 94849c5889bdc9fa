import argparse
import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from common import checkpoint
from common.errors import BadInput
from models import embedders, needle, weights
from models.encoder import Config, TileEncoder
from models.vgg import VGG, layers
from tests.models.inputs import as_torchvision_sees, input_of

RANDOM = weights.Weights("random")


@pytest.fixture
def weights_dir():
    folder = os.environ.get("WEIGHTS_DIR")
    if not folder or not (Path(folder) / "vgg16_features_to_conv4_3.pth").exists():
        pytest.skip("needs ImageNet features: set WEIGHTS_DIR to the folder of vgg16_features_to_conv4_3.pth")
    return Path(folder)


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No weights at hand and no network."""
    monkeypatch.delenv("WEIGHTS_DIR", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    calls = []

    def refuse(url, *args, **kwargs):
        calls.append(url)
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return calls


def flags(embedder, source="random", input=None):
    return argparse.Namespace(embedder=embedder, embedder_weights=source, weights_input=input)


@pytest.mark.parametrize(
    ("network", "make"), [("vgg16", torchvision.models.vgg16), ("vgg19", torchvision.models.vgg19)]
)
def test_taps_are_torchvisions_layers(network, make):
    trunk = make(weights=None).features
    state = {f"features.{name}": value for name, value in trunk.state_dict().items()}
    taps = ("r12", "p2", "c31", "r42")
    ours = VGG(network, taps, weights.Weights("file", state, Path("file")))
    images = torch.rand(2, 3, 32, 32)
    x = ours.standardised(images)
    found = ours(images)
    for i, module in enumerate(trunk):
        x = torch.relu(x) if isinstance(module, torch.nn.ReLU) else module(x)
        name = layers(network)[i]
        if name in taps:
            torch.testing.assert_close(found[name], x)
    assert ours.channels == {"r12": 64, "p2": 128, "c31": 256, "r42": 512}


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "squeezenet", "resnet18", "resnet50"])
@pytest.mark.parametrize("pool", ["mean", "gem"])
def test_a_vector_depends_on_its_image_alone_and_random_weights_are_the_same_each_time(name, pool):
    images = torch.rand(3, 1, 40, 48)
    first, second = embedders.build(flags(name), pool), embedders.build(flags(name), pool)
    together = first(images)
    assert together.shape == (3, first.dim) and together.isfinite().all()
    alone = torch.cat([second(image[None]) for image in images])
    assert (alone - together).norm() < 1e-4 * together.norm()
    assert first.describe()["weights"] == "random"


@pytest.mark.parametrize("name", ["squeezenet", "resnet18"])
def test_a_trunk_sees_pictures_as_torchvisions_networks_do(name):
    embedder, images = embedders.build(flags(name)), torch.rand(2, 3, 64, 64)
    seen = input_of(embedder.trunk[1], lambda: embedder(images))
    torch.testing.assert_close(seen, as_torchvision_sees(images))


def test_pixels_ignore_brightness_and_survive_a_flat_picture():
    pixels = embedders.build(flags("pixels", "imagenet"))
    image = torch.rand(1, 3, 50, 50) / 2
    torch.testing.assert_close(pixels(image), pixels(image * 1.5 + 0.1))
    torch.testing.assert_close(pixels(image).norm(), torch.tensor(1.0))
    assert not pixels(torch.full((1, 1, 8, 8), 0.3)).any()
    almost = torch.full((1, 1, 64, 64), 245 / 255)
    almost[..., 0, 0] = 244 / 255  # rounding in one pixel is no picture
    assert not pixels(almost).any()


def test_a_classifier_embeds_by_its_extractor(tmp_path):
    config = needle.ModelConfig(in_channels=1, width=-4)
    model = needle.build_model(config)
    content = {"state_dict": model.state_dict(), "config": config.to_dict(), "args": {}}
    checkpoint.save(tmp_path / "best_checkpoint.pth", content)
    embedder = embedders.build(flags("bagnet", str(tmp_path / "best_checkpoint.pth")))
    images = torch.rand(2, 1, 40, 40)
    torch.testing.assert_close(embedder(images), model.cnn(images).mean((2, 3)))
    torch.testing.assert_close(embedder(images.expand(-1, 3, -1, -1)), embedder(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", weights.ENUMS)
def test_imagenet_without_a_file_and_network_is_one_line_with_the_ways_out(alone, name):
    with pytest.raises(BadInput, match=r"imagenet: no weights of .*WEIGHTS_DIR.*name a FILE, or say random") as error:
        weights.fetch(name, "imagenet")
    assert len(alone) == 1 and "\n" not in str(error.value)


def test_weights_are_found_by_their_bytes_whatever_their_name(weights_dir, alone, monkeypatch, tmp_path):
    (tmp_path / "renamed.pth").write_bytes((weights_dir / "vgg16_features_to_conv4_3.pth").read_bytes())
    monkeypatch.setenv("WEIGHTS_DIR", str(tmp_path))
    found = weights.fetch("vgg16", "imagenet")
    assert (found.source, found.input, found.path.name) == ("imagenet", "oxford", "renamed.pth")
    with pytest.raises(BadInput, match="no weights of vgg19"):
        weights.fetch("vgg19", "imagenet")


def test_a_damaged_download_is_not_used(alone, tmp_path):
    path = tmp_path / "cache/hub/checkpoints/resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    with pytest.raises(BadInput, match=r"resnet18-f37072fd\.pth: damaged"):
        weights.fetch("resnet18", "imagenet")


def test_a_layer_beyond_the_weights_names_both(weights_dir):
    found = weights.fetch("vgg16", str(weights_dir / "vgg16_features_to_conv4_3.pth"))
    assert found.input == "oxford"
    with pytest.raises(BadInput, match=r"vgg16_features_to_conv4_3\.pth: layer r52 .* end at c43"):
        VGG("vgg16", ("r52",), found)


def test_features_of_imagenet_tell_pictures_from_noise(weights_dir, monkeypatch):
    """Blocks of flat colour resemble their blurred copies more than each other."""
    monkeypatch.setenv("WEIGHTS_DIR", str(weights_dir))
    blocks = torch.nn.functional.interpolate(torch.rand(8, 3, 4, 4), 64)
    blurred = torchvision.transforms.functional.gaussian_blur(blocks, 9)
    embedder = embedders.build(flags("vgg16", "imagenet"), "gem")
    a, b = (torch.nn.functional.normalize(embedder(x)) for x in (blocks, blurred))
    assert torch.equal((a @ b.T).argmax(1), torch.arange(8))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"features.0.weight": torch.zeros(2, 3, 3, 3)}, "features.0.weight|parameter 0.weight"),
        ([1, 2], "expected a state_dict"),
        ({"epoch": 3}, "expected a state_dict"),
    ],
)
def test_a_file_of_other_weights_is_named(tmp_path, content, says):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=rf"other\.pth: .*({says})"):
        embedders.build(flags("squeezenet", str(tmp_path / "other.pth")))


def test_small_images_and_weights_for_pixels_are_refused():
    with pytest.raises(BadInput, match="--embedder resnet18: needs images of 32 px"):
        embedders.build(flags("resnet18"))(torch.rand(1, 3, 16, 40))
    with pytest.raises(BadInput, match="pixels has no weights"):
        embedders.build(flags("pixels", "random"))
    with pytest.raises(BadInput, match="--embedder_checkpoint"):
        embedders.build(flags("bagnet", "imagenet"))


def test_an_encoder_embeds_as_its_own_forward_pass_does(tmp_path):
    encoder = TileEncoder(Config(width=0.125))
    content = {"state_dict": encoder.state_dict(), "config": encoder.config.to_dict()}
    checkpoint.save(tmp_path / "model.pth", content)
    embedder = embedders.build(flags("encoder", str(tmp_path / "model.pth")))
    images = torch.rand(2, 1, 40, 40)
    torch.testing.assert_close(embedder(images), encoder(images))
    assert embedder.describe()["network"] == encoder.config.to_dict()
    with pytest.raises(BadInput, match="--embedder encoder: give --embedder_checkpoint"):
        embedders.build(flags("encoder"))
