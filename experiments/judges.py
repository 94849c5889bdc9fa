"""What decides a claim on a table of results: judge(evidence) -> verdict, numbers.

Each raises Undecided where too few runs fit the training data, Missing where runs are not there.
"""

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from experiments.figures import LABELS
from experiments.results import LEVELS, smallest_sets

GOOD, ABOVE_CHANCE = 0.7, 0.6  # accuracies that count as "reasonable", and as above chance
TINY = 1.5  # O2I in percent below which objects count as small
CONFIRMED, CONTRADICTED, UNDECIDED = "confirmed", "contradicted", "undecided"
WORST_FIRST = (CONTRADICTED, UNDECIDED, CONFIRMED)
SAME_MEAN, SAME_CURVE = 0.05, 0.03  # differences in accuracy that count as none


class Undecided(Exception):
    """The results do not tell; the message says why."""


class Missing(Exception):
    """Results that the rule needs are not there; the message says which."""


@dataclass(frozen=True)
class Mean:
    """Mean over seeds, its standard error, and how many."""

    value: float
    error: float
    n: int

    def __str__(self):
        return f"{self.value:.3g} ± {self.error:.2g} ({self.n})"


class Evidence:
    """The results of one setting and one kind of data."""

    def __init__(self, table):
        self.table = table

    def values(self, axis: str) -> list:
        """What the column takes, in ascending order; O2I from large to small."""
        found = self.table[axis].unique()
        return sorted(found, key=lambda text: -_percent(text)) if axis == "o2i" else sorted(found)

    def mean(self, column="test_acc", fitted_only=True, **where) -> Mean:
        """Of the runs at a point that fit the training data.

        Where none fits, an accuracy at Pawlowski 2019's setting is random, as there; else the point is Undecided.
        """
        name, rows = " ".join(f"{LABELS[axis]} {value}" for axis, value in where.items()), self.table
        for axis, value in where.items():
            rows = rows[rows[axis] == value]
        if rows.empty:
            raise Missing(name)
        values = rows[column][rows["fits"] | (not fitted_only)].to_numpy(float)
        if len(values) == 0 and column == "test_acc" and (rows["setting"] == "paper").all():
            values = np.full(len(rows), 0.5)
        if len(values) < 2:
            raise Undecided(f"{len(values)} of {len(rows)} runs fit the training data at {name}, two are needed")
        return Mean(values.mean(), values.std(ddof=1) / len(values) ** 0.5, len(values))

    def means(self, column: str, axis: str, values: list, places: list[dict]) -> dict[tuple, Mean]:
        """At the axis's values at each place, without the points that were not run or of which too few runs fit.

        Undecided when no point is left, Missing when one of the values was run nowhere.
        """
        found, reasons = {}, []
        for value in set(values) - set(self.values(axis)):
            raise Missing(f"{LABELS[axis]} {value}")
        for point in [place | {axis: value} for place in places for value in values]:
            try:
                found[tuple(point.values())] = self.mean(column, **point)
            except (Undecided, Missing) as reason:
                reasons.append(reason)
        if not found:
            raise Undecided("; ".join(map(str, reasons)))
        return found


def _percent(o2i):
    return float(o2i.split("-")[-1])


def compare(a: Mean, b: Mean) -> int:
    """1 when a is above b by more than two standard errors of the difference, -1 when below, else 0."""
    difference = a.value - b.value
    return int(np.sign(difference)) if abs(difference) > 2 * np.hypot(a.error, b.error) else 0


def decide(signs: list[int]) -> str:
    """Contradicted when one comparison goes against the claim, confirmed when one goes its way and none against it."""
    if not signs:
        raise Undecided("runs fit the training data at too few points to compare")
    return CONTRADICTED if min(signs) < 0 else CONFIRMED if max(signs) > 0 else UNDECIDED


def show(found: dict[tuple, Mean]) -> str:
    return ", ".join(f"{' '.join(map(str, key))}: {mean}" for key, mean in found.items())


def trend(evidence, axis: str, sign: int, column="test_acc", each: str | None = None):
    """A column rises (sign 1) or falls (-1) from one end of an axis to the other, at each value of another axis.

    Where an end has no fit, that value is left out.
    """
    values = evidence.values(axis)
    places = [{each: value} for value in evidence.values(each)] if each else [{}]
    if len(values) < 2:
        raise Missing(f"a second {LABELS[axis]}")
    found = evidence.means(column, axis, values, places)
    signs = []
    for place in places:
        ends = [found.get((*place.values(), value)) for value in (values[0], values[-1])]
        signs += [sign * compare(ends[1], ends[0])] if all(ends) else []
    return decide(signs), show(found)


def wins(evidence, axis: str, better: tuple, worse: tuple, at="each", column="test_acc"):
    """Every better value of an axis against every worse one: at each O2I, the largest, the smallest, or over all.

    The smallest in accuracy is the smallest learnt.
    """
    ratios = [ratio for ratio in evidence.values("o2i") if at != "smallest" or _percent(ratio) < TINY]
    if not ratios:
        raise Missing(f"O2I below {TINY:g} %")
    places = [{}] if at == "all" else [{"o2i": ratio} for ratio in ratios]
    found = evidence.means(column, axis, [*better, *worse], places)
    places = [tuple(place.values()) for place in places]
    if at == "smallest" and column == "test_acc":
        learnt = {key[:-1] for key, mean in found.items() if mean.value > ABOVE_CHANCE}
        places = [place for place in places if place in learnt]
    places = {"largest": places[:1], "smallest": places[-1:]}.get(at, places)
    pairs = [((*place, a), (*place, b)) for place in places for a in better for b in worse]
    signs = [compare(found[a], found[b]) for a, b in pairs if a in found and b in found]
    return decide(signs), show({key: mean for key, mean in found.items() if key[:-1] in places})


def gains(evidence, axis: str, along: str):
    """What an axis brings from its first value to its last grows along another axis."""
    values = evidence.values(axis)
    if len(values) < 2:
        raise Missing(f"a second {LABELS[axis]}")
    places = evidence.values(along)
    found = evidence.means("test_acc", axis, [values[0], values[-1]], [{along: place} for place in places])
    differences = {}
    for place in places:
        low, high = found.get((place, values[0])), found.get((place, values[-1]))
        if low and high and high.value > ABOVE_CHANCE:
            error = float(np.hypot(low.error, high.error))
            differences[place,] = Mean(high.value - low.value, error, min(low.n, high.n))
    gained = list(differences.values())
    signs = [compare(gained[-1], gained[0])] if len(gained) > 1 else []
    return decide(signs), f"gains {show(differences)}"


def limit(evidence, threshold: float):
    """Accuracy is reasonable at every O2I above a threshold (%) and not at the smallest."""
    ratios = evidence.values("o2i")
    above = [ratio for ratio in ratios if _percent(ratio) > threshold]
    if len(above) in (0, len(ratios)):
        raise Missing(f"O2I {'below' if above else 'above'} {threshold:g} %")
    found = {(ratio,): evidence.mean(o2i=ratio) for ratio in [*above, ratios[-1]]}
    *large, small = (mean.value for mean in found.values())
    return CONFIRMED if min(large) >= GOOD > small else CONTRADICTED, show(found)


def learns_alike(evidence, precision: str):
    """The learning curves at a precision are those of float32, whether or not the runs fit."""
    columns = ("mean_running_acc", "val_acc")
    found = {
        (name, column): evidence.mean(column, fitted_only=False, precision=name)
        for name, column in product(("float32", precision), columns)
    }
    verdicts = [_verdict(found[precision, column], found["float32", column]) for column in columns]
    return min(verdicts, key=WORST_FIRST.index), show(found)


def _verdict(mean, base):
    off, error = abs(mean.value - base.value), 2 * np.hypot(mean.error, base.error)
    return CONFIRMED if off + error < SAME_CURVE else CONTRADICTED if off > error else UNDECIDED


def alike(evidence, axis: str, threshold: float = 0):
    """The values of an axis make little difference at every O2I above a threshold (%)."""
    ratios = [ratio for ratio in evidence.values("o2i") if _percent(ratio) > threshold]
    if not ratios:
        raise Missing(f"O2I above {threshold:g} %")
    found = {(r, v): evidence.mean(o2i=r, **{axis: v}) for r in ratios for v in evidence.values(axis)}
    spread = max(np.ptp([mean.value for key, mean in found.items() if key[0] == ratio]) for ratio in ratios)
    return CONFIRMED if spread <= SAME_MEAN else CONTRADICTED, show(found)


def set_size_grows(evidence):
    """The smallest training set that reaches each level never shrinks towards small O2I, and grows."""
    signs, shown, ratios = [], [], evidence.values("o2i")
    for pooling, level in product(evidence.values("pooling"), LEVELS):
        found = smallest_sets(evidence.table[evidence.table["pooling"] == pooling], level)
        sizes = [found[ratio] for ratio in ratios]
        if len(sizes) > 1 and np.isfinite(sizes).any():
            signs += [int(np.sign(b - a)) if a != b else 0 for a, b in pairwise(sizes)]
            shown.append(f"{pooling} {level:g}: {', '.join('none' if np.isinf(n) else f'{n:g}' for n in sizes)}")
    return decide(signs), "; ".join(shown)


def max_fits_most(evidence):
    """Of max pooling's runs as large a share fits as of every other pooling's, and a larger one than of one of them."""
    fits = evidence.table.groupby("pooling")["fits"]
    shares = fits.mean()
    if "max" not in shares or len(shares) < 2:
        raise Missing("max and another pooling")
    signs = [int(np.sign(shares["max"] - share)) for share in shares.drop("max")] if shares.any() else []
    return decide(signs), ", ".join(f"{pooling}: {own.sum()} of {len(own)}" for pooling, own in fits)


def seeds_agree(evidence):
    """Either all seeds fit or none, at nine points of ten."""
    if len(evidence.values("seed")) < 2:
        raise Missing("a second seed")
    share = evidence.table.groupby(["o2i", "pooling"])["fits"].mean()
    agree = int(share.isin([0, 1]).sum())
    if not share.any():
        raise Undecided("no run fits the training data")
    return CONFIRMED if agree >= 0.9 * len(share) else CONTRADICTED, f"{agree} of {len(share)} points"


def all_fit(evidence):
    """All runs fit; at another setting than Pawlowski 2019's, one that does not leaves it undecided."""
    fits, paper = evidence.table["fits"], (evidence.table["setting"] == "paper").all()
    verdict = CONFIRMED if fits.all() else CONTRADICTED if paper else UNDECIDED
    return verdict, f"{fits.sum()} of {len(fits)} runs"
