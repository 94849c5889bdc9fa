"""The critic's loss is the formula of Gulrajani et al. 2017, on critics whose gradients are known."""

import pytest
import torch
from torch import nn

from anomaly import adversarial


class Linear(nn.Module):
    """D(x) = slope * sum(x) / sqrt(number of pixels), whose gradient has the norm `slope` everywhere."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x):
        return self.slope * x.flatten(1).sum(1) / x[0].numel() ** 0.5


@pytest.mark.parametrize(("slope", "penalty"), [(1.0, 0.0), (3.0, 4.0), (0.5, 0.25)])
def test_the_penalty_is_the_squared_distance_of_the_gradients_norm_from_1(slope, penalty):
    real, made = torch.rand(2, 5, 3, 4, 4)
    assert adversarial.gradient_penalty(Linear(slope), real, made).item() == pytest.approx(penalty, abs=1e-5)


def test_the_penalty_is_taken_between_the_samples_of_each_pair():
    """D(x) = x^2 / 2 has the gradient x: at a share of 1 that is the real sample, at 0 the made one."""
    real, made = torch.tensor([[3.0], [5.0]]), torch.tensor([[1.0], [2.0]])
    penalties = [
        adversarial.gradient_penalty(lambda x: x.square() / 2, real, made, torch.full((2,), share)).item()
        for share in (1.0, 0.0, 0.5)
    ]
    assert penalties == pytest.approx([(4 + 16) / 2, (0 + 1) / 2, (1 + 2.5**2) / 2])


def test_the_loss_adds_distance_penalty_and_drift():
    real, made = torch.full((4, 1), 2.0), torch.full((4, 1), -1.0)  # D = 2x: 4 and -2, gradient 2
    assert adversarial.critic_loss(Linear(2.0), real, made).item() == pytest.approx(-6 + 10 * 1 + 1e-3 * (16 + 4))


def test_no_gradient_reaches_what_made_the_samples():
    critic, seed = Linear(2.0), torch.ones(4, 1, requires_grad=True)
    adversarial.critic_loss(critic, seed * 2, seed * 3).backward()
    assert seed.grad is None
    assert critic.slope.grad is not None
    adversarial.generator_loss(critic, seed * 3).backward()
    torch.testing.assert_close(seed.grad, torch.full((4, 1), -6 / 4))


def test_a_critic_learns_to_tell_samples_apart():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    real, made = torch.randn(64, 2) + 2, torch.randn(64, 2)
    for _ in range(60):
        optimizer.zero_grad()
        adversarial.critic_loss(critic, real, made).backward()
        optimizer.step()
    assert critic(real).mean() - critic(made).mean() > 1
