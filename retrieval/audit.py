"""What an audit makes of distances: threshold, truth by overlap, shares, verification, clusters. Pure functions.

Distances are Euclidean, of unit vectors, 0 to 2; an image is flagged when its nearest neighbour is within a threshold.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common import scores
from retrieval.index import turned

RATE = 0.01  # of training images that the automatic threshold flags by mistake
ROUNDING = 1e-3  # what equal images may differ by
FOUND = 0.99  # share of the known duplicates that a threshold is lowered to
OVERLAP = 0.25  # intersection over union from which two crops of a slide are duplicates
FALSE_POSITIVE_RATES = (1e-4, 1e-6)
FEWEST = 10  # false positives below which a rate is not reported
COPY = 0.97  # correlation from which a candidate counts as a copy: overlaps reach 1, the edges of tissue .97
FLAT = 0.01  # share of an image's variance below which a part of it tells nothing


def automatic_threshold(nearest: np.ndarray, duplicates: np.ndarray | None = None) -> float:
    """The distance within which a share RATE of training images have a neighbour that is no duplicate.

    Args:
        nearest: (N,) distance of each training image to the nearest of another slide.
        duplicates: (M,) distances of known near-duplicates; the threshold is lowered to what finds FOUND of them.
    """
    limits = [np.quantile(nearest, RATE, method="lower")]
    if duplicates is not None and len(duplicates):
        limits.append(np.quantile(duplicates, FOUND))
    return max(ROUNDING, float(min(limits)))


def overlap(corners: np.ndarray, sides: np.ndarray, others: np.ndarray, other_sides: np.ndarray) -> np.ndarray:
    """Intersection over union of squares: corners (..., 2) y, x, sides (...), broadcast; NaN where one is NaN."""
    low = np.maximum(corners, others)
    high = np.minimum(corners + sides[..., None], others + other_sides[..., None])
    common = np.prod((high - low).clip(min=0), axis=-1)
    return common / (sides**2 + other_sides**2 - common)


class Truth:
    """What a detector's distances say of known pairs, gathered block by block.

    sensitivity: share of all duplicate pairs nearer than the distance that a share f of the other pairs are within.
    AUC: each query's nearest duplicate against its nearest other image (hardest) or one other at random. Pairs that
    are neither, as crops that overlap a little, are left out.
    """

    def __init__(self, most_pairs: int, rng: np.random.Generator):
        self.kept = int(max(FALSE_POSITIVE_RATES) * most_pairs) + 1
        self.rng = rng
        self.others, self.closest = 0, np.empty(0, np.float32)
        self.duplicates, self.positives, self.hardest, self.random = [], [], [], []

    def add(self, distances: np.ndarray, duplicate: np.ndarray, other: np.ndarray) -> None:
        """Distances (m, N) of some queries to the gallery, and which pairs are duplicates and which are none, bool."""
        self.others += int(other.sum())
        self.closest = np.concatenate([self.closest, distances[other]])
        if len(self.closest) > self.kept:
            self.closest = np.partition(self.closest, self.kept - 1)[: self.kept]
        self.duplicates.append(distances[duplicate])
        for row in np.flatnonzero(duplicate.any(1) & other.any(1)):
            self.positives.append(distances[row, duplicate[row]].min())
            self.hardest.append(distances[row, other[row]].min())
            self.random.append(self.rng.choice(distances[row, other[row]]))

    def summary(self) -> dict:
        """Counts, AUC and sensitivity; None where there are too few pairs."""
        found, closest = np.concatenate([*self.duplicates, np.empty(0)]), np.sort(self.closest)
        result = {"duplicate_pairs": len(found), "other_pairs": self.others, "queries": len(self.positives)}
        result |= {"hardest_auc": auc(self.positives, self.hardest), "random_auc": auc(self.positives, self.random)}
        for rate in FALSE_POSITIVE_RATES:
            allowed = int(rate * self.others)
            enough = len(found) and allowed >= FEWEST
            result[f"sensitivity_at_fpr_{rate:g}"] = float((found < closest[allowed]).mean()) if enough else None
        return result


def auc(duplicates: Sequence[float], others: Sequence[float]) -> float | None:
    """The chance that a duplicate is nearer than another pair, by distances; None without pairs."""
    from sklearn.metrics import roc_auc_score

    if not len(duplicates) or not len(others):
        return None
    labels = np.repeat([1, 0], [len(duplicates), len(others)])
    return float(roc_auc_score(labels, -np.concatenate([duplicates, others])))


def shares(flagged: np.ndarray, labels: np.ndarray, o2i: Sequence[float | None]) -> dict:
    """How many images are flagged: of all, of each known class, of each range of O2I that holds some; bool (N,)."""
    ranges = {
        name: share(flagged, np.array([value is not None and low < value <= high for value in o2i], bool))
        for name, low, high in scores.RANGES
    }
    return {
        **share(flagged, np.ones(len(flagged), bool)),
        "by_class": {str(label): share(flagged, labels == label) for label in np.unique(labels[labels >= 0])},
        "by_o2i": {name: found for name, found in ranges.items() if found["images"]},
    }


def share(flagged: np.ndarray, chosen: np.ndarray) -> dict:
    """How many of the chosen images are flagged; bool (N,) both."""
    count = int(flagged[chosen].sum())
    return {"images": int(chosen.sum()), "flagged": count, "share": count / chosen.sum() if chosen.any() else None}


def score_parts(labels: np.ndarray, values: np.ndarray, flagged: np.ndarray, threshold: float | None) -> dict:
    """A method's AUC and, by its threshold, accuracy: of all images, of those flagged and of those that are not."""
    parts = {"all": np.ones(len(flagged), bool), "with_near_duplicate": flagged, "without": ~flagged}
    result = {}
    for name, chosen in parts.items():
        right = None if threshold is None or not chosen.any() else ((values > threshold) == labels)[chosen].mean()
        result[name] = {
            "images": int(chosen.sum()),
            "auc": auc(-values[chosen & (labels == 1)], -values[chosen & (labels == 0)]),
            "accuracy": None if right is None else float(right),
        }
    return result


def best_correlation(query: Tensor, match: Tensor, orientations: int = 8) -> float:
    """The largest normalised cross-correlation of two grey images (h, w), (H, W), -1 to 1.

    Over the query's orientations and its shifts by up to half the match's sides, each on the part where both lie
    (Padfield 2012, by FFT). Two flat images are equal up to brightness: 1.
    """
    query, match = query.double() - query.double().mean(), match.double() - match.double().mean()
    flat = query.square().mean() < 1e-9, match.square().mean() < 1e-9
    if any(flat):
        return float(all(flat))
    return max(_correlation(turned(query, o), match) for o in range(orientations))


def _correlation(query, match):
    """The same in the query's present orientation.

    ncc(s) = (sum qm - sum q sum m / n) / sqrt((sum q^2 - (sum q)^2 / n) (sum m^2 - (sum m)^2 / n)), over the n pixels
    that lie in both at shift s.
    """
    (h, w), (height, width) = query.shape, match.shape
    shape = (h + height, w + width)
    parts = [(torch.ones_like(image), image, image.square()) for image in (query, match)]
    (q0, q1, q2), (m0, m1, m2) = ([torch.fft.rfft2(part, shape) for part in three] for three in parts)
    n, sum_q, sum_m, sum_qq, sum_mm, sum_qm = (
        torch.fft.irfft2(a.conj() * b, shape) for a, b in ((q0, m0), (q1, m0), (q0, m1), (q2, m0), (q0, m2), (q1, m1))
    )
    n = n.round().clamp(min=1)
    spread_q, spread_m = sum_qq - sum_q.square() / n, sum_mm - sum_m.square() / n
    far = [
        torch.fft.fftfreq(total, 1 / total).abs() > side // 2 for total, side in zip(shape, match.shape, strict=True)
    ]
    tells = (spread_q > FLAT * n * query.square().mean()) & (spread_m > FLAT * n * match.square().mean())
    tells &= ~far[0][:, None] & ~far[1][None]
    if not tells.any():
        return -1.0
    correlation = (sum_qm - sum_q * sum_m / n)[tells] / (spread_q[tells] * spread_m[tells]).sqrt()
    return float(correlation.max().clamp(max=1))


def components(n: int, pairs: np.ndarray) -> np.ndarray:
    """(n,) number of the connected component of each of n images, whose near-duplicates are pairs (E, 2)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(links, directed=False)[1]
