"""What a data set offers, as data/__init__.py states it, where nothing else is known."""

import numpy as np
from torch.utils.data import Dataset


class ImageSet(Dataset):
    """A data set that does not know where its objects are, and whose images are read on the CPU."""

    has_objects = False

    def object_mask(self, i: int) -> np.ndarray | None:
        """The pixels of image i's object, bool (H, W); None without an object and where it is not known."""
        return None

    def o2i(self, i: int) -> float | None:
        """The object's share of image i; None likewise."""
        mask = self.object_mask(i)
        return None if mask is None else float(mask.mean())

    def batches_on(self, device, batches):
        """None: no loader that composes the images on the device."""
        return None
