"""deep_geo's transformations are 72 different ones, and its Dirichlet fit recovers what samples were drawn from."""

import numpy as np
import pytest
import torch

from anomaly import deep_geo

SIDE, SHIFT = 8, 2


@pytest.fixture(scope="module")
def pixels():
    return deep_geo.source_pixels(SIDE, SHIFT)


def test_the_transformations_are_72_different_ones_and_the_first_changes_nothing(pixels):
    assert pixels.shape == (72, SIDE * SIDE)
    assert len({tuple(table) for table in pixels.tolist()}) == 72
    assert pixels[0].tolist() == list(range(SIDE * SIDE))


@pytest.mark.parametrize("number", [1, 5, 14, 29, 36, 71])
def test_a_transformation_mirrors_then_shifts_then_turns(pixels, number):
    """Against NumPy's padding, whose "symmetric" repeats the edge pixel."""
    mirror, rest = divmod(number, 36)
    down, rest = divmod(rest, 12)
    across, turns = divmod(rest, 4)
    down, across = ((0, -SHIFT, SHIFT)[k] for k in (down, across))
    images = np.random.default_rng(0).random((1, 3, SIDE, SIDE))
    expected = images[..., ::-1] if mirror else images
    expected = np.pad(expected, [(0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)], mode="symmetric")
    expected = expected[..., SHIFT + down : SHIFT + down + SIDE, SHIFT + across : SHIFT + across + SIDE]
    expected = np.rot90(expected, turns, axes=(2, 3))
    found = deep_geo.transformed(torch.from_numpy(images), torch.tensor([number]), pixels)
    np.testing.assert_array_equal(found, expected)


def test_every_image_of_a_batch_undergoes_its_own_transformation(pixels):
    images, numbers = torch.rand(3, 2, SIDE, SIDE), torch.tensor([0, 7, 71])
    together = deep_geo.transformed(images, numbers, pixels)
    alone = [deep_geo.transformed(images[i : i + 1], numbers[i : i + 1], pixels) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_psi_of_its_inverse_is_the_number_itself():
    x = torch.logspace(-8, 8, 40, dtype=torch.float64)
    torch.testing.assert_close(deep_geo.inverse_digamma(torch.digamma(x)), x, rtol=1e-9, atol=0)


def test_the_parameters_of_a_dirichlet_distribution_are_recovered_from_samples():
    alpha = torch.linspace(0.5, 8, 72, dtype=torch.float64).repeat(2, 1)
    alpha[1] /= 4  # two distributions, fitted side by side
    samples = [torch.distributions.Dirichlet(row).sample((20_000,)).clamp_min(1e-300) for row in alpha]
    mean = torch.stack([p.mean(0) for p in samples])
    mean_log = torch.stack([p.log().mean(0) for p in samples])
    torch.testing.assert_close(deep_geo.fit_dirichlet(mean, mean_log), alpha, rtol=0.05, atol=0)


def make_model():
    model = deep_geo.DeepGeo(1, 32, 4, depth=10, widen=1).eval()
    with torch.no_grad():
        model.network.dense.weight *= 200  # as sure as a trained network: probabilities of 0 and 1 in float32
    return model


def test_scores_are_finite_however_sure_the_network_is():
    model = make_model()
    normal, other = torch.rand(12, 1, 32, 32) * 0.2, torch.rand(12, 1, 32, 32)
    assert (model(normal, torch.zeros(12, dtype=torch.long)).softmax(1) == 0).any()
    model.fit_normality([normal[:8], normal[8:]])
    assert model.alpha.isfinite().all()
    for images in (normal, other):
        assert model.anomaly_scores(images).isfinite().all()


def test_one_training_image_gives_finite_scores_too():
    model = deep_geo.DeepGeo(1, 32, 4, depth=10, widen=1).eval()
    model.fit_normality([torch.rand(1, 1, 32, 32)])
    assert model.anomaly_scores(torch.rand(2, 1, 32, 32)).isfinite().all()


def test_the_fit_does_not_depend_on_the_batches():
    images, model = torch.rand(6, 1, 32, 32), make_model()
    model.fit_normality([images])
    whole = model.alpha.clone()
    model.fit_normality(images.split(4))
    torch.testing.assert_close(model.alpha, whole, rtol=1e-4, atol=0)


def test_the_score_is_the_formula_and_higher_for_what_is_abnormal():
    """With alpha_tt = 2 and else 1 the score is minus the mean log probability of the right transformation."""
    model, images = deep_geo.DeepGeo(1, 32, 4, depth=10, widen=1).eval(), torch.rand(2, 1, 32, 32)
    model.alpha += torch.eye(72)
    right = torch.stack([model.log_probabilities(images, t)[:, t].exp() + 1e-6 for t in range(72)])
    torch.testing.assert_close(model.anomaly_scores(images), -right.log().mean(0))
