import argparse
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import BadInput
from data.camelyon.dataset import CamelyonCrops, load_splits

SIDE = 8
PARTS = {"train": "", "val": "valid", "test": "test"}


def write_crops(folder, positive, counts, side=SIDE, seg=True, seed=0):
    """A crop folder as the first release left it: no crops.csv."""
    rng = np.random.default_rng(seed)
    for split, n in counts.items():
        (folder / PARTS[split]).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            stem = folder / PARTS[split] / (f"patient_{i:03}_node_0_3" + ("_1_0" if positive else "_0"))
            image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            np.save(f"{stem}_img.npy" if positive else f"{stem}.npy", image)
            if positive and seg:
                np.save(f"{stem}_seg.npy", (image[..., 0] > 128).astype(np.uint8))
    return folder


@pytest.fixture
def args(tmp_path):
    positives = write_crops(tmp_path / "pos", True, {"train": 5, "val": 3, "test": 4})
    negatives = write_crops(tmp_path / "neg", False, {"train": 9, "val": 2, "test": 4})
    return argparse.Namespace(pos_path=positives, neg_path=negatives, seed=42)


def test_the_smaller_class_decides_and_positives_come_first(args):
    splits = load_splits(args)
    assert {name: len(split) for name, split in splits.items()} == {"train": 10, "val": 4, "test": 8}
    for name, split in splits.items():
        half = len(split) // 2
        assert split.labels.tolist() == [1] * half + [0] * half
        assert split.names == sorted(split.names[:half]) + sorted(split.names[half:])
        assert all(file.startswith(PARTS[name]) for file in split.names)


def test_an_item_is_the_crop_scaled_to_0_1(args):
    train = load_splits(args)["train"]
    for i in (0, len(train) - 1):
        image, label = train[i]
        assert image.shape == (3, SIDE, SIDE) and image.dtype == torch.float32
        crop = np.load((args.pos_path if label else args.neg_path) / train.names[i])
        np.testing.assert_allclose(image.permute(1, 2, 0), crop / 255, atol=1e-6)


def test_the_seed_chooses(args):
    names = load_splits(args)["train"].names
    assert load_splits(args)["train"].names == names
    args.seed = 7
    assert load_splits(args)["train"].names[:5] == names[:5]  # all positives are needed
    assert load_splits(args)["train"].names != names


def test_lesion_masks_belong_to_positives(args):
    val = load_splits(args)["val"]
    assert val.has_objects
    for i in range(len(val)):
        if val.labels[i]:
            assert (val.object_mask(i) == (np.load(args.pos_path / val.names[i])[..., 0] > 128)).all()
        else:
            assert val.object_mask(i) is None


def test_crops_without_masks_are_read_too(args):
    for path in args.pos_path.rglob("*_seg.npy"):
        path.unlink()
    train = load_splits(args)["train"]
    assert not train.has_objects and train.object_mask(0) is None


def test_the_fingerprint_hangs_on_content_not_on_place(args, tmp_path):
    before = load_splits(args)["train"].fingerprint()
    args.pos_path = shutil.move(args.pos_path, tmp_path / "elsewhere")
    assert load_splits(args)["train"].fingerprint() == before
    write_crops(args.pos_path, True, {"train": 5}, seed=1)
    assert load_splits(args)["train"].fingerprint() != before


def test_crops_csv_decides_what_is_read(args):
    (args.pos_path / "crops.csv").write_text("file\npatient_000_node_0_3_1_0_img.npy\n")
    assert len(load_splits(args, ["train"])["train"]) == 2
    with pytest.raises(BadInput, match="no crops for the val split"):
        load_splits(args)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a_img.npy\na_img.npy", "line 3: a_img.npy is named twice"),
        ("a_img.npy\nval/b_img.npy", "line 3: found val/b_img.npy, expected NAME, valid/NAME, test/NAME"),
        ("../a_img.npy", "line 2: found ../a_img.npy"),
        ("", "names no crops"),
    ],
)
def test_a_crop_named_twice_or_in_no_splits_folder_is_refused(args, rows, said):
    (args.pos_path / "crops.csv").write_text(f"file\n{rows}\n")
    with pytest.raises(BadInput, match=rf"crops\.csv(: |, ){said}"):
        load_splits(args)


def test_an_unfinished_extraction_is_refused(args):
    (args.pos_path / "extraction.json").write_text(json.dumps({"seed": 42}))
    with pytest.raises(BadInput, match="not finished"):
        load_splits(args)


def test_damaged_and_missing_crops_are_named(args):
    path = args.pos_path / "patient_002_node_0_3_1_0_img.npy"
    content = path.read_bytes()
    for damage in (content[:150], b"", b"\x80\x04.", b"PK\3\4"):
        path.write_bytes(damage)
        with pytest.raises(BadInput, match=path.name):
            load_splits(args)
    path.write_bytes(content)
    train = load_splits(args)["train"]
    path.write_bytes(b"no longer an array")
    with pytest.raises(BadInput, match=path.name):
        train[train.names.index(path.name)]


def test_files_of_other_programs_are_passed_over(args):
    before = load_splits(args)["train"].names
    (args.pos_path / "._patient_002_node_0_3_1_0_img.npy").write_bytes(b"of a Mac")
    assert load_splits(args)["train"].names == before


def test_a_lesion_mask_that_is_missing_among_others_is_named(args):
    next(iter(sorted(args.pos_path.glob("*_seg.npy")))).unlink()
    train = load_splits(args)["train"]
    with pytest.raises(BadInput, match=r"patient_000_node_0_3_1_0_seg.npy: no such file \(1 of 5"):
        _ = train.has_objects


def test_mixed_sizes_are_refused(args):
    write_crops(args.neg_path, False, {"train": 9}, side=SIDE * 2)
    with pytest.raises(BadInput, match="expected a crop of shape"):
        load_splits(args)
    write_crops(args.pos_path, True, {"train": 5}, side=SIDE * 2)
    with pytest.raises(BadInput, match="differ in size"):
        load_splits(args)


@pytest.mark.parametrize("odd", [0, 3, 8])
def test_the_odd_one_out_is_named_wherever_it_stands(args, odd):
    names = [args.pos_path / f"patient_{i:03}_node_0_3_1_0_img.npy" for i in range(5)]
    names += sorted(args.neg_path.glob("*.npy"))[:5]
    np.save(names[odd], np.zeros((SIDE + 1, SIDE + 1, 3), np.uint8))
    files = [[path.name for path in part] for part in (names[:5], names[5:])]
    with pytest.raises(BadInput, match=rf"{names[odd].name}: expected .*\(8, 8, 3\) like 9 others, found \(9, 9, 3\)"):
        CamelyonCrops(args.pos_path, files[0], args.neg_path, files[1], 1)


def test_crops_that_are_no_squares_are_refused(args):
    for path in [*args.pos_path.glob("*_img.npy"), *args.neg_path.glob("*.npy")]:
        np.save(path, np.zeros((SIDE, SIDE + 1, 3), np.uint8))
    with pytest.raises(BadInput, match=r"expected a crop of shape \(S, S, 3\), found \(8, 9, 3\)"):
        load_splits(args)


def test_the_disk_is_asked_once_whether_masks_were_kept(args, monkeypatch):
    train, asked = load_splits(args)["train"], []
    monkeypatch.setattr("os.path.lexists", lambda path: asked.append(path) or True)
    assert all(train.has_objects for _ in range(100))
    assert len(asked) == 5


@pytest.mark.parametrize("flag", ["pos_path", "neg_path"])
def test_the_folder_below_is_named_when_it_was_meant(args, tmp_path, flag):
    shutil.move(getattr(args, flag), tmp_path / "crops" / "level3")
    setattr(args, flag, tmp_path / "crops")
    with pytest.raises(BadInput, match=r"crops: no (positive|negative) crops in it; level3 below it holds some"):
        load_splits(args)


def put_device(path):
    path.symlink_to("/dev/zero")


def put_link_to_itself(path):
    path.symlink_to(path)


@pytest.mark.parametrize("name", ["crops.csv", "patient_000_node_0_3_1_0_img.npy"])
@pytest.mark.parametrize("put", [os.mkfifo, Path.mkdir, put_device, put_link_to_itself])
def test_what_is_no_file_is_named_and_not_waited_on(args, name, put):
    path = args.pos_path / name
    path.unlink(missing_ok=True)
    put(path)
    with pytest.raises(BadInput, match=re.escape(str(path))):
        load_splits(args)


def test_wrong_folders_are_named(args, tmp_path):
    with pytest.raises(BadInput, match="--pos_path is needed"):
        load_splits(argparse.Namespace(pos_path=None, neg_path=args.neg_path, seed=1))
    with pytest.raises(BadInput, match=r"--neg_path .*: no such folder"):
        load_splits(argparse.Namespace(pos_path=args.pos_path, neg_path=tmp_path / "none", seed=1))
    with pytest.raises(BadInput, match=r"--pos_path .*: no positive crops in it, but crops for --neg_path"):
        load_splits(argparse.Namespace(pos_path=args.neg_path, neg_path=args.pos_path, seed=1))
    with pytest.raises(BadInput, match="need crops of both classes"):
        CamelyonCrops(args.pos_path, [], args.neg_path, ["a"], 1)
