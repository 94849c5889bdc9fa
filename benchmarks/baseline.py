"""Training as the first release did it: files of float64, in-place activations, a transfer per score."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler


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
    """Steps of RMSprop at Pawlowski 2019's settings; `network` maps images to logits (B, 2)."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.optimizer = torch.optim.RMSprop(network.parameters(), 5e-5, alpha=0.99, eps=1e-5, foreach=False)
        self.scores = [0.0] * 5

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step, after which the loss and four counts lie on the host."""
        self.optimizer.zero_grad()
        self.evaluate(images, labels)
        self.optimizer.step()

    def evaluate(self, images: Tensor, labels: Tensor) -> None:
        """Forward and backward pass and the scores, also where only the scores are wanted."""
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        predicted, actual = logits.argmax(dim=1) == 1, labels == 1
        cells = (actual & predicted, ~actual & predicted, actual & ~predicted, ~actual & ~predicted)
        for i, value in enumerate([loss, *(cell.sum() for cell in cells)]):
            self.scores[i] += value.item()


class BaselineFiles(Dataset):
    """Images (1, H, W) float32 from compressed npz files of float64 in [0, 1]; labels alternate 1, 0.

    Args:
        folder: where the files are written. images: (N, H, W) uint8.
    """

    def __init__(self, folder: Path, images: np.ndarray):
        self.paths = [folder / f"{i}.npz" for i in range(len(images))]
        for path, image in zip(self.paths, images, strict=True):
            np.savez_compressed(path, image / 255)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with np.load(self.paths[i]) as archive:
            return torch.from_numpy(archive["arr_0"]).float()[None], 1 - i % 2

    def batches(self, batch_size: int, workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches on the device, as of one endless epoch: what starting the workers takes does not count."""
        order = RandomSampler(self, replacement=True, num_samples=2**40)
        for images, labels in DataLoader(self, batch_size, sampler=order, num_workers=workers):
            yield images.to(device), labels.to(device)
