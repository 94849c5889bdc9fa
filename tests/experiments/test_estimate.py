import pytest

from experiments import estimate
from experiments.figures import Point


def test_flop_are_those_of_the_network():
    assert estimate.flop_per_image(Point()) == pytest.approx(6 * 2.089e9, rel=0.02)
    assert estimate.parameters(Point()) == 23_093_442
