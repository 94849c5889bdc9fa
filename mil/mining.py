"""Which tiles the encoder learns from: instance scores -> indices of tiles. Pure functions.

Everywhere: scores (T,), a score per tile; bags (T,), the number of each tile's bag; positive (T,) bool, whether that
bag is positive; threshold, above which a tile of a positive bag counts as positive. A selection is sorted indices.
Source: HNM-WSI (2410.02212) and ItS2CLR (2210.09452).
"""

from dataclasses import dataclass

import numpy as np

from common.errors import BadInput

QUANTILES = ("global", "per_bag")


@dataclass(frozen=True)
class Rule:
    """What selects tiles; see `select`."""

    threshold: float
    quantile: str = "global"
    hardest: float | None = 0.2  # share of the negative bags' tiles that is kept, None keeps all
    at_random: bool = False  # keep as many at random instead, what the hardest are compared with


@dataclass(frozen=True)
class Selection:
    """The four sets that an epoch draws from, sorted indices of tiles.

    p_full: positive tiles; p: the most certain of them; n_clean: tiles of negative bags, the hardest; n: the same and,
    where uncertain negatives are let in, tiles of positive bags with the lowest scores.
    """

    p_full: np.ndarray
    p: np.ndarray
    n: np.ndarray
    n_clean: np.ndarray


def select(
    scores: np.ndarray,
    bags: np.ndarray,
    positive: np.ndarray,
    rule: Rule,
    share: float,
    negative_share: float,
    uncertain: tuple[str, ...] = (),
    seed: tuple[int, ...] = (0,),
) -> Selection:
    """The sets of an epoch.

    Args:
        share: r, of the positive tiles that are certain enough for `p`.
        negative_share: r_neg, of the positive bags' low scores that count as negative.
        uncertain: which of "n" and "n_clean" hold these uncertain negatives too.
        seed: of negatives at random.
    Errors: BadInput when no tile of a positive bag passes the threshold, or when a class has no bag.
    """
    p_full = positives(scores, positive, rule.threshold)
    hard = hardest_negatives(scores, bags, positive, rule.hardest, rule.quantile)
    if rule.at_random:
        rng = np.random.default_rng(seed)
        hard = np.sort(rng.choice(np.flatnonzero(~positive), len(hard), replace=False))
    low = uncertain_negatives(scores, bags, positive, rule, negative_share) if uncertain else None
    n, n_clean = (np.union1d(hard, low) if name in uncertain else hard for name in ("n", "n_clean"))
    return Selection(p_full, highest(p_full, scores, bags, share, rule.quantile), n, n_clean)


def positives(scores: np.ndarray, positive: np.ndarray, threshold: float) -> np.ndarray:
    """P_full: tiles of positive bags with a score above the threshold. BadInput when there are none."""
    if not positive.any():
        raise BadInput("no positive bag with tiles among the encoder's bags; it learns from both classes")
    chosen = np.flatnonzero(positive & (scores > threshold))
    if not len(chosen):
        top = scores[positive].max()
        raise BadInput(
            f"--threshold {threshold:g}: no tile of a positive bag scores above it, the highest has {top:.4g}; lower it"
        )
    return chosen


def highest(chosen: np.ndarray, scores: np.ndarray, bags: np.ndarray, share: float, quantile: str) -> np.ndarray:
    """Those of the chosen tiles with s >= quantile(chosen scores, 1 - share); of equal scores all or none."""
    values = scores[chosen]
    return chosen[values >= _quantiles(values, bags[chosen], 1 - share, quantile)]


def lowest(chosen: np.ndarray, scores: np.ndarray, bags: np.ndarray, share: float, quantile: str) -> np.ndarray:
    """Those of the chosen tiles with s <= quantile(chosen scores, share); of equal scores all or none."""
    values = scores[chosen]
    return chosen[values <= _quantiles(values, bags[chosen], share, quantile)]


def hardest_negatives(
    scores: np.ndarray, bags: np.ndarray, positive: np.ndarray, share: float | None, quantile: str
) -> np.ndarray:
    """Tiles of negative bags, with a share the highest scores alone. BadInput without a negative bag."""
    chosen = np.flatnonzero(~positive)
    if not len(chosen):
        raise BadInput("no negative bag with tiles among the encoder's bags; it learns from both classes")
    return chosen if share is None else highest(chosen, scores, bags, share, quantile)


def uncertain_negatives(
    scores: np.ndarray, bags: np.ndarray, positive: np.ndarray, rule: Rule, share: float
) -> np.ndarray:
    """Of the positive bags' tiles that do not pass the threshold, the lowest scores; none where all pass."""
    return lowest(np.flatnonzero(positive & (scores <= rule.threshold)), scores, bags, share, rule.quantile)


def _quantiles(values, bags, q, kind):
    """The quantile that each value is held against: of all values, or of those of its bag. (n,)"""
    if kind == "global" or not len(values):
        return np.full(len(values), np.quantile(values, q)) if len(values) else values
    limits = np.empty(len(values))
    for members in _by_bag(bags):
        limits[members] = np.quantile(values[members], q)
    return limits


def _by_bag(bags):
    """The places of each bag's number in (n,) numbers."""
    order = np.argsort(bags, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(bags[order])) + 1)


def share_at(epoch: int, epochs: int, warmup: int, start: float, end: float) -> float:
    """r after an epoch: `start` up to and at the end of the warm-up, then in a line to `end` at `epochs`."""
    if epoch <= warmup or epochs <= warmup:
        return start
    return start + (epoch - warmup) * (end - start) / (epochs - warmup)


def blended(old: np.ndarray, new: np.ndarray, keep: float = 0.3) -> np.ndarray:
    """keep * old + (1 - keep) * new, an array of its own."""
    return keep * old + (1 - keep) * new


def thinned(truth: np.ndarray, bags: np.ndarray, positive: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Which tiles stay, bool (T,), when positive bags are given another witness rate.

    A rate below 1 keeps that share of the negative tiles in each positive bag; one above 1 keeps the share 1 / rate
    of its positive tiles, and at least one, so that its label stays true.

    Args:
        truth: (T,) 1 positive, 0 negative; -1, not known, is refused.
    Errors: BadInput where the truth of a positive bag's tile is not known.
    """
    if (truth[positive] < 0).any():
        raise BadInput(f"--witness_rate {rate:g}: needs every tile's truth in positive bags, which these bags lack")
    rng, stay = np.random.default_rng(seed), np.ones(len(truth), bool)
    thinned_truth, share = (0, rate) if rate < 1 else (1, 1 / rate)
    for members in _by_bag(bags):
        tiles = members[positive[members] & (truth[members] == thinned_truth)]
        kept = max(thinned_truth, round(share * len(tiles)))
        stay[rng.permutation(tiles)[kept:]] = False
    return stay


def epoch_batches(tiles: np.ndarray, size: int, steps: int, seed: tuple[int, ...]) -> np.ndarray:
    """Batches (steps, size) of tiles: the set is walked in a new order each time, what does not fill a batch left out.

    A set smaller than a batch is drawn from with replacement.
    """
    rng = np.random.default_rng(seed)
    if len(tiles) < size:
        return rng.choice(tiles, (steps, size))
    whole = len(tiles) // size
    walks = [rng.permutation(tiles)[: whole * size].reshape(whole, size) for _ in range(-(-steps // whole))]
    return np.concatenate(walks or [np.empty((0, size), tiles.dtype)])[:steps]
