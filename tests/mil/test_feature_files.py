"""Features that others made are read in five formats, and what is none of them is named."""

import sys
import zipfile

import numpy as np
import pytest
import torch

from common.errors import BadInput
from mil import feature_files
from mil.bag_list import Row
from tests.mil.test_features import extract

FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3) / 8
COORDS = np.array([[0, 512], [256, 512], [0, 768], [256, 768]])  # x0, y0, as CLAM writes them
CORNERS = COORDS[:, ::-1]


def write_pt(path):
    torch.save(torch.from_numpy(FEATURES), path)


def write_pt_with_places(path):
    torch.save({"features": torch.from_numpy(FEATURES)[None], "coords": torch.from_numpy(COORDS)[None]}, path)


def write_npz(path):
    np.savez(path, features=FEATURES, tile=CORNERS, truth=[0, 1, 0, -1])


def write_csv(path):
    lines = [",".join(f"{value:.4f}" for value in row) for row in FEATURES]
    path.write_text("\n".join(["0,1,2", *lines]) + "\n")


def write_h5(path, side=512):
    h5py = pytest.importorskip("h5py", reason="needs h5py, an optional extra")
    with h5py.File(path, "w") as file:
        file["features"] = FEATURES
        file["coords"] = COORDS
        file["coords"].attrs["patch_size_level0"] = side


WRITERS = {"a.pt": write_pt, "b.pt": write_pt_with_places, "c.npz": write_npz, "d.csv": write_csv, "e.h5": write_h5}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    WRITERS[request.param](tmp_path / request.param)
    return tmp_path / request.param


def test_every_format_gives_its_features(written):
    found = feature_files.read(written, label=1)
    np.testing.assert_array_equal(found.features, FEATURES)
    places = CORNERS if written.name in ("b.pt", "c.npz", "e.h5") else [[0, 0], [0, 1], [0, 2], [0, 3]]
    np.testing.assert_array_equal(found.corners, places)
    assert found.side == {"b.pt": 256, "c.npz": 256, "e.h5": 512}.get(written.name, 1)
    assert found.truth.tolist() == ([0, 1, 0, -1] if written.name == "c.npz" else [-1] * 4)


def test_the_side_of_tiles_is_that_of_most_neighbours(tmp_path):
    """Tissue in two pieces, whose grids begin anywhere."""
    y, x = (each.ravel() * 256 for each in np.meshgrid(range(20), range(20), indexing="ij"))
    corners = np.concatenate([np.stack([y, x], 1), np.stack([y + 2601, x + 1283], 1)])
    np.savez(tmp_path / "a.npz", features=np.zeros((800, 4), np.float32), tile=corners)
    assert feature_files.read(tmp_path / "a.npz", 1).side == 256


def test_all_tiles_of_a_negative_bag_are_negative(tmp_path):
    write_pt(tmp_path / "a.pt")
    assert feature_files.read(tmp_path / "a.pt", label=0).truth.tolist() == [0] * 4


def test_without_h5py_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.h5").write_bytes(b"\x89HDF")
    with pytest.raises(BadInput, match=r"reading \.h5 needs h5py: pip install h5py"):
        feature_files.read(tmp_path / "a.h5", 1)


@pytest.mark.parametrize("name", ["a.pt", "c.npz", "d.csv", "e.h5"])
def test_a_damaged_file_is_named(tmp_path, name):
    if name == "e.h5":
        pytest.importorskip("h5py", reason="needs h5py, an optional extra")
    (tmp_path / name).write_bytes(b"PK\x03\x04 this, is, not\nwhat, it, says" * 20)
    with pytest.raises(BadInput, match=name):
        feature_files.read(tmp_path / name, 1)


def test_a_file_of_another_format_is_named_with_those_that_are_read(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"")
    with pytest.raises(BadInput, match=r"a.mat: expected features in .h5, .pt, .npz, .csv or .npy"):
        feature_files.read(tmp_path / "a.mat", 1)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"features": np.zeros((0, 3))}, "has no tiles"),
        ({"features": np.zeros(3)}, r"expected features \(n, d\), found \(3,\)"),
        ({"features": np.array([[np.nan, 1.0]])}, "finite numbers, found 1 NaN or infinities, the first in tile 0"),
        ({"features": np.zeros((2, 3), int)}, "features of type float, found int64"),
        ({"features": FEATURES, "tile": CORNERS[:3]}, r"4 features with places \(3, 2\)"),
        ({"features": FEATURES, "truth": [0, 1, 2, 0]}, r"expected \(4, 2\) and \(4,\) of 1, 0 or -1"),
        ({"vectors": FEATURES}, "expected an array called features"),
    ],
)
def test_arrays_that_are_no_bag_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadInput, match=said):
        feature_files.read(tmp_path / "a.npz", 1)


def test_a_pickle_inside_is_not_run(tmp_path):
    np.savez(tmp_path / "a.npz", features=np.array([{}], object))
    with pytest.raises(BadInput, match=r"a\.npz: not a readable file of features"):
        feature_files.read(tmp_path / "a.npz", 1)


def test_a_file_that_would_fill_the_memory_is_refused_before_it_does(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", bytes(10**8))
    with pytest.raises(BadInput, match=r"a.npz: says it holds 100,000,000 bytes in"):
        feature_files.read(tmp_path / "a.npz", 1)


# --- lists ---


def rows(folder, n=3):
    found = []
    for i in range(n):
        path = folder / f"bag_{i}.npz"
        np.savez(path, features=FEATURES[: i + 1] + i, tile=CORNERS[: i + 1], truth=np.zeros(i + 1, int))
        found.append(Row(f"bag_{i}", i % 2, "train", path))
    return found


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "in").mkdir()
    return rows(tmp_path / "in")


def test_the_files_of_a_list_are_gathered_in_its_order(listed, tmp_path):
    bags = feature_files.load(listed[::-1], tmp_path / "out", "float16")
    assert bags.names == ["bag_2", "bag_1", "bag_0"]
    assert bags.labels.tolist() == [0, 1, 0]
    assert bags.sizes.tolist() == [3, 2, 1]
    np.testing.assert_array_equal(bags.features[1], (FEATURES[:2] + 1).astype(np.float16))
    np.testing.assert_array_equal(bags.corners[0], CORNERS[:3])


def test_they_are_read_once_unless_one_has_changed(listed, tmp_path, monkeypatch):
    feature_files.load(listed, tmp_path / "out", "float32")
    with monkeypatch.context() as patch:
        patch.delattr(feature_files, "read")
        again = feature_files.load(listed, tmp_path / "out", "float32")
    np.testing.assert_array_equal(again.features[2], FEATURES[:3] + 2)
    np.savez(listed[0].file, features=FEATURES + 9)
    with pytest.raises(BadInput, match="holds features of other files"):
        feature_files.load(listed, tmp_path / "out", "float32")


def test_features_of_two_widths_are_refused_by_the_second_bags_name(listed, tmp_path):
    np.savez(listed[1].file, features=np.ones((4, 5)))
    with pytest.raises(BadInput, match=r"bag bag_1: .*features have 5 numbers, expected 3 as in bag bag_0"):
        feature_files.load(listed, tmp_path / "out", "float32")
    assert not (tmp_path / "out" / "features.npy").exists()


def test_a_bag_that_a_file_of_many_lacks_is_named(tmp_path):
    stored = extract(tmp_path)
    labels = dict(zip(stored.names, stored.labels.tolist(), strict=True))
    found = [Row(name, label, "train", tmp_path / "train.npy") for name, label in labels.items()]
    bags = feature_files.load(found[::-1], tmp_path / "unused", "float32")
    assert bags.names == stored.names[::-1]
    assert bags.tile == stored.tile
    for a, b in zip(bags.features[::-1], stored.features, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not (tmp_path / "unused").exists()
    with pytest.raises(BadInput, match=r"train.npy: has no features of bag bag_9"):
        feature_files.load([Row("bag_9", 1, "train", tmp_path / "train.npy")], tmp_path, "float32")
