"""The fused norm is the plain one, forward and backward, as written and as built."""

import itertools

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from common.compilation import Compiler
from models.needle import ModelConfig, build_model
from models.norms import FusedNorm, norm_act

CASES = list(itertools.product([True, False], repeat=3))  # scale and shift, residual, ReLU


class Uncompiled:
    """In place of a Compiler: the function as it is written."""

    def __init__(self, function):
        self.function = function

    def ready(self, *inputs):
        return True

    def __call__(self, *inputs):
        return self.function(*inputs)


def outcome(way, affine, residual, relu, dtype=torch.float64):
    """The result and all gradients of one call."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(5, affine=affine)
    for p in norm.parameters():
        nn.init.normal_(p)
    norm, (x, other) = norm.to(dtype), torch.randn(2, 3, 5, 7, 6).to(dtype).unbind()
    x, other = x.requires_grad_(), other.requires_grad_()
    out = way(x, norm, other if residual else None, relu)
    inputs = [x, *norm.parameters(), *([other] if residual else [])]
    return [out, *torch.autograd.grad((out * torch.linspace(-1, 2, 6, dtype=dtype)).sum(), inputs)]


def assert_alike(ours, theirs):
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_as_written_it_is_the_plain_norm(case):
    assert_alike(outcome(FusedNorm(Uncompiled), *case), outcome(norm_act, *case))


@pytest.mark.slow
def test_as_built_it_is_the_plain_norm():
    compiler = Compiler()
    fused = FusedNorm(compiler)
    for case in (CASES[0], CASES[-1]):
        assert_alike(outcome(fused, *case), outcome(norm_act, *case))
    assert compiler.working and compiler.kinds == 4  # forward and backward of each


def test_half_precision_is_computed_in_single():
    ours = outcome(FusedNorm(Uncompiled), True, True, True, torch.float16)
    exact = outcome(norm_act, True, True, True, torch.float32)
    assert ours[0].dtype == ours[1].dtype == torch.float16
    for own, other in zip(ours, exact, strict=True):
        assert (own.float() - other).norm() < 1e-2 * other.norm()


@pytest.mark.parametrize("way", ["dense", "rows"])
@pytest.mark.parametrize("dropout", [True, False])
def test_a_compiled_network_is_the_plain_one(way, dropout):
    """In float64, by a compiler that traces and derives but runs PyTorch's operators; dropout draws alike."""
    results = []
    for compiler in (None, Compiler("aot_eager")):
        torch.manual_seed(0)
        model = build_model(ModelConfig(1, width=-4, dropout=dropout)).double().train()
        model.background = way
        images = torch.zeros(2, 1, 40, 44, dtype=torch.float64)
        images[0, 0, 5:19, 6:20], images[1, 0, 30:, 30:] = torch.rand(14, 14), torch.rand(10, 14)
        if compiler:
            model.compile_parts(compiler)
        torch.manual_seed(1)
        logits = model(images)
        results.append([logits, *torch.autograd.grad(logits[:, 1].sum(), list(model.parameters()))[:-1]])
        if compiler:
            assert compiler.working and compiler.kinds > 0
    for own, other in zip(*results, strict=True):
        assert torch.linalg.vector_norm(own - other) <= 1e-9 * (1 + torch.linalg.vector_norm(other))


def test_a_network_is_compiled_for_what_it_is_called_with_and_no_more():
    """For both ways, with and without gradients; PyTorch builds nothing that was not tried, and nothing twice."""
    compiler, model = Compiler("aot_eager"), build_model(ModelConfig(1, width=-4))
    model.compile_parts(compiler)
    images = torch.zeros(2, 1, 40, 44)
    images[:, :, 5:19, 6:20] = torch.rand(14, 14)
    before, kinds = counters["stats"]["unique_graphs"], []
    for _ in range(2):
        for model.background in ("rows", "dense"):
            model(images).sum().backward()
            with torch.inference_mode():
                model(images)
        kinds.append(compiler.kinds)
        assert counters["stats"]["unique_graphs"] - before == compiler.kinds
    assert compiler.working and 0 < kinds[0] == kinds[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu_it_is_the_plain_norm(case):
    with torch.device("cuda"):
        compiler = Compiler()
        assert_alike(outcome(FusedNorm(compiler), *case), outcome(norm_act, *case))
        assert compiler.working
