"""InceptionResNetV2 (Szegedy et al. 2017) as timm has it, an optional extra: averages of any of its layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import BadInput
from models import weights as pretrained
from models.weights import Standardised, Weights

SIDE = 299  # px of the images it was trained on
CHANNELS = {  # layer -> its channels, 5,680 together
    "conv2d_1a": 32,
    "conv2d_2a": 32,
    "conv2d_2b": 64,
    "maxpool_3a": 64,
    "conv2d_3b": 80,
    "conv2d_4a": 192,
    "maxpool_5a": 192,
    "mixed_5b": 320,
    "mixed_6a": 1088,
    "mixed_7a": 2080,
    "conv2d_7b": 1536,
}


class InceptionResNetV2(nn.Module):
    """Frozen features: images (B, 3, H, W) in [0, 1], scaled to 299 px -> averages (B, C, 1, 1) of the taps, joined.

    Errors: BadInput for a tap that it lacks, and without timm.
    """

    def __init__(self, taps: tuple[str, ...], weights: Weights):
        super().__init__()
        for tap in taps:
            if tap not in CHANNELS:
                raise BadInput(f"layer {tap}: inception_resnet_v2 has {', '.join(CHANNELS)}")
        try:
            from timm.models import inception_resnet_v2
        except ImportError:
            raise BadInput(
                "--embedder inception_resnet_v2: needs timm, an optional extra: pip install -r requirements-extra.txt"
            ) from None
        self.taps, self.channels = taps, sum(CHANNELS[tap] for tap in taps)
        whole = pretrained.seeded(inception_resnet_v2)
        names = [name for name, _ in whole.named_children()]
        last = max(names.index(tap) for tap in taps)  # nothing is computed beyond it
        self.layers = nn.ModuleDict({name: getattr(whole, name) for name in names[: last + 1]})
        pretrained.load(self.layers, weights)
        self.standardised = Standardised(weights.mean, weights.std)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (SIDE, SIDE):
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        x, found = self.standardised(images), {}
        for name, module in self.layers.items():
            x = module(x)
            if name in self.taps:
                found[name] = x.mean((2, 3), keepdim=True)
        return torch.cat([found[tap] for tap in self.taps], 1)
