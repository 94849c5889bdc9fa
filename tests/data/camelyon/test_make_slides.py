import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from common.errors import BadInput
from data.camelyon import make_slides, slides
from data.camelyon.layouts import Camelyon17
from data.slides import annotations, pyramid


@pytest.mark.slow
def test_the_tree_has_the_shape_of_camelyon17(tmp_path):
    flags = "--width 3072 --height 2048 --annotated 1 --negative 1 --workers 1"
    make_slides.main(["--out", str(tmp_path), *flags.split()])
    found = slides.find_slides(tmp_path / "training")
    labels = slides.read_labels(tmp_path / "stage_labels.csv")
    assert {slides.resolve_slide(name, files, labels)[1] for name, files in found.items()} == {0, 1, 2, 3, 4}
    assert not labels.unclear(found) and sum(labels.stages[name] == {"negative"} for name in found) == 5
    table = pd.read_csv(tmp_path / "stage_labels.csv")
    assert table["patient"].str.endswith(".zip").sum() == 10
    for path in (tmp_path / "annotations").glob("*.xml"):
        lesions, cut_outs, ignored = annotations.read_xml(path)
        assert len(cut_outs) == 1 and not ignored
        assert len(lesions) > 10
    for path in (tmp_path / "masks").glob("*.tif"):
        assert set(np.unique(tifffile.imread(path, key=0))) == {0, 1, 2}


def test_a_slide_has_an_unscanned_corner_and_the_resolution_of_its_scanner(tmp_path):
    name = "patient_060_node_3"
    args = make_slides.parse_args(["--out", str(tmp_path), "--width", "2048", "--height", "2048"])
    for part in ("training/center_3", "annotations", "masks"):
        (tmp_path / part).mkdir(parents=True)
    make_slides.make_slide(name, {name: "many"}, make_slides.texture_squares(None), [], args)
    with pyramid.Slide(tmp_path / "training" / "center_3" / f"{name}.tif", 3) as slide:
        image, unscanned = slide.read(0, 0, *slide.shape)
        assert slide.shape == (256, 256)
        assert abs(slide.mpp - Camelyon17.mpp[3]) < 1e-6
    assert unscanned[-40:, -40:].all() and not unscanned[:, :128].any()
    assert image[100:150, 100:150, 1].mean() < 200  # tissue
    assert image[:5, :5].min() > 230  # background


def test_lesions_reach_from_a_handful_of_pixels_to_thousands():
    rng = np.random.default_rng(0)
    textures = make_slides.make_textures(make_slides.texture_squares(None)[0], 0, rng)
    painting = make_slides.paint((768, 768), Camelyon17.set_areas, 1, textures, [], rng)
    areas = sorted(lesion.area for lesion in painting.lesions.lesions())
    assert areas[0] < 12 and areas[-1] > 2000 and len(areas) > 12


@pytest.fixture
def one_slide(tmp_path, monkeypatch):
    """The command line of a tree with a single slide."""
    monkeypatch.setattr(Camelyon17, "slide_names", lambda *_: {"patient_004_node_4": "many"})
    return ["--out", str(tmp_path / "out"), "--width", "2048", "--height", "2048", "--workers", "1"]


def states(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_the_same_command_leaves_what_is_there_and_makes_what_is_missing(one_slide, tmp_path):
    make_slides.main(one_slide)
    before = states(tmp_path)
    assert len(before) == 5
    make_slides.main(one_slide)
    assert states(tmp_path) == before
    mask = tmp_path / "out" / "masks" / "patient_004_node_4_mask.tif"
    mask.unlink()
    (tmp_path / "out" / "stage_labels.csv").write_text("mine")
    make_slides.main(one_slide)
    after = states(tmp_path)
    assert {path for path in before if after[path] != before[path]} == {mask, tmp_path / "out" / "stage_labels.csv"}
    assert after[mask][1] == before[mask][1] and (tmp_path / "out" / "stage_labels.csv").read_text() == "mine"


@pytest.mark.parametrize("name", ["stage_labels.csv", "training/center_0/patient_004_node_4.tif"])
def test_files_of_others_are_named_and_kept(one_slide, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(BadInput, match=f"{name}: is there already"):
        make_slides.main(one_slide)
    assert [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["mine"]


def test_other_flags_in_the_same_folder_are_refused(one_slide, tmp_path):
    make_slides.main(one_slide)
    before = states(tmp_path)
    with pytest.raises(BadInput, match=r"^--out .*: was made with --seed 0 \(now 1\); choose another"):
        make_slides.main([*one_slide, "--seed", "1"])
    assert states(tmp_path) == before


def test_links_in_place_of_folders_are_not_followed(one_slide, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="training: is a link"):
        make_slides.main(one_slide)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("outlines", ["blobs", "real"])
def test_the_other_layout_is_camelyon16s(tmp_path, outlines):
    size = ["--width", "3072", "--height", "3072", "--annotated", "1", "--negative", "1", "--workers", "1"]
    flags = ["--layout", "camelyon16", *size]
    if outlines == "real":
        folder = Path(os.environ.get("CAMELYON_FIXTURES", "")) / "camelyon16" / "lesion_annotations"
        if not folder.is_dir():
            pytest.skip("needs camelyon16/lesion_annotations in CAMELYON_FIXTURES")
        flags += ["--outlines", str(folder)]
    make_slides.main(["--out", str(tmp_path), *flags])
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.tif"))
    names = ["testing/images/test_001", "testing/images/test_002", "training/normal/normal_001"]
    assert found == [f"{name}.tif" for name in [*names, "training/tumor/tumor_001"]]
    assert (tmp_path / "testing" / "reference.csv").read_text().splitlines() == [
        "test_001,Tumor,IDC,Macro",
        "test_002,Normal,None,None",
    ]
    annotated = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.xml"))
    assert annotated == ["testing/lesion_annotations/test_001.xml", "training/lesion_annotations/tumor_001.xml"]
    for name in annotated:
        text = (tmp_path / name).read_text()
        assert all(f'PartOfGroup="{group}"' in text for group in ("Tumor", "_0", "_1", "_2"))
        lesions, cut_outs, ignored = annotations.read_xml(tmp_path / name)
        assert len(lesions) > 3 and len(cut_outs) == 1 and not ignored


def test_pieced_tissue_is_that_of_the_picture_and_another_for_every_slide():
    squares = make_slides.texture_squares(None)
    one, other = (make_slides.piece_together(squares, 256, np.random.default_rng(seed)) for seed in (1, 2))
    assert one.shape == (256, 256, 3) and one.dtype == np.uint8
    assert np.abs(one.mean(axis=(0, 1)) - squares[0].mean(axis=(0, 1))).max() < 20
    correlation = np.corrcoef(one[..., 1].ravel(), other[..., 1].ravel())[0, 1]
    assert abs(correlation) < 0.5
    assert (one == make_slides.piece_together(squares, 256, np.random.default_rng(1))).all()


def test_tissue_of_their_own_is_another_tree(one_slide):
    make_slides.main(one_slide)
    with pytest.raises(BadInput, match=r"was made with --own_tissue None \(now True\)"):
        make_slides.main([*one_slide, "--own_tissue"])
