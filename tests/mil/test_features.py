"""Features depend on tiles and embedder alone: not on batches, workers or interruptions."""

import argparse

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import BadInput, WorkFailed
from mil import features
from mil.tiles import TileBags

CPU = torch.device("cpu")
SIZES = (3, 1, 6, 2)


class NoiseTiles(TileBags):
    """Bags of unequal size, of noise."""

    def __init__(self, seed: int = 0):
        corners = [np.stack([np.zeros(n, np.int64), 16 * np.arange(n)], axis=1) for n in SIZES]
        truth = [np.arange(n) % 2 for n in SIZES]
        names = [f"bag_{i}" for i in range(len(SIZES))]
        super().__init__(names, np.array([1, 0, 1, 0]), corners, [t.astype(np.int8) for t in truth], 16)
        self.pixels = torch.from_numpy(np.random.default_rng(seed).random((sum(SIZES), 1, 16, 16), np.float32))

    def pictures(self, bag, numbers):
        return self.pixels[self.ends[bag] - self.sizes[bag] + numbers]

    def digest(self):
        return self.pixels.numpy().tobytes()


class Embedder(nn.Module):
    """A convolution and a mean; counts the tiles it has seen."""

    dim, smallest = 5, 3

    def __init__(self, factor: float = 1.0):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.factor, self.seen = nn.Conv2d(1, 5, 3), factor, 0

    def describe(self):
        return {"embedder": "small", "factor": self.factor}

    def forward(self, tiles):
        self.seen += len(tiles)
        return self.factor * self.conv(tiles).relu().mean(dim=(2, 3))


def extract(folder, embedder=None, tiles=None, **changes):
    flags = {"tile_batch": 4, "workers": 0, "tile_resize": None, "feature_dtype": "float32", "precision": "float32"}
    args = argparse.Namespace(**(flags | changes))
    return features.extract_splits({"train": tiles or NoiseTiles()}, embedder or Embedder(), folder, args, CPU)["train"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, extract(folder)


def test_a_tiles_feature_is_what_the_embedder_says_of_it_alone(whole):
    tiles, embedder = NoiseTiles(), Embedder()
    for i, found in enumerate(whole[1].features):
        with torch.inference_mode():
            expected = torch.cat([embedder(tile[None]) for tile in tiles.pictures(i, np.arange(SIZES[i]))])
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert whole[1].sizes.tolist() == list(SIZES)


def test_workers_change_no_bit(whole, tmp_path):
    extract(tmp_path, workers=2)
    assert (tmp_path / "train.npy").read_bytes() == (whole[0] / "train.npy").read_bytes()


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_batches_change_no_more_than_rounding(whole, tmp_path, batch):
    found = extract(tmp_path, tile_batch=batch)
    for a, b in zip(found.features, whole[1].features, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stop_after", [1, 4, 9, 12])
def test_an_extraction_that_was_stopped_goes_on_and_ends_in_the_same_bytes(whole, tmp_path, stop_after):
    class Stopped(Exception):
        pass

    class Failing(Embedder):
        def forward(self, tiles):
            if self.seen + len(tiles) > stop_after:
                raise Stopped
            return super().forward(tiles)

    if stop_after < sum(SIZES):
        with pytest.raises(Stopped):
            extract(tmp_path, Failing())
        assert not (tmp_path / "train.npy").exists()
    again = Embedder()
    extract(tmp_path, again)
    assert again.seen == sum(SIZES) - stop_after // 4 * 4 * (stop_after < sum(SIZES))
    assert (tmp_path / "train.npy").read_bytes() == (whole[0] / "train.npy").read_bytes()


def test_features_that_are_there_are_not_computed_again(whole):
    again = Embedder()
    extract(whole[0], again)
    assert again.seen == 0


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"embedder": Embedder(2.0)}, "factor"),
        ({"tiles": NoiseTiles(1)}, "data"),
        ({"tile_resize": 32}, "tile_resize"),
        ({"feature_dtype": "float16"}, "feature_dtype"),
    ],
)
def test_features_of_another_kind_are_not_mixed_with_what_is_there(whole, changes, name):
    with pytest.raises(BadInput, match=rf"train.json: holds features that differ in {name}; choose another folder"):
        extract(whole[0], **changes)


def test_half_precision_halves_the_file_and_keeps_three_digits(whole, tmp_path):
    found = extract(tmp_path, feature_dtype="float16")
    assert found.features[0].dtype == np.float16
    for a, b in zip(found.features, whole[1].features, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_features_too_large_for_half_precision_are_refused_and_leave_no_file(tmp_path):
    with pytest.raises(WorkFailed, match="too large for --feature_dtype float16"):
        extract(tmp_path, Embedder(1e7), feature_dtype="float16")
    assert not (tmp_path / "train.npy").exists()


def test_tiles_are_enlarged_before_they_are_embedded(tmp_path):
    sides = []

    class Looking(Embedder):
        def forward(self, tiles):
            sides.append(tuple(tiles.shape[-2:]))
            return super().forward(tiles)

    extract(tmp_path, Looking(), tile_resize=24)
    assert set(sides) == {(24, 24)}


def test_two_bags_of_one_name_are_refused(tmp_path):
    tiles = NoiseTiles()
    tiles.names[1] = tiles.names[0]
    with pytest.raises(BadInput, match="two of its 4 bags have the same name"):
        extract(tmp_path, tiles=tiles)


@pytest.mark.parametrize(("rows", "dtype"), [(0, "float16"), (3, "float32"), (10**6, "float16")])
def test_a_file_that_grew_is_a_npy_file_like_any_other(tmp_path, rows, dtype):
    values = (np.arange(2 * rows).reshape(rows, 2) % 97).astype(dtype)
    with features.GrowingArray(tmp_path / "a.npy", 2, dtype) as file:
        file.append(values[: rows // 3])
        file.append(values[rows // 3 :])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), values)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
