"""Images and folders become bags of pictures, whose truth is where the object lies."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import BadInput
from mil import bag_list
from mil.bags import UNKNOWN
from mil.tiles import CutTiles, FolderTiles, Joined, Thinned, load


class Canvases:
    """Four images (1, 32, 48); positives have an object of 4 px at (20, 36)."""

    labels, names = np.array([1, 0, 1, 0]), ["a", "b", "c", "d"]

    def __init__(self, has_objects=True):
        self.images, self.has_objects, self.opened = torch.rand(4, 1, 32, 48), has_objects, 0

    def __getitem__(self, i):
        self.opened += 1
        return self.images[i], int(self.labels[i])

    def object_mask(self, i):
        mask = np.zeros((32, 48), bool)
        mask[20:22, 36:38] = True
        return mask if self.labels[i] else None

    def fingerprint(self):
        return "canvases"


def cut(data=None, tile=16, stride=16, least=0.0):
    return CutTiles(data or Canvases(), np.arange(4), tile, stride, least)


def test_an_image_is_a_bag_of_tiles_one_of_which_holds_the_object():
    tiles = cut()
    assert (len(tiles), tiles.sizes.tolist()) == (24, [6] * 4)
    assert np.flatnonzero(tiles.flat_truth).tolist() == [5, 17]
    assert tiles.bag_of[[0, 5, 6, 23]].tolist() == [0, 0, 1, 3]
    assert tiles.positive[[0, 6, 12]].tolist() == [True, False, True]
    picture, label = tiles[17]
    assert label == 1
    torch.testing.assert_close(picture, tiles.data.images[2, :, 16:32, 32:48])


def test_a_batch_opens_each_image_once_and_keeps_its_order():
    tiles = cut()
    opened = tiles.data.opened
    batch = tiles.__getitems__([13, 2, 12, 1, 13])
    assert tiles.data.opened == opened + 2
    for (picture, label), t in zip(batch, [13, 2, 12, 1, 13], strict=True):
        assert torch.equal(picture, tiles[t][0])
        assert label == tiles[t][1]


def test_truth_is_unknown_where_masks_are():
    tiles = cut(Canvases(has_objects=False))
    assert (tiles.truth[0] == UNKNOWN).all()
    assert (tiles.truth[1] == 0).all()


def test_features_become_bags_that_are_views_of_one_array():
    features = np.arange(48.0).reshape(24, 2)
    bags = cut().with_features(features)
    assert np.shares_memory(bags.features[3], features)
    assert bags.features[3][0].tolist() == [36, 37]
    assert bags.sizes.tolist() == [6] * 4


def test_a_tile_larger_than_the_image_is_refused():
    with pytest.raises(BadInput, match="--tile 33: larger than the images of 32 x 48 px"):
        cut(tile=33)


def test_joined_bags_are_those_of_the_parts():
    parts = [cut(), cut(stride=8)]
    joined = Joined(parts)
    assert len(joined) == len(parts[0]) + len(parts[1])
    for t in (0, 23, 24, len(joined) - 1):
        part, number = (parts[0], t) if t < 24 else (parts[1], t - 24)
        assert torch.equal(joined[t][0], part[number][0])
        assert joined[t][1] == part[number][1]
    np.testing.assert_array_equal(joined.flat_truth, np.concatenate([part.flat_truth for part in parts]))


def test_thinned_bags_keep_the_tiles_that_stay():
    tiles, stay = cut(), np.arange(24) % 2 == 1
    thinned = Thinned(tiles, stay)
    assert thinned.sizes.tolist() == [3] * 4
    for t, number in enumerate(np.flatnonzero(stay)):
        assert torch.equal(thinned[t][0], tiles[number][0])
    np.testing.assert_array_equal(thinned.flat_truth, tiles.flat_truth[stay])


@pytest.fixture
def folder(tmp_path):
    """Bag a with tiles of known truth, bag b without."""
    for bag, names in (("a", ("10_2_1", "9_2_0", "0_11_0")), ("b", ("0_0", "1_0"))):
        (tmp_path / bag).mkdir()
        for shade, name in enumerate(names):
            Image.new("RGB", (8, 8), (shade * 40, 0, 255)).save(tmp_path / bag / f"{name}.png")
    return tmp_path


def rows(folder, label=1):
    return [bag_list.Row(bag, label, "train", folder / bag) for bag in ("a", "b")]


def test_tiles_of_a_folder_stand_by_their_numbers(folder):
    tiles = FolderTiles(rows(folder))
    assert tiles.corners[0].tolist() == [[2, 9], [2, 10], [11, 0]]  # row, column; as numbers, not as text
    assert tiles.truth[0].tolist() == [0, 1, 0]
    assert tiles.truth[1].tolist() == [UNKNOWN] * 2
    assert FolderTiles(rows(folder, label=0)).truth[1].tolist() == [0, 0]
    torch.testing.assert_close(tiles[0][0][:, 0, 0], torch.tensor([40 / 255, 0, 1]))  # RGB


@pytest.mark.parametrize("name", ["tile.png", "1_2_3.png", "x_1.png"])
def test_a_tile_of_another_name_is_named(folder, name):
    Image.new("RGB", (8, 8)).save(folder / "a" / name)
    with pytest.raises(BadInput, match=f"{name}: expected a tile named column_row or x_y_z"):
        FolderTiles(rows(folder))


def test_an_empty_bag_and_tiles_of_two_sizes_are_refused(folder):
    (folder / "c").mkdir()
    with pytest.raises(BadInput, match=r"bag c: .*c: has no tiles"):
        FolderTiles([bag_list.Row("c", 1, "train", folder / "c")])
    Image.new("RGB", (9, 8)).save(folder / "b" / "5_0.png")
    with pytest.raises(BadInput, match=r"5_0.png: has 8 x 9 px, expected 8 x 8 px"):
        FolderTiles(rows(folder)).__getitems__([3, 5])
    for path in (folder / "b").iterdir():
        Image.new("RGB", (9, 8)).save(path)
    with pytest.raises(BadInput, match=r"b/0_0.png: has 8 x 9 px, expected 8 x 8 px"):
        FolderTiles(rows(folder)).__getitems__([0, 3])


def test_splits_of_two_sizes_are_refused(folder):
    for path in (folder / "b").iterdir():
        Image.new("RGB", (9, 8)).save(path)
    listed = [(bag, label, split, folder / bag) for split, bag in (("train", "a"), ("val", "b")) for label in (0, 1)]
    listed = [(f"{bag}{label}", label, split, file) for bag, label, split, file in listed]
    bag_list.write(folder / "bags.csv", listed)
    args = argparse.Namespace(datatype="tiles", bags=folder / "bags.csv", root_dir=None, num_examples=None)
    with pytest.raises(BadInput, match=r"b/0_0.png: differs in size from .*a/9_2_0.png"):
        load(args, ("train", "val"))


def test_two_tiles_of_one_place_are_refused(folder):
    """Else one would lose its score, or both have the same."""
    Image.new("RGB", (8, 8)).save(folder / "a" / "9_2_1.png")
    with pytest.raises(BadInput, match=r"a/9_2_1.png: in the place of 9_2_0.png"):
        FolderTiles(rows(folder))


def test_the_fingerprint_follows_names_labels_places_and_pixels(folder):
    prints = {FolderTiles(rows(folder)).fingerprint(), FolderTiles(rows(folder, label=0)).fingerprint()}
    (folder / "b" / "1_0.png").rename(folder / "b" / "1_1.png")
    prints.add(FolderTiles(rows(folder)).fingerprint())
    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "b" / "1_1.png")
    prints.add(FolderTiles(rows(folder)).fingerprint())
    assert len(prints) == 4


def test_a_list_of_bags_is_needed():
    with pytest.raises(BadInput, match="--bags: missing"):
        load(argparse.Namespace(datatype="tiles", bags=None))
