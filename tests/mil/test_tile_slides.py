"""Slides become bags of tiles: which, of what, under which names."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from common.errors import BadInput
from data.slides import pyramid
from mil import bag_list, hnm_layout, pickles, tile_slides, tiles
from tests.mil.kills import Killed, kill_at

SIDE = 64


def write_slide(path, seed, size=(192, 160)):
    """A slide of noise whose left upper quarter is blank."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8)
    pixels[: size[0] // 2, : size[1] // 2] = 240
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb")
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Five slides of each of two classes, some in folders of their own."""
    for i in range(5):
        write_slide(tmp_path / "wsi" / "benign" / f"b{i}.tif", i)
        write_slide(tmp_path / "wsi" / "tumour" / "patient" / f"t{i}.tif", 10 + i)
    return tmp_path


def run(folder, *more):
    flags = ["--slides", folder / "wsi", "--out", folder / "tiles", "--tile_size", SIDE, "--objective", 20]
    tile_slides.main([*map(str, flags), "--workers", "1", *map(str, more)])
    return bag_list.read(folder / "tiles" / "bags.csv")


def names(path):
    return sorted(file.name for file in path.iterdir() if file.suffix == ".jpeg")


def test_tiles_with_edges_stay_and_classes_are_labels_by_the_alphabet(folder):
    rows = run(folder)
    assert {row.bag.split("/")[0]: row.label for row in rows} == {"benign": 0, "tumour": 1}
    assert {split: sum(row.split == split for row in rows) for split in ("train", "val", "test")} == {
        "train": 6, "val": 2, "test": 2,
    }  # fmt: skip
    expected = {f"{x}_{y}.jpeg" for x in range(3) for y in range(3)} - {"0_0.jpeg"}  # blank
    assert set(names(rows[0].file)) == expected
    assert tiles.FolderTiles(rows).pictures(0, np.arange(8)).shape == (8, 3, SIDE, SIDE)  # those at the edge resized


def test_a_tile_shows_what_lies_there(folder):
    pixels = write_slide(folder / "wsi" / "benign" / "b0.tif", 0)
    run(folder, "-q", 95)
    with Image.open(folder / "tiles" / "benign" / "b0" / "1_2.jpeg") as tile:
        found = np.asarray(tile.convert("L")).ravel()

    def likeness(y, x):
        return np.corrcoef(found, pixels[y : y + SIDE, x : x + SIDE].mean(2).ravel())[0, 1]

    assert likeness(128, 64) > 0.8 > 0.2 > likeness(64, 64)


def test_a_lower_magnification_halves_the_slide(folder):
    rows = run(folder, "-b", 10)
    assert set(names(rows[0].file)) <= {f"{x}_{y}.jpeg" for x in range(2) for y in range(2)}
    with pytest.raises(BadInput, match="scanned at 20x, which halved cannot give 15x"):
        run(folder, "-b", 15, "--out", folder / "other")


def test_in_a_pyramid_the_higher_tiles_lie_in_the_lower_ones_folder(folder):
    rows = run(folder, "-m", 1, 0)
    assert set(names(rows[0].file / "0_1")) == {"0_2.jpeg", "1_2.jpeg"}


def test_an_interrupted_command_goes_on_and_a_finished_one_does_nothing(folder, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, tile_slides, "write_tile", 20)
        run(folder)
    run(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "tiles").rglob("*.jpeg")}
    assert len(before) == 80
    run(folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "tiles").rglob("*.jpeg")} == before
    with pytest.raises(BadInput, match="made with other flags"):
        run(folder, "-t", 3)


def test_hnm_wsis_layout_with_truth_of_masks(folder):
    table = ["slide,label,split"]
    for i in range(5):
        mask = np.zeros((192, 160), np.uint8)
        mask[130:140, 70:80] = 1  # in tile 1_2
        (folder / "masks").mkdir(exist_ok=True)
        tifffile.imwrite(folder / "masks" / f"t{i}_mask.tif", mask, tile=(64, 64), photometric="minisblack")
        split = ("train", "train", "train", "val", "test")[i]
        table += [f"t{i},1,{split}", f"b{i},0,{split}"]
    (folder / "labels.csv").write_text("\n".join(table))
    rows = run(folder, "--label_path", folder / "labels.csv", "--masks", folder / "masks", "--layout", "hnm")
    assert {row.bag for row in rows if row.split == "train"} == {
        *(f"training/tumor_t{i}" for i in range(3)), *(f"training/normal_b{i}" for i in range(3)),
    }  # fmt: skip
    assert [name for name in names(folder / "tiles/training/tumor_t0") if name.endswith("_1.jpeg")] == ["1_2_1.jpeg"]
    labels = folder / "tiles" / "labels"
    assert (labels / "val.txt").read_text().splitlines() == ["/training/normal_b3/", "/training/tumor_t3/"]
    assert hnm_layout.read_reference(labels / "testing" / "bag_reference.csv") == {"t4": 1, "b4": 0}
    truth = pickles.read(labels / "annotation" / "gt_ins_labels_large_train.p")
    assert [key for key, value in truth.items() if value] == [(f"/training/tumor_t{i}/", 1, 2) for i in range(4)]
    assert hnm_layout.bags_of(folder / "tiles", labels, seed=0) == sorted(
        [(row.bag, row.label, row.split, row.file) for row in rows],
        key=lambda row: ("train", "val", "test").index(row[2]),
    )


def test_every_slide_and_mask_that_is_opened_is_closed(tmp_path, monkeypatch):
    """Else a thousand masks are more open files than a process may have."""
    opened, closed, begin, end = [], [], pyramid.Slide.__init__, pyramid.Slide.close
    monkeypatch.setattr(pyramid.Slide, "__init__", lambda self, *args: (opened.append(self), begin(self, *args))[1])
    monkeypatch.setattr(pyramid.Slide, "close", lambda self: (closed.append(self), end(self))[1])
    slide, mask = write_slide_and_mask(tmp_path)
    args = argparse.Namespace(tile_size=SIDE, min_lesion=0)
    truth = tile_slides.mask_truth(slide, mask, 0, args)
    assert [truth(column, 2) for column in range(3)] == [0, 1, 0]
    assert opened and set(opened) == set(closed)
    assert tile_slides.mask_truth(slide, None, 0, args)(1, 2) == 0


def write_slide_and_mask(folder, value=1, size=(192, 160), **compression):
    """A slide and a mask with a lesion in tile 1_2; the third column of tiles reaches past them."""
    write_slide(folder / "slide.tif", 0)
    mask = np.zeros(size, np.uint8)
    mask[130:140, 70:80] = value
    tifffile.imwrite(folder / "mask.tif", mask, tile=(64, 64), photometric="minisblack", **compression)
    return folder / "slide.tif", folder / "mask.tif"


def test_lesion_is_1_or_255(tmp_path):
    args = argparse.Namespace(tile_size=SIDE, min_lesion=0)
    for value in (1, 255):
        truth = tile_slides.mask_truth(*write_slide_and_mask(tmp_path, value), 0, args)
        assert [[truth(column, row) for column in range(3)] for row in (0, 2)] == [[0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ({"value": 7}, "holds the values 0, 7, expected 0, 1 and 2, or 0 and 255"),
        ({"size": (192, 256)}, "level 0 of mask and slide differ by a tile or more: 256 x 192 and 160 x 192 px"),
        ({"compression": "jpeg"}, "stored as JPEG, which changes values"),
    ],
)
def test_masks_that_cannot_be_the_slides_are_refused(tmp_path, mask, said):
    slide, path = write_slide_and_mask(tmp_path, **mask)
    with pytest.raises(BadInput, match=f"mask.tif: {said}"):
        tile_slides.mask_truth(slide, path, 0, argparse.Namespace(tile_size=SIDE, min_lesion=0))


def test_a_coarse_mask_is_read_at_the_finest_level_that_the_slide_has(tmp_path):
    """The slide has no level 1, so level 0 of both is read, and a lesion of one pixel counts."""
    slide, path = write_slide_and_mask(tmp_path)
    mask = np.zeros((192, 160), np.uint8)
    mask[3, 129] = 1
    with tifffile.TiffWriter(path) as file:
        for step in (1, 2):
            file.write(mask[::step, ::step], tile=(64, 64), photometric="minisblack", subfiletype=int(step > 1))
    truth = tile_slides.mask_truth(slide, path, 1, argparse.Namespace(tile_size=SIDE, min_lesion=0))
    assert [truth(column, 0) for column in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--slides", "nowhere"], "--slides nowhere: no such folder"),
        (["-t", "999"], "none of its tiles has edges above --threshold 999"),
        (["--layout", "hnm"], "no mask of it in --masks"),
        (["-m", "0", "1"], "--magnifications: expected one, or two with the lower"),
    ],
)
def test_wrong_input_is_one_line(folder, more, said):
    with pytest.raises(BadInput, match=said):
        run(folder, *more)


def test_slides_without_power_class_or_label_are_named(folder):
    flags = ["--slides", str(folder / "wsi"), "--out", str(folder / "tiles"), "--workers", "1"]
    with pytest.raises(BadInput, match="does not say its objective power; give --objective"):
        tile_slides.main(flags)
    (folder / "labels.csv").write_text("slide,label\nb0,0\n")
    with pytest.raises(BadInput, match="has no label of slide b1"):
        run(folder, "--label_path", folder / "labels.csv")
    (folder / "wsi" / "tumour").rename(folder / "tumour")
    with pytest.raises(BadInput, match="one class alone, benign"):
        run(folder)
    (folder / "wsi" / "benign" / "b0.tif").write_bytes(b"II*\0")
    (folder / "tumour").rename(folder / "wsi" / "tumour")
    with pytest.raises(BadInput, match=r"b0.tif: not readable as a slide"):
        run(folder)


def test_too_few_slides_to_share_are_said_with_the_ways_out(folder):
    for path in (folder / "wsi" / "benign").glob("b[1-9].tif"):
        path.unlink()
    with pytest.raises(BadInput, match=r"1 bags of label 0: too few .* or a column split in --label_path"):
        run(folder)


def test_a_real_slide_region():
    path = Path(os.environ.get("CAMELYON_FIXTURES", "")) / "CMU-1-Small-Region.svs"
    if not path.exists():
        pytest.skip("needs the slide region: set CAMELYON_FIXTURES to the folder of CMU-1-Small-Region.svs")
    with tile_slides.DeepZoom(path, 224) as zoom:
        assert (zoom.objective, zoom.halvings(20), zoom.halvings(5)) == (20, 0, 2)
        assert zoom.grid(0) == (10, 14)  # 2220 x 2967 px
        strengths = {(x, y): tile_slides.edge_strength(zoom.read(0, x, y), 224) for x in (0, 4, 9) for y in (2, 8)}
    assert max(strengths.values()) > 15 > min(strengths.values())
