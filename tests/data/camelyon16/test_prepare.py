import itertools
import os
import re
import shutil
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from common.errors import BadInput
from data.camelyon import make_slides
from data.camelyon16 import patches, prepare, stain
from data.camelyon16.scan import Scan
from data.photos import read_image
from data.slides.annotations import read_xml
from tests.data.slides.oracle import winding_numbers

NAME = re.compile(r"(.+)_(normal|tumor)_x_(\d+)_y_(\d+)_w_768_h_768\.jpg")
SETS = [f"{kind}/{split}" for kind in ("normal", "tumor") for split in ("train", "test")]
MOST = 3  # patches of a slide, so that it takes seconds
TARGET = ["--x", "1536", "--y", "1600", "--w", "1000", "--h", "900"]


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Four made slides, a normal one and one with tumour for training and for test; read only."""
    root = tmp_path_factory.mktemp("camelyon16")
    flags = ["--layout", "camelyon16", "--annotated", "1", "--negative", "1", "--workers", "1"]
    data = Path(os.environ.get("CAMELYON_FIXTURES", ""))
    if (data / "camelyon16" / "lesion_annotations").is_dir():
        flags += ["--outlines", str(data / "camelyon16" / "lesion_annotations")]
    make_slides.main(["--out", str(root), *flags])
    return root


def run(root, *steps, flags=()):
    """Run steps in a root, on one process."""
    return prepare.main(
        [*map(str, steps), "--root", str(root), "--workers", "1", "--per_slide", str(MOST), *map(str, flags)]
    )


@pytest.fixture(scope="module")
def prepared(slides):
    """All steps, done; read only."""
    source = slides / "training" / "normal" / "normal_001.tif"
    assert run(slides, "all", flags=["--source_image_path", source, *TARGET]) == 0
    return slides


@pytest.fixture
def own(prepared, tmp_path):
    """A copy to change."""
    return shutil.copytree(prepared, tmp_path / "own", copy_function=shutil.copy)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_patches_are_what_their_names_say(prepared):
    for part in SETS:
        kind, split = part.split("/")
        found = sorted((prepared / "patches" / part).glob("*"))
        found = [path for path in found if path.is_file()]
        assert 1 <= len(found) <= MOST
        for path in found:
            slide, of, row, column = NAME.fullmatch(path.name).groups()
            row, column = int(row), int(column)
            assert of == kind and row % 768 == column % 768 == 0
            folder = "testing/images" if split == "test" else f"training/{kind}"
            with Scan(prepared / folder / f"{slide}.tif") as scan:
                expected = scan.read(row, column, 768, 768)
            assert np.abs(read_image(path).astype(int) - expected).mean() < 6  # JPEG
            assert read_image(path).mean(axis=(0, 1))[1] < 225  # tissue, not glass


@pytest.mark.slow
def test_patches_of_tumour_lie_in_it_as_a_whole(prepared):
    for split in ("training", "testing"):
        part = {"training": "train", "testing": "test"}[split]
        for path in (prepared / "patches" / "tumor" / part).glob("*.jpg"):
            slide, _, row, column = NAME.fullmatch(path.name).groups()
            lesions, cut_outs, _ = read_xml(prepared / split / "lesion_annotations" / f"{slide}.xml")
            ys, xs = (int(corner) + 128 + 256 * np.arange(3) for corner in (row, column))
            inside = [winding_numbers(ring, xs, ys)[0] != 0 for ring in lesions]
            hole = [winding_numbers(ring, xs, ys)[0] != 0 for ring in cut_outs]
            assert np.any(inside, axis=0).all() and not np.any(hole)


@pytest.mark.slow
def test_normalised_patches_have_the_targets_stains(prepared):
    target = stain.atoms_of(read_image(prepared / "stain_target.png"))
    for part in SETS:
        for path in (prepared / "normalised" / part).glob("*.jpg"):
            expected = stain.normalised(read_image(prepared / "patches" / part / path.name), target)
            assert np.abs(read_image(path).astype(int) - expected).mean() < 6


@pytest.mark.slow
def test_the_target_is_the_region_of_the_slide(prepared):
    with Scan(prepared / "training" / "normal" / "normal_001.tif") as scan:
        assert (read_image(prepared / "stain_target.png") == scan.read(1536, 1600, 900, 1000)).all()


@pytest.mark.slow
def test_lists_and_scales_hold_every_patch(prepared):
    names = {part: sorted(path.name for path in (prepared / "normalised" / part).glob("*.jpg")) for part in SETS}
    for part, own in names.items():
        listed = prepared / "splits" / "healthy" / part.replace("tumor", "anomaly")
        assert listed.read_text().splitlines() == own
    for scale, side in (("x40", 768), ("x20", 384), ("x10", 192)):
        found = sorted((prepared / scale).iterdir())
        assert [path.name for path in found] == sorted(itertools.chain(*names.values()))
        assert {imageio.imread(path).shape for path in found} == {(side, side, 3)}
    whole, small = (read_image(prepared / scale / names[SETS[0]][0]) for scale in ("x40", "x10"))
    means = whole.reshape(192, 4, 192, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - means).mean() < 8


@pytest.mark.slow
def test_the_same_command_writes_nothing_and_what_is_lost_is_made_again(own, capsys):
    before, times = contents(own), {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    source = own / "training" / "normal" / "normal_001.tif"
    flags = ["--source_image_path", source, *TARGET]
    assert run(own, "all", flags=flags) == 0
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*") if path.is_file()} == {
        path: time for path, time in times.items() if path.is_file()
    }
    lost = [next(own.glob(pattern)) for pattern in ("training/lesion_json/*", "testing/lesion_masks/*")]
    lost += [next(own.glob(f"{stage}/*/*.jpg")) for stage in ("patches/normal", "normalised/tumor")]
    lost += [next(own.glob(f"{scale}/*.jpg")) for scale in ("x40", "x20", "x10")]
    lost += [next(own.glob("patches/tumor/test/records/*")), own / "splits" / "healthy" / "normal" / "test"]
    for path in lost:
        path.unlink()
    capsys.readouterr()
    assert run(own, "all", flags=flags) == 0
    assert contents(own) == before
    assert "1 patches normalised" in capsys.readouterr().out


@pytest.mark.slow
def test_patches_are_the_same_for_any_number_of_processes(prepared, tmp_path):
    out = {split: tmp_path / split for split in ("train", "test")}
    flags = [word for split in out for word in (f"--output_normal_patches_{split}_dir", out[split])]
    assert run(prepared, 3, flags=[*flags, "--workers", 2]) == 0
    for split, folder in out.items():
        assert contents(folder) == contents(prepared / "patches" / "normal" / split)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--seed", 1], ["--border", 2], ["--per_slide", 4]])
def test_other_flags_in_the_same_folder_are_refused(prepared, flags):
    with pytest.raises(
        BadInput, match="patches were cut with --seed 0 --border auto --per_slide 3; choose another folder"
    ):
        run(prepared, 3, flags=flags)


@pytest.mark.slow
def test_patches_of_another_program_are_kept_and_named(own, capsys):
    folder = own / "patches" / "normal" / "train"
    stranger = folder / "normal_001_normal_x_0_y_0_w_768_h_768.jpg"
    stranger.write_text("mine")
    shutil.rmtree(folder / "records")
    assert run(own, 3) == 1
    assert f"{stranger}: is there, but not a patch that these flags give" in capsys.readouterr().err
    assert stranger.read_text() == "mine"


@pytest.mark.slow
def test_another_target_in_the_same_folder_is_refused(prepared, tmp_path):
    source = prepared / "training" / "tumor" / "tumor_001.tif"
    other = ["--output_stain_target_image_path", tmp_path / "other.png"]
    assert run(prepared, 5, flags=["--source_image_path", source, *TARGET, *other]) == 0
    with pytest.raises(BadInput, match="normalised to another stain target"):
        run(prepared, 6, flags=["--stain_target_image_path", tmp_path / "other.png"])


@pytest.mark.slow
def test_glass_is_left_as_it_is_and_counted(prepared, tmp_path, capsys):
    root = tmp_path / "root"
    for part in SETS:
        (root / "patches" / part).mkdir(parents=True)
    shutil.copy(prepared / "stain_target.png", root)
    glass = root / "patches" / "normal" / "train" / "a.jpg"
    imageio.imwrite(glass, np.random.default_rng(0).integers(235, 250, (96, 96, 3)).astype(np.uint8))
    assert run(root, 6) == 0
    assert "normal train: 0 patches normalised, 1 of glass alone left as they are" in capsys.readouterr().out
    assert (root / "normalised" / "normal" / "train" / "a.jpg").read_bytes() == glass.read_bytes()


@pytest.mark.slow
def test_slides_that_are_excluded_or_damaged_are_named_and_the_others_done(own, capsys, monkeypatch):
    monkeypatch.setitem(patches.EXCLUDED, "test_002", "blurred")
    shutil.rmtree(own / "patches")
    (own / "training" / "normal" / "normal_002.tif").write_bytes(b"damaged")
    assert run(own, 3) == 1
    captured = capsys.readouterr()
    assert "test_002: left out: blurred" in captured.out and "normal test: 0 patches of 0 slides" in captured.out
    assert f"normal train: {MOST} patches of 1 slides" in captured.out
    assert captured.err.count("normal_002.tif: not readable as a slide") == 1


@pytest.mark.slow
def test_a_mask_of_another_size_is_named(own, capsys):
    shutil.rmtree(own / "patches" / "tumor" / "train")
    mask = own / "training" / "lesion_masks" / "tumor_001.png"
    imageio.imwrite(mask, np.zeros((7, 9), np.uint8))
    assert run(own, 4) == 1
    assert f"{mask}: mask and level 8 of the slide differ: 9 x 7 and 24 x 24 px" in capsys.readouterr().err
    mask.unlink()
    assert run(own, 4) == 1
    assert f"{mask}: No such file" in capsys.readouterr().err


def test_the_real_region_gives_patches_of_x40(tmp_path):
    source = Path(os.environ.get("CAMELYON_FIXTURES", "")) / "CMU-1-Small-Region.svs"
    if not source.is_file():
        pytest.skip("needs CMU-1-Small-Region.svs in CAMELYON_FIXTURES")
    for name in ("training/normal/normal_001.svs", "testing/images/test_001.svs"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).symlink_to(source)
    (tmp_path / "testing" / "reference.csv").write_text("test_001,Normal,None,None\n")
    assert run(tmp_path, 3) == 0
    for split, slide in (("train", "normal_001"), ("test", "test_001")):
        found = sorted(path.name for path in (tmp_path / "patches" / "normal" / split).glob("*.jpg"))
        assert len(found) == MOST and all(NAME.fullmatch(name)[1] == slide for name in found)
        assert all(int(NAME.fullmatch(name)[3]) <= 5934 - 768 for name in found)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n", {"test_001": "tumor", "test_002": "normal"}),
        ("name,type,x\ntest_001.tif,Normal,None\n", {"test_001": "normal"}),
    ],
)
def test_reference_lists_are_read_with_and_without_a_header(tmp_path, content, expected):
    (tmp_path / "reference.csv").write_text(content)
    assert patches.read_reference(tmp_path / "reference.csv") == expected


@pytest.mark.parametrize("content", ["", "a,b\n", "test_001,Tumor\ntest_002,maybe\n"])
def test_what_is_no_reference_list_is_named(tmp_path, content):
    (tmp_path / "reference.csv").write_text(content)
    with pytest.raises(BadInput, match=r"reference\.csv"):
        patches.read_reference(tmp_path / "reference.csv")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["10"], "STEP 10: expected 1 to 9, or all"),
        (["first"], "STEP first: expected 1 to 9, or all"),
        (["3", "--x", "1"], "--x: not a flag of step 3"),
        (["1", "2", "--tumor_train_dir", "a"], "--tumor_train_dir: not a flag of step 1, 2"),
        (["all", "--output_normal_patches_train_dir", "a"], "means another folder in each of the steps [3, 6]"),
        (["6", "7", "--normal_patches_train_dir", "a"], "means another folder in each of the steps [6, 7]"),
        (["3", "--border", "wide"], "expected auto or a whole number of 0 or more, got 'wide'"),
    ],
)
def test_wrong_flags_are_one_line(argv, said, capsys):
    with pytest.raises(SystemExit) as exit_info:
        prepare.parse_args(argv)
    assert exit_info.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("step", range(1, 10))
def test_a_root_without_slides_is_named(tmp_path, step):
    with pytest.raises(BadInput, match=rf"--\w+ {re.escape(str(tmp_path))}/.*: no such (file|folder)") as error:
        run(tmp_path, step)
    assert ("makes it" in str(error.value)) == (step not in (1, 3, 4, 5)) and not list(tmp_path.iterdir())


def test_a_step_does_not_write_where_it_reads(tmp_path):
    flags = ["--image_dir_x40", tmp_path, "--output_dir_x10", tmp_path]
    with pytest.raises(BadInput, match=r"--output_dir_x10 .* is the folder of --image_dir_x40 too"):
        run(tmp_path, 9, flags=flags)
    same = tmp_path / "b" / ".." / "a"
    with pytest.raises(BadInput, match=r"is the folder of --output_dir_x20 too"):
        run(
            tmp_path,
            9,
            flags=["--image_dir_x40", tmp_path, "--output_dir_x20", tmp_path / "a", "--output_dir_x10", same],
        )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--x", "6000"], "--x 6000 --y 23808 --w 2816 --h 2816: not within"),
        ([*TARGET, "--y", "-1"], "--y -1 --w 1000 --h 900: not within"),
        (["--x", "0", "--y", "0", "--w", "90", "--h", "90"], "holds no tissue"),
        (["--output_stain_target_image_path", "target.gif"], "target.gif: expected a name that ends in .png or .jpg"),
    ],
)
def test_a_target_that_cannot_be_cut_is_named(slides, flags, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = slides / "training" / "normal" / "normal_001.tif"
    flags = ["--output_stain_target_image_path", tmp_path / "target.png", "--source_image_path", source, *flags]
    with pytest.raises(BadInput, match=re.escape(said)):
        run(slides, 5, flags=flags)
    assert not list(tmp_path.iterdir())
