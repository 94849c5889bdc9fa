"""Placements -> pixels: digits are added onto black and the sum is clipped at 255.

NumPy composes one canvas, torch a batch on any device; sums of integers make both agree bit for bit.
"""

import numpy as np

from common.errors import BadInput

MAX_SIDE = 2**14  # px; the first feature map of one image has 64 GB


def compose(side: int, *layers: tuple) -> np.ndarray:
    """Add digits onto one canvas.

    Args:
        side: rows and columns of the canvas in px.
        layers: tuples (digits (k, s, s) uint8, y (k,), x (k,)); (y, x) is a digit's top-left. s may differ by layer.
    Returns: (side, side) uint8.
    """
    dtype = np.uint16 if _depth(layers) * 255 < 2**16 else np.uint32  # neither can wrap
    total = np.zeros((side, side), dtype)
    for digits, ys, xs in layers:
        s = digits.shape[-1]
        for digit, y, x in zip(digits.astype(dtype), ys.tolist(), xs.tolist(), strict=True):
            window = total[y : y + s, x : x + s]
            window += digit
    canvas, above = total.astype(np.uint8), (total > 255).view(np.uint8)
    return np.bitwise_or(canvas, np.negative(above, out=above), out=canvas)  # -1 is 255: clips, faster than np.minimum


def _depth(layers):
    """Upper bound on how many digits share a pixel: when many, those that start in two adjacent bands of s rows."""
    total = sum(len(digits) for digits, _, _ in layers)
    if total > 257:
        bands = [np.bincount(y // digits.shape[-1], minlength=1) for digits, y, _ in layers]
        total = sum(int((band + np.append(band[1:], 0)).max()) for band in bands)
    return total


def compose_batch(side: int, batch: int, *layers: tuple):
    """Add digits onto a batch of canvases with torch, on the device of the digits.

    Args:
        layers: tuples of tensors (digits (k, s, s) uint8, image (k,), y (k,), x (k,)), the last three int64.
    Returns: (batch, side, side) uint8 tensor, each canvas equal to what `compose` returns.
    """
    import torch

    total = torch.zeros(batch * side * side, dtype=torch.int32, device=layers[0][0].device)
    for digits, image, y, x in layers:
        rows, columns = torch.meshgrid(*[torch.arange(digits.shape[-1], device=total.device)] * 2, indexing="ij")
        corner = (image * side + y) * side + x  # (k,) flat position of the top-left
        pixels = corner[:, None, None] + rows * side + columns  # (k, s, s)
        total.index_add_(0, pixels.flatten(), digits.flatten().to(torch.int32))
    return total.clamp_(max=255).to(torch.uint8).view(batch, side, side)


def patch_map(canvas: int, patch_size: int, needle: tuple[int, int] | None) -> np.ndarray:
    """Grid of patch_size-px cells, 1.0 where the needle's (y, x) lies, else 0.0; all zero without a needle."""
    cells = np.zeros((canvas // patch_size,) * 2)
    if needle is not None:
        cells[needle[0] // patch_size, needle[1] // patch_size] = 1
    return cells


def zoom(image: np.ndarray, factor: float, clip: bool = True) -> np.ndarray:
    """Zoom (H, W) floats by a cubic spline and clip to [0, 1]; the sides become round(factor * side)."""
    from scipy import ndimage

    zoomed = ndimage.zoom(image, factor, order=3)
    return zoomed.clip(0, 1) if clip else zoomed


def zoom_uint8(image: np.ndarray, factor: float) -> np.ndarray:
    """Zoom (H, W) uint8 as above; factor 1 changes nothing."""
    return image if factor == 1 else np.rint(zoom(image / 255, factor) * 255).astype(np.uint8)


def zoom_stack(images: np.ndarray, side: int) -> np.ndarray:
    """Zoom every image of (P, s, s) uint8 to (side, side) as above; 60,000 digits take some seconds."""
    s = images.shape[-1]
    return images if side == s else np.stack([zoom_uint8(image, side / s) for image in images])


def zoomed_side(side: int, factor: float, flag: str = "zoom") -> int:
    """Rows or columns of a zoomed image in px; BadInput names the flag when there are none or more than 16,384."""
    if not 0.5 < side * factor <= MAX_SIDE:
        raise BadInput(f"{flag} {factor:g}: makes {side} px {side * factor:g} px, expected 1 to {MAX_SIDE}")
    return round(side * factor)
