"""Pictures for people: saliency overlays and contact sheets."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.files import atomic_open, open_input

PANELS_PER_ROW = 5
OPACITY = 0.6  # of a map over its image, where it is highest
OUTCOMES = {  # (label, prediction) -> row of a contact sheet, as in Pawlowski 2019's figures 16 and 18-21
    (1, 1): "true positives",
    (0, 1): "false positives",
    (1, 0): "false negatives",
    (0, 0): "true negatives",
}
NEEDLE, LESION, EXAMPLE = (70, 130, 255), (0, 200, 0), (230, 30, 30)  # outline colours: blue, green, red
SOFTWARE = "Needles in Haystacks testbed"  # in the PNG, so that no other is replaced


@dataclass
class Panel:
    """One picture of a sheet, as `rgb` takes it; boxes are (y0, x0, y1, x1), masks bool (H, W)."""

    image: np.ndarray
    title: str = ""
    boxes: list = field(default_factory=list)
    mask: np.ndarray | None = None
    color: tuple = EXAMPLE


def rgb(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3), uint8 or in [0, 1] -> (H, W, 3) uint8, a copy."""
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    return image.copy() if image.dtype == np.uint8 else (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def blend_saliency(image: np.ndarray, saliency: np.ndarray, top: float | None = None) -> np.ndarray:
    """Lay saliency (H, W) >= 0, divided by `top`, by default its maximum, in red over an image: (H, W, 3) uint8.

    Args:
        image: (H, W, 1 or 3) in [0, 1].
    """
    weight = (saliency / max(saliency.max() if top is None else top, 1e-30)).astype(np.float32)[..., None]
    return rgb(image.clip(0, 1) * (1 - weight) + np.array([1, 0, 0], np.float32) * weight)


def draw(panel: Panel) -> np.ndarray:
    """The panel's picture with its outlines just outside what they enclose, wider in larger ones: (H, W, 3) uint8."""
    from scipy.ndimage import binary_dilation
    from skimage.segmentation import find_boundaries

    picture = rgb(panel.image)
    inside = np.zeros(picture.shape[:2], bool) if panel.mask is None else panel.mask.copy()
    for y0, x0, y1, x1 in panel.boxes:
        inside[round(y0) : round(y1), round(x0) : round(x1)] = True
    outline = find_boundaries(inside, mode="outer")
    if len(outline) >= 512:
        outline = binary_dilation(outline, iterations=len(outline) // 256) & ~inside
    picture[outline] = panel.color
    return picture


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8."""
    import imageio.v3 as imageio

    with atomic_open(path) as file:
        imageio.imwrite(file, picture, extension=".png")


def contact_sheet(path: Path, rows: list[list[Panel]], row_titles: list[str] | None = None) -> None:
    """Write a sheet of panels as PNG, one line of panels a row, every panel under its title, by 512 px at most."""
    from matplotlib.figure import Figure

    columns = max(1, *(len(row) for row in rows))
    figure = Figure(figsize=(1.9 * columns + 0.4, 2.1 * len(rows)), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for r, row in enumerate(rows):
        for axis, panel in zip(axes[r], row, strict=False):
            picture = draw(panel)
            step = -(-max(picture.shape) // 512)
            axis.imshow(picture[::step, ::step], interpolation="nearest")
            axis.set_title(panel.title, fontsize=8)
        for axis in axes[r]:
            axis.set_xticks([]), axis.set_yticks([])
        for axis in axes[r][len(row) :]:
            axis.set_frame_on(False)
        if row_titles:
            axes[r][0].set_ylabel(row_titles[r], fontsize=8)
    write_figure(path, figure, metadata={"Software": SOFTWARE})


def write_figure(path: Path, figure, **options) -> None:
    """Write a matplotlib Figure as PNG; options are those of print_png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_open(path) as file:
        FigureCanvasAgg(figure).print_png(file, **options)


def is_sheet(path: Path) -> bool:
    """Whether a file is a contact sheet of this software, as its first bytes say."""
    with open_input(path) as file:
        return SOFTWARE.encode() in file.read(2**12)
