"""Pairs made and pairs found: what decides them, and folders that cannot give any."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common.errors import BadInput
from data import pairs
from tests.retrieval.images import write_groups, write_images


def copy_inverted(image, rng):
    """A manipulation that can be told: the centre, and its negative times a draw."""
    centre = pairs.fit(image, 256)[64:192, 64:192]
    return centre, (255 - centre) // int(rng.integers(1, 4))


def made(folder, seed=0, triplets=False):
    return pairs.MadePairs(pairs.open_pictures(folder, "--train_path"), copy_inverted, seed, triplets)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 6)


def test_an_item_is_two_views_in_grey(images):
    anchor, copy = made(images)[3]
    assert anchor.shape == copy.shape == (1, 128, 128)
    assert (anchor.dtype, anchor.min() >= 0, anchor.max() <= 1) == (torch.float32, True, True)
    assert len(made(images, triplets=True)[0]) == 3


def test_seed_epoch_and_number_decide_a_pair_and_nothing_else(images):
    first, again = made(images), made(images)
    for key in ((1, 0), (2, 0), (1, 5)):
        for a, b in zip(first[key], again[key], strict=True):
            assert torch.equal(a, b)
    different = [made(images, seed)[key][1] for seed, key in ((0, (1, 0)), (0, (2, 0)), (0, (3, 0)), (1, (1, 0)))]
    assert len({view.numpy().tobytes() for view in different}) > 1


@pytest.mark.slow
def test_loader_processes_make_the_same_pairs(images):
    batches = [[(1, 0), (1, 1)], [(2, 0), (2, 1)]]
    loads = [[*DataLoader(made(images), batch_sampler=batches, num_workers=n)] for n in (0, 2)]
    for alone, together in zip(*loads, strict=True):
        assert all(map(torch.equal, alone, together))


def test_views_are_flipped_each_for_itself(images):
    same = pairs.MadePairs(pairs.open_pictures(images, "--train_path"), lambda image, _: (image[:128, :128],) * 2, 0)
    kinds = {
        (torch.equal(a, b), torch.equal(a.flip(1), b), torch.equal(a.flip(2), b))
        for a, b in map(same.__getitem__, ((e, 0) for e in range(20)))
    }
    assert {(True, False, False), (False, True, False), (False, False, True)} <= kinds


def test_the_third_view_is_of_another_image(tmp_path):
    for i, value in enumerate((10, 100, 200)):
        Image.new("L", (256, 256), value).save(tmp_path / f"{i}.png")
    data = pairs.MadePairs(pairs.open_pictures(tmp_path, "--train_path"), lambda im, _: (im[:128, :128],) * 2, 0, True)
    for key in ((e, i) for e in range(5) for i in range(3)):
        anchor, copy, other = data[key]
        assert torch.equal(anchor, copy)
        assert not torch.equal(anchor, other)


def test_the_shorter_side_decides_the_scale():
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = 255  # the centre's square
    assert pairs.fit(wide, 128).shape == (128, 128, 3)
    assert pairs.fit(wide, 128)[:, 2:-2].min() == 255
    assert pairs.fit(wide, 100).tolist() == wide[:, 100:200].tolist()


def test_groups_of_equal_names_in_different_folders_stay_apart(tmp_path):
    for place in ("a/x", "b/x"):
        write_images(tmp_path / place, 2)
    names = pairs.open_pictures(tmp_path, "--test_path").names
    assert pairs.groups_of(names, "D") == {"a/x": [0, 1], "b/x": [2, 3]}


def test_a_pair_is_two_different_files_of_a_group_in_random_order():
    groups = {"a": [0, 1, 2], "b": [3, 4]}
    drawn = np.array([pairs.draw_pairs(groups, np.random.default_rng(seed)) for seed in range(40)])  # (40, 2, 2)
    assert (drawn[..., 0] != drawn[..., 1]).all()
    assert {tuple(pair) for pair in drawn[:, 1].tolist()} == {(3, 4), (4, 3)}
    assert set(drawn[:, 0].ravel()) == {0, 1, 2}
    assert set(drawn[:, 1].ravel()) == {3, 4}


def test_another_group_is_never_the_same():
    others = np.array([pairs.draw_others(4, np.random.default_rng(seed)) for seed in range(50)])
    assert (others != np.arange(4)).all()
    assert set(others[:, 0]) == {1, 2, 3}


def test_a_group_of_one_file_is_named_at_the_start(tmp_path):
    write_groups(tmp_path, 3)
    (tmp_path / "group_01" / "b.png").unlink()
    names = pairs.open_pictures(tmp_path, "--test_path").names
    with pytest.raises(BadInput, match=r"D: group 'group_01' has one file \(1 of 3 groups have\)"):
        pairs.groups_of(names, "D")


def test_images_without_groups_are_one_group(images):
    with pytest.raises(BadInput, match=r"one group, '\.'; negatives need two folders"):
        pairs.groups_of(pairs.open_pictures(images, "--test_path").names, "D")


def test_group_pairs_come_from_their_groups(tmp_path):
    write_groups(tmp_path, 4)
    pictures = pairs.open_pictures(tmp_path, "--valid_path")
    data = pairs.GroupPairs(pictures, pairs.groups_of(pictures.names, "D"), 0, triplets=True)
    parents = np.array([[pictures.names[k].split("/")[0] for k in item] for item in data.files])
    assert (parents[:, 0] == parents[:, 1]).all()
    assert (parents[:, 0] != parents[:, 2]).all()
    assert [view.shape for view in data[0]] == [(1, 128, 128)] * 3


def test_an_ending_that_no_image_has_is_named_with_those_there_are(images):
    with pytest.raises(BadInput, match=r"--filetype \.tif: no such images in .*, which holds 6 \.png"):
        pairs.open_pictures(images, "--train_path", ".tif")
    assert len(pairs.open_pictures(images, "--train_path", ".PNG")) == 6


def splits(**flags):
    defaults = {"train_path": None, "neg_path": None, "valid_path": None, "synth_valid": False, "filetype": None}
    return pairs.load_splits(argparse.Namespace(**defaults | flags, seed=0), copy_inverted, False)


def test_a_folder_without_validation_needs_some(images, tmp_path):
    with pytest.raises(BadInput, match="--valid_path: needed beside a --train_path that has no val split"):
        splits(train_path=images)
    with pytest.raises(BadInput, match=r"--valid_path .* no such folder"):
        splits(train_path=images, valid_path=tmp_path / "none")
    with pytest.raises(BadInput, match=r"^--train_path .* holds one image"):
        splits(train_path=write_images(tmp_path / "one", 1), valid_path=images, synth_valid=True)
    np.save(tmp_path / "crop.npy", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(BadInput, match=r"^--neg_path .* holds one image"):
        splits(neg_path=tmp_path, valid_path=images, synth_valid=True)
    found = splits(train_path=images, valid_path=images, synth_valid=True)
    assert {name: len(data) for name, data in found.items()} == {"train": 6, "val": 6}


def test_negative_crops_bring_their_own_validation_and_never_train_on_the_test_split(tmp_path):
    for part, n in (("", 3), ("valid", 2), ("test", 4)):
        (tmp_path / part).mkdir(exist_ok=True)
        for i in range(n):
            np.save(tmp_path / part / f"crop_{i}.npy", np.full((64, 64, 3), 20 * i, np.uint8))
    found = splits(neg_path=tmp_path)
    assert {name: len(data) for name, data in found.items()} == {"train": 3, "val": 2}
    assert found["train"][0][0].shape == (1, 128, 128)


def test_canvases_are_read_from_their_splits(tmp_path):
    for split, n in (("train", 4), ("val", 2), ("test", 2)):
        lines = ["img_path,label"]
        for i in range(n):
            np.savez(tmp_path / f"{split}_{i}.npz", np.full((40, 40), 60 * i, np.uint8))
            lines.append(f"{split}_{i}.npz,{1 - i % 2}")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    found = splits(train_path=tmp_path)
    assert {name: len(data) for name, data in found.items()} == {"train": 4, "val": 2}
    assert found["train"].pictures.read(2).tolist() == np.full((40, 40, 3), 120).tolist()


def test_the_fingerprint_is_of_the_content_wherever_it_lies(images, tmp_path):
    other = write_images(tmp_path / "other", 6)
    assert made(images).fingerprint() == made(other).fingerprint()
    Image.new("L", (128, 128)).save(other / "image_03.png")
    assert made(images).fingerprint() != made(other).fingerprint()
