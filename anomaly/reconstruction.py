"""What the detectors that reconstruct images share, DPA and PIAD; images are (B, C, R, R) in [-1, 1]."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import pictures
from common.files import make_subfolder
from models.perceptual import Perceptual

MEASURED = 2048  # training tiles from which the statistics of VGG's channels are taken
SAMPLES = 4  # images of a sheet
SHOWN = 128  # px a side at least, to which small ones are magnified


def measure(perceptual: Perceptual, normals, args, device: torch.device) -> None:
    """Read --vgg_stats, or measure VGG's channels on training tiles."""
    measured = normals.batches(args, device, 0, min(MEASURED, normals.n_images * normals.tiles_per_image))
    perceptual.set_statistics(args, (2 * tiles.to(device) - 1 for tiles, _, _ in measured))


def first_tiles(images, device: torch.device) -> Tensor:
    """The tiles (B, C, t, t) in [0, 1] of which sheets are drawn."""
    return torch.stack([images[i][0] for i in range(min(SAMPLES, images.n_images))]).to(device)


def draw_samples(run, logdir: Path, images: Tensor, rebuilt: Tensor) -> None:
    """Write images above their reconstructions to samples/, numbered by the epoch, and to TensorBoard."""
    rows = torch.stack([images, rebuilt])  # (2, n, C, R, R)
    sheet = rows.clamp(-1, 1).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (2 R, n R, C)
    picture = pictures.rgb(np.broadcast_to(sheet.cpu().numpy() / 2 + 0.5, (*sheet.shape[:2], 3)))
    zoom = -(-SHOWN // images.shape[-1])
    picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    pictures.write_png(make_subfolder(logdir, "samples") / f"{len(run.history) + 1:04}.png", picture)
    run.picture("samples", picture)
