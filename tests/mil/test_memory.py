"""A slide of a hundred thousand tiles is one bag, and trains in the memory of a small machine."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TILES, DIM = 100_000, 512
TRAIN = f"""
import resource
import common, numpy as np, torch
from pathlib import Path
from common.files import open_npy
from mil import bags, features, rounds
from tests.mil.made import make_args

logdir = Path({{logdir!r}})
with features.GrowingArray(logdir / "features.npy", {DIM}, {{dtype!r}}) as file:
    for block in range(40):
        file.append(np.random.default_rng(block).random(({TILES} // 10, {DIM}), np.float32))
parts = np.split(open_npy(logdir / "features.npy"), 4)
labels, corners = np.array([1, 0]), [bags.unplaced({TILES})] * 2
truth = [np.full({TILES}, -1, np.int8), np.zeros({TILES}, np.int8)]
splits = {{{{
    "train": bags.Bags(["a", "b"], labels, parts[:2], corners, truth),
    "val": bags.Bags(["c", "d"], labels, parts[2:], corners, truth),
}}}}
for found in splits.values():
    bags.check(found, "split")
args = make_args(logdir, "--num_epoch_mil", 1)
rounds.train(splits, args, logdir / "run", torch.device("cpu"))
print("MB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.timing
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_bag_of_a_hundred_thousand_tiles_trains_in_under_two_gigabytes(tmp_path, dtype):
    code = TRAIN.format(logdir=str(tmp_path), dtype=dtype)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("MB")[-1]) < 2000
