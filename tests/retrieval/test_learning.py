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
TILES = "--size 128 --stride 64 --fractions 2 1 1"
TRAINING = "--synth_valid --base autoencoder --reconstruction_epochs 1 --epochs 10 --bs 16 --lr 1e-3"
HERE = "--workers 0 --device cpu"
SLIDE = Path(os.environ.get("CAMELYON_FIXTURES", "")) / "CMU-1-Small-Region.svs"


@pytest.mark.timing
def test_a_small_training_beats_its_own_start(tmp_path):
    if not SLIDE.is_file():
        pytest.skip("needs a real slide: set CAMELYON_FIXTURES to the folder of CMU-1-Small-Region.svs")
    pictures = [path for name in PICTURES for path in (Path(skimage.__file__).parent / "data").glob(f"{name}.*g")]
    tiles, run, out = tmp_path / "tiles", tmp_path / "run", tmp_path / "pairs"
    cut_tiles.main(["--image", *map(str, [SLIDE, *pictures]), *TILES.split(), "--out", str(tiles)])
    folders = ["--train_path", str(tiles / "train"), "--valid_path", str(tiles / "valid")]
    train_retrieval.main([*folders, *TRAINING.split(), *HERE.split(), "--logdir", str(run)])
    test = ["--test_path", str(tiles / "test"), "--synth_test", "--logdir", str(run)]
    evaluate_pairs.main([*test, *HERE.split(), "--out", str(out)])
    found = json.loads((out / "scores.json").read_text())["median"]
    start = pd.read_csv(run / "stats.csv").iloc[0]
    print(f"AUC random {found['random_auc']:.3f}, hardest {found['hardest_auc']:.3f}; the start's on validation tiles")
    print(f"random {start.valid_random_auc:.3f}, hardest {start.valid_hardest_auc:.3f}")
    assert found["random_auc"] > max(0.87, start.valid_random_auc + 0.1)
