import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from common.errors import BadInput
from models import needle
from models.bagnet import KERNEL3_BY_RECEPTIVE_FIELD, BagNet, receptive_field
from models.needle import ModelConfig, build_model
from models.saliency import saliency_maps
from tests.models.recipe import fill, make_input, u01

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "network.json").read_text())
CASES = pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: "x".join(map(str, case["input"])))


def reference_model():
    return fill(build_model(ModelConfig(in_channels=1, width=-2)))


def labels_of(images):
    return torch.arange(len(images)) % 2


def test_recipe_reproduces_its_own_numbers():
    assert u01(5, 0).tolist() == REFERENCE["u01_stream0_first5"]


def test_parameter_names_shapes_and_order_are_the_first_releases():
    model = build_model(ModelConfig(in_channels=1, width=-2, pooling="attention"))
    found = [[name, list(tensor.shape)] for name, tensor in model.state_dict().items()]
    assert found == REFERENCE["parameters_rf33_width-2_attention"]


@CASES
def test_float32_logits_equal_the_reference(case):
    logits = reference_model().eval()(make_input(*case["input"]))
    torch.testing.assert_close(logits.double(), torch.tensor(case["fp64_logits"]).double(), atol=1e-5, rtol=0)


@CASES
def test_float64_forward_and_backward_equal_the_reference(case):
    model = reference_model().double().eval()
    images = make_input(*case["input"]).double()
    logits = model(images)
    torch.testing.assert_close(logits, torch.tensor(case["fp64_logits"], dtype=torch.float64), rtol=1e-6, atol=0)
    loss = F.cross_entropy(logits, labels_of(images))
    assert loss.item() == pytest.approx(case["fp64_loss"], rel=1e-6)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(case["fp64_grad_l2_total"], rel=1e-6)


@CASES
def test_float64_saliency_equals_the_reference(case):
    saliency, local, _ = saliency_maps(reference_model().double().eval(), make_input(*case["input"]).double())
    assert saliency.flatten(1).norm(dim=1).tolist() == pytest.approx(case["fp64_saliency_l2"], rel=1e-6)
    peaks = [divmod(i, saliency.shape[2]) for i in saliency.flatten(1).argmax(dim=1).tolist()]
    assert peaks == [tuple(yx) for yx in case["saliency_argmax_yx"]]
    assert list(local.shape) == case["local_prob1_shape"]
    assert local[0, 0, :8].tolist() == pytest.approx(case["local_prob1_row0"], abs=1e-5)


@CASES
def test_five_rmsprop_steps_equal_the_reference(case):
    model = reference_model().double().train()
    images = make_input(*case["input"]).double()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-5, alpha=0.99, eps=1e-5)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(model(images), labels_of(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(case["fp64_rmsprop_losses_5_steps"], rel=1e-6)


@pytest.mark.parametrize(
    ("field", "width", "pooling", "count"),
    [
        (33, -2, "max", 1_455_666),
        (33, -2, "attention", 1_521_459),
        (33, -1, "mean", 5_789_794),
        (33, -1, "attention", 5_921_123),
        (33, 0, "logsumexp", 23_093_442),
        (33, 0, "attention", 23_355_843),
        (33, 1, "max", 92_242_306),
        (33, 1, "attention", 92_766_851),
        (9, 0, "max", 22_931_906),
        (177, 0, "max", 23_539_650),
    ],
)
def test_parameter_counts(field, width, pooling, count):
    with torch.device("meta"):
        model = build_model(ModelConfig(1, KERNEL3_BY_RECEPTIVE_FIELD[field], width, pooling))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("field", [9, 33, 177])
def test_one_cell_sees_exactly_its_receptive_field(field):
    """With the norms off, the input pixels with any effect on a central cell form a square of that side."""
    extractor = BagNet(1, KERNEL3_BY_RECEPTIVE_FIELD[field], width=-2).double().eval()
    for module in list(extractor.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.InstanceNorm2d):
                setattr(module, name, torch.nn.Identity())
    image = torch.rand(1, 1, 234, 250, dtype=torch.float64, requires_grad=True)
    embedding = extractor(image)
    h, w = embedding.shape[2] // 2, embedding.shape[3] // 2
    embedding[0, :, h, w].sum().backward()
    rows = torch.nonzero(image.grad[0, 0].abs().sum(dim=1)).flatten()
    columns = torch.nonzero(image.grad[0, 0].abs().sum(dim=0)).flatten()
    assert receptive_field(KERNEL3_BY_RECEPTIVE_FIELD[field]) == field
    assert (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1) == (field, field)
    outside = image.detach() + torch.rand_like(image) * (image.grad == 0)
    assert torch.equal(extractor(outside)[0, :, h, w], embedding[0, :, h, w])


@pytest.mark.parametrize(("norm", "pooling"), list(itertools.product(needle.NORMS, needle.POOLINGS)))
@pytest.mark.parametrize("size", [(11, 11), (64, 64), (45, 30)])
def test_every_norm_and_pooling_takes_any_size(norm, pooling, size):
    for field, channels in ((9, 3), (33, 1), (177, 3)):
        model = build_model(ModelConfig(channels, KERNEL3_BY_RECEPTIVE_FIELD[field], -2, pooling, norm))
        logits = model(torch.rand(2, channels, *size))
        assert logits.shape == (2, 2)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("width", [-1, 0, 1])
def test_wider_networks_run(width):
    model = build_model(ModelConfig(1, KERNEL3_BY_RECEPTIVE_FIELD[9], width)).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 1, 16, 16)).shape == (1, 2)


def test_images_below_eleven_pixels_are_refused():
    model = build_model(ModelConfig(1, width=-2))
    with pytest.raises(BadInput, match="at least 11 px a side, got 10x64"):
        model(torch.rand(1, 1, 10, 64))


def test_images_of_a_batch_do_not_touch_each_other():
    model = build_model(ModelConfig(1, width=-2)).double()
    images = torch.rand(3, 1, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]))


def test_local_logits_average_to_image_logits_under_mean_pooling():
    model = build_model(ModelConfig(in_channels=1, pooling="mean", width=-2))
    embedding = model.cnn(torch.rand(2, 1, 64, 64))
    torch.testing.assert_close(model.local_logits(embedding).mean(dim=(2, 3)), model.image_logits(embedding))


def test_poolings_agree_on_a_constant_embedding():
    from models.pooling import attention_pool, logsumexp_pool, max_pool, mean_pool

    embedding = torch.full((2, 5, 3, 4), 1.5)
    expected = torch.full((2, 5), 1.5)
    for pooled in (max_pool(embedding), mean_pool(embedding), attention_pool(embedding, torch.randn(2, 12))):
        torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(logsumexp_pool(embedding), expected + torch.tensor(12.0).log())


def test_convolutions_start_with_the_specified_spread():
    weight = build_model(ModelConfig(1, width=0)).cnn.layer1[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_dropout_acts_in_training_only():
    model = build_model(ModelConfig(1, width=-2, dropout=True))
    images = torch.rand(1, 1, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
    assert sum(isinstance(m, torch.nn.Dropout2d) for m in model.modules()) == 4


def test_receptive_field_and_kernel3_flags_mean_the_same():
    assert needle.parse_kernel3("9") == needle.parse_kernel3("1_1_0_0") == (1, 1, 0, 0)
    assert needle.parse_pooling("soft_mil_att_forward") == needle.parse_pooling("attention")
