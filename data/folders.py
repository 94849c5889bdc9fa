"""A plain folder of pictures as a data set; it knows of no labels and no objects."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from data import fingerprints
from data.photos import MOST_BYTES, UNKNOWN, Photos, list_images, read_image


class PhotoFolder(Photos):
    """The pictures in and below a folder. Item: image (3, side, side) float32 in [0, 1], label -1 = not known.

    The shorter side is scaled to `side`, then the centre is cut out.
    """

    def __init__(self, folder: Path, side: int):
        names = list_images(folder)
        super().__init__(folder, names, [UNKNOWN] * len(names))
        self.side = side

    def __getitem__(self, i: int):
        image, label = super().__getitem__(i)  # (3, H, W)
        return centre_square(image, self.side), label

    def file_side(self, i: int) -> int:
        """The shorter side of picture i as it lies in its file, px."""
        return min(read_image(self.root / self.names[i]).shape[:2])

    def fingerprint(self) -> str:
        """Digest of names, file sizes, the side and some of the files' bytes, wherever the folder lies."""
        paths = [self.root / name for name in self.names]
        sizes = [path.stat().st_size for path in paths]
        described = f"{self.side}\n" + "\n".join(self.names) + str(sizes)
        return fingerprints.of_files(described.encode(), paths, MOST_BYTES)


def centre_square(image: Tensor, side: int) -> Tensor:
    """Scale the shorter side of (C, H, W) to `side` and cut out the centre: (C, side, side)."""
    height, width = image.shape[1:]
    if min(height, width) != side:
        scale = side / min(height, width)
        size = (max(side, round(height * scale)), max(side, round(width * scale)))
        options = {"mode": "bilinear", "antialias": True, "align_corners": False}
        image = F.interpolate(image[None], size, **options)[0].clamp(0, 1)
    top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
    return image[:, top : top + side, left : left + side]
