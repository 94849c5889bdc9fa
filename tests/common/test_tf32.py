import pytest
import torch
import torch.nn.functional as F

from common import processes
from common.tf32 import Emulation, rounded

CPU = torch.device("cpu")


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        *[(1.0, 1.0), (1 + 2**-12, 1.0), (1 + 2**-11, 1 + 2**-10), (-1 - 2**-11, -1 - 2**-10), (2 - 2**-12, 2.0)],
        *[(0.0, 0.0), (1e-30, 1e-30), (float("inf"), float("inf")), (float("-inf"), float("-inf"))],
    ],
)
def test_ten_bits_of_mantissa_are_left(value, nearest):
    assert rounded(torch.tensor([value])).item() == pytest.approx(nearest, rel=2**-11 if value == 1e-30 else 0)


def test_rounding_is_to_the_nearest_and_final():
    x = random(10_000) * torch.logspace(-20, 20, 10_000)
    assert ((rounded(x) - x).abs() <= x.abs() * 2**-11).all()
    assert torch.equal(rounded(rounded(x)), rounded(x))
    assert rounded(torch.tensor(float("nan"))).isnan()


@pytest.mark.parametrize(
    ("product", "left", "right"),
    [(F.linear, (5, 7), (3, 7)), (F.conv1d, (2, 4, 9), (3, 4, 1)), (F.conv2d, (2, 4, 9, 8), (6, 4, 3, 3))],
)
def test_products_and_their_gradients_are_those_of_rounded_factors(product, left, right):
    left, right = random(*left).requires_grad_(), random(*right).requires_grad_()
    with Emulation():
        out = product(left, right)
    gradient = random(*out.shape)
    found = torch.autograd.grad(out, (left, right), gradient)
    exact = [rounded(x.detach()).requires_grad_() for x in (left, right)]
    expected = product(*exact)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, exact, rounded(gradient)))
    assert not torch.allclose(out, product(left, right), rtol=1e-5)


def test_the_switch_of_a_gpu_is_read_as_it_was_set():
    """With PyTorch's compiler, which reads the older names, as with convolutions."""
    for precision in ("tf32", "float32"):
        processes.select("cpu", precision)
        found = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        assert found == (precision == "tf32",) * 2 and processes.uses_tf32() == found[0]
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # from PyTorch 2.9 on
            assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == found[0]


def test_exact_products_know_neither_tf32_nor_autocast():
    processes.select("cpu", "tf32")
    a, b = random(8, 64), random(64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        with processes.exact_products(CPU):
            assert not processes.uses_tf32() and (a @ b).dtype == torch.float32
        assert processes.uses_tf32() and (a @ b).dtype == torch.bfloat16
    processes.select("cpu")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_weight_that_changes_within_the_context_is_seen(precision):
    layer, x = torch.nn.Linear(4, 4, bias=False), random(2, 4)
    with processes.autocast(CPU, precision):
        before = layer(x)
        with torch.no_grad():
            layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), 2 * before)


def test_only_tf32_is_emulated_and_only_on_a_cpu():
    x, w = random(4, 64), random(8, 64)
    with processes.autocast(CPU, "tf32"):
        assert torch.equal(F.linear(x, w), F.linear(rounded(x), rounded(w)))
        assert torch.equal(x * 3, x.mul(3))
    for where, precision in ((CPU, "float32"), (torch.device("cuda"), "tf32")):
        with processes.autocast(where, precision):
            assert torch.equal(F.linear(x, w), x @ w.T)
