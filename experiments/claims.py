"""Pawlowski 2019's claims: each in our words, with the rule that decides it on a table of results."""

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from experiments.figures import LABELS
from experiments.results import LEVELS, smallest_sets
from models.needle import POOLINGS

GOOD, LEARNT = 0.7, 0.6  # accuracies that count as "reasonable", and as above chance
TINY = 1.5  # O2I in percent below which objects count as small
CONFIRMED, CONTRADICTED, UNDECIDED, NOT_RUN = "confirmed", "contradicted", "undecided", "not yet run"
WORST_FIRST = (CONTRADICTED, UNDECIDED, CONFIRMED)
MOST = "by more than two standard errors"
ONCE = f"{MOST} once or more, nowhere the reverse"


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


@dataclass(frozen=True)
class Trend:
    """A column rises (sign 1) or falls (-1) along an axis at each value of another; points without fit are left out."""

    axis: str
    sign: int
    column: str = "test_acc"
    each: str | None = None

    @property
    def rule(self):
        verb, places = "rises" if self.sign > 0 else "falls", f" at each {LABELS[self.each]}" if self.each else ""
        order = "from large to small" if self.axis == "o2i" else "from the lowest to the highest"
        return f"{LABELS[self.column]} {verb} {order} {LABELS[self.axis]}{places}, {ONCE}"

    def __call__(self, evidence):
        values = evidence.values(self.axis)
        places = [{self.each: value} for value in evidence.values(self.each)] if self.each else [{}]
        if len(values) < 2:
            raise Missing(f"a second {LABELS[self.axis]}")
        found = evidence.means(self.column, self.axis, values, places)
        signs = []
        for place in places:
            means = [mean for key, mean in found.items() if key[:-1] == tuple(place.values())]
            signs += [self.sign * compare(means[-1], means[0])] if len(means) > 1 else []
        return decide(signs), show(found)


@dataclass(frozen=True)
class Wins:
    """Some values of an axis beat others, each each: at each O2I, the largest, the smallest learnt, or in all runs."""

    axis: str
    better: tuple
    worse: tuple
    at: str = "each"
    column: str = "test_acc"

    @property
    def rule(self):
        names = (" and ".join(map(str, values)) for values in (self.better, self.worse))
        learnt = f" with a mean above {LEARNT:g}" if self.column == "test_acc" else ""
        smallest = f"at the smallest O2I{learnt}, of those below {TINY:g} %"
        places = {"all": "over all runs", "each": "at each O2I", "largest": "at the largest O2I", "smallest": smallest}
        return f"{LABELS[self.column]}: {' above '.join(names)} {places[self.at]}, {ONCE}"

    def __call__(self, evidence):
        ratios = [ratio for ratio in evidence.values("o2i") if self.at != "smallest" or _percent(ratio) < TINY]
        if not ratios:
            raise Missing(f"O2I below {TINY:g} %")
        places = [{}] if self.at == "all" else [{"o2i": ratio} for ratio in ratios]
        found = evidence.means(self.column, self.axis, [*self.better, *self.worse], places)
        places = list(dict.fromkeys(key[:-1] for key in found))
        if self.at == "smallest" and self.column == "test_acc":
            places = [place for place in places if any(k[:-1] == place and m.value > LEARNT for k, m in found.items())]
        places = {"largest": places[:1], "smallest": places[-1:]}.get(self.at, places)
        pairs = [((*place, a), (*place, b)) for place in places for a in self.better for b in self.worse]
        signs = [compare(found[a], found[b]) for a, b in pairs if a in found and b in found]
        return decide(signs), show({key: mean for key, mean in found.items() if key[:-1] in places})


@dataclass(frozen=True)
class Gains:
    """What an axis brings from its first value to its last grows along another axis."""

    axis: str
    along: str

    @property
    def rule(self):
        order = (
            "at the smallest O2I than at the largest" if self.along == "o2i" else f"at the most {LABELS[self.along]}"
        )
        return f"the gain by {LABELS[self.axis]} is larger {order}, {MOST}, of those learnt (above {LEARNT:g})"

    def __call__(self, evidence):
        values = evidence.values(self.axis)
        if len(values) < 2:
            raise Missing(f"a second {LABELS[self.axis]}")
        places = evidence.values(self.along)
        found = evidence.means("test_acc", self.axis, [values[0], values[-1]], [{self.along: p} for p in places])
        gains = {}
        for place in places:
            low, high = found.get((place, values[0])), found.get((place, values[-1]))
            if low and high and high.value > LEARNT:
                gains[place,] = Mean(high.value - low.value, float(np.hypot(low.error, high.error)), min(low.n, high.n))
        first, *_, last = [*gains.values()] if len(gains) > 1 else [None, None]
        return decide([compare(last, first)] if first else []), f"gains {show(gains)}"


@dataclass(frozen=True)
class Limit:
    """Accuracy is reasonable at every O2I above a threshold (%) and not at the smallest."""

    threshold: float

    @property
    def rule(self):
        return f"mean at least {GOOD:g} at every O2I above {self.threshold:g} %, less at the smallest, which is below"

    def __call__(self, evidence):
        ratios = evidence.values("o2i")
        above = [ratio for ratio in ratios if _percent(ratio) > self.threshold]
        if len(above) in (0, len(ratios)):
            raise Missing(f"O2I {'below' if above else 'above'} {self.threshold:g} %")
        found = {(ratio,): evidence.mean(o2i=ratio) for ratio in [*above, ratios[-1]]}
        *large, small = (mean.value for mean in found.values())
        return CONFIRMED if min(large) >= GOOD > small else CONTRADICTED, show(found)


@dataclass(frozen=True)
class LearnsAlike:
    """The learning curves at a precision are those of float32, whether or not the runs fit."""

    precision: str
    margin = 0.03

    @property
    def rule(self):
        return (
            "training accuracy averaged over epochs and best validation accuracy differ from float32's by less than"
            f" {self.margin:g} with two standard errors to spare; contradicted when one differs {MOST}"
        )

    def __call__(self, evidence):
        columns = ("mean_running_acc", "val_acc")
        found = {
            (precision, column): evidence.mean(column, fitted_only=False, precision=precision)
            for precision, column in product(("float32", self.precision), columns)
        }
        verdicts = [self._verdict(found[self.precision, column], found["float32", column]) for column in columns]
        return min(verdicts, key=WORST_FIRST.index), show(found)

    def _verdict(self, mean, base):
        off, error = abs(mean.value - base.value), 2 * np.hypot(mean.error, base.error)
        return CONFIRMED if off + error < self.margin else CONTRADICTED if off > error else UNDECIDED


@dataclass(frozen=True)
class Alike:
    """The values of an axis make little difference at every O2I above a threshold (%)."""

    axis: str
    threshold: float = 0
    margin = 0.05

    @property
    def rule(self):
        above = f" above {self.threshold:g} %" if self.threshold else ""
        return f"means over {LABELS[self.axis]} lie within {self.margin:g} at every O2I{above}"

    def __call__(self, evidence):
        ratios = [ratio for ratio in evidence.values("o2i") if _percent(ratio) > self.threshold]
        if not ratios:
            raise Missing(f"O2I above {self.threshold:g} %")
        found = {(r, v): evidence.mean(o2i=r, **{self.axis: v}) for r in ratios for v in evidence.values(self.axis)}
        spread = max(np.ptp([mean.value for key, mean in found.items() if key[0] == ratio]) for ratio in ratios)
        return CONFIRMED if spread <= self.margin else CONTRADICTED, show(found)


def set_size_grows(evidence):
    """for each pooling, the smallest training set that reaches 70 and 85 % never shrinks towards small O2I and grows"""
    signs, shown, ratios = [], [], evidence.values("o2i")
    for pooling, level in product(evidence.values("pooling"), LEVELS):
        found = smallest_sets(evidence.table[evidence.table["pooling"] == pooling], level)
        sizes = [found[ratio] for ratio in ratios]
        if len(sizes) > 1 and np.isfinite(sizes).any():
            signs += [int(np.sign(b - a)) if a != b else 0 for a, b in pairwise(sizes)]
            shown.append(f"{pooling} {level:g}: {', '.join('none' if np.isinf(n) else f'{n:g}' for n in sizes)}")
    return decide(signs), "; ".join(shown)


def max_fits_most(evidence):
    """max pooling has at least as many runs that fit as every other pooling, and more than one of them"""
    counts = evidence.table.groupby("pooling")["fits"].sum()
    if "max" not in counts or len(counts) < 2:
        raise Missing("max and another pooling")
    signs = [int(np.sign(counts["max"] - n)) for n in counts.drop("max")] if counts.any() else []
    return decide(signs), ", ".join(f"{pooling}: {n}" for pooling, n in counts.items())


def seeds_agree(evidence):
    """either all seeds fit or none, at nine points of ten"""
    if len(evidence.values("seed")) < 2:
        raise Missing("a second seed")
    share = evidence.table.groupby(["o2i", "pooling"])["fits"].mean()
    agree = int(share.isin([0, 1]).sum())
    if not share.any():
        raise Undecided("no run fits the training data")
    return CONFIRMED if agree >= 0.9 * len(share) else CONTRADICTED, f"{agree} of {len(share)} points"


def all_fit(evidence):
    """all runs fit (at another setting than Pawlowski 2019's, one that does not leaves it undecided)"""
    fits, paper = evidence.table["fits"], (evidence.table["setting"] == "paper").all()
    verdict = CONFIRMED if fits.all() else CONTRADICTED if paper else UNDECIDED
    return verdict, f"{fits.sum()} of {len(fits)} runs"


@dataclass(frozen=True)
class Claim:
    """A sentence about a figure and what judges it: judge(evidence) -> verdict, numbers."""

    figure: str
    text: str
    judge: object
    data: str = "nmnist"
    receptive_field: int | None = None  # only these runs

    @property
    def rule(self) -> str:
        return " ".join((getattr(self.judge, "rule", None) or self.judge.__doc__).split())


LARGER_SETS = "The training set needed grows rapidly as objects get smaller"
AP = {"column": "localization_ap"}
CLAIMS = (
    Claim("figure4", "Accuracy falls as objects get smaller", Trend("o2i", -1)),
    Claim("figure4", "Accuracy is reasonable above an O2I of 0.3 %, poor below", Limit(0.3)),
    Claim("figure4", "Crops: accuracy is reasonable above an O2I of 1 %, poor below", Limit(1), "ncamelyon"),
    Claim("figure5a", "More training images generalise better", Trend("num_examples", 1, each="o2i")),
    Claim("figure5a", "More images help most where objects are small", Gains("num_examples", "o2i")),
    Claim("figure5b", "Higher capacity generalises better", Trend("width", 1, each="o2i")),
    Claim("figure5b", "Capacity helps most where objects are small", Gains("width", "o2i")),
    Claim("figure5c", "Crops: capacity matters little", Alike("width"), "ncamelyon"),
    Claim("figure6", LARGER_SETS, set_size_grows),
    Claim("figure7", "Receptive fields larger than a digit are best", Wins("receptive_field", (33, 177), (9,))),
    Claim("figure7", "Crops: the smallest field is best", Wins("receptive_field", (9,), (33, 177), "all"), "ncamelyon"),
    Claim("figure8", "At large O2I all poolings perform alike", Alike("pooling", 4)),
    Claim("figure8", "At small O2I max pooling is best", Wins("pooling", ("max",), POOLINGS[1:], "smallest")),
    Claim(
        "figure8",
        "Crops: at the smallest O2I mean and attention pooling are best",
        Wins("pooling", ("mean", "attention"), ("max", "logsumexp"), "smallest"),
        "ncamelyon",
    ),
    Claim("figure9", "Fitting takes longer as objects get smaller", Trend("o2i", 1, "epochs_to_fit", "pooling")),
    Claim("figure9", "Max pooling fits most often", max_fits_most),
    Claim("figure9", "All seeds of a point succeed or all fail", seeds_agree),
    Claim("figure9", "Every network memorises Gaussian noise", all_fit, "noise"),
    Claim("figure12", "Accuracy drops as training data get unbalanced", Wins("balance", (0.5,), (0.01, 0.99), "all")),
    Claim(
        "figure12",
        "Max and logsumexp pooling are most robust to it",
        Wins("pooling", ("max", "logsumexp"), ("mean", "attention"), "all"),
    ),
    Claim("figure13", "Capacity helps less on small training sets", Gains("width", "num_examples")),
    Claim("figure14", "Larger sets reach higher validation accuracy", Trend("num_examples", 1, "val_acc", "pooling")),
    Claim("figure15", f"{LARGER_SETS}, for every pooling", set_size_grows),
    Claim(
        "figure17",
        "Localisation deteriorates as objects get smaller",
        Trend("o2i", -1, each="pooling", **AP),
        "nmnist",
        33,
    ),
    Claim(
        "figure17",
        "At small O2I max localises best",
        Wins("pooling", ("max",), POOLINGS[1:], "smallest", **AP),
        "nmnist",
        33,
    ),
    Claim(
        "figure17",
        "At large O2I logsumexp localises best",
        Wins("pooling", ("logsumexp",), ("max", "mean", "attention"), "largest", **AP),
        "nmnist",
        33,
    ),
    *[
        Claim("precision", f"Not in Pawlowski 2019: {name} learns as float32 does", LearnsAlike(precision))
        for name, precision in (("TF32", "tf32"), ("fp16", "fp16"), ("bf16", "bf16"))
    ],
)


def judge(claim: Claim, table) -> tuple[str, str]:
    """Verdict and numbers of a claim on its figure's results at one setting, None where there are none."""
    if table is None:
        return NOT_RUN, ""
    rows = table[table["data"] == claim.data]
    if claim.receptive_field:
        rows = rows[rows["receptive_field"] == claim.receptive_field]
    if rows.empty:
        return NOT_RUN, ""
    try:
        return claim.judge(Evidence(rows))
    except Undecided as reason:
        return UNDECIDED, str(reason)
    except Missing as missing:
        return NOT_RUN, f"no runs at {missing}"
