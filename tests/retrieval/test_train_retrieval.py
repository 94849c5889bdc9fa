"""Training on pairs: stopped and continued, begun from a trained network, and refused in one line."""

import os
import signal

import pandas as pd
import pytest
import torch

import train_retrieval
from common import checkpoint, signals
from common.errors import BadInput
from models import near_duplicates
from tests.retrieval.images import shrink_networks, write_groups, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 6)


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        shrink_networks(patch)
        yield


def train(images, logdir, *flags, base="autoencoder"):
    paths = ["--train_path", images, "--valid_path", images, "--synth_valid", "--logdir", logdir]
    fixed = ["--base", base, "--weights", "random", "--bs", 3, "--workers", 0, "--device", "cpu"]
    epochs = ["--reconstruction_epochs", 1, "--epochs", 1]
    train_retrieval.main([*map(str, [*paths, *fixed, *epochs, *flags])])
    return pd.read_csv(logdir / "stats.csv")


def weights(logdir):
    return checkpoint.load(logdir / checkpoint.LATEST)["state_dict"]


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("whole")
    return logdir, train(images, logdir)


def test_the_autoencoder_learns_in_two_stages_after_a_look_at_the_start(whole):
    _, table = whole
    assert list(table.columns) == list(train_retrieval.COLUMNS)
    assert table.trained.tolist() == [0, 1, 2]
    assert table.train_reconstruction.notna().tolist() == [False, True, False]
    assert table.train_loss.notna().tolist() == [False, False, True]


@pytest.mark.parametrize("stop_at", [1, 3])
def test_stopped_at_any_step_it_ends_as_if_it_had_not_been(whole, images, tmp_path, monkeypatch, stop_at):
    taken, step = [], train_retrieval.AutoencoderLearner.step

    def stopping(learner, views):
        taken.append(1)
        if len(taken) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(learner, views)

    with monkeypatch.context() as patch:
        patch.setattr(train_retrieval.AutoencoderLearner, "step", stopping)
        with pytest.raises(signals.Terminated):
            train(images, tmp_path)
    table = train(images, tmp_path)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), whole[1].drop(columns="seconds"))
    for name, value in weights(whole[0]).items():
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=0, atol=0)


def test_the_same_command_again_does_nothing_new(whole, images, capsys):
    before = (whole[0] / checkpoint.LATEST).read_bytes()
    train(images, whole[0])
    assert "complete after epoch 3" in capsys.readouterr().out
    assert (whole[0] / checkpoint.LATEST).read_bytes() == before


@pytest.mark.parametrize("flags", [["--seed", 1], ["--bs", 2], ["--loss", "triplet"], ["--reconstruction_epochs", 2]])
def test_another_run_is_refused_by_what_differs(whole, images, flags):
    name = {"--bs": "batch_size"}.get(flags[0], flags[0][2:])
    with pytest.raises(BadInput, match=f"differs in {name}"):
        train(images, whole[0], *flags)


def test_the_head_alone_learns_in_the_second_stage(images, tmp_path):
    train(images, tmp_path / "one", "--epochs", 1)
    train(images, tmp_path / "two", "--epochs", 2)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    moved = {name.split(".")[0] for name in one if not torch.equal(one[name], two[name])}
    assert moved == {"head"}


@pytest.mark.parametrize("loss", ["hardest", "triplet"])
def test_a_trunk_learns_what_it_is_told_to(images, tmp_path, loss):
    flags = ["--loss", loss, "--train_layers", "last", "--chunks", 8]
    table = train(images, tmp_path, *flags, base="resnet50")
    assert table.valid_loss.notna().all()
    torch.manual_seed(0)
    start, end = checkpoint.load(tmp_path / checkpoint.PREVIOUS)["state_dict"], weights(tmp_path)
    moved = {
        name.rsplit(".", 1)[0] if "fc" in name else name[:6] for name in end if not torch.equal(start[name], end[name])
    }
    assert moved == {"base.7", "fc", "gem.p"}


def test_fine_tuning_keeps_what_it_began_from_unless_it_gets_better(images, tmp_path, capsys, monkeypatch):
    train(images, tmp_path / "first", base="resnet50")
    best = tmp_path / "first" / checkpoint.BEST
    losses = iter([0.5, 0.6, 0.5, 0.4])
    zeros = dict.fromkeys(("valid_hardest_auc", "valid_random_auc", "valid_recall@1"), 0.0)
    monkeypatch.setattr(train_retrieval, "validate", lambda *_: {"valid_loss": next(losses), **zeros})
    for name, kept in (("worse", True), ("better", False)):
        train(images, tmp_path / name, "--weights", best, base="resnet50")
        found = checkpoint.load(tmp_path / name / checkpoint.BEST)["state_dict"]
        started = checkpoint.load(best)["state_dict"]
        assert all(torch.equal(found[name], value) for name, value in started.items()) == kept
    assert "no epoch beats the start" in capsys.readouterr().out


def test_validation_pairs_left_over_are_not_counted_in_the_loss():
    assert [train_retrieval.counted(n, 4) for n in (3, 4, 9, 12)] == [3, 4, 8, 12]


def test_groups_are_validated_on_and_a_trained_network_opens_from_its_folder(images, tmp_path):
    groups = write_groups(tmp_path / "valid", 4)
    flags = ["--valid_path", groups, "--base", "autoencoder", "--device", "cpu", "--workers", 0, "--epochs", 1]
    command = ["--train_path", images, *flags, "--reconstruction_epochs", 0, "--logdir", tmp_path / "run"]
    train_retrieval.main([*map(str, command)])
    network = near_duplicates.load_network(tmp_path / "run")
    assert network(torch.rand(2, 3, 128, 128)).norm(dim=1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--weights", "imagenet"], "--weights imagenet: an autoencoder begins from random weights"),
        (["--weights", "none.pth"], "none.pth: No such file"),
        (["--manipulations", "none.yml"], "none.yml: No such file"),
        (["--filetype", ".tif"], "--filetype .tif: no such images"),
    ],
)
def test_wrong_flags_are_named(images, tmp_path, flags, said):
    with pytest.raises(BadInput) as error:
        train(images, tmp_path, *flags)
    assert said in str(error.value)


def test_an_image_that_cannot_be_read_stops_training_by_name(tmp_path):
    images = write_images(tmp_path / "images", 4)
    (images / "image_02.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"image_02\.png: not a readable picture"):
        train(images, tmp_path / "run")
