import argparse
import json
import os

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import BadInput
from retrieval import index

CPU = torch.device("cpu")
ARGS = argparse.Namespace(batch_size=3, workers=0, precision="float32")


class Noise(torch.utils.data.Dataset):
    """Ten images of noise, of which `bad` cannot be read; `read` counts."""

    def __init__(self, bad=()):
        self.images, self.bad, self.read = torch.rand(10, 1, 8, 8), bad, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i in self.bad:
            raise BadInput(f"image_{i}.png: damaged")
        self.read += 1
        return self.images[i], 0


class Flat(nn.Module):
    """Pixels as the vector; counts its batches, and stops at one of them as Ctrl-C would."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.batches, self.stop_at = 0, stop_at

    def forward(self, images):
        self.batches += len(images) > 1
        if self.batches == self.stop_at:
            raise KeyboardInterrupt
        return images.flatten(1) - 0.5


def embed(path, data, network=None, orientations=1, args=ARGS, **identity):
    order = np.arange(len(data))
    return index.embed(data, order, network or Flat(), orientations, path, identity, args, CPU)


def test_vectors_have_unit_length_whatever_the_batch_size(tmp_path):
    data = Noise()
    found = embed(tmp_path / "a.npy", data, orientations=8)
    assert found.array.shape == (10, 8, 64)
    np.testing.assert_allclose(np.linalg.norm(found.array, axis=2), 1, rtol=1e-5)
    whole = argparse.Namespace(batch_size=10, workers=0, precision="float32")
    np.testing.assert_array_equal(embed(tmp_path / "b.npy", data, orientations=8, args=whole).array, found.array)


def test_interrupted_it_continues_and_given_again_it_reads_nothing_new(tmp_path):
    data, path = Noise(), tmp_path / "a.npy"
    with pytest.raises(KeyboardInterrupt):
        embed(path, data, Flat(stop_at=3))
    assert json.loads(path.with_suffix(".json").read_text())["done"] == 6
    rest = Flat()
    found = embed(path, data, rest)
    assert rest.batches == 1  # 3 images; the last one makes a batch of its own
    np.testing.assert_array_equal(found.array, embed(tmp_path / "b.npy", data).array)
    before = data.read
    embed(path, data)
    assert data.read <= before + 1  # the first image tells the shape


@pytest.mark.parametrize("size", [0, 100, 200])  # none, a part of the header, of the numbers
def test_vectors_that_a_power_cut_left_without_their_numbers_are_made_again(tmp_path, size):
    data = Noise()
    whole = embed(tmp_path / "a.npy", data).array.copy()
    os.truncate(tmp_path / "a.npy", size)
    np.testing.assert_array_equal(embed(tmp_path / "a.npy", data).array, whole)


def test_vectors_made_anew_are_not_taken_for_done_after_a_kill(tmp_path, monkeypatch):
    """A kill leaves a file of zeros; the numbers beside it were of the vectors before."""
    data, path = Noise(), tmp_path / "a.npy"
    embed(path, data)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(index, "write_json", lambda *_: None)
        embed(path, data, Flat(stop_at=1), orientations=8)
    expected = embed(tmp_path / "b.npy", data, orientations=8).array
    np.testing.assert_array_equal(embed(path, data, orientations=8).array, expected)


def test_vectors_of_another_precision_are_refused(tmp_path):
    data = Noise()
    embed(tmp_path / "a.npy", data, args=argparse.Namespace(**vars(ARGS) | {"precision": "bf16"}))
    with pytest.raises(BadInput, match="index of other precision than asked for"):
        embed(tmp_path / "a.npy", data)


def test_an_index_of_other_weights_or_data_is_refused(tmp_path):
    index.embed(Noise(), np.arange(10), Flat(), 1, tmp_path / "a.npy", {"network": "A", "data": "1"}, ARGS, CPU)
    with pytest.raises(BadInput, match=r"a.json: index of other network than asked for"):
        index.embed(Noise(), np.arange(10), Flat(), 1, tmp_path / "a.npy", {"network": "B", "data": "1"}, ARGS, CPU)


def test_an_unreadable_image_is_named_skipped_and_never_found(tmp_path):
    found = embed(tmp_path / "a.npy", Noise(bad=(0, 4)))
    assert found.problems == {0: "image_0.png: damaged", 4: "image_4.png: damaged"}
    assert embed(tmp_path / "a.npy", Noise(bad=(0, 4))).problems == found.problems
    distances, near, _ = index.search(found, found, 9, np.arange(10), np.arange(10))
    assert not np.isin(near, (0, 4)).any()
    assert np.isinf(distances[[0, 4]]).all() and (near[:, -2:] == -1).all()


def test_no_image_that_can_be_read_is_an_error(tmp_path):
    with pytest.raises(BadInput, match=r"image_0.png: damaged"):
        embed(tmp_path / "a.npy", Noise(bad=range(10)))


def test_search_equals_brute_force_over_orientations(tmp_path):
    queries, gallery = embed(tmp_path / "q.npy", Noise(), orientations=8), embed(tmp_path / "g.npy", Noise())
    distances, near, turns = index.search(queries, gallery, 4)
    every = np.linalg.norm(queries.array[:, :, None] - gallery.array[None, None, :, 0], axis=3)  # (10, 8, 10)
    best = np.sort(every.min(axis=1), axis=1)[:, :4]
    np.testing.assert_allclose(distances, best, rtol=1e-4)
    rows = np.arange(10)[:, None]
    np.testing.assert_allclose(every[rows, turns, near], distances, rtol=1e-4)
    assert all(len(set(row)) == 4 for row in near.tolist())


@pytest.mark.parametrize("orientation", range(8))
def test_a_turned_copy_is_found_at_distance_0(tmp_path, orientation):
    data, copies = Noise(), Noise()
    copies.images = index.turned(data.images, orientation)
    queries, gallery = embed(tmp_path / "q.npy", copies, orientations=8), embed(tmp_path / "g.npy", data)
    distances, near, turns = index.search(queries, gallery, 1)
    assert near[:, 0].tolist() == list(range(10)) and distances.max() < 1e-3
    back = index.turned(copies.images[0], int(turns[0, 0]))
    assert torch.equal(back, data.images[0])


def test_flat_images_are_like_each_other_and_like_nothing_else(tmp_path):
    data = Noise()
    data.images[:2] = torch.tensor([0.5, 0.5]).view(2, 1, 1, 1)
    data.images[2:] -= data.images[2:].mean((2, 3), keepdim=True) - 0.5  # vectors of mean 0, as those of `pixels`
    found = embed(tmp_path / "a.npy", data)
    distances, near, _ = index.search(found, found, 2, np.arange(10), np.arange(10))
    assert near[0, 0] == 1 and distances[0, 0] == 0
    assert distances[0, 1] == pytest.approx(2**0.5, rel=1e-3)
    assert np.isfinite(distances).all()


def test_all_distances_are_those_of_the_best_orientation(tmp_path):
    queries, gallery = embed(tmp_path / "q.npy", Noise(), orientations=8), embed(tmp_path / "g.npy", Noise())
    every = np.linalg.norm(queries.array[:, :, None] - gallery.array[None, None, :, 0], axis=3).min(axis=1)
    np.testing.assert_allclose(index.all_distances(queries.array, gallery.array[:, 0]), every, atol=1e-3)
