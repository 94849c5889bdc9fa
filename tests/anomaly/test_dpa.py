import os
import signal

import pandas as pd
import pytest
import torch

from anomaly import adversarial, dpa, runs
from common import checkpoint, processes, signals
from common.errors import BadInput, WorkFailed
from models.autoencoder import Autoencoder
from tests.anomaly import squares

CPU = torch.device("cpu")
SMALL = (
    "--vgg vgg16 --vgg_weights random --layer r11 --latent_res 4 --latent_dim 2 --dims 2 -b 4 --val_iter 4 --lr 1e-2"
)
GROWING = "--progressive --initial_res 8 --stage_iters 5,3,4 --layers r11,r12"
STEPS = 12  # of GROWING


def fit(logdir, *flags, val=False):
    args = squares.parse("dpa", 16, logdir, *SMALL.split(), *" ".join(flags).split())
    torch.manual_seed(args.seed)
    val = squares.normal_squares(8, args, seed=5) if val else None
    dpa.fit(squares.normal_squares(16, args), val, args, CPU)


def stop(monkeypatch, at):
    """Let SIGTERM come as step number `at` is taken, from 1."""
    step, taken = dpa.Learner.step, []

    def stopping(*args):
        taken.append(args)
        if len(taken) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(dpa.Learner, "step", stopping)


def learner(tmp_path, *flags, n=16):
    """A learner in its first stage, the normal images, and a batch of them."""
    args = squares.parse("dpa", 16, tmp_path, *SMALL.split(), *" ".join(flags).split())
    torch.manual_seed(0)
    normals = squares.normal_squares(n, args)
    made = dpa.Learner(dpa.Detector(args, 1), args, CPU)
    made.begin(made.detector.epochs[0], 0, normals)
    return made, normals, next(iter(normals.batches(args, CPU, 0, 4)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("whole")
    fit(logdir, GROWING, val=True)
    return logdir


@pytest.mark.parametrize("stop_at", [2, 5, 9])  # within and right after the first stage, and later
def test_stopped_in_any_stage_it_ends_as_if_it_had_not_been(whole, tmp_path, monkeypatch, stop_at):
    stop(monkeypatch, stop_at)
    with pytest.raises(signals.Terminated):
        fit(tmp_path, GROWING, val=True)
    fit(tmp_path, GROWING, val=True)
    parts = ("state_dict", "statistics")
    drop = {"images_per_s"}
    (table, weights), (theirs, others) = (squares.content(folder, *parts) for folder in (tmp_path, whole))
    assert weights == others
    assert strip(tmp_path, drop).equals(strip(whole, drop)) and table and theirs


def strip(logdir, names):
    return pd.read_csv(logdir / "stats.csv").drop(columns=["seconds", *names])


def test_a_run_given_twice_does_nothing_new(whole, capsys):
    before = (whole / checkpoint.LATEST).read_bytes()
    fit(whole, GROWING, val=True)
    assert "complete after epoch 4" in capsys.readouterr().out
    assert (whole / checkpoint.LATEST).read_bytes() == before


def test_the_table_names_stages_and_resolutions(whole):
    table = pd.read_csv(whole / "stats.csv")
    assert table.stage.tolist() == [1, 1, 2, 3] and table.resolution.tolist() == [8, 8, 16, 16]
    assert (whole / "samples" / "0004.png").read_bytes().startswith(b"\x89PNG")
    assert not any(name.startswith("vgg") for name in checkpoint.load(whole / checkpoint.BEST)["state_dict"])


def test_adam_begins_anew_with_each_stage(tmp_path):
    made, normals, (tiles, images, _) = learner(tmp_path, GROWING)
    made.step(tiles, images, 1.0)
    assert made.optimizer.state
    made.begin(made.detector.epochs[1], 0, normals)  # goes on with the stage
    assert made.optimizer.state
    made.begin(made.detector.epochs[2], 0, normals)
    assert not made.optimizer.state


def test_features_kept_of_images_that_never_change_give_the_same_step(tmp_path):
    moved = []
    for mb in ("1024", "0"):
        made, _, (tiles, images, _) = learner(tmp_path, f"--cache_mb {mb} --iters 40")
        assert (made.cache is None) == (mb == "0")
        made.step(tiles, images, 1.0)
        moved.append(torch.cat([p.detach().flatten() for p in made.detector.autoencoder.parameters()]))
    torch.testing.assert_close(*moved)


@pytest.mark.parametrize("precision", ["float32", "bf16", "tf32"])
def test_features_kept_are_those_that_a_step_would_compute(tmp_path, precision):
    """So a resumed run, which may find it too late to keep any, ends as an uninterrupted one."""
    made, _, (tiles, images, _) = learner(tmp_path, f"--iters 40 --precision {precision}")
    with processes.autocast(CPU, precision):
        computed = made.detector.reference(made.detector.seen(tiles, 16, 1.0))
    kept = made.cache.get(images)
    assert kept.keys() == computed.keys() and all(torch.equal(kept[tap], computed[tap]) for tap in kept)


def test_a_fading_resolution_counts_by_its_share(tmp_path):
    detector = dpa.Detector(squares.parse("dpa", 16, tmp_path, *SMALL.split(), *GROWING.split()), 1)
    x, y = torch.rand(3, 1, 16, 16), torch.rand(3, 1, 16, 16)
    low = detector.losses(torch.nn.functional.avg_pool2d(x, 2), torch.nn.functional.avg_pool2d(y, 2))
    torch.testing.assert_close(detector.losses(x, y, 0.25), 0.75 * low + 0.25 * detector.losses(x, y))


def test_pixels_count_in_the_loss_and_not_in_the_score(tmp_path):
    args = squares.parse("dpa", 16, tmp_path, *SMALL.split(), "--l1_weight", "0.5")
    detector = dpa.Detector(args, 1)
    x, y = torch.rand(3, 1, 16, 16), torch.rand(3, 1, 16, 16)
    score = detector.distances(detector.reference(x), y)
    pixels = (x - y).abs().mean((1, 2, 3))
    torch.testing.assert_close(detector.losses(x, y), (0.5 * pixels + score) / 1.5)
    torch.testing.assert_close(detector.maps(detector.reference(x), y)[0], score)


def test_a_score_is_the_loss_of_tiles_as_training_sees_them(tmp_path):
    made, _, (tiles, _, _) = learner(tmp_path)
    x = made.detector.seen(tiles, 16, 1.0)
    loss = made.detector.losses(x, made.detector.autoencoder(x))
    torch.testing.assert_close(dpa.score(made.detector, tiles)[0], loss)


@pytest.mark.parametrize("flags", ["", "--loss l1", "--loss l2", "--adv_weight 0.1 --n_dis 1", GROWING])
def test_a_square_in_noise_is_found_and_scored_alike_in_any_batch(tmp_path, flags):
    fit(tmp_path, "--iters 40", flags)
    saved, path = runs.read_run(tmp_path)
    assert squares.squares_apart(dpa, dpa.load(saved, path, CPU), tile=16) > 0.9


def test_the_critic_is_taught_before_each_step_and_saved(tmp_path):
    fit(tmp_path, "--iters 4 --adv_weight 0.1")
    saved = checkpoint.load(tmp_path / checkpoint.LATEST)
    torch.manual_seed(0)
    assert {"critic", "critic_optimizer"} <= saved.keys()
    assert saved["critic_optimizer"]["state"][0]["step"] == 8  # twice a step


def test_the_critic_is_taught_that_images_are_real(tmp_path, monkeypatch):
    made, _, (tiles, images, _) = learner(tmp_path, "--adv_weight 5 --n_dis 1")
    taught = []
    lesson = lambda critic, *pair: taught.append(pair) or critic(pair[0]).mean()  # noqa: E731
    monkeypatch.setattr(adversarial, "critic_loss", lesson)
    made.step(tiles, images, 1.0)
    ((real, _),) = taught
    torch.testing.assert_close(real, 2 * tiles - 1)


def test_the_autoencoder_gets_the_gradient_of_the_formula(tmp_path, monkeypatch):
    """Of L - adv_weight D(y)."""
    made, _, (tiles, images, _) = learner(tmp_path, "--adv_weight 5")
    made.optimizer.step = lambda: None
    monkeypatch.setattr(made, "_teach_critic", lambda *_: torch.zeros(()))
    made.step(tiles, images, 1.0)
    network, x = made.detector.autoencoder, 2 * tiles - 1
    y = network(x, 1.0)
    loss = made.detector.losses(x, y).mean() - 5 * made.critic(y, 1.0).mean()
    expected = torch.autograd.grad(loss, network.parameters())
    torch.testing.assert_close([p.grad for p in network.parameters()], list(expected), rtol=1e-4, atol=1e-7)


def test_it_ends_when_validation_no_longer_improves_and_keeps_the_best(tmp_path, monkeypatch):
    losses = iter([5.0, 3.0, 2.95, 2.9, 1.0])
    monkeypatch.setattr(dpa, "validation_loss", lambda *_: next(losses))
    fit(tmp_path, "--iters 100 --val_iter 2 --patience 2 --min_delta 0.5", val=True)
    assert len(pd.read_csv(tmp_path / "stats.csv")) == 4
    assert checkpoint.load(tmp_path / checkpoint.BEST)["epoch"] == 2


@pytest.mark.parametrize(("bad", "said"), [(1e9, r"above 1e\+06"), (float("nan"), "not finite")])
def test_a_loss_out_of_range_is_named_with_its_iteration_and_the_last_good_state_stays(
    tmp_path, monkeypatch, bad, said
):
    step, taken = dpa.Learner.step, []

    def diverge(*args):
        taken.append(step(*args))
        return taken[-1] * (bad if len(taken) == 7 else 1)

    monkeypatch.setattr(dpa.Learner, "step", diverge)
    with pytest.raises(WorkFailed, match=rf"iteration 7 \(fade 16 px\): the loss is {said}; lower --lr"):
        fit(tmp_path, GROWING)
    assert checkpoint.load(tmp_path / checkpoint.LATEST)["epoch"] == 2


def test_another_run_s_weights_are_a_start(tmp_path, whole, monkeypatch):
    seen = []
    monkeypatch.setattr(
        dpa.Learner, "begin", lambda self, *_: seen.append(self.detector.autoencoder.state_dict()) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, GROWING, f"--finetune_from {whole / checkpoint.BEST}", val=True)
    saved = checkpoint.load(whole / checkpoint.BEST)["state_dict"]
    for name, value in seen[0].items():
        torch.testing.assert_close(value, saved[name])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--latent_dim 3", "--latent_dim 3"),
        ("--dims 2,2", "--dims: has 2 numbers, expected 1, or 3"),
        ("--layer r99", "layer r99: vgg16 has"),
        ("--layer p5", "p5: lies too deep for images of 16 px"),
        ("--progressive --initial_res 8 --stage_iters 1,2", "--stage_iters: has 2 numbers, expected 1 or 3"),
        ("--progressive --initial_res 8 --layers r11", "--layers: has 1, expected one for each of 8, 16 px"),
        ("--patience 2", "--patience: there are no normal validation images"),
        ("--l1_weight 1 --loss l2", "--l1_weight"),
        ("--precision fp16", "--precision fp16"),
        ("--stage_iters 1,1,1", "--stage_iters: goes with --progressive"),
        ("--initial_res 8", "--initial_res: goes with --progressive"),
    ],
)
def test_flags_that_do_not_fit_are_named_before_training(tmp_path, flags, said, monkeypatch):
    monkeypatch.setattr(dpa.Learner, "step", lambda *_: pytest.fail("trained"))
    with pytest.raises(BadInput, match=said):
        fit(tmp_path, flags)


def test_a_run_that_still_grows_does_not_score(tmp_path, monkeypatch):
    stop(monkeypatch, 6)
    with pytest.raises(signals.Terminated):
        fit(tmp_path, GROWING)
    with pytest.raises(BadInput, match="still grows"):
        dpa.load(*runs.read_run(tmp_path), CPU)


def test_settings_are_those_of_the_table_and_can_be_built(tmp_path):
    for name, values in dpa.SETTINGS.items():
        args = squares.parse("dpa", values["tile"], tmp_path, "--setting", name)
        assert all(getattr(args, flag) == value for flag, value in values.items())
        config = dpa.network_of(args, in_channels=1)
        assert Autoencoder(config).config == config
        total = sum(stage.steps for stage in dpa.planned_stages(args))
        assert total == (sum(args.stage_iters) if args.progressive else args.iters)
    assert sum(dpa.SETTINGS["camelyon16_pg"]["stage_iters"]) == 88_666
