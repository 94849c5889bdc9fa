"""PIAD's losses are balanced as pandas would balance them, and its run goes on where it was stopped."""

import pandas as pd
import pytest
import torch
from torch import nn

from anomaly import adversarial, piad, runs
from common import checkpoint, processes, signals
from common.errors import BadInput, WorkFailed
from tests.anomaly import squares
from tests.anomaly.squares import content, normal_squares, squares_apart

CPU = torch.device("cpu")


def parse(logdir, *flags):
    vgg = ("--vgg", "vgg16", "--vgg_weights", "random", "--layer", "r12")
    small = (
        "--latent_dim",
        "3",
        "--dims",
        "4",
        "--critic_dims",
        "4",
        "-b",
        "4",
        "--iters",
        "5",
        "--val_iter",
        "3",
        "--balance_iter",
        "2",
    )
    return squares.parse("piad", 16, logdir, *vgg, *small, *flags)


def fit(args, stop_at=None, val=False):
    processes.seed_everything(args.seed)
    piad.fit(normal_squares(16, args, stop_at), normal_squares(12, args, seed=1) if val else None, args, CPU)


def test_the_weighted_mean_is_that_of_pandas():
    values = torch.rand(50, 3, dtype=torch.float64)
    expected = pd.DataFrame(values.numpy()).ewm(alpha=0.05, adjust=False).mean()
    torch.testing.assert_close(piad.ewma(values), torch.from_numpy(expected.to_numpy().copy()))


@pytest.mark.parametrize("factor", [0.01, 1.0, 30.0])
def test_a_critic_whose_loss_is_a_multiple_of_the_reconstruction_weighs_as_much(factor):
    network, inputs = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.rand(8, 3)
    balance = piad.Balance(network)
    assert balance.weight == 1
    for _ in range(5):
        loss = network(inputs + torch.rand(8, 3)).square().mean()
        gradients = torch.autograd.grad(loss, network.parameters(), retain_graph=True)
        balance.set_gradients(network, factor * loss, gradients, look=True)
    assert balance.weight == pytest.approx(factor, rel=1e-4)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * factor * gradient, rtol=1e-4, atol=0)


def test_without_a_look_the_weight_stays():
    network = nn.Linear(3, 1)
    balance, loss = piad.Balance(network), network(torch.rand(8, 3)).square().mean()
    gradients = torch.autograd.grad(loss, network.parameters(), retain_graph=True)
    balance.set_gradients(network, 5 * loss, gradients, look=False)
    assert balance.weight == 1
    torch.testing.assert_close(network.weight.grad, 6 * gradients[0])


def test_the_weight_is_the_median_over_tensors_and_looks_of_the_last_200(monkeypatch):
    monkeypatch.setattr(piad, "HISTORY", 6)
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    balance = piad.Balance(network)
    norms = torch.rand(9, 2, 3, dtype=torch.float64) + 0.1
    for critics, reconstructions in norms:
        balance.look(list(critics), list(reconstructions))
    means = [pd.DataFrame(norms[-6:, k].numpy()).ewm(alpha=0.05, adjust=False).mean() for k in (0, 1)]
    assert balance.weight == pytest.approx((means[0] / means[1]).stack().median())
    other = piad.Balance(network)
    other.load_state_dict(balance.state_dict())
    assert other.weight == balance.weight
    with pytest.raises(ValueError, match="norms of"):
        piad.Balance(nn.Linear(1, 1)).load_state_dict(balance.state_dict())


def test_encoder_and_decoder_get_the_gradients_of_the_formula(tmp_path):
    """E: w_E L - D_z(E(x)), G: w_G L - D_x(G(z)); by one backward pass each in place of the shared ones."""
    args = parse(tmp_path)
    learner = piad.Learner(args, 1, CPU)
    learner.balances["encoder"].weight, learner.balances["decoder"].weight = 3.0, 0.5
    images = torch.rand(4, 1, 16, 16) * 2 - 1
    learner.optimizers["autoencoder"].step = lambda: None
    torch.manual_seed(1)
    piad.train_autoencoder(learner, images, look=False)
    found = [[p.grad.clone() for p in part.parameters()] for part in (learner.encoder, learner.decoder)]
    torch.manual_seed(1)
    made = learner.decoder(piad.draw_codes(learner, images), 16)
    loss = learner.distances(images, learner.rebuild(images)).mean()
    of_encoder = 3.0 * loss - learner.code_critic(learner.encoder(images)).mean()
    of_decoder = 0.5 * loss - learner.image_critic(made).mean()
    for part, whole, gradients in zip((learner.encoder, learner.decoder), (of_encoder, of_decoder), found, strict=True):
        expected = torch.autograd.grad(whole, part.parameters(), retain_graph=True)
        torch.testing.assert_close(gradients, list(expected), rtol=1e-4, atol=1e-7)


def test_only_the_critics_learn_in_their_step(tmp_path):
    learner = piad.Learner(parse(tmp_path), 1, CPU)
    before = {name: [p.clone() for p in network.parameters()] for name, network in learner.networks.items()}
    piad.train_critics(learner, torch.rand(4, 1, 16, 16))
    changed = {
        name: any(not torch.equal(a, b) for a, b in zip(network.parameters(), before[name], strict=True))
        for name, network in learner.networks.items()
    }
    assert changed == {"encoder": False, "decoder": False, "image_critic": True, "code_critic": True}


def test_images_and_drawn_codes_are_what_critics_are_taught_as_real(tmp_path, monkeypatch):
    learner, images, taught = piad.Learner(parse(tmp_path), 1, CPU), torch.rand(4, 1, 16, 16), []
    lesson = lambda critic, *pair: taught.append(pair) or critic(pair[0]).mean()  # noqa: E731
    monkeypatch.setattr(adversarial, "critic_loss", lesson)
    piad.train_critics(learner, images)
    (real, _), (_, made) = taught
    assert torch.equal(real, images)
    torch.testing.assert_close(made, learner.encoder(images))


def test_sizes_follow_the_tile_and_are_those_of_camelyon16_at_64_px(tmp_path):
    args = squares.parse("piad", 64, tmp_path)
    config, critic_config = piad.config_of(args, 3)
    assert config.dims == (32, 64, 128, 256, 256) and critic_config.dims == (32, 64, 128, 128, 128)
    assert config.kind == "residual9" and config.latent_res == 1 and config.latent_dim == 256
    config, _ = piad.config_of(squares.parse("piad", 32, tmp_path), 3)
    assert config.dims == (32, 64, 128, 256)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [14, 24])  # in iterations 2 and 4; the statistics read 8 tiles, an iteration 4
def test_stopped_at_any_step_it_ends_as_if_it_had_not_been(tmp_path, stop_at):
    fit(parse(tmp_path / "whole"), val=True)
    with pytest.raises(signals.Terminated):
        fit(parse(tmp_path / "stopped"), stop_at, val=True)
    fit(parse(tmp_path / "stopped"), val=True)
    parts = ("encoder", "decoder", "statistics")
    assert content(tmp_path / "whole", *parts) == content(tmp_path / "stopped", *parts)
    saved = [checkpoint.load(tmp_path / name / checkpoint.LATEST) for name in ("whole", "stopped")]
    for name in ("image_critic", "code_critic", "encoder_balance", "decoder_balance"):
        for a, b in zip(saved[0][name].values(), saved[1][name].values(), strict=True):
            assert torch.equal(a, b)
    assert len(saved[0]["encoder_balance"]["norms"]) == 2
    table = pd.read_csv(tmp_path / "whole/stats.csv")
    assert table.iteration.tolist() == [3, 5] and list(table.columns) == list(piad.COLUMNS)


@pytest.mark.slow
def test_it_scores_alike_in_any_batch_with_maps_whose_mean_is_the_score(tmp_path):
    fit(parse(tmp_path))
    detector = piad.load(*runs.read_run(tmp_path), CPU)
    squares_apart(piad, detector, tile=16, n=10)
    tiles = torch.rand(3, 1, 16, 16)
    scores, maps = piad.score(detector, tiles)
    torch.testing.assert_close(maps.mean((1, 2)), scores)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tile", "24"), "--tile 24: expected 4 times a power of 2"),
        (("--dims", "4,8"), "--dims: has 2 numbers, expected 1, or 3"),
        (("--precision", "fp16"), "--precision fp16: the critics' gradient penalty"),
        (("--layer", "r99"), "layer r99"),
    ],
)
def test_what_does_not_fit_is_named_before_training(tmp_path, flags, message):
    with pytest.raises(BadInput, match=message):
        fit(parse(tmp_path, *flags))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_its_iteration_and_the_last_good_state_is_kept(tmp_path, monkeypatch):
    losses, taken = piad.train_autoencoder, []

    def diverge(*args):
        taken.append(losses(*args))
        return [taken[-1][0] * (torch.nan if len(taken) == 5 else 1), *taken[-1][1:]]

    monkeypatch.setattr(piad, "train_autoencoder", diverge)
    with pytest.raises(WorkFailed, match="iteration 5: the reconstruction is not finite; lower --lr"):
        fit(parse(tmp_path))
    assert checkpoint.load(tmp_path / checkpoint.LATEST)["epoch"] == 1
