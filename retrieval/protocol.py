"""How well vectors tell near-duplicates (Koker 2020): each pair's distance against the hardest or a random negative."""

from dataclasses import dataclass

import numpy as np

from common import metrics
from data.pairs import draw_others
from retrieval import index

RECALLS, PRECISION = (0.90, 0.95, 0.99), 0.99
NEAREST = (1, 5)  # k of recall@k
KINDS = ("hardest", "random")  # of negatives


@dataclass
class Comparison:
    """Each query against its duplicate and against a negative of each kind.

    Attributes: query, duplicate (N,), numbers of images; negative, kind -> (N,) likewise; distances, of `duplicate`
        and of each kind (N,) float32; rank (N,), of the duplicate among the nearest from 0, beyond them 5.
    """

    query: np.ndarray
    duplicate: np.ndarray
    negative: dict[str, np.ndarray]
    distances: dict[str, np.ndarray]
    rank: np.ndarray


def compare(vectors: np.ndarray, pairs: np.ndarray, rng: np.random.Generator, both_sides: bool = False) -> Comparison:
    """Compare the queries of pairs with the duplicates' side; negatives are of another pair.

    Args:
        vectors: (images, orientations, D) float32 of norm 1; a query is taken in its best orientation.
        pairs: (N, 2), numbers of query and duplicate, one pair of each group.
        both_sides: every image of the pairs is a query, and all others are candidates.
    """
    n = len(pairs)
    query, duplicate = (pairs.ravel(), pairs[:, ::-1].ravel()) if both_sides else pairs.T
    candidates = query if both_sides else duplicate
    groups = np.repeat(np.arange(n), 2) if both_sides else np.arange(n)  # of queries and of candidates
    asked = index.Vectors(query, vectors[query], problems={})
    gallery = index.Vectors(candidates, vectors[candidates][:, :1], problems={})
    hard, place, _ = index.search(asked, gallery, 1, groups, groups)
    itself = np.arange(len(query)) if both_sides else None
    nearest = candidates[index.search(asked, gallery, max(NEAREST), itself, itself)[1]]  # of none found: the last
    found = nearest == duplicate[:, None]
    other = draw_others(n, rng)[groups]
    random = pairs[other, rng.integers(0, 2, len(query))] if both_sides else duplicate[other]
    return Comparison(
        query,
        duplicate,
        {"hardest": candidates[place[:, 0]], "random": random},
        {
            "duplicate": _distances(vectors, query, duplicate),
            "hardest": hard[:, 0],
            "random": _distances(vectors, query, random),
        },
        np.where(found.any(1), found.argmax(1), max(NEAREST)),
    )


def _distances(vectors, query, other):
    """(N,) of queries in their best orientation and other images as they are."""
    return np.linalg.norm(vectors[query] - vectors[other][:, :1], axis=2).min(1)


def scores(comparison: Comparison) -> dict[str, float | None]:
    """AUC, AP, the distance at 99 % precision and precision at recalls, for each kind of negative; recall@k.

    The hardest kind's chance level is near 0, not 0.5: the nearest of many images by chance is nearer than one.
    """
    found = {"pairs": len(comparison.query)}
    near = comparison.distances["duplicate"]
    for kind in KINDS:
        far = comparison.distances[kind]
        labels, distances = np.repeat([1, 0], len(near)), np.concatenate([near, far])
        measured = metrics.classification(labels, -distances)
        found |= {f"{kind}_auc": measured["auc"], f"{kind}_ap": measured["ap"]}
        found |= {f"{kind}_{name}": value for name, value in working_points(labels, distances).items()}
    return found | {f"recall@{k}": float((comparison.rank < k).mean()) for k in NEAREST}


def working_points(labels: np.ndarray, distances: np.ndarray) -> dict[str, float | None]:
    """The largest threshold at which pairs up to it are duplicates with 99 % precision, its recall, and the precision
    at recalls of 90, 95 and 99 %. None where there is no such threshold."""
    order = np.argsort(distances, kind="stable")
    distances, hits = distances[order], np.cumsum(labels[order])
    ends = np.flatnonzero(np.append(np.diff(distances) > 0, True))  # the last of equal distances
    precision, recall = hits[ends] / (ends + 1), hits[ends] / labels.sum()
    good = np.flatnonzero(precision >= PRECISION)
    found = {
        "threshold": float(distances[ends[good[-1]]]) if len(good) else None,
        "recall_at_threshold": float(recall[good[-1]]) if len(good) else 0.0,
    }
    return found | {f"precision_at_recall_{100 * r:.0f}": float(precision[recall >= r].max()) for r in RECALLS}


def roc(comparison: Comparison, kind: str) -> np.ndarray:
    """(2, points): false and true positive rates."""
    from sklearn.metrics import roc_curve

    near, far = comparison.distances["duplicate"], comparison.distances[kind]
    return np.array(roc_curve(np.repeat([1, 0], len(near)), -np.concatenate([near, far]))[:2])


def median(runs: list[dict]) -> dict[str, float | None]:
    """Of each score over runs; None where a run has none."""
    values = {name: [run[name] for run in runs] for name in runs[0]}
    return {name: None if None in each else float(np.median(each)) for name, each in values.items()}
