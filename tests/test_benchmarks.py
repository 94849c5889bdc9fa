"""The benchmarks run, and their baselines compute what they are compared with."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import baseline
import bench_training


@pytest.mark.parametrize("field", ["9", "33", "177"])
def test_the_baseline_takes_the_same_steps(field):
    """In float64, losses and weights of two steps agree with those of the training loop."""
    images = torch.zeros(4, 1, 40, 40, dtype=torch.float64)
    images[:, :, 5:30, 8:27] = torch.rand(4, 1, 25, 19)
    labels = torch.tensor([0, 1, 1, 0])
    model = bench_training.make_network(field, -4).double()
    theirs = baseline.BaselineTraining(baseline.BaselineNetwork(model))
    ours = bench_training.make_network(field, -4).double()
    optimizer = torch.optim.RMSprop(ours.parameters(), 5e-5, alpha=0.99, eps=1e-5)
    losses = []
    for _ in range(2):
        theirs.step(images, labels)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(ours(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert theirs.scores[0] == pytest.approx(sum(losses), rel=1e-9)
    assert sum(theirs.scores[1:]) == 8


def test_a_table_is_printed(capsys):
    flags = "--mnist digits --fields 9 --widths -4 --canvases 40 --rounds 1 --device cpu"
    bench_training.main(flags.split())
    lines = capsys.readouterr().out.splitlines()
    cells = lines[3].replace("|", " ").split()
    assert len(cells) == 12
    baseline_speed, speed, ratio = map(float, cells[4:7])
    assert np.isclose(ratio, speed / baseline_speed, rtol=0.1)
