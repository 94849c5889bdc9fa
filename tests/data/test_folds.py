import hashlib
import itertools
import pickle
import re

import numpy as np
import pytest
from scipy.io import savemat

from common.errors import BadInput
from data import folds
from data.camelyon16.patches import patch_name, slide_of

PARTS = ("normal/train", "normal/val", "normal/test", "anomaly/test")


def patches(kind, n_slides, n):
    """Names of n patches of each slide."""
    return [patch_name(f"{kind}_{i:03}", kind, 768 * j, 768) for i in range(n_slides) for j in range(n)]


@pytest.fixture
def lists(tmp_path):
    """Lists of 40 patches of 12 normal slides and of 5 patches of 7 slides with tumour."""
    paths = [tmp_path / name for name in ("normal", "anomaly")]
    for path, names in zip(paths, (patches("normal", 12, 40), patches("tumor", 7, 5)), strict=True):
        path.write_text("".join(f"{name}\n" for name in names))
    return list(map(str, paths))


def run(out, lists, *flags):
    folds.main(["camelyon16", "-i", *lists, "-o", str(out), *flags])
    n = len(list(out.glob("fold_*")))
    return [{part: (out / f"fold_{k}" / part).read_text().splitlines() for part in PARTS} for k in range(n)]


@pytest.mark.parametrize("n", [2, 3])
def test_folds_are_disjoint_by_slide(lists, tmp_path, n):
    found = run(tmp_path / "out", lists, "-n", str(n))
    assert len(found) == n
    everything = sorted(patches("normal", 12, 40))
    for fold in found:
        slides = {part: {slide_of(name) for name in names} for part, names in fold.items()}
        assert all(slides.values())
        for i, part in enumerate(PARTS):
            assert all(slides[part].isdisjoint(slides[other]) for other in PARTS[:i])
        assert sorted(fold["normal/train"] + fold["normal/val"] + fold["normal/test"]) == everything
        assert len(slides["normal/train"]) > len(slides["normal/val"])
    assert sorted(itertools.chain(*(fold["normal/test"] for fold in found))) == everything  # every slide is tested once


def test_folds_share_no_anomalies_and_have_few(lists, tmp_path):
    found = run(tmp_path / "out", lists)
    slides = [{slide_of(name) for name in fold["anomaly/test"]} for fold in found]
    assert all(a.isdisjoint(b) for a, b in zip(slides, slides[1:] + slides[:1], strict=True))
    for fold in found:
        names = fold["anomaly/test"]
        assert len(set(names)) == len(names) == 2  # 0.5 % of 480 normal ones


def test_the_seed_decides_and_lists_are_never_replaced(lists, tmp_path):
    first = run(tmp_path / "a", lists)
    assert run(tmp_path / "a", lists) == run(tmp_path / "b", lists, "--seed", "0") == first
    assert run(tmp_path / "c", lists, "--seed", "1") != first
    with pytest.raises(BadInput, match="is there already and differs; choose another -o"):
        run(tmp_path / "a", lists, "--seed", "1")
    assert run(tmp_path / "a", lists) == first


@pytest.mark.parametrize(
    ("normal", "anomaly", "said"),
    [
        (patches("normal", 5, 9), patches("tumor", 3, 1), "-n 3: found 5 normal slides, .* expected 6 or more"),
        (patches("normal", 6, 9), patches("tumor", 2, 9), "-n 3: found 2 abnormal slides, .* expected 3 or more"),
        ([], patches("tumor", 3, 1), "-i .*normal: an empty list"),
        (["photo.jpg"], patches("tumor", 3, 1), "-i .*normal: photo.jpg is not the name of a patch"),
        (patches("normal", 1, 1) * 2, patches("tumor", 3, 1), "-i .*normal: names normal_000.* twice"),
    ],
)
def test_lists_that_cannot_be_used_are_named(tmp_path, normal, anomaly, said):
    for name, names in (("normal", normal), ("anomaly", anomaly)):
        (tmp_path / name).write_text("\n".join(names))
    with pytest.raises(BadInput, match=said):
        run(tmp_path / "out", [str(tmp_path / "normal"), str(tmp_path / "anomaly")])
    assert not (tmp_path / "out").exists()


def test_one_fold_is_none(lists, tmp_path):
    with pytest.raises(BadInput, match="-n 1: expected 2 or more"):
        run(tmp_path / "out", lists, "-n", "1")


LABELS = np.random.default_rng(0).permutation(np.arange(900) % 10)


def write_cifar10(root, monkeypatch):
    """A small training set in CIFAR10's files."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir()
    batches = {"data": np.zeros((900, 3072), np.uint8), "labels": LABELS.tolist()}
    contents = {"data_batch_1": batches, "batches.meta": {"label_names": list("abcdefghij")}}
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})


def write_svhn(root, monkeypatch):
    """A small training set in SVHN's file, in which 0 is called 10."""
    from torchvision.datasets import SVHN

    path = root / "train_32x32.mat"
    savemat(path, {"X": np.zeros((32, 32, 3, 900), np.uint8), "y": np.where(LABELS == 0, 10, LABELS)[:, None]})
    checked = [None, path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", {"train": checked})


@pytest.mark.parametrize("dataset", ["cifar10", "svhn"])
def test_each_class_is_normal_once_and_its_anomalies_are_of_one_other(tmp_path, monkeypatch, dataset):
    {"cifar10": write_cifar10, "svhn": write_svhn}[dataset](tmp_path, monkeypatch)
    folds.main([dataset, "-i", str(tmp_path), "-o", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list("0123456789")
    for normal in range(10):
        found = [
            {part: np.load(tmp_path / "out" / str(normal) / f"fold_{k}" / f"{part}.npy") for part in PARTS}
            for k in range(3)
        ]
        images = np.flatnonzero(np.isin(LABELS, normal))
        for fold in found:
            assert (np.sort(np.concatenate([fold[part] for part in PARTS[:3]])) == images).all()
            assert len(fold["normal/test"]) == 30
        assert (np.sort(np.concatenate([fold["normal/test"] for fold in found])) == images).all()
        anomalies = np.concatenate([fold["anomaly/test"] for fold in found])
        assert len(set(LABELS[anomalies])) == 1 and normal not in LABELS[anomalies]
        assert len(set(anomalies)) == len(anomalies) == 3


@pytest.mark.parametrize("dataset", ["cifar10", "svhn"])
def test_absent_files_of_torchvision_are_one_line(tmp_path, dataset):
    with pytest.raises(BadInput, match=rf"-i {re.escape(str(tmp_path))}: Dataset not found or corrupted"):
        folds.main([dataset, "-i", str(tmp_path), "-o", str(tmp_path / "out")])


def test_the_number_of_inputs_is_checked(capsys):
    with pytest.raises(SystemExit):
        folds.parse_args(["camelyon16", "-i", "a", "-o", "b"])
    assert "-i: expected 2 paths for camelyon16, found 1" in capsys.readouterr().err
