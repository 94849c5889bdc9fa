"""The encoder has HNM-WSI's counts, and takes weights by their names, whoever wrote them."""

import argparse

import pytest
import torch
import torchvision

from common.errors import BadInput
from models import encoder as encoders
from models.encoder import Config, TileEncoder

SMALL = {"encoder_width": 0.125, "norm": None}


def build(source, **flags):
    return encoders.build(argparse.Namespace(encoder_weights=str(source), **SMALL | flags))


def small(seed=0, **changes):
    torch.manual_seed(seed)
    return TileEncoder(Config(**{"width": 0.125} | changes))


def renamed(state, **prefixes):
    """The tensors under other names: prefix, and fc for the head."""
    return {
        f"{prefix}{name.replace('head.', 'fc.')}": value
        for prefix in prefixes.values()
        for name, value in state.items()
    }


def convolutions(encoder):
    return torch.cat([encoder.state_dict()[name].flatten() for name in sorted(encoder.convolutions())])


def test_the_counts_are_those_of_hnm_wsi():
    encoder = TileEncoder(Config())
    head = sum(p.numel() for p in encoder.head.parameters())
    assert (head, sum(p.numel() for p in encoder.parameters()) - head) == (393_984, 11_166_912)
    assert encoder.dim == 512


def test_training_and_use_compute_the_same_with_instance_norm():
    encoder, images = small().double(), torch.rand(3, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(encoder.train()(images), encoder.eval()(images))
    alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(encoder(images), alone)
    assert encoder.project(images).shape == (3, 256)


def test_with_torchvisions_weights_it_is_torchvisions_network(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours, report = build(tmp_path / "resnet18.pth", encoder_width=1.0)
    theirs.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))
    assert ours.config.norm == "batch"
    assert (report.matched, report.missing, report.unexpected) == (120, 4, 2)  # our head; their classifier


@pytest.mark.parametrize("where", ["state_dict", "net", None])
@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder_q.", "module.resnet."])
def test_weights_are_known_by_their_names(tmp_path, where, prefix):
    source = small()
    state = renamed(source.state_dict(), prefix=prefix)
    torch.save({where: state, "epoch": 3} if where else state, tmp_path / "w.pth")
    loaded, report = build(tmp_path / "w.pth")
    assert torch.equal(convolutions(loaded), convolutions(source))
    assert torch.equal(loaded.head[2].weight, source.head[2].weight)
    assert (report.missing, report.unexpected) == (0, 0)


def test_of_moco_the_query_encoder_is_taken(tmp_path):
    query, key = small(0), small(1)
    state = renamed(query.state_dict(), prefix="module.encoder_q.")
    state |= renamed(key.state_dict(), prefix="module.encoder_k.") | {"module.queue": torch.rand(4, 4)}
    torch.save({"state_dict": state, "arch": "resnet18"}, tmp_path / "moco.pth")
    loaded, report = build(tmp_path / "moco.pth")
    assert torch.equal(convolutions(loaded), convolutions(query))
    assert (report.matched, report.unexpected) == (24, 25)


def test_dsmils_embedder_is_a_sequence_and_taken_by_name(tmp_path):
    source = small()
    numbers = {ours: number for number, ours in encoders.INDEXED.items()}
    state = {}
    for name, value in source.state_dict().items():
        first, *rest = name.split(".")
        state[".".join(["features", numbers[first], *rest]) if first in numbers else name] = value
    for ours, theirs in (("head.0", "l1"), ("head.2", "l2")):
        state |= {f"{theirs}.{end}": state.pop(f"{ours}.{end}") for end in ("weight", "bias")}
    shuffled = dict(sorted(state.items(), reverse=True))  # a place in the file means nothing
    torch.save(shuffled, tmp_path / "model.pth")
    loaded, report = build(tmp_path / "model.pth")
    for name, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert str(report).endswith("24 matched, 0 missing, 0 unexpected")


def test_an_own_checkpoint_brings_its_norm_and_width(tmp_path):
    source = small(width=0.25, norm="batch", mean=(0.1, 0.2, 0.3))
    torch.save({"state_dict": source.state_dict(), "config": source.config.to_dict()}, tmp_path / "model.pth")
    loaded, _ = build(tmp_path / "model.pth", encoder_width=None)
    assert loaded.config == source.config
    whole = encoders.load(tmp_path / "model.pth")
    images = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(whole.eval()(images), source.eval()(images))


def test_weights_of_which_no_convolution_matches_are_refused(tmp_path):
    torch.save(torch.nn.Linear(3, 3).state_dict(), tmp_path / "w.pth")
    with pytest.raises(BadInput, match=r"w.pth: none of its 2 tensors is a convolution of ResNet-18; it has bias, wei"):
        build(tmp_path / "w.pth")
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "squeezenet.pth")
    with pytest.raises(BadInput, match=r"conv1.weight has shape \(64, 3, 3, 3\), expected \(8, 3, 7, 7\)"):
        build(tmp_path / "squeezenet.pth")


def test_weights_that_are_missing_damaged_or_not_finite_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere\.pth: No such file"):
        build(tmp_path / "nowhere.pth")
    torch.save({"state_dict": {}, "epoch": 1}, tmp_path / "w.pth")
    with pytest.raises(BadInput, match="holds no weights"):
        build(tmp_path / "w.pth")
    state = small().state_dict()
    state["conv1.weight"][0, 0, 0, 0] = torch.nan
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BadInput, match=r"conv1\.weight holds values that are not finite"):
        build(tmp_path / "w.pth")
    with pytest.raises(BadInput, match="has no config of an encoder"):
        encoders.load(tmp_path / "w.pth")


def test_random_weights_say_so():
    _, report = build("random")
    assert str(report) == "encoder: random weights"
