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


def test_only_tf32_is_emulated_and_only_on_a_cpu():
    x, w = random(4, 64), random(8, 64)
    with processes.autocast(CPU, "tf32"):
        assert torch.equal(F.linear(x, w), F.linear(rounded(x), rounded(w)))
        assert torch.equal(x * 3, x.mul(3))
    for where, precision in ((CPU, "float32"), (torch.device("cuda"), "tf32")):
        with processes.autocast(where, precision):
            assert torch.equal(F.linear(x, w), x @ w.T)
