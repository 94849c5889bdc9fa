import imageio.v3 as iio
import numpy as np
import pytest

from common.errors import BadInput
from data.photos import list_images, read_image

RGB = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.npy", "A.PNG"])
def test_a_picture_keeps_its_pixels(tmp_path, name):
    path = tmp_path / name
    np.save(path, RGB) if name.endswith("npy") else iio.imwrite(path, RGB, extension=path.suffix.lower())
    np.testing.assert_array_equal(read_image(path), RGB)


def test_grey_is_repeated_alpha_dropped_and_sixteen_bits_become_eight(tmp_path):
    grey, alpha = RGB[..., 0], np.dstack([RGB, RGB[..., :1]])
    iio.imwrite(tmp_path / "grey.png", grey)
    iio.imwrite(tmp_path / "alpha.png", alpha)
    iio.imwrite(tmp_path / "deep.tif", grey.astype(np.uint16) * 257)
    np.save(tmp_path / "unit.npy", grey / 255)
    for name in ("grey.png", "deep.tif", "unit.npy"):
        np.testing.assert_array_equal(read_image(tmp_path / name), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), RGB)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"BM" + bytes(60)])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.npy"])
def test_what_is_no_picture_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=name):
        read_image(tmp_path / name)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 7), np.uint8), np.zeros((0, 4), np.uint8), np.full((4, 4), np.nan)])
def test_an_array_that_is_no_picture_is_named(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadInput, match=r"a\.npy: expected"):
        read_image(tmp_path / "a.npy")


def test_pictures_are_found_below_a_folder_in_one_order(tmp_path):
    for name in ("b/2.png", "b/1.jpg", "a.TIF", ".hidden.png", "note.txt", "c_seg.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == ["a.TIF", "b/1.jpg", "b/2.png"]
    with pytest.raises(BadInput, match="no pictures"):
        list_images(tmp_path, (".bmp",))
    with pytest.raises(BadInput, match="no such folder"):
        list_images(tmp_path / "none")
