"""What happens to an image before a detector sees it: grey, crop, equalise, resize, in this order."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from common import cli
from common.errors import BadInput
from data.image_set import ImageSet

RGB_TO_GREY = (0.299, 0.587, 0.114)  # of ITU-R BT.601


def add_flags(parser) -> None:
    """Declare `--grey`, `--crop`, `--equalize` and `--resize`."""
    group = parser.add_argument_group("what happens to an image, in this order")
    group.add_argument("--grey", action="store_true", help="one channel")
    group.add_argument("--crop", type=cli.positive, help="cut out the middle, so many px a side")
    group.add_argument("--equalize", action="store_true", help="equalise the histogram of each channel")
    group.add_argument("--resize", type=cli.positive, help="scale to a square of so many px a side")


def add_training_flags(parser) -> None:
    """Declare `--random_crop` and `--flip`."""
    group = parser.add_argument_group("what happens to a training image instead or beside that")
    group.add_argument("--random_crop", action="store_true", help="cut --crop out anywhere, not in the middle")
    group.add_argument("--flip", action="store_true", help="mirror at random, in both directions")


@dataclass(frozen=True)
class Transform:
    """The flags' values; images are (C, H, W) float32 in [0, 1]."""

    grey: bool = False
    crop: int | None = None
    equalize: bool = False
    resize: int | None = None

    def image(self, image: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """The image transformed; cropped anywhere where there is a generator."""
        if self.grey and len(image) == 3:
            image = torch.tensordot(torch.tensor(RGB_TO_GREY), image, dims=1)[None]
        if self.crop:
            image = self._cut(image, rng)
        if self.equalize:
            image = equalized(image)
        if self.resize and image.shape[-2:] != (self.resize, self.resize):
            size = (self.resize, self.resize)
            image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
        return image

    def share(self, mask: np.ndarray) -> float:
        """The share of a mask (H, W) in the image, cropped in the middle; no resizing rounds it."""
        mask = torch.from_numpy(mask)[None]
        return float((self._cut(mask, None) if self.crop else mask).numpy().mean())

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """The mask (H, W) that goes with the image, cropped in the middle."""
        mask = torch.from_numpy(mask)[None].float()
        if self.crop:
            mask = self._cut(mask, None)
        if self.resize:
            mask = F.interpolate(mask[None], (self.resize, self.resize), mode="area")[0]
        half = mask >= 0.5  # of a pixel; of a smaller object its fullest pixels
        return (half if half.any() else (mask > 0) & (mask == mask.max()))[0].numpy()

    def _cut(self, image, rng):
        room = [side - self.crop for side in image.shape[-2:]]
        if min(room) < 0:
            raise BadInput(f"has {image.shape[-2]} x {image.shape[-1]} px, fewer than --crop {self.crop}")
        y, x = (space // 2 if rng is None else int(rng.integers(space + 1)) for space in room)
        return image[:, y : y + self.crop, x : x + self.crop]


def equalized(image: Tensor) -> Tensor:
    """Every channel mapped by its own cumulative histogram of 256 bins, as scikit-image's equalize_hist does."""
    from skimage.exposure import equalize_hist

    channels = [equalize_hist(channel) for channel in image.numpy()]
    return torch.from_numpy(np.stack(channels).astype(np.float32))


class Transformed(ImageSet):
    """A data set whose images and masks are transformed; it says what it knows in the words of data/__init__.py."""

    def __init__(self, data: Dataset, transform: Transform):
        self.data, self.transform = data, transform
        self.names, self.labels, self.outline, self.has_objects = (
            data.names,
            data.labels,
            data.outline,
            data.has_objects,
        )
        self.in_channels = 1 if transform.grey else data.in_channels

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return self.random(i, None)

    def random(self, i: int, rng: np.random.Generator | None):
        """Item i, cropped anywhere, without rng in the middle."""
        image, label = self.data[i]
        try:
            return self.transform.image(image, rng), label
        except BadInput as error:
            raise BadInput(f"{self.names[i]}: {error}") from None

    def object_mask(self, i: int) -> np.ndarray | None:
        mask = self.data.object_mask(i)
        return None if mask is None else self.transform.mask(mask)

    def o2i(self, i: int) -> float | None:
        mask = self.data.object_mask(i)
        return None if mask is None else self.transform.share(mask)

    def fingerprint(self) -> str:
        return self.data.fingerprint()
