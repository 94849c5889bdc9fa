"""deep_geo's transformations are 72 different ones, and its Dirichlet fit recovers what samples were drawn from."""

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly import deep_geo, runs
from common import checkpoint, processes, signals
from common.errors import BadInput
from tests.anomaly import squares
from tests.anomaly.squares import content, normal_squares, squares_apart
from tests.models.inputs import input_of

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


def test_the_network_sees_pixels_from_minus_1_to_1():
    model, images = deep_geo.DeepGeo(1, 32, 4, depth=10, widen=1).eval(), torch.rand(2, 1, 32, 32)
    seen = input_of(model.network, lambda: model(images, torch.zeros(2, dtype=torch.long)))
    assert torch.equal(seen, 2 * images - 1)


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


def parse(logdir, *flags):
    small = ("--wrn_depth", "10", "--wrn_widen", "1", "--shift", "4", "-b", "48", "-e", "1")
    return squares.parse("deep_geo", 32, logdir, *small, *flags)


def fit(args, n=16, stop_at=None, val=False):
    validation = normal_squares(n, args, seed=1) if val else None
    processes.seed_everything(args.seed)
    deep_geo.fit(normal_squares(n, args, stop_at), validation, args, torch.device("cpu"))


@pytest.mark.slow
def test_it_trains_and_scores_alike_in_any_batch(tmp_path):
    fit(parse(tmp_path, "-e", "2"), val=True)
    table = pd.read_csv(tmp_path / "stats.csv")
    assert list(table.columns) == list(deep_geo.COLUMNS)
    assert table.train_loss[1] < table.train_loss[0] < np.log(72) + 0.3
    detector = deep_geo.load(*runs.read_run(tmp_path), torch.device("cpu"))
    assert (detector.alpha != 1).all()
    squares_apart(deep_geo, detector, tile=32, n=12)


@pytest.mark.slow
def test_stopped_at_any_step_it_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(deep_geo, "fit_dirichlet", lambda mean, mean_log: mean_log)  # what is fitted to, at less cost
    fit(parse(tmp_path / "whole", "-e", "2"))
    with pytest.raises(signals.Terminated):
        fit(parse(tmp_path / "stopped", "-e", "2"), stop_at=700)  # in the second epoch: the first reads 576 and 8
    assert checkpoint.load(tmp_path / "stopped" / checkpoint.LATEST)["progress"]["steps"] > 0
    fit(parse(tmp_path / "stopped", "-e", "2"))
    assert content(tmp_path / "whole", "model") == content(tmp_path / "stopped", "model")


@pytest.mark.slow
def test_it_ends_when_the_validation_loss_no_longer_falls(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(deep_geo.DeepGeo, "fit_normality", lambda *_: None)
    losses = iter([3.0, 2.0, 2.5, 2.2, 1.0])
    monkeypatch.setattr(deep_geo, "validate", lambda *_: {"loss": next(losses), "correct": 0.0, "images": 1.0})
    fit(parse(tmp_path, "-e", "9", "--patience", "2"), n=4, val=True)
    assert len(pd.read_csv(tmp_path / "stats.csv")) == 4
    assert checkpoint.load(tmp_path / checkpoint.BEST)["epoch"] == 2
    fit(parse(tmp_path, "-e", "9", "--patience", "2"), n=4, val=True)
    assert "complete after epoch 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--patience", "2"), "--patience: there are no normal validation images"),
        (("--wrn_depth", "12"), "--wrn_depth 12: expected 6n"),
        (("--tile", "24"), "--tile 24: the wide residual network takes 29 px or more"),
    ],
)
def test_what_does_not_fit_is_named_before_training(tmp_path, flags, message):
    with pytest.raises(BadInput, match=message):
        fit(parse(tmp_path, *flags))
    assert not list(tmp_path.iterdir())


def test_the_setting_depends_on_the_tile(tmp_path):
    large = squares.parse("deep_geo", 64, tmp_path)
    assert deep_geo.network_of(large) == {"shift": 16, "depth": 16, "widen": 8}
    small = squares.parse("deep_geo", 32, tmp_path, "--wrn_widen", "2")
    assert deep_geo.network_of(small) == {"shift": 8, "depth": 10, "widen": 2}


@pytest.mark.timing
def test_it_tells_faces_from_other_pictures(tmp_path):
    args = squares.parse("deep_geo", 32, tmp_path, "-e", "1", "--wrn_depth", "10", "--wrn_widen", "1", "--seed", "1")
    assert squares.faces_apart(deep_geo, args) > 0.9
