"""What tests of sweeps share: planned runs, synthetic tables of results, folders of crops."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.errors import BadInput
from experiments import figures, results, run_experiments
from experiments.figures import PAPER
from experiments.runs import Places, Trial


def plan(*flags):
    args = run_experiments.parse_args([*flags])
    return run_experiments.trials_of(args.figures[0], args)


def refusal(action, *args):
    """What the action complains, which is one line."""
    with pytest.raises(BadInput) as info:
        action(*args)
    assert "\n" not in str(info.value)
    return str(info.value)


def crop_folders(root, slides):
    """Folders as the extractor leaves them, negatives from so many training slides."""
    (root / "level3_size_128_ratio_0.01_0.1").mkdir(parents=True)
    (root / "neg_128").mkdir()
    rows = [{"slide": f"patient_{i:03}_node_0", "split": "train"} for i in range(slides)]
    pd.DataFrame(rows).to_csv(root / "neg_128" / "crops.csv", index=False)


def table_of(name, score, preset=PAPER, seeds=3, spread=0.001):
    """Synthetic results of a figure: score(point) -> columns; seeds differ by the spread in every score."""
    points = figures.preset_points(name, preset)
    rows = []
    for point, seed in product(points, range(1, seeds + 1)):
        run = Trial(point, replace(preset, seeds=seeds), seed, False, Places(Path("none")))
        usual = {"fits": True, "train_acc": 1.0, "val_acc": 0.9, "test_acc": 0.8, "epochs_to_fit": 50}
        usual |= {"mean_running_acc": 0.9, "localization_ap": 0.5, "best_epoch": 9, "seconds": 60.0, "device": "cpu"}
        found = usual | score(point)
        noisy = {k: v + spread * (seed - 2) for k, v in found.items() if k.endswith(("_acc", "_ap"))}
        rows.append(results.configuration(run) | found | noisy)
    return pd.DataFrame(rows)


def small(point):
    """How small the object is: 0 at the largest O2I, 4 at the smallest."""
    if point.ratio:
        return figures.RATIOS.index(point.ratio)
    return int(np.log2(point.canvas / 64))


def size_needed(point, grows):
    return {"val_acc": 0.9 if point.num_examples >= 1400 * 2 ** (small(point) if grows else 4 - small(point)) else 0.6}
