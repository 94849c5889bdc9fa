"""The networks of near-duplicates: sizes, pooling, memory, and whose checkpoints open."""

import pytest
import torch
import torchvision
from torch import nn

from common import checkpoint
from common.errors import BadInput
from models import near_duplicates, weights
from models.paired_autoencoder import PairedAutoencoder, grey
from retrieval import triplet
from tests.models.inputs import as_torchvision_sees, input_of


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def networks():
    """A freshly drawn network of each trunk; tests leave their weights alone."""
    torch.manual_seed(0)
    return {base: near_duplicates.TrunkNetwork(base) for base in ("resnet50", "vgg19")}


@pytest.mark.parametrize(
    ("base", "trunk", "head", "whole"),
    [("resnet50", 23_508_032, 4_196_352, 27_704_385), ("vgg19", 20_035_392, 1_050_624, 21_086_017)],
)
def test_a_network_has_the_published_parameters(networks, base, trunk, head, whole):
    network = networks[base]
    assert (count(network.base), count(network.fc), count(network)) == (trunk, head, whole)


def test_the_autoencoder_has_the_published_parameters():
    network = PairedAutoencoder()
    sizes = [count(part) for part in (network.encoder, *network.decoders, network.head[0], network.head[2])]
    assert sizes == [19_008, 28_227, 28_227, 4_195_328, 262_400]


@pytest.mark.parametrize("base", near_duplicates.BASES)
def test_vectors_have_norm_one_whatever_the_batch(networks, base):
    network = (networks | {"autoencoder": PairedAutoencoder()})[base].eval()
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        vectors, alone = network(images), network(images[:1])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert alone.shape == (1, network.dim)
    torch.testing.assert_close(alone, vectors[:1], atol=1e-4, rtol=0)


def test_colours_count_as_pil_greys_them(networks):
    images = torch.rand(1, 3, 64, 64)
    network = networks["resnet50"].eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images), network(grey(images)))
    assert grey(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)).item() == pytest.approx(0.299)


def test_a_trunk_sees_grey_pictures_as_torchvisions_networks_do(networks):
    network, images = networks["resnet50"].eval(), torch.rand(2, 1, 64, 64)
    seen = input_of(network.base, lambda: network(images))
    torch.testing.assert_close(seen, as_torchvision_sees(images.expand(-1, 3, -1, -1)))


def test_gem_is_the_mean_at_one_and_tends_to_the_maximum():
    maps = torch.rand(2, 3, 4, 4)
    gem = near_duplicates.GeM()
    gem.p.data.fill_(1)
    torch.testing.assert_close(gem(maps), maps.mean(dim=(2, 3)))
    gem.p.data.fill_(60)
    torch.testing.assert_close(gem(maps), maps.amax(dim=(2, 3)), atol=0.05, rtol=0)
    gem(maps).sum().backward()
    assert gem.p.grad.abs() > 0


def small_network(chunks):
    """A TrunkNetwork whose trunk has ten small modules with batch norm."""
    torch.manual_seed(0)
    network = near_duplicates.TrunkNetwork.__new__(near_duplicates.TrunkNetwork)
    nn.Module.__init__(network)
    stages = ([nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1), nn.BatchNorm2d(8)] for i in range(5))
    network.base = nn.Sequential(*(module for stage in stages for module in stage))
    network.gem, network.fc, network.chunks, network.frozen = near_duplicates.GeM(), nn.Linear(8, 16), chunks, []
    network.standardised = weights.Standardised((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return network.double()


def test_checkpointed_runs_learn_as_without_them_from_the_first_layer_on():
    images = torch.rand(6, 1, 32, 32, dtype=torch.float64)
    plain, saving = small_network(0), small_network(4)
    for network in (plain, saving):
        vectors = network(images).double()
        triplet.hardest(vectors[:3], vectors[3:]).sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    assert saving.base[0].weight.grad.abs().sum() > 0
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):  # counted once
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize(("chunks", "kept"), [(4, 4), (3, 4), (100, 1), (1, 10)])
def test_the_last_run_is_the_one_that_is_computed_once(chunks, kept, monkeypatch):
    runs = []
    monkeypatch.setattr(near_duplicates, "recomputed", lambda run, x, **_: runs.append(len(run)) or run(x))
    small_network(chunks)(torch.rand(2, 1, 32, 32, dtype=torch.float64))
    assert sum(runs) == 10 - kept


@pytest.mark.parametrize(
    ("base", "layers", "learning"),
    [
        ("resnet50", "last", count(torchvision.models.resnet50().layer4)),
        ("resnet50", "all", 23_508_032),
        ("resnet50", "none", 0),
        ("vgg19", "last", 3 * (512 * 512 * 9 + 512 + 1024)),  # conv5_2 to conv5_4
    ],
)
def test_train_layers_chooses_what_learns(networks, base, layers, learning):
    network = networks[base]
    network.choose_layers(layers)
    assert sum(p.numel() for p in network.base.parameters() if p.requires_grad) == learning
    network.train()
    norm = next(m for m in network.base.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.training == (layers == "all")  # what rests keeps its statistics
    others, p = network.parameter_groups(0.1)
    assert p == {"params": [network.gem.p], "lr": 1.0}
    assert sum(map(torch.numel, others["params"])) == learning + count(network.fc)


def published(network, prefix="", names=True):
    """A state_dict under torchvision's names within a prefix."""
    parts = near_duplicates.RESNET_PARTS if names else range(len(near_duplicates.RESNET_PARTS))
    state = {}
    for name, value in network.state_dict().items():
        part, _, rest = name.removeprefix("base.").partition(".")
        state[prefix + (f"base.{parts[int(part)]}.{rest}" if name.startswith("base.") else name)] = value
    return state


class Hparams:
    """What Lightning keeps in its checkpoints beside plain types."""


@pytest.mark.parametrize("kind", ["ours", "first", "first, named", "last"])
def test_a_trained_network_opens_whoever_saved_it(tmp_path, kind, monkeypatch):
    blocks = torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]
    trunk = lambda _: nn.Sequential(*list(torchvision.models.ResNet(*blocks).children())[:-2])  # noqa: E731
    monkeypatch.setattr(near_duplicates, "_trunk", trunk)
    network, path = near_duplicates.TrunkNetwork("resnet50"), tmp_path / "network.pth"
    content = {
        "ours": {"state_dict": network.state_dict(), "config": network.config, "epoch": 3},
        "first": network.state_dict(),
        "first, named": published(network),
        "last": {"state_dict": published(network, "model.", names=False), "hparams": Hparams(), "epoch": 3},
    }[kind]
    torch.save(content, path)
    opened = near_duplicates.load_network(path)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(opened(images), network.eval()(images))
    assert opened.describe()["embedder"] == "retrieval resnet50"
    assert not any(p.requires_grad for p in opened.parameters())


def test_a_run_folder_opens_by_its_best_checkpoint(tmp_path):
    network = PairedAutoencoder().eval()
    checkpoint.save(tmp_path / checkpoint.BEST, {"state_dict": network.state_dict(), "config": network.config})
    images = torch.rand(2, 1, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(near_duplicates.load_network(tmp_path)(images), network(images))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {"x": torch.zeros(1)}, "config": {"kind": "needle"}}, "kind 'needle', expected a retrieval"),
        ({"state_dict": {"x": torch.zeros(1)}, "config": {}}, "kind 'needle'"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "torchvision's weights of resnet50, expected a trained network"),
        ({"cnn.weight": torch.zeros(1)}, "not weights of resnet50, vgg19, autoencoder: has cnn.weight"),
        ({"gem.p": torch.ones(1), "base.0.weight": torch.zeros(64, 3, 7, 7)}, "expected a trained network"),
        ({"head.0.weight": torch.zeros(3)}, "has no parameter encoder"),
        ([1, 2], "expected weights of a retrieval network, found none"),
        (Hparams(), "found none"),
    ],
)
def test_another_checkpoint_is_named(tmp_path, content, said):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(BadInput, match=r"other\.pth") as error:
        near_duplicates.load_network(path)
    assert said in str(error.value)


def test_training_starts_from_a_file_of_the_right_base(tmp_path, monkeypatch):
    torch.manual_seed(1)
    trunk = torchvision.models.resnet50()
    path = tmp_path / "resnet.pth"
    torch.save(trunk.state_dict(), path)
    network, facts = near_duplicates.start("resnet50", str(path))
    torch.testing.assert_close(network.base[0].weight, trunk.conv1.weight)
    torch.testing.assert_close(network.base[7][2].bn3.running_var, trunk.layer4[2].bn3.running_var)
    assert (facts["weights"], facts["trained"], len(facts["weights_sha256"])) == ("resnet.pth", False, 64)
    with pytest.raises(BadInput, match=r"weights of resnet50, expected vgg19; see --base"):
        near_duplicates.start("vgg19", str(path))
    with pytest.raises(BadInput, match="--weights imagenet: an autoencoder begins from random"):
        near_duplicates.start("autoencoder", "imagenet")


def test_missing_imagenet_weights_are_one_line_with_the_ways_out(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(BadInput, match="--weights imagenet: no weights of resnet50") as error:
        near_duplicates.start("resnet50", "imagenet")
    assert "FILE" in str(error.value)
    assert "random" in str(error.value)


def test_random_weights_are_said_to_be(capsys):
    _, facts = near_duplicates.start("resnet50", "random")
    assert "resnet50 is not pretrained" in capsys.readouterr().err
    assert facts == {"weights": "random", "weights_sha256": None, "trained": False}
