"""A mask TIFF -> the lesion mask of a slide's level, read tile by tile."""

import logging
from pathlib import Path

import numpy as np

from common.errors import BadInput
from data.slides import lesion_mask
from data.slides.lesion_mask import LesionMask, Runs, array_runs, union
from data.slides.pyramid import MAX_TILE, Slide, check_level, check_pages

LOSSY = {6: "JPEG", 7: "JPEG", 33007: "JPEG", 34892: "JPEG"}  # TIFF's compression tags that say so by themselves
JPEG_2000, WEBP = {33003, 33004, 33005, 34712}, {50001}  # either kind


def mask_from_tiff(path: Path, slide: Slide) -> LesionMask:
    """Lesion is 1 in a mask of 0, 1, 2, and 255 in one of 0, 255; read tile by tile, cut to the common size.

    BadInput: not a tiled TIFF, damaged, compressed lossily, other values, more runs than memory is there for, no such
    level, or a level that differs from the slide's by a tile or more.
    """
    lesions: list[Runs] = []
    values, n_runs = {0}, 0
    for y, x, tile in _mask_tiles(path, slide):
        common = tile[: max(0, slide.shape[0] - y), : max(0, slide.shape[1] - x)]
        if not common.any():
            continue
        lesions.append(array_runs(_lesion_pixels(path, common, values), y, x))
        n_runs += len(lesions[-1].rows)
        if 2 * n_runs > lesion_mask.MAX_CROSSINGS:
            raise BadInput(
                f"{path}: has more than {lesion_mask.MAX_CROSSINGS // 2:,} runs of lesion pixels, which no lesions need"
            )
    return LesionMask(slide.shape, union(lesions))


def _lesion_pixels(path: Path, part: np.ndarray, values: set[int]) -> np.ndarray:
    """Where a part of a mask is lesion, bool of its shape: 1 of the values 0, 1, 2, and 255 of 0, 255.

    `values`: those of the parts before, to which its own are added. BadInput when together they are of neither kind.
    """
    values.update(np.unique(part).tolist())
    if not (values <= {0, 1, 2} or values <= {0, 255}):
        found = ", ".join(map(str, sorted(values)[:8])) + ", ..." * (len(values) > 8)
        raise BadInput(f"{path}: holds the values {found}, expected 0, 1 and 2, or 0 and 255")
    return (part == 1) | (part == 255)


def _mask_tiles(path, slide):
    """Yield y, x and pixels of each stored tile of the slide's level; exact values, which OpenSlide would blend."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of is said below, in one line
    check_pages(path)
    try:
        with tifffile.TiffFile(path) as file:
            levels = sorted((page for page in file.pages if page.is_tiled), key=lambda page: -page.imagewidth)
            if not levels:
                raise BadInput(f"{path}: expected a tiled TIFF")
            check_level(path, slide.level, [_downsample(levels[0], page, 2**i) for i, page in enumerate(levels)])
            page = levels[slide.level]
            _check_mask_page(path, page, slide)
            for values, (_, _, y, x, _), shape in page.segments(maxworkers=1, buffersize=2**24):
                if values is not None:  # else all zero
                    yield y, x, values[0, : shape[1], : shape[2], 0]
    except (BadInput, OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise BadInput(f"{path}: not readable as a tiled TIFF: {error}") from None


def _downsample(base, page, expected):
    """How many times narrower than its base a level is; `expected` if it is so when rounded or filled up with tiles."""
    more = page.imagewidth - base.imagewidth / expected
    filled = page.imagewidth % page.tilewidth == 0 and 0 <= more < page.tilewidth
    return expected if abs(more) < 1 or filled else base.imagewidth / page.imagewidth


def _check_mask_page(path, page, slide):
    """BadInput unless a mask's level holds a byte per pixel, losslessly, in the slide's size but for part of a tile."""
    if page.samplesperpixel != 1 or page.dtype != np.uint8 or max(page.tilewidth, page.tilelength) > MAX_TILE:
        raise BadInput(f"{path}: expected one byte per pixel, in tiles of up to {MAX_TILE} px")
    lossy = _lossy_compression(page)
    if lossy:
        raise BadInput(f"{path}: stored as {lossy}, which changes values; expected a lossless compression like deflate")
    shape, tile = (page.imagelength, page.imagewidth), max(slide.tile, page.tilewidth, page.tilelength)
    if max(abs(a - b) for a, b in zip(shape, slide.shape, strict=True)) >= tile:
        sizes = " and ".join("{1} x {0}".format(*each) for each in (shape, slide.shape))
        raise BadInput(f"{path}: level {slide.level} of mask and slide differ by a tile or more: {sizes} px")


def _lossy_compression(page):
    """Name of the compression that changed the pixels; None where none is known to have done so."""
    first = next((at for at in zip(page.dataoffsets, page.databytecounts, strict=True) if at[1]), None)
    if first is None or page.compression not in JPEG_2000 | WEBP:
        return LOSSY.get(page.compression)
    file = page.parent.filehandle
    file.seek(first[0])
    content = file.read(min(first[1], 2**16))
    if page.compression in WEBP:
        return "lossy WebP" if content[12:16] == b"VP8 " else None
    return "lossy JPEG 2000" if _is_irreversible(content) else None


def _is_irreversible(codestream):
    """Whether the COD marker of a JPEG 2000 codestream names the 9-7 transform, which loses, not the 5-3 one."""
    at = codestream.find(b"\xff\x4f\xff\x51") + 2  # markers follow one another, each with its length
    while 2 <= at < len(codestream) - 13 and codestream[at : at + 2] != b"\xff\x52":
        at += 2 + int.from_bytes(codestream[at + 2 : at + 4], "big")
    return codestream[at + 13 : at + 14] == b"\0"
