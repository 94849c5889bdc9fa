"""Saliency by rows is the plain network's, pixel by pixel, wherever rows apply."""

import numpy as np
import pytest
import torch
from test_background import make_network, spots

from data.cluttered_mnist import digits, render
from models import POOLINGS, background_saliency, saliency
from models.bagnet import KERNEL3_BY_RECEPTIVE_FIELD


def plain(model, images):
    """Gradient for the images, local logits, logits; max pooling takes the first of equals."""
    images = images.clone().requires_grad_()
    embedding = model.cnn(images)
    if model.pooling == "max":
        flat = embedding.flatten(2)
        first = (flat > flat.max(dim=2, keepdim=True).values - 1e-9).int().argmax(dim=2, keepdim=True)
        logits = model.mlp(flat.gather(2, first)[:, :, 0])
    else:
        logits = model.image_logits(embedding)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), images)
    return gradient, model.local_logits(embedding), logits


def assert_equal(ours, theirs):
    """Up to rounding in float64, which fifty norms amplify."""
    assert torch.linalg.vector_norm(ours - theirs) <= 1e-9 * (1 + torch.linalg.vector_norm(theirs))


@pytest.mark.parametrize("norm", ["in_aff", "in"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("field", [9, 33, 177])
def test_rows_equal_the_plain_network(monkeypatch, field, pooling, norm):
    monkeypatch.setattr(background_saliency, "MOST_ACTIVE", 2)  # for the image without any background
    model = make_network(kernel3=KERNEL3_BY_RECEPTIVE_FIELD[field], pooling=pooling, norm=norm)
    images = spots(141, 122)
    for ours, theirs in zip(background_saliency.gradients(model, images), plain(model, images), strict=True):
        assert_equal(ours, theirs)


@pytest.mark.parametrize("kernel3", [(0, 0, 0, 0), (2, 1, 0, 1), (1, 2, 2, 0)])
@pytest.mark.parametrize("side", [96, 101, 102, 103])
def test_any_arrangement_of_kernels_and_size(monkeypatch, kernel3, side):
    monkeypatch.setattr(background_saliency, "MOST_ACTIVE", 2)
    model = make_network(kernel3=kernel3, pooling="mean")
    images = torch.zeros(2, 1, side, side + 1, dtype=torch.float64)
    images[:, :, 6:28, 9:33] = torch.rand(2, 1, 22, 24)
    ours, theirs = background_saliency.gradients(model, images)[0], plain(model, images)[0]
    assert_equal(ours, theirs)


def test_saliency_maps_take_rows_where_much_is_background():
    """The maps of one digit, receptive field 9, are those of the plain network, which "dense" asks for."""
    model = make_network(kernel3=(1, 1, 0, 0), pooling="attention")
    layer = digits.load("digits")["train"].images[:1], np.array([40]), np.array([60])
    images = torch.from_numpy(render.compose(128, layer)[None, None] / 255)
    assert background_saliency.gradients(model, images) is not None
    by_rows = saliency.saliency_maps(model, images)
    model.background = "dense"
    assert background_saliency.gradients(model, images) is None
    for ours, theirs in zip(by_rows, saliency.saliency_maps(model, images), strict=True):
        assert not ours.requires_grad
        assert_equal(ours, theirs)


def test_full_images_are_left_to_the_plain_network():
    assert background_saliency.gradients(make_network(), torch.rand(1, 1, 40, 40, dtype=torch.float64)) is None
