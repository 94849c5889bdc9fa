"""Levels and masks are read pixel by pixel, whatever the sizes; damaged or unusable files are named."""

import struct

import numpy as np
import pytest
import tifffile

from common.errors import BadInput
from data.slides import annotations, pyramid


@pytest.fixture(scope="module")
def odd_slide(tmp_path_factory):
    """A slide of 8007 px, no multiple of 8, with its mask, 8003 px; only level 3 holds a picture, of noise."""
    folder, rng = tmp_path_factory.mktemp("odd"), np.random.default_rng(0)
    pixels = rng.integers(1, 256, (1000, 1000, 3), dtype=np.uint8)
    mask = (rng.random((1000, 1000)) < 0.3).astype(np.uint8)
    for name, picture, side in [("slide.tif", pixels, 8007), ("mask.tif", mask, 8003)]:
        with tifffile.TiffWriter(folder / name) as tiff:
            for level in range(3):
                shape = (side >> level, side >> level, *picture.shape[2:])
                tiff.write(np.ones(shape, np.uint8), tile=(512, 512), compression="deflate", subfiletype=min(level, 1))
            tiff.write(picture, tile=(256, 256), compression="deflate", subfiletype=1)
    return folder, pixels, mask


def test_a_level_is_read_pixel_by_pixel_where_the_sides_are_no_multiples(odd_slide):
    folder, pixels, _ = odd_slide
    with pyramid.Slide(folder / "slide.tif", 3) as slide:
        for y, x in [(0, 0), (500, 300), (936, 936)]:
            image, _ = slide.read(y, x, 64, 64)
            difference = np.abs(image.astype(int) - pixels[y : y + 64, x : x + 64])
            assert difference.max() < 32  # OpenSlide blends a twentieth of the neighbours


@pytest.mark.parametrize("lesion", [1, 255])
def test_masks_are_read_exactly_where_the_sides_are_no_multiples(odd_slide, tmp_path, lesion):
    folder, _, mask = odd_slide
    path = folder / "mask.tif"
    if lesion != 1:
        path = tmp_path / "mask.tif"
        with tifffile.TiffFile(folder / "mask.tif") as old, tifffile.TiffWriter(path) as new:
            for i, page in enumerate(old.pages):
                new.write(page.asarray() * lesion, tile=(512, 512), compression="deflate", subfiletype=int(i > 0))
    with pyramid.Slide(folder / "slide.tif", 3) as slide:
        found = annotations.read_mask(path, slide)
    assert (found.window(0, 0, 1000, 1000) == (mask > 0)).all()


def write_mask(path, picture, levels=None, **options):
    """A mask pyramid; `levels` are the pictures of its levels where they are not every second pixel."""
    with tifffile.TiffWriter(path) as tiff:
        for i in range(4):
            level = picture[:: 2**i, :: 2**i] if levels is None else levels[i]
            flags = {"compression": "deflate"} | options
            tiff.write(np.ascontiguousarray(level), tile=(256, 256), subfiletype=int(i > 0), metadata=None, **flags)


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A slide of 2008 px, whose levels fill no whole tiles, and its mask: a disk of ones."""
    path = tmp_path_factory.mktemp("disk") / "slide.tif"
    write_mask(path, np.full((2008, 2008, 3), 150, np.uint8), photometric="rgb")
    y, x = np.mgrid[:2008, :2008]
    return path, ((y - 1000) ** 2 + (x - 1100) ** 2 < 300**2).astype(np.uint8)


def read_mask(disk, path):
    with pyramid.Slide(disk[0], 3) as slide:
        return annotations.read_mask(path, slide)


LOSSY = {
    "JPEG": {"compression": "jpeg", "compressionargs": {"level": 100}},
    "lossy JPEG 2000": {"compression": "jpeg2000", "compressionargs": {"level": 40, "reversible": False}},
}


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("kind", LOSSY)
def test_masks_of_lossy_compression_are_refused(disk, tmp_path, kind, value):
    path = tmp_path / "mask.tif"
    write_mask(path, disk[1] * np.uint8(value), photometric="minisblack", **LOSSY[kind])
    with pytest.raises(BadInput, match=f"mask.tif: stored as {kind}, which changes values"):
        read_mask(disk, path)


@pytest.mark.parametrize("options", [{}, {"compression": "jpeg2000", "compressionargs": {"reversible": True}}])
@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_lossless_compression_are_read(disk, tmp_path, value, options):
    write_mask(tmp_path / "mask.tif", disk[1] * np.uint8(value), photometric="minisblack", **options)
    found = read_mask(disk, tmp_path / "mask.tif").window(0, 0, 251, 251)
    assert (found == (disk[1][::8, ::8] == 1)).all()


@pytest.mark.parametrize("values", [(1, 255), (2, 255), (1, 3), (254,), (128, 255)])
def test_masks_of_other_or_mixed_values_are_refused(disk, tmp_path, values):
    picture = np.zeros_like(disk[1])
    for i, value in enumerate(values):
        picture[800 * i : 800 * i + 300] = value
    write_mask(tmp_path / "mask.tif", picture)
    with pytest.raises(
        BadInput, match=rf"mask.tif: holds the values 0, .*{values[-1]}.*expected 0, 1 and 2, or 0 and 255"
    ):
        read_mask(disk, tmp_path / "mask.tif")


@pytest.mark.parametrize("first", [0, 1])
def test_a_mask_whose_levels_are_filled_up_to_whole_tiles_is_cut_to_the_slides_size(disk, tmp_path, first):
    levels = [disk[1][:: 2**i, :: 2**i] for i in range(4)]
    for i in range(first, 4):
        levels[i] = np.pad(levels[i], [(0, -side % 256) for side in levels[i].shape])
    write_mask(tmp_path / "mask.tif", None, levels)
    found = read_mask(disk, tmp_path / "mask.tif").window(0, 0, 251, 251)
    assert (found == (disk[1][::8, ::8] == 1)).all()


def test_a_mask_with_a_level_of_another_downsample_is_refused(disk, tmp_path):
    write_mask(tmp_path / "mask.tif", None, [disk[1][::step, ::step] for step in (1, 2, 4, 16)])
    with pytest.raises(BadInput, match=r"level 3 is downsampled 15\.9. times, expected 8"):
        read_mask(disk, tmp_path / "mask.tif")


def chain_pages(path, more):
    """Let the last page of a TIFF lead to `more` others like it, or, without more, back to the first."""
    content = bytearray(path.read_bytes())
    pointer, first = 4, struct.unpack_from("<I", content, 4)[0]
    while page := struct.unpack_from("<I", content, pointer)[0]:
        last, pointer = page, page + 2 + 12 * struct.unpack_from("<H", content, page)[0]
    struct.pack_into("<I", content, pointer, len(content) if more else first)
    tags = bytes(content[last:pointer])
    for i in range(more):
        content += tags + struct.pack("<I", len(content) + len(tags) + 4 if i + 1 < more else 0)
    path.write_bytes(content)


@pytest.mark.parametrize("more", [0, 2000])
def test_slides_and_masks_whose_pages_have_no_end_are_refused(disk, tmp_path, more):
    path = tmp_path / "endless.tif"
    write_mask(path, disk[1])
    chain_pages(path, more)
    with pytest.raises(BadInput, match=r"endless\.tif: has more than 1,000 pages"):
        pyramid.Slide(path, 3)
    with pytest.raises(BadInput, match=r"endless\.tif: has more than 1,000 pages"):
        read_mask(disk, path)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pages_are_counted_in_every_kind_of_tiff(tmp_path, big, order):
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=big, byteorder=order) as tiff:
        for _ in range(3):
            tiff.write(np.zeros((16, 16), np.uint8))
    pyramid.check_pages(tmp_path / "a.tif")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(BadInput, match="more than 2 pages"):
        patch.setattr(pyramid, "MAX_PAGES", 2)
        pyramid.check_pages(tmp_path / "a.tif")
