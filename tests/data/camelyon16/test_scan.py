import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from common.errors import BadInput
from data.camelyon16.scan import Scan, find_scans


def write_slide(path, picture, um, n_levels):
    """A pyramid whose levels take every second pixel of the one before; um None: no resolution."""
    resolution = {} if um is None else {"resolution": (1e4 / um, 1e4 / um), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(n_levels):
            part = np.ascontiguousarray(picture[:: 2**level, :: 2**level])
            options = {"tile": (256, 256), "compression": "deflate", "photometric": "rgb", "metadata": None}
            tiff.write(part, subfiletype=int(level > 0), **options, **resolution)
    return path


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(1, 256, (1024, 1536, 3), dtype=np.uint8)


@pytest.mark.parametrize("um", [0.2265, 0.25, 0.27])
def test_a_slide_at_x40_is_read_as_it_is(tmp_path, picture, um):
    with Scan(write_slide(tmp_path / "a.tif", picture, um, 2)) as scan:
        assert (scan.shape, scan.factor, scan.note, scan.coarse_shape) == ((1024, 1536), 1, None, (4, 6))
        assert (scan.read(100, 200, 50, 60) == picture[100:150, 200:260]).all()


@pytest.mark.parametrize("n_levels", [1, 3])
def test_a_missing_level_8_is_averaged_from_the_nearest_finer_one(tmp_path, picture, n_levels):
    picture[:256, :256] = picture[300:320, 300:320] = 0  # the latter is a dark nucleus
    with Scan(write_slide(tmp_path / "a.tif", picture, 0.25, n_levels)) as scan:
        image, unscanned = scan.coarse()
    step = 2 ** (n_levels - 1)
    finest = picture[::step, ::step].reshape(4, 256 // step, 6, 256 // step, 3)
    assert np.abs(image - finest.mean(axis=(1, 3))).max() <= 0.5
    assert unscanned[0, 0] and unscanned.sum() == 1


def test_a_slide_at_x20_is_scaled_by_2_and_its_level_7_is_level_8(tmp_path, picture):
    smooth = (np.indices((1024, 1536)).sum(axis=0) // 12).astype(np.uint8)[..., None].repeat(3, 2) + 1
    with Scan(write_slide(tmp_path / "a.tif", smooth, 0.5, 1)) as scan:
        assert (scan.shape, scan.factor, scan.coarse_shape) == ((2048, 3072), 2, (8, 12))
        assert "x20" in scan.note
        for y, x in [(0, 0), (101, 201), (100, 1500)]:
            expected = smooth.repeat(2, 0).repeat(2, 1)[y : y + 64, x : x + 80]
            found = scan.read(y, x, 64, 80)
            assert found.shape == (64, 80, 3) and np.abs(found[2:, 2:].astype(int) - expected[2:, 2:]).max() <= 1
        assert np.abs(scan.coarse()[0] - smooth.reshape(8, 128, 12, 128, 3).mean(axis=(1, 3))).max() <= 0.5


def test_a_slide_without_resolution_is_taken_for_x40_with_a_note(tmp_path, picture):
    with Scan(write_slide(tmp_path / "a.tif", picture, None, 1)) as scan:
        assert scan.factor == 1 and "x40 assumed" in scan.note


def test_another_magnification_is_refused(tmp_path, picture):
    with pytest.raises(BadInput, match=r"a\.tif: scanned at 1 um per pixel, expected about 0\.25"):
        Scan(write_slide(tmp_path / "a.tif", picture, 1.0, 1))


def test_slides_of_a_folder(tmp_path, picture):
    for name in ("a.tif", "b.svs", ".c.tif", "d.txt"):
        (tmp_path / name).touch()
    assert find_scans(tmp_path, "test_dir") == {"a": tmp_path / "a.tif", "b": tmp_path / "b.svs"}
    (tmp_path / "a.svs").touch()
    with pytest.raises(BadInput, match=r"--test_dir .* expected one slide of a name"):
        find_scans(tmp_path, "test_dir")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"--test_dir .*empty: no \.tif or \.svs slides"):
        find_scans(tmp_path / "empty", "test_dir")


def test_the_real_region_is_one_of_x20(tmp_path):
    slide = Path(os.environ.get("CAMELYON_FIXTURES", "")) / "CMU-1-Small-Region.svs"
    if not slide.is_file():
        pytest.skip("needs CMU-1-Small-Region.svs in CAMELYON_FIXTURES")
    with Scan(slide) as scan:
        assert (scan.shape, scan.coarse_shape, scan.factor) == ((5934, 4440), (23, 17), 2)
        image, unscanned = scan.coarse()
        patch = scan.read(768, 1536, 768, 768)
    assert not unscanned.any()
    means = patch.reshape(3, 256, 3, 256, 3).mean(axis=(1, 3))
    assert np.abs(means - image[3:6, 6:9]).max() < 2
