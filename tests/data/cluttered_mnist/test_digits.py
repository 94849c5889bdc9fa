"""MNIST files are read as they are or refused by name; the offline digits look like MNIST."""

import gzip
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import BadInput
from data.cluttered_mnist import digits

TRAIN, TEST = 5010, 20  # images of the small stand-in


def idx(array):
    return struct.pack(">4B", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, compress=True):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for (split, kind), name in digits.FILES.items():
        n = TRAIN if split == "train" else TEST
        array = (
            rng.integers(0, 256, (n, 28, 28), np.uint8) if kind == "images" else (np.arange(n) % 10).astype(np.uint8)
        )
        (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(idx(array), 1) if compress else idx(array))


def test_real_mnist_has_the_papers_counts(mnist_dir):
    splits = digits.load(str(mnist_dir))
    assert {split: len(labels) for split, (_, labels) in splits.items()} == {"train": 55000, "val": 5000, "test": 10000}
    assert [int((labels == 3).sum()) for _, labels in splits.values()] == [5638, 493, 1010]


def test_gzipped_and_plain_files_read_alike_also_below_mnist_raw(tmp_path):
    write_mnist(tmp_path / "gz")
    write_mnist(tmp_path / "plain/MNIST/raw", compress=False)
    for first, second in zip(
        digits.load(tmp_path / "gz").values(), digits.load(tmp_path / "plain").values(), strict=True
    ):
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)


DOTS = {name: name.replace("-idx", ".idx") for name in digits.FILES.values()}


def dots(folder):
    for old, new in DOTS.items():
        (folder / old).rename(folder / new)


def kaggle(folder):
    """Its archive has the files and folders of their names."""
    for name, dotted in DOTS.items():
        (folder / name).rename(folder / dotted)
        (folder / name).mkdir()
        (folder / dotted).rename(folder / name / name)


def raw(folder):
    (folder / "raw").mkdir()
    for name in DOTS:
        (folder / name).rename(folder / "raw" / name)


def zipped(folder):
    for name, dotted in DOTS.items():
        (folder / f"{dotted}.gz").write_bytes(gzip.compress((folder / name).read_bytes(), 1))
        (folder / name).unlink()


def zipped_in_name_only(folder):
    for name in DOTS:
        (folder / name).rename(folder / f"{name}.gz")


def zipped_without_the_name(folder):
    for name in DOTS:
        (folder / name).write_bytes(gzip.compress((folder / name).read_bytes(), 1))


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(digits.subprocess, "run", None)  # a call would be an error


@pytest.mark.parametrize("rename", [dots, kaggle, raw, zipped, zipped_in_name_only, zipped_without_the_name])
def test_the_files_are_found_under_the_names_that_mirrors_and_unpackers_give_them(tmp_path, no_network, rename):
    write_mnist(tmp_path, compress=False)
    expected = digits.load(tmp_path)
    rename(tmp_path)
    for first, second in zip(digits.load(tmp_path).values(), expected.values(), strict=True):
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)


def test_torchvisions_folder_is_found_from_each_level(tmp_path, no_network):
    write_mnist(tmp_path / "MNIST/raw")
    assert all(len(digits.load(tmp_path / level)["test"].labels) == TEST for level in ("", "MNIST", "MNIST/raw"))


@pytest.mark.parametrize("broken", ["half", "pipe"])
def test_a_sound_file_beside_a_broken_one_is_read_and_both_are_named(tmp_path, no_network, capsys, broken):
    write_mnist(tmp_path, compress=False)
    bad, good = tmp_path / "t10k-images-idx3-ubyte.gz", tmp_path / "t10k-images-idx3-ubyte"
    os.mkfifo(bad) if broken == "pipe" else bad.write_bytes(gzip.compress(good.read_bytes())[:100])
    assert len(digits.load(tmp_path)["test"].labels) == TEST
    said = capsys.readouterr().out
    assert said.startswith(f"{bad}: ") and said.endswith(f"; {good} is read instead\n") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "message"), [("pipe", "a named pipe"), ("loop", "symbolic links"), ("folder", "a folder")]
)
def test_what_is_no_file_is_refused_and_not_waited_on(tmp_path, no_network, kind, message):
    write_mnist(tmp_path, compress=False)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.unlink()
    {"pipe": os.mkfifo, "loop": lambda path: path.symlink_to(path), "folder": Path.mkdir}[kind](path)
    with pytest.raises(BadInput, match=f"{path}: .*{message}"):
        digits.load(tmp_path)


def test_names_that_look_like_mnist_are_told_when_the_files_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "DOWNLOAD_SECONDS", 0.05)
    write_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").rename(tmp_path / "t10k-images (1).gz")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        BadInput, match=r"put t10k-images-idx3-ubyte.gz there.*; t10k-images \(1\).gz there: not"
    ) as error:
        digits.load(tmp_path)
    assert "train" not in str(error.value) and "notes" not in str(error.value)


def test_a_download_replaces_no_file_that_is_there(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    monkeypatch.setattr(
        digits.subprocess, "run", lambda command, **_: write_mnist(tmp_path / command[-1] / "MNIST/raw")
    )
    assert len(digits.load(tmp_path)["test"].labels) == TEST
    assert {path: path.stat().st_ino for path in before} == before


def test_first_5000_training_images_are_the_validation_split(tmp_path):
    write_mnist(tmp_path)
    whole = gzip.decompress((tmp_path / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    splits = digits.load(tmp_path)
    assert splits["val"].images.tobytes() + splits["train"].images.tobytes() == whole
    assert len(splits["val"].images) == 5000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", gzip.compress(b"x" * 1000)[:-20], "damaged gzip"),
        ("train-images-idx3-ubyte.gz", b"<html>not found</html>", "damaged gzip"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(b"<html>not found</html>"), "not an IDX file"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((20, 28, 28), np.uint8))[:-1]), "header announces"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((20, 8, 8), np.uint8))), "8x8 px"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(19, np.uint8))), "19 labels for the 20 images"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.full(20, 11, np.uint8))), "label 11"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,  # gzip's bytes hold the time
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=f"{name}.*{message}"):
        digits.load(tmp_path)


@pytest.mark.parametrize("there", [0, 3])
def test_failed_download_names_the_missing_files_and_leaves_nothing(tmp_path, monkeypatch, there):
    monkeypatch.setattr(digits, "DOWNLOAD_SECONDS", 0.05)
    names = [f"{name}.gz" for name in digits.FILES.values()]
    folder = tmp_path / "mnist"
    for name in names[:there]:
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    with pytest.raises(BadInput) as error:
        digits.load(folder)
    assert [name in str(error.value) for name in names] == [False] * there + [True] * (4 - there)
    assert {path.name for path in tmp_path.rglob("*.gz")} == set(names[:there]) and folder.exists() == (there > 0)


def test_downloaded_files_stay_for_the_next_time(tmp_path, monkeypatch):
    monkeypatch.setattr(
        digits.subprocess, "run", lambda command, **_: write_mnist(tmp_path / command[-1] / "MNIST/raw")
    )
    first = digits.load(tmp_path)
    monkeypatch.setattr(digits.subprocess, "run", None)
    assert len(first["train"].labels) == len(digits.load(tmp_path)["train"].labels) == TRAIN - 5000


def test_offline_digits_are_split_by_index_and_fill_the_range():
    splits = digits.load("digits")
    assert [len(labels) for _, labels in splits.values()] == [1257, 180, 360]
    for images, labels in splits.values():
        assert images.shape[1:] == (28, 28) and images.dtype == np.uint8
        assert set(labels) == set(range(10)) and images.max() > 230 and images.min() == 0


def test_offline_digits_are_bilinear_enlargements():
    from sklearn.datasets import load_digits

    small = torch.from_numpy(load_digits().images[:50])[:, None] * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=28, mode="bilinear")[:, 0].numpy()
    np.testing.assert_allclose(digits.load("digits")["train"].images[:50], large, atol=0.51)


@pytest.mark.parametrize("home", [None, "."])
def test_a_user_without_a_home_has_the_cache_in_the_temporary_folder(monkeypatch, home):
    monkeypatch.delenv("MNIST_DIR", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    if home:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
    assert Path(digits.default_source()).parent == Path(tempfile.gettempdir())


def test_no_folder_is_called_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "home/digits")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert len(digits.load("~/digits")["test"].labels) == TEST
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
    with pytest.raises(BadInput, match="--mnist '~/digits'"):
        digits.load("~/digits")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
