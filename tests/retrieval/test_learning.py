"""A small training without a network: it beats its own start on tiles it has not seen."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import skimage

import train_retrieval
from retrieval import cut_tiles, evaluate_pairs

PICTURES = (
    "ihc",
    "cell",
    "brick",
    "grass",
    "gravel",
    "moon",
    "coins",
    "retina",
    "hubble_deep_field",
)  # of scikit-image
SLIDE = Path(os.environ.get("CAMELYON_FIXTURES", "")) / "CMU-1-Small-Region.svs"


@pytest.mark.timing
def test_a_small_training_beats_its_own_start(tmp_path):
    if not SLIDE.is_file():
        pytest.skip("needs a real slide: set CAMELYON_FIXTURES to the folder of CMU-1-Small-Region.svs")
    pictures = [path for name in PICTURES for path in (Path(skimage.__file__).parent / "data").glob(f"{name}.*g")]
    size = ["--size", "128", "--stride", "64", "--fractions", "2", "1", "1"]
    cut_tiles.main(["--image", *map(str, [SLIDE, *pictures]), *size, "--out", str(tmp_path / "tiles")])
    common = ["--workers", "0", "--device", "cpu"]
    paths = ["--train_path", str(tmp_path / "tiles/train"), "--valid_path", str(tmp_path / "tiles/valid")]
    flags = [
        "--synth_valid",
        "--base",
        "autoencoder",
        "--reconstruction_epochs",
        "1",
        "--epochs",
        "15",
        "--bs",
        "16",
        "--lr",
        "1e-3",
    ]
    train_retrieval.main([*paths, *flags, *common, "--logdir", str(tmp_path / "run")])
    test = ["--test_path", str(tmp_path / "tiles/test"), "--synth_test", "--logdir", str(tmp_path / "run")]
    evaluate_pairs.main([*test, *common, "--out", str(tmp_path / "pairs")])
    found = json.loads((tmp_path / "pairs" / "scores.json").read_text())["median"]
    start = pd.read_csv(tmp_path / "run" / "stats.csv").iloc[0]
    print(f"AUC random {found['random_auc']:.3f}, hardest {found['hardest_auc']:.3f}; the start's on validation tiles")
    print(f"random {start.valid_random_auc:.3f}, hardest {start.valid_hardest_auc:.3f}")
    assert found["random_auc"] > max(0.87, start.valid_random_auc + 0.1)
