"""Embedding extractor, global pooling and a linear head: image logits, and the same head at every position."""

import torch.nn.functional as F
from torch import Tensor, nn

from models import background, norms
from models.bagnet import BagNet
from models.pooling import PLAIN_POOLINGS, attention_pool

ATTENTION_UNITS = 128


class NeedleClassifier(nn.Module):
    """Pawlowski 2019's pipeline (figure 3): images (B, in, H, W) -> logits (B, 2), class 1 = holds the needle.

    background: whether black background is computed once, see models.background: "auto", "rows" or "dense".
    """

    row_block = staticmethod(background.bottleneck)
    background = "auto"

    def __init__(self, extractor: BagNet, pooling: str):
        super().__init__()
        self.cnn = extractor
        self.pooling = pooling
        self.mlp = nn.Linear(extractor.out_channels, 2)
        if pooling == "attention":
            self.sum_mlp = nn.Sequential(
                nn.Conv1d(extractor.out_channels, ATTENTION_UNITS, 1), nn.Tanh(), nn.Conv1d(ATTENTION_UNITS, 1, 1)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 2) of images (B, in, H, W), by way of rows where the images are mostly background."""
        logits = background.logits(self, images)
        return self.image_logits(self.cnn(images)) if logits is None else logits

    def compile_parts(self, compiler) -> None:
        """Have norms and the rows' bottlenecks built by a common.compilation.Compiler."""
        fused = norms.FusedNorm(compiler)
        for part in (self.cnn, *self.cnn.blocks()):
            part.norm_act = fused
        self.row_block = compiler(background.fusible_bottleneck, instead=background.bottleneck)

    def image_logits(self, embedding: Tensor) -> Tensor:
        """Logits (B, 2) of embeddings (B, C, h, w)."""
        if self.pooling == "attention":
            scores = self.sum_mlp(embedding.flatten(2)).squeeze(1)  # (B, h*w)
            return self.mlp(attention_pool(embedding, scores))
        return self.mlp(PLAIN_POOLINGS[self.pooling](embedding))

    def local_logits(self, embedding: Tensor) -> Tensor:
        """The head applied at every position: (B, C, h, w) -> (B, 2, h, w)."""
        return F.linear(embedding.movedim(1, -1), self.mlp.weight, self.mlp.bias).movedim(-1, 1)
