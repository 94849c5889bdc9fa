"""A training step as the first release took it: in-place activations, a transfer per score, an optimiser loop."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BaselineNetwork(nn.Module):
    """The layers of a NeedleClassifier, called in place and one after another."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 2) of images (B, in, H, W)."""
        cnn = self.model.cnn
        x = cnn.bn1(cnn.conv2(cnn.conv1(images))).relu_()
        for stage in (cnn.layer1, cnn.layer2, cnn.layer3, cnn.layer4):
            for block in stage:
                x = _bottleneck(block, x)
        return self.model.image_logits(x)


def _bottleneck(block, x):
    out = block.bn1(block.conv1(x)).relu_()
    out = block.bn2(block.conv2(out)).relu_()
    out = block.bn3(block.conv3(out))
    out += x if block.downsample is None else block.downsample(x)
    return out.relu_()


class BaselineTraining:
    """Steps of RMSprop at the paper's settings; `network` maps images to logits (B, 2)."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.optimizer = torch.optim.RMSprop(network.parameters(), 5e-5, alpha=0.99, eps=1e-5, foreach=False)
        self.scores = [0.0] * 5

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step, after which the loss and four counts lie on the host."""
        self.optimizer.zero_grad()
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        predicted, actual = logits.argmax(dim=1) == 1, labels == 1
        cells = (actual & predicted, ~actual & predicted, actual & ~predicted, ~actual & ~predicted)
        for i, value in enumerate([loss, *(cell.sum() for cell in cells)]):
            self.scores[i] += value.item()
