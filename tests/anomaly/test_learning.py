"""Detectors detect: faces among pictures, lesions of made slides. ImageNet's features are found by WEIGHTS_DIR."""

import json
import os

import imageio.v3 as iio
import numpy as np
import pytest
from skimage.data import lfw_subset

import extract_basic_neg_crops
import extract_basic_pos_crops
import score_anomaly
import train_anomaly
from common import metrics
from data.camelyon import make_slides
from data.camelyon.slides import SPLIT_FOLDERS
from models.weights import find_imagenet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("WEIGHTS_DIR") or not find_imagenet("vgg16"),
        reason="WEIGHTS_DIR names no folder with VGG16's ImageNet weights",
    ),
]
LFW = ["--resize", "32", "--tile", "32", "--latent_res", "1", "--latent_dim", "16", "--dims", "16", "--iters", "200"]
VGG = ["--vgg", "vgg16", "--layer", "r32"]
FOREST = ["--resize", "64", "--tile", "64", "--embedder", "vgg16", "--layers", "r32,r42"]
ONE = ["--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """60 faces to train on; 40 faces against 100 pictures of other things."""
    folder = tmp_path_factory.mktemp("lfw")
    for i, picture in enumerate(lfw_subset()):
        part = folder / ("train/normal" if i < 60 else "test/normal" if i < 100 else "test/abnormal")
        part.mkdir(parents=True, exist_ok=True)
        iio.imwrite(part / f"{i:03}.png", (picture * 255).round().astype(np.uint8))
    return folder


def auc(logdir, method, *flags):
    """Train, score the test split and return its AUC."""
    train_anomaly.main(["--method", method, "--logdir", str(logdir), *ONE, *map(str, flags)])
    score_anomaly.main(["--logdir", str(logdir), *ONE, "--overlays", "0"])
    return json.loads((logdir / "scores" / "test.json").read_text())["auc"]


def test_faces_are_told_from_other_pictures(faces, tmp_path):
    """A minute on one core; .995 and 1.000 there."""
    data = ["--photos", faces, "--seed", 0]
    assert auc(tmp_path / "dpa", "dpa", *data, *LFW, *VGG, "-b", 16) >= 0.9
    assert auc(tmp_path / "knn", "deep_knn", *data, *LFW[:4], "--embedder", "vgg16", "--layer", "r32") >= 0.9


@pytest.mark.timing  # not of seconds, but as long
@pytest.mark.parametrize("seed", [0, 1])
def test_imagenet_tells_faces_better_than_random_features_and_pixels(faces, tmp_path, seed):
    data = ["--photos", faces, "--seed", seed, "-b", 16]
    found = {
        "ImageNet": auc(tmp_path / "imagenet", "dpa", *data, *LFW, *VGG),
        "random": auc(tmp_path / "random", "dpa", *data, *LFW, *VGG, "--vgg_weights", "random"),
        "pixels": auc(tmp_path / "pixels", "dpa", *data, *LFW, "--loss", "l1"),
    }
    print(found)
    assert found["ImageNet"] > max(found["random"], found["pixels"])


def colour_auc(pos, neg) -> float:
    """AUC of the distance of a crop's mean colour from the training negatives', by their covariance."""

    def colours(folder, ending):
        files = sorted(path for path in folder.glob("*.npy") if path.name.endswith(ending))
        return np.array([np.load(path).reshape(-1, 3).mean(0) for path in files if "_seg" not in path.name])

    test = SPLIT_FOLDERS["test"]
    train, negatives, positives = colours(neg, ".npy"), colours(neg / test, ".npy"), colours(pos / test, "_img.npy")
    mean, inverse = train.mean(0), np.linalg.inv(np.cov(train.T))
    values = np.concatenate([negatives, positives]) - mean
    labels = np.repeat([0, 1], [len(negatives), len(positives)])
    return metrics.classification(labels, np.einsum("ni,ij,nj->n", values, inverse, values))["auc"]


@pytest.mark.timing
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_large_lesions_of_made_slides_are_found(tmp_path, seed):
    """Crops of O2I 50-100 %, textures of the real slide; mean colour finds them, too, so that they are easy."""
    fixtures = os.environ.get("CAMELYON_FIXTURES")
    if not fixtures:
        pytest.skip("CAMELYON_FIXTURES names no folder with the real slide")
    slides, pos, neg = (tmp_path / name for name in ("slides", "pos", "neg"))
    texture = ["--texture", f"{fixtures}/CMU-1-Small-Region.svs"]
    make_slides.main(["--out", str(slides), "--seed", str(seed), "--workers", "1", *texture])
    crop = ["--base_path", str(slides / "training"), "--size", "80"]
    ratio = ["--low_roir", "0.5", "--high_roir", "1", "--k", "20", "--save_dir", str(pos)]
    extract_basic_pos_crops.main(["--data", str(slides / "annotations"), *crop, *ratio])
    extract_basic_neg_crops.main(["--label_path", str(slides / "stage_labels.csv"), *crop, "--save_dir", str(neg)])
    pos = pos / "level3_size_80_ratio_0.5_1"
    crops = ["--pos_path", pos, "--neg_path", neg, "--seed", seed]
    data = [*crops, "--resize", 32, "--tile", 32]
    code = ["--latent_res", 8, "--latent_dim", 4, "--dims", "16,16,4", "--lr", "3e-3", "-b", 16, "--iters", 300]
    found = {
        "dpa": auc(tmp_path / "dpa", "dpa", *data, *VGG, *code),
        "deep_if": auc(tmp_path / "deep_if", "deep_if", *crops, *FOREST),
        "deep_knn": auc(tmp_path / "knn", "deep_knn", *data, "--embedder", "vgg16", "--layer", "r32"),
    }
    print({**found, "mean colour": colour_auc(pos, neg)})
    assert min(found.values()) > 0.8
