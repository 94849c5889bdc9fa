"""Rows of active cells give the logits and gradients of the plain network, wherever they apply."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common import processes
from data.cluttered_mnist import digits, placements, render
from models import background
from models.bagnet import KERNEL3_BY_RECEPTIVE_FIELD
from models.needle import POOLINGS, ModelConfig, build_model


def make_network(seed=0, dtype=torch.float64, **settings):
    """A small network whose norms scale and shift."""
    torch.manual_seed(seed)
    model = build_model(ModelConfig(1, width=-4, **settings)).to(dtype)
    for p in model.parameters():
        if p.dim() == 1:
            p.data += 0.1 * torch.randn_like(p)
    return model


def spots(height=70, width=83):
    """Images (3, 1, H, W): ink in the middle, at the border, everywhere."""
    torch.manual_seed(1)
    images = torch.zeros(3, 1, height, width, dtype=torch.float64)
    images[0, 0, 30:45, 20:29] = torch.rand(15, 9)
    images[1, 0, :7, width - 9 :] = torch.rand(7, 9)
    images[1, 0, 50, 3] = 1
    images[2] = torch.rand(height, width)
    return images


def level_of(active):
    """The level of a map of active cells (B, h, w)."""
    return background.Level(active, *background.row_counts([active]))


def outcome(model, images, logits):
    """Logits and the gradient of every parameter under a loss that weighs both classes and all images differently."""
    weights = torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)
    loss = (weights * logits).sum() + F.cross_entropy(logits, torch.arange(len(images)) % 2)
    return [logits, *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("norm", ["in_aff", "in"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("field", [9, 33, 177])
def test_rows_equal_the_plain_network(monkeypatch, field, pooling, norm, padded):
    monkeypatch.setattr(background, "MOST_ACTIVE", 2)  # for the image without any background
    model = make_network(kernel3=KERNEL3_BY_RECEPTIVE_FIELD[field], pooling=pooling, norm=norm)
    images = spots()
    rows = outcome(model, images, background.logits(model, images, padded))
    plain = outcome(model, images, model.image_logits(model.cnn(images)))
    for ours, theirs in zip(rows, plain, strict=True):
        assert torch.linalg.vector_norm(ours - theirs) <= 1e-9 * (1 + torch.linalg.vector_norm(theirs))


def test_rows_round_no_worse_than_the_plain_network():
    """In float32 at 512 px, where 200,000 cells are summed: errors of logits and gradients against float64."""
    bank, rng, side = digits.load("digits")["train"].images, np.random.RandomState(0), 512
    layers = [(bank[rng.randint(0, len(bank), 100)], *rng.randint(0, side - 28, (2, 100))) for _ in range(3)]
    images = torch.from_numpy(np.stack([render.compose(side, layer) for layer in layers])[:, None] / 255)
    model = make_network(kernel3=(1, 1, 0, 0), pooling="mean")
    exact = outcome(model, images, model.image_logits(model.cnn(images)))
    model, images = model.float(), images.float()
    errors = []
    for logits in (background.logits(model, images), model.image_logits(model.cnn(images))):
        found = outcome(model, images, logits)
        errors.append(
            sum((ours - theirs).norm() / (1 + theirs.norm()) for ours, theirs in zip(found, exact, strict=True))
        )
    assert errors[0] < 2 * errors[1]


def test_the_gradient_of_the_background_is_summed_without_losing_digits():
    """In float32, over 608,000 cells."""
    active = torch.zeros(1, 800, 800, dtype=torch.bool)
    active[:, :40] = True
    level = level_of(active)
    x = torch.zeros(1, level.rows, 2, requires_grad=True)
    gradient = torch.rand(1, 2, 800, 800, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad(level.to_grid(x), x, gradient)
    exact = gradient[0, :, 40:].double().sum(dim=(1, 2))
    assert ((found[0, 0] - exact).abs() <= 1e-6 * exact).all()


def test_an_image_without_ink_is_no_special_case():
    """Its channels are constant but for the border, which makes instance norm amplify rounding."""
    model, empty = make_network(), torch.zeros(2, 1, 70, 70, dtype=torch.float64)
    ours, plain = background.logits(model, empty), model.image_logits(model.cnn(empty))
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel3", [(0, 0, 0, 0), (2, 1, 0, 1), (0, 4, 2, 3)])
def test_any_arrangement_of_kernels_and_size(kernel3):
    model = make_network(kernel3=kernel3)
    for side in (31, 48):
        images = torch.zeros(2, 1, side, side + 1, dtype=torch.float64)
        images[:, :, 6:22, 9:25] = torch.rand(2, 1, 16, 16)
        ours, plain = background.logits(model, images), model.image_logits(model.cnn(images))
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-9)


def test_the_network_takes_rows_by_itself():
    model, images = make_network(), spots()[:2]
    assert (model(images) == background.logits(model, images)).all()


def test_dropout_drops_the_same_channels():
    model, images = make_network(dropout=True).train(), spots()[:2]
    torch.manual_seed(3)
    ours = background.logits(model, images)
    torch.manual_seed(3)
    torch.testing.assert_close(ours, model.image_logits(model.cnn(images)), rtol=0, atol=1e-9)
    model.eval()
    torch.testing.assert_close(
        background.logits(model, images), model.image_logits(model.cnn(images)), rtol=0, atol=1e-9
    )


def test_rows_do_not_apply_everywhere():
    images = spots()[:2]
    assert background.logits(make_network(), images) is not None
    assert background.logits(make_network(), torch.rand_like(images)) is None
    assert background.logits(make_network(), images.clone().requires_grad_()) is None
    assert background.logits(make_network(norm="bn"), images) is None
    assert background.logits(make_network(), images[..., :10]) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert background.logits(make_network(dtype=torch.float32), images.float()) is None


def test_clutter_leaves_most_cells_to_the_background():
    """At Pawlowski 2019's density (25 digits on 256 px) about a tenth of the cells after the stem are active."""
    bank, rng = digits.load("digits")["train"].images, np.random.RandomState(0)
    for side in (256, 512):
        n = placements.default_clutter(side)
        layer = bank[rng.randint(0, len(bank), n)], *rng.randint(0, side - 28, (2, n))
        level = level_of(torch.from_numpy(render.compose(side, layer))[None] > 0)
        assert level.rows < 0.2 * level.cells


def test_a_level_accounts_for_every_cell():
    level = level_of(spots()[:, 0] > 0)
    assert (level.weight.sum(dim=1) == level.cells).all()
    x = torch.rand(3, level.rows, 3, dtype=torch.float64)
    kept = level.weight > 0
    kept[2, 0] = False
    back = level.to_rows(level.to_grid(x))
    assert (back[kept] == x[kept]).all()


def test_padding_leaves_few_shapes_and_little_waste():
    """Between 1 % and all of 10,000 cells."""
    most = 10_001
    sizes = [background.bucket(rows, most) for rows in range(100, most + 1)]
    assert len(set(sizes)) <= 22
    assert all(rows <= size <= min(most, 1.25 * rows + 1) for rows, size in enumerate(sizes, 100))
    assert background.bucket(1, most) >= 1


def test_canvases_of_an_epoch_share_a_few_shapes():
    """Thirty batches of Pawlowski 2019's density, 128 px: unpadded, hardly two have levels of the same sizes."""
    bank, rng, side, model = digits.load("digits")["train"].images, np.random.RandomState(0), 128, make_network()
    shapes = {False: set(), True: set()}
    n = placements.default_clutter(side)
    for _ in range(30):
        layers = [(bank[rng.randint(0, len(bank), n)], *rng.randint(0, side - 28, (2, n))) for _ in range(8)]
        images = torch.from_numpy(np.stack([render.compose(side, layer) for layer in layers])[:, None] / 255)
        for padded, found in shapes.items():
            found.add(tuple(level.rows for level in background.levels_of(model.cnn, images, padded)))
    assert len(shapes[False]) > 25 and len(shapes[True]) <= 6


@pytest.mark.parametrize(("tf32", "sides"), [(False, [256, 1024]), (True, [1024])])
def test_on_a_gpu_rows_are_taken_where_they_were_faster(monkeypatch, tf32, sides):
    monkeypatch.setattr(processes, "uses_tf32", lambda: tf32)
    model, gpu = make_network(), torch.device("cuda:0")
    taken = [side for side in (64, 128, 256, 1024) if background.applies(model, (8, 1, side, side), gpu)]
    assert taken == sides


@pytest.mark.parametrize("pooling", ["max", "attention"])
@pytest.mark.parametrize("rows", [True, False])
def test_computing_activations_again_changes_nothing_and_keeps_less(rows, pooling):
    """Logits and gradients to the bit, dropout included, for rows and for the plain network."""
    model, images = make_network(dropout=True, pooling=pooling).train(), spots()[:2]
    results, kept = [], []
    for model.cnn.recompute in (False, True):
        torch.manual_seed(4)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            logits = background.logits(model, images) if rows else model.image_logits(model.cnn(images))
        results.append(outcome(model, images, logits))
        kept.append(sum(sizes))
    for once, twice in zip(*results, strict=True):
        assert torch.equal(once, twice)
    assert kept[1] < kept[0] / 2
