"""Koker 2020's smallest base: one encoder, two decoders that teach it to see, and a head that turns it into vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 128  # px of the images that the head takes
CHANNELS, STAGES = 32, 3
HIDDEN, DIM = 1024, 256


class PairedAutoencoder(nn.Module):
    """Images (B, 1 or 3, H, W) in [0, 1] -> unit vectors (B, 256); other sizes than 128 px are scaled to it.

    `reconstruct` trains the encoder and the decoders, after which only the head learns.
    """

    smallest = 1

    def __init__(self):
        super().__init__()
        self.dim = DIM
        self.config = {"kind": "retrieval", "base": "autoencoder"}
        self.encoder = nn.Sequential(*(_stage(1 if i == 0 else CHANNELS, nn.MaxPool2d(2)) for i in range(STAGES)))
        self.decoders = nn.ModuleList(_decoder() for _ in range(2))
        side = SIDE // 2 ** (STAGES + 1)
        self.head = nn.Sequential(nn.Linear(2 * CHANNELS * side * side, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):  # as Keras does it
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 32, 16, 16)."""
        return self.encoder(fit(grey(images)))

    def reconstruct(self, anchors: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
        """Both views (B, 1, 128, 128) as their decoders give them back, in [0, 1]."""
        views = zip(self.decoders, (anchors, copies), strict=True)
        first, second = (decoder(self.encode(images)) for decoder, images in views)
        return first, second

    def forward(self, images: Tensor) -> Tensor:
        maps = self.encode(images)
        pooled = torch.cat([F.max_pool2d(maps, 2).flatten(1), F.avg_pool2d(maps, 2).flatten(1)], 1)  # (B, 4096)
        return F.normalize(self.head(pooled).float())

    def choose_layers(self, head: bool) -> None:
        """Let the head alone learn, or all but the head; what does not learn keeps its batch statistics."""
        for part, learns in ((self.head, head), (self.encoder, not head), (self.decoders, not head)):
            part.requires_grad_(learns)
            part.train(learns)


def _stage(channels, resize):
    return nn.Sequential(nn.Conv2d(channels, CHANNELS, 3, padding=1), _norm(CHANNELS), nn.ReLU(), resize)


def _norm(channels):
    """Keras' batch norm: eps 1e-3, and statistics of which 0.99 are kept."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _decoder():
    stages = (_stage(CHANNELS, nn.Upsample(scale_factor=2, mode="nearest")) for _ in range(STAGES))
    return nn.Sequential(*stages, nn.Conv2d(CHANNELS, 1, 3, padding=1), _norm(1), nn.Sigmoid())


def grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) of images (B, 1 or 3, H, W), by the weights of PIL (ITU-R 601)."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def fit(images: Tensor) -> Tensor:
    """Images (B, C, H, W) scaled to 128 px a side."""
    if images.shape[-2:] == (SIDE, SIDE):
        return images
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
