"""Every data set says what it knows in the same words (data/__init__.py)."""

import argparse

import numpy as np
import pytest
import torch

from data import folders, photos
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from data.cluttered_mnist import generate_data, generate_noise_data
from data.transforms import Transform, Transformed


def nmnist(folder, *flags):
    small = "--canvas 40 --distortion-num 1 --mnist digits --duplicates 1 --workers 1"
    generate_data.main([*small.split(), "--out", str(folder), *flags])
    return mnist.load_splits(argparse.Namespace(data_path=folder, data_scaling=1.0, source="auto"))


def recipe(folder):
    return nmnist(folder, "--format", "none")


def files_alone(folder):
    nmnist(folder)
    for table in folder.glob("*.csv"):
        table.write_text("".join(line.rsplit(",", 2)[0] + "\n" for line in table.read_text().splitlines()))
    (folder / "manifest.json").unlink()
    return mnist.load_splits(argparse.Namespace(data_path=folder, data_scaling=0.5, source="files"))


def noise(folder):
    counts = "--num_train 4 --num_val 4 --num_test 4 --canvas 32 --format none"
    generate_noise_data.main([*counts.split(), "--out", str(folder)])
    return mnist.load_splits(argparse.Namespace(data_path=folder, data_scaling=1.0, source="auto"))


def crops(folder, masks=True):
    rng = np.random.default_rng(0)
    for part in ("", "valid/", "test/"):
        for i in range(3):
            for name, shape in {"pos/{}_img": (32, 32, 3), "pos/{}_seg": (32, 32), "neg/{}": (32, 32, 3)}.items():
                kind, stem = name.split("/")
                path = folder / kind / part / f"{stem.format(f'patient_000_node_{i}_3_1_0')}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                if masks or not stem.endswith("_seg"):
                    np.save(path, rng.integers(0, 2, shape, dtype=np.uint8))
    args = argparse.Namespace(pos_path=folder / "pos", neg_path=folder / "neg", seed=0)
    return camelyon.load_splits(args)


def crops_without_masks(folder):
    return crops(folder, masks=False)


def photographs(folder):
    for label, name in enumerate(("normal", "abnormal")):
        (folder / "test" / name).mkdir(parents=True)
        np.save(folder / "test" / name / "a.npy", np.full((32, 32, 3), 100 * label, np.uint8))
    return {"test": photos.load_folder(argparse.Namespace(photos=folder), "test")}


def pictures_alone(folder):
    """Without labels."""
    photographs(folder)
    return {"all": folders.PhotoFolder(folder, 16)}


def cut_crops(folder):
    """Crops as a detector sees them."""
    return {name: Transformed(data, Transform(crop=24, resize=16)) for name, data in crops(folder).items()}


KNOWN = (recipe, crops, cut_crops)
UNKNOWN = (files_alone, noise, crops_without_masks, photographs, pictures_alone)


@pytest.mark.parametrize(("make", "known"), [(make, make in KNOWN) for make in (*KNOWN, *UNKNOWN)])
def test_a_data_set_says_what_it_knows(tmp_path, make, known):
    for data in make(tmp_path).values():
        assert len(data) == len(data.names) == len(data.labels)
        assert set(data.labels.tolist()) == ({-1} if make is pictures_alone else {0, 1})
        assert data.has_objects == known
        assert len(data.outline) == 3
        assert data.batches_on(torch.device("cpu"), [[0]]) is None or make is recipe
        assert data.fingerprint() == data.fingerprint()
        for i in (0, len(data) - 1, int(np.argmin(data.labels))):
            image, label = data[i]
            assert image.dtype == torch.float32 and image.shape[0] == data.in_channels and label == data.labels[i]
            mask, share = data.object_mask(i), data.o2i(i)
            if known and label == 1:
                assert mask.shape == tuple(image.shape[1:]) and mask.dtype == bool
                assert (
                    0 < share == (mask.mean() if make is not cut_crops else data.data.object_mask(i)[4:28, 4:28].mean())
                )
            else:
                assert mask is None and share is None
