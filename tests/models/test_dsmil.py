"""Bags of instances have no order and no common size, whatever pools them."""

import itertools

import pytest
import torch

from models import dsmil

CONFIGS = [
    {"aggregator": aggregator, "dim": 16, "classes": classes, "variant": variant}
    for (aggregator, variant), classes in itertools.product(
        [("dsmil", "hnm"), ("dsmil", "2024"), ("max", None), ("mean", None), ("attention", None)], (1, 3)
    )
]
SIZES = [1, 7, 3]


def network(config):
    return dsmil.build(config).double()


@pytest.fixture
def features():
    return torch.randn(sum(SIZES), 16, dtype=torch.float64)


@pytest.mark.parametrize(("variant", "parameters"), [("hnm", 592_002), ("2024", 83_202)])
def test_dsmil_has_the_parameters_of_its_sources(variant, parameters):
    model = dsmil.build({"aggregator": "dsmil", "dim": 512, "classes": 1, "variant": variant})
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: " ".join(map(str, c.values())))
def test_the_order_of_instances_changes_nothing(config, features):
    model, order = network(config), torch.randperm(sum(SIZES))
    sizes = [len(order)]
    bag, instances, attention = model(features, sizes)
    shuffled = model(features[order], sizes)
    for found, expected in zip(shuffled, (bag, instances[order], attention[order]), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: " ".join(map(str, c.values())))
def test_bags_of_unequal_size_are_what_each_is_alone(config, features):
    model = network(config)
    together = model(features, SIZES)
    alone = [model(bag, [len(bag)]) for bag in features.split(SIZES)]
    for found, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(parts))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: " ".join(map(str, c.values())))
def test_attention_sums_to_one_over_each_bag(config, features):
    _, _, attention = network(config)(features, SIZES)
    sums = torch.stack([bag.sum(dim=0) for bag in attention.split(SIZES)])
    torch.testing.assert_close(sums, torch.ones(len(SIZES), config["classes"], dtype=torch.float64))


@pytest.mark.parametrize("variant", dsmil.VARIANTS)
def test_dsmil_is_its_equations(variant, features):
    """Written out for one bag and one class, values before the sum."""
    model = network({"aggregator": "dsmil", "dim": 16, "classes": 1, "variant": variant})
    bag_logits, scores, attention = model(features, [len(features)])
    hidden = model.lin(features)
    queries = model.q(hidden)
    critical = queries[scores[:, 0].argmax()]
    expected = torch.softmax(queries @ critical / 128**0.5, dim=0)
    vector = (expected[:, None] * model.v(hidden)).sum(dim=0)
    torch.testing.assert_close(attention[:, 0], expected)
    torch.testing.assert_close(bag_logits[0, 0], (model.fcc.weight[0, 0] * vector).sum() + model.fcc.bias[0])


def test_max_pooling_is_the_critical_instance(features):
    bag, instances, attention = network({"aggregator": "max", "dim": 16, "classes": 2})(features, SIZES)
    for logits, scores, weights in zip(bag, instances.split(SIZES), attention.split(SIZES), strict=True):
        assert logits.tolist() == scores.max(dim=0).values.tolist()
        assert weights.argmax(dim=0).tolist() == scores.argmax(dim=0).tolist()
