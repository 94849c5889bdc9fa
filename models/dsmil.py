"""Multiple-instance classifiers of bags: DSMIL in its two forms, and max, mean and attention pooling.

All take the instances of B bags one after the other and say how many are whose: bags differ in size, and nothing is
padded. All return bag logits (B, C), instance logits (T, C) and attention (T, C), which sums to 1 over each bag.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

QUERY = 128  # numbers of a DSMIL query, and units of attention pooling
VARIANTS = ("hnm", "2024")


def by_bag(function: Callable[..., Tensor], sizes: list[int], *parts: Tensor) -> list[Tensor]:
    """function of each bag's instances, given the parts (T, ...) of all of them."""
    return [function(*bag) for bag in zip(*(part.split(sizes) for part in parts), strict=True)]


def softmax_in_bags(scores: Tensor, sizes: list[int]) -> Tensor:
    """Softmax (T, C) of scores (T, C) over the instances of each bag."""
    return torch.cat(by_bag(lambda bag: bag.softmax(dim=0), sizes, scores))


class DSMIL(nn.Module):
    """Dual-stream MIL: the instance that scores highest asks, and the others answer by how alike they are to it.

    c = fc(h), m = argmax c, q = query(h), A = softmax over the bag of q . q_m / sqrt(128), bag vector = sum A v,
    bag logit = a convolution over all bag vectors. There is one m, one A and one bag vector for each class.

    Args:
        dim: d, numbers of a feature.
        variant: hnm: h' = ReLU(Linear h), q = tanh(Linear h'), v = Linear h'. 2024: q = tanh(Linear ReLU(Linear h)),
            v = h.
    Source: Li et al. 2021 (arXiv 2011.08939); the variants are those of HNM-WSI (2410.02212) and of DSMIL's code of
    2024.
    """

    has_instance_loss = True  # the instance branch learns from the bag's label too

    def __init__(self, dim: int, classes: int = 1, variant: str = "hnm"):
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant {variant!r}")
        self.fc = nn.Linear(dim, classes)
        if variant == "hnm":
            self.lin, hidden = nn.Sequential(nn.Linear(dim, dim), nn.ReLU()), dim
            self.q = nn.Sequential(nn.Linear(dim, QUERY), nn.Tanh())
            self.v = nn.Linear(dim, dim)
        else:
            self.lin, hidden = nn.Identity(), QUERY
            self.q = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, QUERY), nn.Tanh())
            self.v = nn.Identity()
        self.fcc = nn.Conv1d(classes, classes, dim)

    def forward(self, features: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Bag logits (B, C), instance logits (T, C) and attention (T, C) of features (T, d), T = sum of sizes."""
        instance_logits = self.fc(features)
        hidden = self.lin(features)
        queries = self.q(hidden)  # (T, 128)
        alike = by_bag(self._likeness, sizes, queries, instance_logits)
        attention = softmax_in_bags(torch.cat(alike), sizes)
        # v is linear and A sums to 1, so that sum A v(h') = v(sum A h'), at a fraction of the memory
        vectors = self.v(torch.stack(by_bag(lambda a, h: a.T @ h, sizes, attention, hidden)))  # (B, C, d)
        return self.fcc(vectors).squeeze(2), instance_logits, attention

    @staticmethod
    def _likeness(queries, instance_logits):
        """q . q_m / sqrt(128), (n, C), of one bag."""
        critical = queries[instance_logits.argmax(dim=0)]  # (C, 128)
        return queries @ critical.T / QUERY**0.5


class MaxPool(nn.Module):
    """A bag's logit is that of the instance which scores highest; attention is on that one alone."""

    has_instance_loss = False

    def __init__(self, dim: int, classes: int = 1):
        super().__init__()
        self.fc = nn.Linear(dim, classes)

    def forward(self, features: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """As DSMIL's."""
        instance_logits = self.fc(features)
        bag_logits = torch.stack(by_bag(lambda bag: bag.amax(dim=0), sizes, instance_logits))
        attention = by_bag(self._on_highest, sizes, instance_logits.detach())
        return bag_logits, instance_logits, torch.cat(attention)

    @staticmethod
    def _on_highest(bag):
        return torch.zeros_like(bag).scatter_(0, bag.argmax(dim=0, keepdim=True), 1.0)


class MeanPool(nn.Module):
    """A bag's logit is the mean of its instances'."""

    has_instance_loss = False

    def __init__(self, dim: int, classes: int = 1):
        super().__init__()
        self.fc = nn.Linear(dim, classes)

    def forward(self, features: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """As DSMIL's."""
        instance_logits = self.fc(features)
        bag_logits = torch.stack(by_bag(lambda bag: bag.mean(dim=0), sizes, instance_logits))
        attention = by_bag(lambda bag: torch.full_like(bag, 1 / len(bag)), sizes, instance_logits.detach())
        return bag_logits, instance_logits, torch.cat(attention)


class AttentionPool(nn.Module):
    """Attention MIL: the head sees the average of the features, weighted by a softmax of w . tanh(V h).

    The instance logit is the head's of that instance alone. Source: Ilse et al. 2018, without the gate.
    """

    has_instance_loss = False

    def __init__(self, dim: int, classes: int = 1):
        super().__init__()
        self.fc = nn.Linear(dim, classes)
        self.attention = nn.Sequential(nn.Linear(dim, QUERY), nn.Tanh(), nn.Linear(QUERY, 1))

    def forward(self, features: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """As DSMIL's; all classes share the attention."""
        weights = softmax_in_bags(self.attention(features), sizes)  # (T, 1)
        vectors = torch.cat(by_bag(lambda a, h: a.T @ h, sizes, weights, features))  # (B, d)
        instance_logits = self.fc(features)
        return self.fc(vectors), instance_logits, weights.expand_as(instance_logits)


AGGREGATORS = {"max": MaxPool, "mean": MeanPool, "attention": AttentionPool}


def build(config: dict) -> nn.Module:
    """A fresh network of {aggregator, dim, classes, variant}; its weights depend on torch's global random state."""
    if config["aggregator"] == "dsmil":
        return DSMIL(config["dim"], config["classes"], config["variant"])
    return AGGREGATORS[config["aggregator"]](config["dim"], config["classes"])
