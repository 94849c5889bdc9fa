"""Cross-validation of bags: no bag that chooses an epoch or a threshold is among those it is reported on.

DSMIL's own schemes choose on the fold that they report; here each fold has validation bags apart from its test bags.
"""

from collections.abc import Sequence

import numpy as np

from common.errors import BadInput

SCHEMES = ("cv", "cv-standalone-test")  # DSMIL's 5-fold-cv and 5-fold-cv-standalone-test
HELD_OUT = 0.2  # share of the bags that a standalone test keeps


def make(labels: Sequence[int], k: int, seed: int, scheme: str = "cv") -> list[dict[str, np.ndarray]]:
    """k times {"train", "val", "test"}: sorted indices of bags, each class shared alike.

    cv: every bag is tested once; the next fold chooses, the others train. cv-standalone-test: a fifth is held out, the
    same for all; of the rest one fold chooses and the others train. BadInput when a class has too few bags.
    """
    labels = np.asarray(labels)
    rng = np.random.default_rng(seed)
    least = 3 if scheme == "cv" else 2
    if k < least:
        raise BadInput(f"--folds {k}: expected {least} or more, for training, choice and test apart")
    held = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    needed = k if scheme == "cv" else k + 1
    if len(held) < 2 or min(map(len, held)) < needed:
        counts = ", ".join(map(str, map(len, held)))
        raise BadInput(f"--folds {k}: needs {needed} bags or more of each class, found {counts}")
    test = np.array([], int)
    if scheme != "cv":
        sizes = [max(1, round(HELD_OUT * len(bags))) for bags in held]
        test = np.concatenate([bags[:n] for bags, n in zip(held, sizes, strict=True)])
        held = [bags[n:] for bags, n in zip(held, sizes, strict=True)]
    parts = [np.concatenate([bags[i::k] for bags in held]) for i in range(k)]
    found = []
    for i in range(k):
        tested, chooses = (parts[i], (i + 1) % k) if scheme == "cv" else (test, i)
        trains = [part for j, part in enumerate(parts) if j != chooses and not (scheme == "cv" and j == i)]
        split = {"train": np.concatenate(trains), "val": parts[chooses], "test": tested}
        found.append({name: np.sort(indices) for name, indices in split.items()})
    return found


def share_out(labels: Sequence[int], shares: dict[str, int], seed: int) -> list[str]:
    """A split for each bag: each class in proportion to the shares, one bag of it or more in each split.

    BadInput when a class has fewer bags than there are splits.
    """
    labels, found = np.asarray(labels), np.empty(len(labels), object)
    rng, total = np.random.default_rng(seed), sum(shares.values())
    for label in np.unique(labels):
        bags = rng.permutation(np.flatnonzero(labels == label))
        if len(bags) < len(shares):
            raise BadInput(f"{len(bags)} bags of label {label}: too few to share among {', '.join(shares)}")
        counts = [max(1, round(len(bags) * share / total)) for share in shares.values()]
        counts[0] = len(bags) - sum(counts[1:])
        for split, part in zip(shares, np.split(bags, np.cumsum(counts)[:-1]), strict=True):
            found[part] = split
    return found.tolist()


def majority(votes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """What most models say of each bag; where they are even, the sign of their mean score decides.

    Args:
        votes: (k, N) 0 or 1. scores: (k, N), each model's score less its own threshold.
    Returns: (N,) 0 or 1.
    """
    lead = 2 * np.sum(votes, axis=0) - len(votes)  # of votes for 1 over those for 0
    return np.where(lead == 0, np.mean(scores, axis=0) >= 0, lead > 0).astype(np.int64)
