import argparse

import numpy as np
import pytest
import torch

from common.errors import BadInput
from models import perceptual
from models.perceptual import Perceptual, distance, distance_map, layer_weights
from models.vgg import VGG
from models.weights import Weights

RANDOM = Weights("random")
TAPS = {"r12": 1.0, "r22": 0.5}


def make(taps=TAPS, weights=RANDOM):
    network = Perceptual("vgg16", taps, weights)
    images = 2 * torch.rand(6, 3, 16, 16) - 1
    network.set_statistics(argparse.Namespace(vgg_stats=None), [images[:4], images[4:]])
    return network, images


def test_an_image_is_at_no_distance_from_itself():
    network, images = make()
    assert distance(network.reference(images), network(images), TAPS).max() == 0


def test_the_distance_of_two_images_is_that_of_each_alone():
    network, images = make()
    x, y = images[:2], images[2:4]
    both = distance(network.reference(x), network(y), TAPS)
    alone = [distance(network.reference(x[i : i + 1]), network(y[i : i + 1]), TAPS) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone))


def test_the_distance_is_that_of_the_formula():
    network, images = make({"r12": 1.0})
    x, y = images[:2], images[2:4]
    vgg = VGG("vgg16", ("r12",), RANDOM)
    features = vgg(images / 2 + 0.5)["r12"]
    mean, std = features.mean((0, 2, 3), keepdim=True), features.std((0, 2, 3), keepdim=True, correction=0)
    fx, fy = ((vgg(part / 2 + 0.5)["r12"] - mean) / std for part in (x, y))
    wanted = (fx - fy).abs().mean((1, 2, 3)) / fx.abs().mean((1, 2, 3))
    torch.testing.assert_close(distance(network.reference(x), network(y), {"r12": 1.0}), wanted, rtol=1e-4, atol=1e-5)


def test_no_gradient_reaches_the_image_that_is_rebuilt():
    network, images = make()
    x, y = images[:1].clone().requires_grad_(), images[1:2].clone().requires_grad_()
    distance(network(x), network(y), TAPS).sum().backward()
    assert x.grad is None and y.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())


def test_layers_count_by_their_weights():
    network, images = make()
    x, y = network.reference(images[:2]), network(images[2:4])
    a, b = (distance(x, y, {tap: 1.0}) for tap in TAPS)
    torch.testing.assert_close(distance(x, y, TAPS), (a + 0.5 * b) / 1.5)


def test_the_mean_of_the_map_is_the_distance():
    network, images = make()
    x, y = network.reference(images[:2]), network(images[2:4])
    maps = distance_map(x, y, {"r22": 1.0})
    assert maps.shape == (2, 8, 8)
    torch.testing.assert_close(maps.mean((1, 2)), distance(x, y, {"r22": 1.0}))
    assert distance_map(x, y, TAPS).shape == (2, 16, 16)


def test_grey_images_are_seen_as_grey_rgb():
    network, images = make()
    grey = images[:, :1]
    torch.testing.assert_close(network(grey)["r12"], network(grey.expand(-1, 3, -1, -1))["r12"])


def test_a_channel_that_was_dead_does_not_outweigh_all_others():
    vgg = VGG("vgg16", ("r11",), RANDOM)
    moments = perceptual.measure(vgg, [torch.zeros(2, 3, 16, 16)])
    mean, std = moments["r11"]
    assert (mean == 0).any()
    assert std.min() > 0.009 * std.mean()


def test_statistics_are_read_as_they_were_written(tmp_path):
    network, images = make()
    moments = perceptual.measure(network.vgg, [images / 2 + 0.5])
    path = tmp_path / "stats.npz"
    perceptual.write_statistics(path, moments, "vgg16", None)
    other = Perceptual("vgg16", TAPS, RANDOM)
    other.set_statistics(argparse.Namespace(vgg_stats=path), [])
    for tap, (mean, std) in moments.items():
        torch.testing.assert_close(getattr(other.statistics, f"{tap}_mean").flatten(), mean)
        torch.testing.assert_close(getattr(other.statistics, f"{tap}_std").flatten(), std)


def test_statistics_that_do_not_fit_are_named(tmp_path):
    network, images = make()
    path = tmp_path / "stats.npz"
    args = argparse.Namespace(vgg_stats=path)
    perceptual.write_statistics(path, perceptual.measure(network.vgg, [images]), "vgg16", "0123456789abcdef")
    with pytest.raises(BadInput, match=r"stats\.npz: measured with weights 01234567, but VGG has random"):
        network.set_statistics(args, [])
    perceptual.write_statistics(path, {"r11": perceptual.measure(network.vgg, [images])["r12"]}, "vgg16", None)
    with pytest.raises(BadInput, match="layer r12"):
        network.set_statistics(args, [])
    for content in (b"", b"PK\3\4 no archive", np.zeros(3).tobytes()):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"stats\.npz: not a file of statistics"):
            network.set_statistics(args, [])


def test_layers_are_read_with_their_weights():
    assert layer_weights("r32:0.5+r42") == {"r32": 0.5, "r42": 1.0}
    with pytest.raises(argparse.ArgumentTypeError):
        layer_weights("r32:-1")
