"""Pictures of strangers: folders of photographs, scans and crops."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np

from common.errors import BadInput
from common.files import open_input, open_npy

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy")
MOST_BYTES = 2**30  # of a picture's file


def list_images(folder: Path, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Names of the pictures in and below a folder, relative to it, sorted. BadInput when it is none or has none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in extensions and path.name[0] != "."]
    names = sorted(path.relative_to(folder).as_posix() for path in found if not path.name.endswith("_seg.npy"))
    if not names:
        raise BadInput(f"{folder}: no pictures in it ({', '.join(extensions)})")
    return names


def read_image(path: Path) -> np.ndarray:
    """A picture as (H, W, 3) uint8: grey is repeated, an alpha channel dropped, 16 bits are scaled to 8.

    BadInput names a file that cannot be read as a picture.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        pixels = np.array(open_npy(path))
    else:
        try:
            with open_input(path, MOST_BYTES) as file:
                plugin = "tifffile" if path.suffix.lower() in (".tif", ".tiff") else "pillow"
                pixels = iio.imread(file.read(), plugin=plugin)
        except BadInput:
            raise
        except Exception as error:  # decoders fail in many ways
            raise BadInput(f"{path}: not a readable picture: {' '.join(str(error).split())[:120]}") from None
    return to_rgb(pixels, path)


def to_rgb(pixels: np.ndarray, path: Path | str) -> np.ndarray:
    """A picture (H, W) or (H, W, 1 to 4) as `read_image` gives it; BadInput names the path when it is none."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise BadInput(f"{path}: expected a picture (H, W) or (H, W, 1 to 4), found {pixels.shape}")
    pixels = pixels[..., :1] if pixels.shape[2] < 3 else pixels[..., :3]  # without alpha
    return np.ascontiguousarray(np.broadcast_to(_to_bytes(pixels, path), (*pixels.shape[:2], 3)))


def _to_bytes(pixels, path):
    """Values as uint8: bits scaled, floats taken to be in [0, 1]."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16:
        return (pixels / 257).round().astype(np.uint8)
    if pixels.dtype.kind == "f" and np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1:
        return (pixels * 255).round().astype(np.uint8)
    raise BadInput(f"{path}: expected 8 or 16 bits, or floats in [0, 1], found {pixels.dtype}")
