"""Pixels: digits add up, the sum is clipped, and every way to compute it agrees."""

import numpy as np
import pytest
import torch

from data.cluttered_mnist import render
from data.cluttered_mnist.digits import load


def random_layers(side, k, seed=0, digit_side=28):
    rng = np.random.default_rng(seed)
    digits = rng.integers(0, 256, (k, digit_side, digit_side), np.uint8)
    y, x = rng.integers(0, side - digit_side, (2, k))
    return digits, y, x


def add_in_float64(side, *layers):
    canvas = np.zeros((side, side))
    for digits, ys, xs in layers:
        for digit, y, x in zip(digits, ys, xs, strict=True):
            canvas[y : y + len(digit), x : x + len(digit)] += digit / 255
    return np.rint(255 * canvas.clip(0, 1)).astype(np.uint8)


@pytest.mark.parametrize(("side", "k"), [(29, 1), (64, 3), (100, 300), (256, 25), (512, 700)])
def test_canvas_is_the_clipped_sum(side, k):
    layers = random_layers(side, k), random_layers(side, 1, seed=1)
    np.testing.assert_array_equal(render.compose(side, *layers), add_in_float64(side, *layers))


@pytest.mark.parametrize("k", [2, 257, 258, 600, 3000])
def test_sums_never_wrap(k):
    digits, corner = np.full((k, 28, 28), 255, np.uint8), np.zeros(k, int)
    faint = np.ones((1, 28, 28), np.uint8), np.array([20]), np.array([20])
    canvas = render.compose(64, (digits, corner, corner), faint)
    assert (canvas[:28, :28] == 255).all() and (canvas[28:48, 28:48] == 1).all() and (canvas[48:] == 0).all()


def test_order_and_integer_type_do_not_matter():
    digits, y, x = random_layers(128, 40)
    order = np.random.default_rng(1).permutation(40)
    shuffled = digits[order], y[order].astype(np.uint16), x[order].astype(np.uint16)
    np.testing.assert_array_equal(render.compose(128, (digits, y, x)), render.compose(128, shuffled))


def test_clutter_of_another_size_than_the_needle():
    layers = random_layers(96, 5, digit_side=41), random_layers(96, 1, seed=1)
    np.testing.assert_array_equal(render.compose(96, *layers), add_in_float64(96, *layers))


@pytest.mark.parametrize("side", [64, 200])
def test_torch_composes_a_batch_to_the_same_bytes(side):
    layers = [(random_layers(side, 30, seed), random_layers(side, 1, seed + 100)) for seed in range(4)]
    expected = np.stack([render.compose(side, *pair) for pair in layers])
    tensors = []
    for layer in zip(*layers, strict=True):  # all images' clutter, then all images' needles
        image = torch.arange(4).repeat_interleave(len(layer[0][0]))
        digits, y, x = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*layer, strict=True))
        tensors.append((digits, image, y, x))
    np.testing.assert_array_equal(render.compose_batch(side, 4, *tensors).numpy(), expected)


def test_patch_map_marks_the_needles_cell():
    assert np.argwhere(render.patch_map(256, 64, (127, 128))).tolist() == [[1, 2]]
    assert render.patch_map(128, 64, None).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("factor", [0.3, 0.75, 1.0, 1.3, 2.0])
def test_a_stack_is_zoomed_like_its_images(factor):
    images = load("digits")["train"].images[:40]
    expected = np.stack([render.zoom_uint8(image, factor) for image in images])
    np.testing.assert_array_equal(render.zoom_stack(images, render.zoomed_side(28, factor)), expected)


def test_zoom_rounds_the_side_clips_and_keeps_what_is_constant():
    image = np.zeros((50, 50), np.uint8)
    image[10:30, 10:30] = 255  # a step, at which a cubic spline overshoots
    for factor in (0.33, 0.5, 1.7):
        zoomed = render.zoom_uint8(image, factor)
        assert zoomed.shape == (render.zoomed_side(50, factor),) * 2
        assert abs(zoomed.mean() / image.mean() - 1) < 0.1
    assert render.zoom_uint8(image, 1) is image
    assert (render.zoom_uint8(np.full((30, 30), 77, np.uint8), 1.5) == 77).all()
