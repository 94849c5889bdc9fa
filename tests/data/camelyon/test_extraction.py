import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

import extract_basic_neg_crops as negatives
import extract_basic_pos_crops as positives
from common.errors import BadInput
from common.manifest import Manifest
from data.camelyon import extraction, make_slides, report, slides
from data.camelyon.layouts import Camelyon17
from data.slides import pyramid
from tests.data.slides.oracle import mask_window, polygons_of, valid_corners

SIZE, K = 64, 5
RANGE = (0.01, 0.1)
NAME = f"level3_size_{SIZE}_ratio_0.01_0.1"
ROOT = Path(positives.__file__).parent


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Ten made slides, two of every centre; read only."""
    out = tmp_path_factory.mktemp("slides")
    flags = "--width 4096 --height 3072 --annotated 1 --negative 1 --compression deflate --workers 1"
    make_slides.main(["--out", str(out), *flags.split()])
    return out


@pytest.fixture
def own_tree(tree, tmp_path):
    """A copy to damage."""
    return shutil.copytree(tree, tmp_path / "tree")


def positive_flags(tree, out, *more):
    flags = ["--data", tree / "annotations", "--base_path", tree / "training", "--save_dir", out, "--size", SIZE]
    return list(map(str, [*flags, "--low_roir", RANGE[0], "--high_roir", RANGE[1], "--k", K, "--workers", 1, *more]))


def negative_flags(tree, out, *more):
    flags = ["--label_path", tree / "stage_labels.csv", "--base_path", tree / "training", "--save_dir", out]
    return list(map(str, [*flags, "--size", SIZE, "--k", K, "--workers", 1, *more]))


@pytest.fixture(scope="module")
def cut(tree, tmp_path_factory):
    """The positive crops of the tree; read only."""
    out = tmp_path_factory.mktemp("crops")
    assert positives.main(positive_flags(tree, out)) == 0
    return out / NAME


def contents(folder):
    """Relative path -> bytes of every file."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def slide_path(tree, name):
    return next((tree / "training").glob(f"*/{name}.tif"))


def pixels_of(tree, name):
    """Level 3 of a slide, read without OpenSlide."""
    with tifffile.TiffFile(slide_path(tree, name)) as file:
        return file.pages[3].asarray()


def true_mask(tree, name, shape):
    """Level 3's mask by the slow winding rule."""
    path = tree / "annotations" / f"{name}.xml"
    lesions, cut_outs = polygons_of(path, {"metastases"}), polygons_of(path, {"normal"})
    mask, unsure = mask_window(lesions, cut_outs, 3, 0, 0, *shape)
    assert not unsure.any()
    return mask


@pytest.mark.slow
def test_every_positive_crop_satisfies_its_definition(tree, cut):
    table = pd.read_csv(cut / "crops.csv")
    assert set(table["split"]) == {"train", "val", "test"}
    for name, rows in table.groupby("slide"):
        image = pixels_of(tree, name)
        mask = true_mask(tree, name, image.shape[:2])
        labels, n = ndimage.label(mask, np.ones((3, 3)))
        numbers = np.argsort([np.flatnonzero(labels == label)[0] for label in range(1, n + 1)]) + 1
        for row in rows.itertuples():
            window = slice(row.y, row.y + SIZE), slice(row.x, row.x + SIZE)
            crop, seg = np.load(cut / row.file), np.load(cut / row.file.replace("_img", "_seg"))
            assert crop.dtype == seg.dtype == np.uint8
            assert (crop == image[window]).all() and (seg == mask[window]).all()
            assert crop.any(axis=-1).all()  # nothing unscanned
            component = labels == numbers[row.lesion - 1]
            assert component[window].sum() == component.sum()
            assert RANGE[0] < row.o2i == seg.sum() / SIZE**2 < RANGE[1]
            centre = int(name[8:11]) // 20
            assert (row.centre, row.mpp) == (centre, pytest.approx(Camelyon17.mpp[centre]))
            folder = {0: "", 1: "", 2: "", 3: "valid/", 4: "test/"}[centre]
            assert row.file.startswith(f"{folder}{name}_3_{row.lesion}_")
    assert len(list(cut.rglob("*_img.npy"))) == len(list(cut.rglob("*_seg.npy"))) == len(table)


@pytest.mark.slow
def test_a_lesion_yields_k_crops_exactly_when_it_has_a_valid_position(tree, cut):
    table = pd.read_csv(cut / "crops.csv")
    name = table["slide"].iloc[0]
    image = pixels_of(tree, name)
    mask = true_mask(tree, name, image.shape[:2])
    labels, n = ndimage.label(mask, np.ones((3, 3)))
    firsts = [np.flatnonzero(labels == label)[0] for label in range(1, n + 1)]
    has_crops = set()
    for number, label in enumerate(np.argsort(firsts) + 1, 1):
        if valid_corners(mask, ~image.any(axis=-1), labels == label, SIZE, *RANGE):
            has_crops.add(number)
    assert 0 < len(has_crops) < n
    assert table[table["slide"] == name].groupby("lesion").size().to_dict() == dict.fromkeys(has_crops, K)


def test_the_manifest_has_every_crop_mask_and_the_table(cut):
    sums = Manifest(cut)
    files = {path.relative_to(cut).as_posix() for path in cut.rglob("*.npy")}
    assert set(sums.entries) == files | {"crops.csv"}
    sums.verify()


def test_masks_give_the_crops_of_the_xml(tree, cut, tmp_path):
    assert positives.main(positive_flags(tree, tmp_path, "--data", str(tree / "masks"))) == 0
    ours, theirs = ({k: v for k, v in contents(f).items() if k.suffix != ".json"} for f in (tmp_path / NAME, cut))
    assert ours == theirs


def test_xml_wins_over_a_mask(tree, cut, tmp_path):
    shutil.copytree(tree / "annotations", tmp_path / "both")
    for path in (tree / "masks").iterdir():
        (tmp_path / "both" / path.name).write_bytes(b"not a mask")
    assert positives.main(positive_flags(tree, tmp_path, "--data", str(tmp_path / "both"))) == 0
    assert contents(tmp_path / NAME) == contents(cut)


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers(tree, cut, tmp_path):
    assert positives.main(positive_flags(tree, tmp_path, "--n_workers", "2")) == 0
    assert contents(tmp_path / NAME) == contents(cut)


def test_a_second_run_does_nothing_and_says_so(tree, cut, tmp_path, capsys):
    folder = shutil.copytree(cut, tmp_path / NAME)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert positives.main(positive_flags(tree, tmp_path)) == 0
    assert "nothing to do: all 5 slides are done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_interrupted_run_continues_to_the_same_bytes(tree, cut, tmp_path, monkeypatch):
    open_own, written = extraction.open_own, []

    def interrupt(path, flags, mode):
        written.append(path)
        file = open_own(path, flags, mode)
        if len(written) == 70:
            file.write(b"half")
            file.close()
            raise KeyboardInterrupt
        return file

    monkeypatch.setattr(extraction, "open_own", interrupt)
    with pytest.raises(KeyboardInterrupt):
        positives.main(positive_flags(tree, tmp_path))
    monkeypatch.undo()
    assert not (tmp_path / NAME / "crops.csv").exists()
    assert positives.main(positive_flags(tree, tmp_path)) == 0
    assert contents(tmp_path / NAME) == contents(cut)


@pytest.mark.slow
def test_sigterm_stops_the_workers_and_the_next_run_finishes(tree, cut, tmp_path):
    command = [sys.executable, str(ROOT / "extract_basic_pos_crops.py"), *positive_flags(tree, tmp_path)]
    command[command.index("--workers") + 1] = "2"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.rglob("records/*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    message = process.communicate(timeout=20)[1]
    assert process.returncode in (0, 143)  # 0: it was quicker
    assert len(message.splitlines()) == (1 if process.returncode else 0)
    assert positives.main(positive_flags(tree, tmp_path)) == 0
    assert contents(tmp_path / NAME) == contents(cut)


def be_killed_on_centre_2(job, folder, args):
    """Stands for an extraction that runs out of memory on one slide."""
    if job.centre == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return EXTRACT_SLIDE(job, folder, args)


EXTRACT_SLIDE = positives.extract_slide


def test_a_killed_worker_costs_its_own_slide_only(tree, cut, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(positives, "extract_slide", be_killed_on_centre_2)
    assert positives.main(positive_flags(tree, tmp_path, "--workers", "2")) == 1
    complaints = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in complaints] == ["patient_040_node_2", "1 problems"]
    assert "killed" in complaints[0]
    slides_done = set(pd.read_csv(tmp_path / NAME / "crops.csv")["slide"])
    assert slides_done == set(pd.read_csv(cut / "crops.csv")["slide"]) - {"patient_040_node_2"}
    monkeypatch.undo()
    assert positives.main(positive_flags(tree, tmp_path)) == 0
    assert contents(tmp_path / NAME) == contents(cut)


def test_a_slide_that_is_no_longer_negative_leaves_the_table(own_tree, tmp_path, capsys):
    assert negatives.main(negative_flags(own_tree, tmp_path)) == 0
    labels = own_tree / "stage_labels.csv"
    labels.write_text(labels.read_text().replace("patient_019_node_0.tif,negative", "patient_019_node_0.tif,macro"))
    assert negatives.main(negative_flags(own_tree, tmp_path)) == 0
    assert "left out of crops.csv, since this command does not name them: patient_019" in capsys.readouterr().out
    assert "patient_019" not in (tmp_path / "crops.csv").read_text()


def test_slides_may_come_and_go(own_tree, tree, cut, tmp_path, capsys):
    """Fetch a centre, extract, delete it, fetch the next: the table grows to that of all slides at once."""
    for centre in range(5):
        for folder in (own_tree / "training").iterdir():
            if folder.name != f"center_{centre}":
                shutil.rmtree(folder)
        assert positives.main(positive_flags(own_tree, tmp_path)) == (0 if centre == 4 else 1)
        assert len(pd.read_csv(tmp_path / NAME / "crops.csv")["slide"].unique()) == centre + 1
        shutil.copytree(tree / "training", own_tree / "training", dirs_exist_ok=True)
    assert contents(tmp_path / NAME / "test") == contents(cut / "test")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / NAME / "crops.csv"), pd.read_csv(cut / "crops.csv"))


@pytest.mark.parametrize("ending", ["_img.npy", "_seg.npy"])
def test_lost_and_truncated_crops_and_records_are_written_again(tree, cut, tmp_path, ending):
    folder = shutil.copytree(cut, tmp_path / NAME)
    lost, truncated = sorted(folder.glob(f"*{ending}"))[:2]
    lost.unlink()
    truncated.write_bytes(b"")
    (folder / "records" / "patient_060_node_3.json").write_text("")
    assert positives.main(positive_flags(tree, tmp_path)) == 0
    assert contents(folder) == contents(cut)


def test_crops_of_a_killed_run_are_not_mixed_with_others(tree, cut, tmp_path):
    """A kill before the first slide was finished leaves crops without a record."""
    folder = shutil.copytree(cut, tmp_path / NAME)
    shutil.rmtree(folder / "records")
    with pytest.raises(BadInput, match=r"--k 5 \(now 3\)"):
        positives.main(positive_flags(tree, tmp_path, "--k", "3"))
    assert positives.main(positive_flags(tree, tmp_path)) == 0
    assert contents(folder) == contents(cut)


def test_annotations_without_a_lesion_are_named(own_tree, tmp_path, capsys):
    name = "patient_004_node_4"
    (own_tree / "annotations" / f"{name}.xml").unlink()
    path = own_tree / "masks" / f"{name}_mask.tif"
    with tifffile.TiffFile(path) as file:
        masks = [np.zeros_like(page.asarray()) for page in file.pages]
    with tifffile.TiffWriter(path) as tiff:
        for level, mask in enumerate(masks):
            tiff.write(mask, tile=(256, 256), compression="deflate", subfiletype=int(level > 0))
    shutil.move(path, own_tree / "annotations")
    assert positives.main(positive_flags(own_tree, tmp_path)) == 0
    assert f"{name}: annotation without a lesion" in capsys.readouterr().out


def test_a_mask_beside_the_slides_is_no_slide(own_tree, tmp_path):
    shutil.copy(own_tree / "masks" / "patient_004_node_4_mask.tif", own_tree / "training" / "center_0")
    assert negatives.main(negative_flags(own_tree, tmp_path)) == 0


@pytest.mark.parametrize("header", ["patient,stage,Stage", "patient,stage,stage", "patient,grade,centre", ""])
def test_label_files_with_other_columns_are_refused(tmp_path, header):
    path = tmp_path / "labels.csv"
    path.write_text(f"{header}\npatient_019_node_0.tif,negative,x\n")
    with pytest.raises(BadInput, match=r"labels\.csv: expected the columns patient,stage"):
        slides.read_labels(path)


def test_a_flag_that_gave_no_crop_may_be_corrected(tree, tmp_path, capsys):
    assert negatives.main(negative_flags(tree, tmp_path, "--level", "9")) == 1
    assert "no level 9" in capsys.readouterr().err
    assert negatives.main(negative_flags(tree, tmp_path)) == 0


def test_a_changed_annotation_is_extracted_again(own_tree, tmp_path):
    positives.main(positive_flags(own_tree, tmp_path))
    table = pd.read_csv(tmp_path / NAME / "crops.csv")
    path = own_tree / "annotations" / "patient_004_node_4.xml"
    path.write_text("<ASAP_Annotations/>")
    assert positives.main(positive_flags(own_tree, tmp_path)) == 0
    rest = table[table["slide"] != "patient_004_node_4"].reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / NAME / "crops.csv"), rest)
    assert not list((tmp_path / NAME).glob("patient_004_node_4*"))


def test_other_settings_in_the_same_folder_are_refused(tree, cut, tmp_path):
    shutil.copytree(cut, tmp_path / NAME)
    with pytest.raises(BadInput, match=r"--seed 42 \(now 7\)"):
        positives.main(positive_flags(tree, tmp_path, "--seed", "7"))


def test_bad_slides_are_named_and_the_rest_is_done(own_tree, cut, tmp_path, capsys):
    """One trouble per slide; 004_4 stays whole."""
    training, data = own_tree / "training", own_tree / "annotations"
    truncated = slide_path(own_tree, "patient_020_node_2")
    truncated.write_bytes(truncated.read_bytes()[:-200_000])
    pixels = np.full((256, 256, 3), 200, np.uint8)
    for name, steps in [("patient_040_node_2", (1, 2)), ("patient_060_node_3", (1, 2, 4, 7))]:
        with tifffile.TiffWriter(slide_path(own_tree, name)) as tiff:  # no level 3; and one downsampled 7 times
            for step in steps:
                tiff.write(pixels[::step, ::step], tile=(64, 64), photometric="rgb", subfiletype=int(step > 1))
    (data / "patient_080_node_1.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')
    shutil.copy(data / "patient_004_node_4.xml", data / "patient_005_node_0.xml")  # no such slide
    shutil.copy(data / "patient_004_node_4.xml", data / "patient_021_node_3.xml")  # in another centre's folder
    shutil.copy(slide_path(own_tree, "patient_004_node_4"), training / "center_0" / "patient_021_node_3.tif")
    shutil.copy(slide_path(own_tree, "patient_004_node_4"), training / "center_0" / "patient_009_node_1.tif")
    with tifffile.TiffWriter(data / "patient_009_node_1_mask.tif") as tiff:
        for level in range(4):  # a mask of another slide
            mask = np.zeros((16384 >> level, 8192 >> level), np.uint8)
            tiff.write(mask, tile=(256, 256), compression="deflate", subfiletype=int(level > 0))
    assert positives.main(positive_flags(own_tree, tmp_path)) == 1
    complaints = capsys.readouterr().err.splitlines()
    for name, words in {
        "patient_020_node_2": "readable|damaged",
        "patient_040_node_2": "no level 3",
        "patient_060_node_3": "downsampled 6.9",
        "patient_080_node_1": "DTD",
        "patient_005_node_0": "found none",
        "patient_021_node_3": "centre 1",
        "patient_009_node_1": "differ by a tile",
    }.items():
        lines = [line for line in complaints if line.startswith(name)]
        assert len(lines) == 1 and any(word in lines[0] for word in words.split("|")), (name, complaints)
    done = pd.read_csv(tmp_path / NAME / "crops.csv")
    expected = pd.read_csv(cut / "crops.csv")
    pd.testing.assert_frame_equal(done, expected[expected["slide"] == "patient_004_node_4"])


def test_a_tile_that_does_not_decode_is_an_error_of_its_slide(own_tree, tmp_path, capsys):
    path = slide_path(own_tree, "patient_004_node_4")
    page = tifffile.TiffFile(path).pages[3]
    with path.open("r+b") as file:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.seek(offset)
            file.write(b"\0" * count)
    assert positives.main(positive_flags(own_tree, tmp_path)) == 1
    assert "patient_004_node_4.tif: damaged near level-0 pixel" in capsys.readouterr().err
    assert not list((tmp_path / NAME).glob("patient_004_node_4*"))


def test_a_full_disk_leaves_no_half_slide(tree, cut, tmp_path, monkeypatch, capsys):
    open_own, written = extraction.open_own, []

    def full(path, flags, mode):
        written.append(path)
        if "patient_020" in path.name and len(written) > 40:
            return Path("/dev/full").open(mode)
        return open_own(path, flags, mode)

    monkeypatch.setattr(extraction, "open_own", full)
    assert positives.main(positive_flags(tree, tmp_path)) == 1
    assert "patient_020_node_2: No space left on device" in capsys.readouterr().err
    assert not list((tmp_path / NAME).glob("patient_020*"))
    assert set(pd.read_csv(tmp_path / NAME / "crops.csv")["slide"]) == {
        f"patient_{slide}" for slide in ("004_node_4", "040_node_2", "060_node_3", "080_node_1")
    }
    monkeypatch.undo()
    assert positives.main(positive_flags(tree, tmp_path)) == 0
    assert contents(tmp_path / NAME) == contents(cut)


def test_the_report_stands_beside_the_tables_of_pawlowski_2019(tree, tmp_path, capsys):
    flags = positive_flags(tree, tmp_path, "--size", "512", "--low_roir", "0.1", "--high_roir", "0.5")
    assert positives.main(flags) == 0
    out = capsys.readouterr().out
    assert "lesion rejected: the slide is smaller than a crop" in out
    rows = [line.split() for line in out.splitlines()]
    assert [row[3::2] for row in rows if row and row[0] in ("train", "val", "test")] == [
        ["68", "3400"],
        ["15", "750"],
        ["17", "850"],
    ]


def test_a_dry_run_writes_nothing(tree, tmp_path, capsys):
    assert positives.main(positive_flags(tree, tmp_path / "new", "--dry_run")) == 0
    assert negatives.main(negative_flags(tree, tmp_path / "new", "--dry_run")) == 0
    out = capsys.readouterr().out
    assert "at most 25 crops" in out and "memory: about" in out
    assert not (tmp_path / "new").exists()


def test_a_dry_run_knows_what_is_done_and_refuses_what_the_run_refuses(tree, cut, capsys):
    assert positives.main(positive_flags(tree, cut.parent, "--dry_run")) == 0
    assert "would write at most 0 crops" in capsys.readouterr().out
    with pytest.raises(BadInput, match="--seed 42"):
        positives.main(positive_flags(tree, cut.parent, "--dry_run", "--seed", "7"))


def test_previews_are_drawn_also_after_the_crops(tree, cut, tmp_path):
    folder = shutil.copytree(cut, tmp_path / NAME)
    assert positives.main(positive_flags(tree, tmp_path, "--preview")) == 0
    assert len(list((folder / "previews").glob("*.png"))) == 5
    (folder / "previews").rename(tmp_path / "previews")
    assert contents(folder) == contents(cut)


def test_the_flat_layout_of_the_public_bucket(tree, cut, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for path in (tree / "training").glob("*/*.tif"):
        (tmp_path / "images" / path.name).symlink_to(path)
    (tmp_path / "annotations").symlink_to(tree / "annotations")
    lines = (tree / "stage_labels.csv").read_text().splitlines()
    rows = [f"{line},{int(line[8:11]) // 20}" if "node" in line else f"{line}," for line in lines[1:]]
    (tmp_path / "stages.csv").write_text("\n".join(["patient,stage,center", *rows]))
    flags = positive_flags(tree, tmp_path / "out", "--base_path", str(tmp_path), "--data", str(tmp_path))
    assert positives.main(flags) == 0
    assert contents(tmp_path / "out" / NAME) == contents(cut)
    labels = ["--label_path", str(tmp_path / "stages.csv"), "--base_path", str(tmp_path)]
    assert negatives.main(negative_flags(tree, tmp_path / "negatives", *labels)) == 0
    rows = [row.replace("_node_2.tif,macro,2", "_node_2.tif,macro,1") for row in rows if "patient_004" not in row]
    (tmp_path / "stages.csv").write_text("\n".join(["patient,stage,center", *rows]))
    flags[flags.index("--base_path") + 1] = str(tmp_path / "images")  # the table lies beside it
    capsys.readouterr()
    assert positives.main(flags) == 1
    complaints = capsys.readouterr().err
    assert "patient_004_node_4: not in stages.csv" in complaints
    assert "patient_040_node_2: stages.csv gives centre 1" in complaints


def test_negative_crops_are_scanned_tissue_at_their_place(tree, tmp_path, capsys):
    assert negatives.main(negative_flags(tree, tmp_path)) == 0
    assert "patient_086" not in (tmp_path / "crops.csv").read_text()
    table = pd.read_csv(tmp_path / "crops.csv")
    assert table.groupby("slide").size().tolist() == [K] * 5
    assert table[["lesion", "o2i"]].isna().all(axis=None)
    for row in table.itertuples():
        crop = np.load(tmp_path / row.file)
        assert (crop == pixels_of(tree, row.slide)[row.y : row.y + SIZE, row.x : row.x + SIZE]).all()
        assert crop.any(axis=-1).all() and crop[..., 1].mean() <= 200
        assert row.file.startswith({"train": "", "val": "valid/", "test": "test/"}[row.split] + f"{row.slide}_3_")
    before = contents(tmp_path)
    assert negatives.main(negative_flags(tree, tmp_path)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_slides_and_labels_that_disagree_are_named(own_tree, tmp_path, capsys):
    labels = own_tree / "stage_labels.csv"
    lines = labels.read_text().splitlines()
    table = [f"{line},{int(line[8:11]) // 20}" if "node" in line else f"{line}," for line in lines[1:]]
    table = [row for row in table if not row.startswith("patient_019_node_0")]  # its slide has no label
    table = [row.replace("patient_039_node_0.tif,negative,1", "patient_039_node_0.tif,negative,3") for row in table]
    table = [row.replace("patient_059_node_0.tif,negative,2", "patient_059_node_0.tif,negative,") for row in table]
    table = [row.replace("patient_004_node_4.tif,macro", "patient_004_node_4.tif,makro") for row in table]
    table += ["patient_079_node_0.tif,itc,3", "patient_001_node_1.tif,negative,0", "patient_086_node_4.tif,negative,4"]
    labels.write_text("\n".join(["patient,stage,center", *table]))
    assert negatives.main(negative_flags(own_tree, tmp_path)) == 1
    captured = capsys.readouterr()
    assert "patient_086_node_4: left out" in captured.out
    expected = "expected one of itc, macro, micro, negative in stage_labels.csv, found"
    for words in (
        f"patient_019_node_0: {expected} no row",
        "patient_039_node_0: stage_labels.csv gives centre 3, its patient number means centre 1",
        "patient_059_node_0: stage_labels.csv gives no centre",
        f"patient_079_node_0: {expected} 'itc' and 'negative'",
        f"patient_004_node_4: {expected} 'makro'",
        "patient_001_node_1: expected one slide in",
    ):
        assert words in captured.err
    assert set(pd.read_csv(tmp_path / "crops.csv")["slide"]) == {"patient_099_node_0"}


def test_the_real_labels_leave_197_60_and_62_negative_slides(capsys):
    path = Path(os.environ.get("CAMELYON_FIXTURES", "")) / "camelyon17" / "stage_labels.csv"
    if not path.exists():
        pytest.skip("needs CAMELYON17's labels: set CAMELYON_FIXTURES to the folder of camelyon17/stage_labels.csv")
    names, excluded = negatives.healthy_slides(slides.read_labels(path))
    centres = np.bincount([slides.centre_of(name) for name in names])
    assert (sum(centres[:3]), centres[3], centres[4]) == (197, 60, 62)
    assert excluded == [f"patient_{name}" for name in ("022_node_4", "038_node_2", "086_node_0", "086_node_4")]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--low_roir", "0.5", "--high_roir", "0.1"], "must be below"),
        (["--size", "0"], "1 or more"),
        (["--high_roir", "1.5"], "from 0 to 1"),
    ],
)
def test_wrong_flags_exit_with_2_and_one_line(tree, tmp_path, capsys, flags, complaint):
    with pytest.raises(SystemExit) as error:
        positives.main(positive_flags(tree, tmp_path, *flags))
    assert error.value.code == 2
    assert complaint in capsys.readouterr().err


def test_folders_without_input_are_bad_input(tree, tmp_path):
    for flag in ("--data", "--base_path"):
        with pytest.raises(BadInput, match=f"{flag} .*: no "):
            positives.main(positive_flags(tree, tmp_path / "out", flag, str(tmp_path)))


def test_pixels_outside_the_slide_are_unscanned_and_background(tree):
    with pyramid.Slide(slide_path(tree, "patient_004_node_4"), 3) as slide:
        image, unscanned = slide.read(-4, -4, 8, 8)
    assert (~unscanned).sum() == 16 and (image[unscanned] == 255).all()


@pytest.mark.slow
def test_slides_from_a_real_texture_and_real_outlines(tmp_path):
    data = Path(os.environ.get("CAMELYON_FIXTURES", ""))
    texture, outlines = data / "CMU-1-Small-Region.svs", data / "camelyon16" / "lesion_annotations"
    if not texture.exists() or not outlines.exists():
        pytest.skip("needs CMU-1-Small-Region.svs and camelyon16/lesion_annotations in CAMELYON_FIXTURES")
    flags = ["--out", tmp_path, "--width", 3072, "--height", 3072, "--annotated", 1, "--negative", 1, "--workers", 1]
    make_slides.main(list(map(str, [*flags, "--texture", texture, "--outlines", outlines])))
    assert positives.main(positive_flags(tmp_path, tmp_path / "crops")) == 0
    assert len(pd.read_csv(tmp_path / "crops" / NAME / "crops.csv")) > 50


def test_record_files_hold_what_the_report_prints(cut):
    records = [json.loads(path.read_text()) for path in cut.glob("records/*.json")]
    assert sum(len(record["rows"]) for record in records) == len(pd.read_csv(cut / "crops.csv"))


def test_the_record_of_a_slide_counts_every_lesion_once(cut):
    for path in cut.glob("records/*.json"):
        record = json.loads(path.read_text())
        rejected = sum(n for reason, n in record["counts"].items() if reason.startswith("lesion rejected"))
        assert sum(map(len, record["misfits"].values())) == rejected


@pytest.mark.slow
def test_flags_that_would_fit_the_rejected_lesions_are_said(tree, tmp_path, capsys):
    assert (
        positives.main(positive_flags(tree, tmp_path, "--size", "300", "--low_roir", "0.2", "--high_roir", "0.5")) == 0
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if "lesions are too small for --size 300" in line]
    size, fitting, ratio = re.search(r"--size (\d+) fits (\d+) of them, --low_roir (\S+) all", lines[0]).groups()
    n = int(lines[0].split()[0])
    assert (
        positives.main(positive_flags(tree, tmp_path, "--size", "300", "--low_roir", ratio, "--high_roir", "0.5")) == 0
    )
    assert "too small" not in capsys.readouterr().out
    assert 0 < int(fitting) <= n
    assert (
        positives.main(positive_flags(tree, tmp_path, "--size", size, "--low_roir", "0.2", "--high_roir", "0.5")) == 0
    )
    assert len(pd.read_csv(next(tmp_path.glob(f"*_size_{size}_*")) / "crops.csv")) >= K


def test_the_end_says_where_the_previews_are(tree, tmp_path, capsys):
    assert negatives.main(negative_flags(tree, tmp_path, "--preview")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"previews in {tmp_path / 'previews'}"


def test_each_extractor_refuses_the_others_folder(tree, cut, tmp_path):
    folder = shutil.copytree(cut, tmp_path / NAME)
    with pytest.raises(BadInput, match=r"extraction\.json: is of positive crops"):
        negatives.main(negative_flags(tree, folder))
    assert contents(folder) == contents(cut)
    shutil.rmtree(folder)
    assert negatives.main(negative_flags(tree, folder)) == 0
    with pytest.raises(BadInput, match=r"extraction\.json: is of negative crops"):
        positives.main(positive_flags(tree, tmp_path))


def test_only_files_of_the_extractor_are_removed(own_tree, cut, tmp_path):
    folder = shutil.copytree(cut, tmp_path / NAME)
    mine = [f"patient_004_node_4_3_{ending}.npy" for ending in ("mine", "1_0_mine", "1_0", "7", "1_0_img_old")]
    for name in mine:
        (folder / name).write_bytes(b"mine")
    (own_tree / "annotations" / "patient_004_node_4.xml").write_text("<ASAP_Annotations/>")
    assert positives.main(positive_flags(own_tree, tmp_path)) == 0
    left = {path.name for path in folder.glob("patient_004*")}
    assert left == set(mine) and all((folder / name).read_bytes() == b"mine" for name in mine)


@pytest.mark.parametrize("name", ["crops.csv", "manifest.json", "records/a.json", "valid/a.npy"])
def test_a_folder_with_files_of_others_is_refused(tree, tmp_path, name):
    path = tmp_path / NAME / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(BadInput, match="of another program"):
        positives.main(positive_flags(tree, tmp_path))
    assert path.read_text() == "mine"


def test_a_table_edited_by_hand_is_kept_and_named(tree, cut, tmp_path, capsys):
    folder = shutil.copytree(cut, tmp_path / NAME)
    table, sums = folder / "crops.csv", folder / "manifest.json"
    table.write_text("\n".join(table.read_text().splitlines()[:20]))
    edited, content = table.read_text(), json.loads(sums.read_text())
    del content["crc32"]["crops.csv"]
    sums.write_text(json.dumps(content))
    assert positives.main(positive_flags(tree, tmp_path)) == 0  # all crops are there
    assert f"{table}: kept" in capsys.readouterr().out
    (folder / "records" / "patient_060_node_3.json").unlink()
    assert positives.main(positive_flags(tree, tmp_path)) == 1  # crops were cut that the table may not list
    assert f"{table}: kept" in capsys.readouterr().err
    assert table.read_text() == edited and "crops.csv" not in Manifest(folder).entries
    table.unlink()
    assert positives.main(positive_flags(tree, tmp_path)) == 0
    assert contents(folder) == contents(cut)


@pytest.mark.parametrize("name", ["records", "valid", "test", "previews", ""])
def test_links_in_place_of_the_extractors_folders_are_not_followed(tree, tmp_path, name):
    folder, elsewhere = tmp_path / NAME, tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder.parent if name == "" else folder).mkdir(exist_ok=True)
    (folder / name).symlink_to(elsewhere)
    if name == "previews":
        assert positives.main(positive_flags(tree, tmp_path, "--preview")) == 1
    else:
        with pytest.raises(BadInput, match="is a link where a folder is to be written"):
            positives.main(positive_flags(tree, tmp_path))
    assert not list(elsewhere.iterdir())


def test_a_link_in_place_of_a_crop_is_not_followed(tree, cut, tmp_path, capsys):
    folder, precious = shutil.copytree(cut, tmp_path / NAME), tmp_path / "precious"
    precious.write_text("precious")
    crop = sorted(folder.glob("patient_020*_img.npy"))[0]
    crop.unlink()
    crop.symlink_to(precious)
    assert positives.main(positive_flags(tree, tmp_path)) == 1
    assert f"{crop}: is a link" in capsys.readouterr().err
    assert precious.read_text() == "precious" and crop.is_symlink()


def put_pipe(path):
    os.mkfifo(path)


def put_device(path):
    path.symlink_to("/dev/zero")


def put_link_to_itself(path):
    path.symlink_to(path.name)


def test_what_a_file_calls_its_slides_commands_no_terminal(capsys):
    report.print_problems(["labels.csv: pati\x1b[31ment: expected a slide"], sys.stdout)
    assert capsys.readouterr().out.startswith("labels.csv: pati?[31ment: expected a slide\n1 problems")


@pytest.mark.parametrize("put", [put_pipe, put_device, put_link_to_itself, Path.mkdir])
@pytest.mark.parametrize("what", ["slide", "xml", "mask", "labels", "extraction.json", "records", "crops.csv", "crop"])
def test_what_is_no_file_is_named_and_not_waited_on(tree, cut, tmp_path, capsys, what, put):
    name, work = "patient_004_node_4", tmp_path / "tree"
    shutil.copytree(tree, work, copy_function=os.link)
    folder = shutil.copytree(cut, tmp_path / NAME)
    path = {
        "slide": slide_path(work, name),
        "xml": work / "annotations" / f"{name}.xml",
        "mask": work / "masks" / f"{name}_mask.tif",
        "labels": work / "stage_labels.csv",
        "records": folder / "records" / f"{name}.json",
        "crop": sorted(folder.glob(f"{name}*_img.npy"))[0],
    }.get(what, folder / what)
    path.unlink()
    put(path)
    run = functools.partial(positives.main, positive_flags(work, tmp_path))
    if what == "labels":
        run = functools.partial(negatives.main, negative_flags(work, tmp_path / "new"))
    elif what == "mask":
        run = functools.partial(positives.main, positive_flags(work, tmp_path / "new", "--data", str(work / "masks")))
    elif what in ("slide", "xml"):
        run = functools.partial(positives.main, positive_flags(work, tmp_path / "new"))
    if what in ("labels", "extraction.json", "crops.csv"):
        with pytest.raises(BadInput, match=re.escape(str(path))):
            run()
    else:
        assert run() == 1
        complaints = capsys.readouterr().err.splitlines()
        assert len(complaints) == 2 and str(path) in complaints[0]


def test_a_table_of_labels_with_a_million_columns_is_refused(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("patient,stage," + ",".join(map(str, range(10**6))) + "\n")
    with pytest.raises(BadInput, match=r"labels\.csv: has 1,000,002 columns"):
        slides.read_labels(path)
