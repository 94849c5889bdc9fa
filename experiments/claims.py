"""Pawlowski 2019's claims: each in our words, with the rule that decides it on a table of results."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from experiments.judges import (
    UNDECIDED,
    Evidence,
    Missing,
    Undecided,
    alike,
    all_fit,
    gains,
    learns_alike,
    limit,
    max_fits_most,
    seeds_agree,
    set_size_grows,
    trend,
    wins,
)
from models.needle import POOLINGS

NOT_RUN = "not yet run"


@dataclass(frozen=True)
class Claim:
    """A sentence about a figure, the rule that decides it in words, and as judge(evidence) -> verdict, numbers."""

    figure: str
    text: str
    rule: str
    judge: Callable
    data: str = "nmnist"
    receptive_field: int | None = None  # only these runs


ONCE = ", by more than two standard errors once or more, nowhere the reverse"
LEARNT_ALONE = ", by more than two standard errors, of those learnt (above 0.6)"
SMALLEST = "at the smallest O2I with a mean above 0.6, of those below 1.5 %" + ONCE
SIZES = "the smallest training set that reaches 70 and 85 % never shrinks towards small O2I and grows, for each pooling"
CURVES = (
    "training accuracy averaged over epochs and best validation accuracy differ from float32's by less than 0.03 with"
    " two standard errors to spare; contradicted when one differs by more than two standard errors"
)
localises = partial(wins, axis="pooling", column="localization_ap")
CLAIMS = (
    Claim(
        "figure4",
        "Accuracy falls as objects get smaller",
        "test accuracy falls from the largest to the smallest O2I" + ONCE,
        partial(trend, axis="o2i", sign=-1),
    ),
    Claim(
        "figure4",
        "Accuracy is reasonable above an O2I of 0.3 %, poor below",
        "mean at least 0.7 at every O2I above 0.3 %, less at the smallest, which is below",
        partial(limit, threshold=0.3),
    ),
    Claim(
        "figure4",
        "Crops: accuracy is reasonable above an O2I of 1 %, poor below",
        "mean at least 0.7 at every O2I above 1 %, less at the smallest, which is below",
        partial(limit, threshold=1),
        "ncamelyon",
    ),
    Claim(
        "figure5a",
        "More training images generalise better",
        "test accuracy rises from the fewest to the most training images at each O2I" + ONCE,
        partial(trend, axis="num_examples", sign=1, each="o2i"),
    ),
    Claim(
        "figure5a",
        "More images help most where objects are small",
        "the gain by training images is larger at the smallest O2I than at the largest" + LEARNT_ALONE,
        partial(gains, axis="num_examples", along="o2i"),
    ),
    Claim(
        "figure5b",
        "Higher capacity generalises better",
        "test accuracy rises from the narrowest to the widest network at each O2I" + ONCE,
        partial(trend, axis="width", sign=1, each="o2i"),
    ),
    Claim(
        "figure5b",
        "Capacity helps most where objects are small",
        "the gain by width is larger at the smallest O2I than at the largest" + LEARNT_ALONE,
        partial(gains, axis="width", along="o2i"),
    ),
    Claim(
        "figure5c",
        "Crops: capacity matters little",
        "means over widths lie within 0.05 at every O2I",
        partial(alike, axis="width"),
        "ncamelyon",
    ),
    Claim("figure6", "The training set needed grows rapidly as objects get smaller", SIZES, set_size_grows),
    Claim(
        "figure7",
        "Receptive fields larger than a digit are best",
        "test accuracy: 33 and 177 px above 9 at each O2I" + ONCE,
        partial(wins, axis="receptive_field", better=(33, 177), worse=(9,)),
    ),
    Claim(
        "figure7",
        "Crops: the smallest field is best",
        "test accuracy: 9 px above 33 and 177 over all runs" + ONCE,
        partial(wins, axis="receptive_field", better=(9,), worse=(33, 177), at="all"),
        "ncamelyon",
    ),
    Claim(
        "figure8",
        "At large O2I all poolings perform alike",
        "means over poolings lie within 0.05 at every O2I above 4 %",
        partial(alike, axis="pooling", threshold=4),
    ),
    Claim(
        "figure8",
        "At small O2I max pooling is best",
        "test accuracy: max above every other pooling " + SMALLEST,
        partial(wins, axis="pooling", better=("max",), worse=POOLINGS[1:], at="smallest"),
    ),
    Claim(
        "figure8",
        "Crops: at the smallest O2I mean and attention pooling are best",
        "test accuracy: mean and attention above max and logsumexp " + SMALLEST,
        partial(wins, axis="pooling", better=("mean", "attention"), worse=("max", "logsumexp"), at="smallest"),
        "ncamelyon",
    ),
    Claim(
        "figure9",
        "Fitting takes longer as objects get smaller",
        "epochs to fit the training data rise from the largest to the smallest O2I at each pooling" + ONCE,
        partial(trend, axis="o2i", sign=1, column="epochs_to_fit", each="pooling"),
    ),
    Claim(
        "figure9",
        "Max pooling fits most often",
        "of max pooling's runs as large a share fits as of every other pooling's, and a larger one than of one of them",
        max_fits_most,
    ),
    Claim(
        "figure9",
        "All seeds of a point succeed or all fail",
        "either all seeds fit or none, at nine points of ten",
        seeds_agree,
    ),
    Claim(
        "figure9",
        "Every network memorises Gaussian noise",
        "all runs fit (at another setting than Pawlowski 2019's, one that does not leaves it undecided)",
        all_fit,
        "noise",
    ),
    Claim(
        "figure12",
        "Accuracy drops as training data get unbalanced",
        "test accuracy: half positives above a share of 0.01 and of 0.99, over all runs" + ONCE,
        partial(wins, axis="balance", better=(0.5,), worse=(0.01, 0.99), at="all"),
    ),
    Claim(
        "figure12",
        "Max and logsumexp pooling are most robust to it",
        "test accuracy: max and logsumexp above mean and attention over all runs" + ONCE,
        partial(wins, axis="pooling", better=("max", "logsumexp"), worse=("mean", "attention"), at="all"),
    ),
    Claim(
        "figure13",
        "Capacity helps less on small training sets",
        "the gain by width is larger at the most training images" + LEARNT_ALONE,
        partial(gains, axis="width", along="num_examples"),
    ),
    Claim(
        "figure14",
        "Larger sets reach higher validation accuracy",
        "validation accuracy rises from the fewest to the most training images at each pooling" + ONCE,
        partial(trend, axis="num_examples", sign=1, column="val_acc", each="pooling"),
    ),
    Claim(
        "figure15",
        "The training set needed grows rapidly as objects get smaller, for every pooling",
        SIZES,
        set_size_grows,
    ),
    Claim(
        "figure17",
        "Localisation deteriorates as objects get smaller",
        "localisation average precision falls from the largest to the smallest O2I at each pooling" + ONCE,
        partial(trend, axis="o2i", sign=-1, column="localization_ap", each="pooling"),
        receptive_field=33,
    ),
    Claim(
        "figure17",
        "At small O2I max localises best",
        "localisation average precision: max above every other pooling at the smallest O2I, of those below 1.5 %"
        + ONCE,
        partial(localises, better=("max",), worse=POOLINGS[1:], at="smallest"),
        receptive_field=33,
    ),
    Claim(
        "figure17",
        "At large O2I logsumexp localises best",
        "localisation average precision: logsumexp above every other pooling at the largest O2I" + ONCE,
        partial(localises, better=("logsumexp",), worse=("max", "mean", "attention"), at="largest"),
        receptive_field=33,
    ),
    Claim(
        "precision",
        "Not in Pawlowski 2019: TF32 learns as float32 does",
        CURVES,
        partial(learns_alike, precision="tf32"),
    ),
    Claim(
        "precision",
        "Not in Pawlowski 2019: fp16 learns as float32 does",
        CURVES,
        partial(learns_alike, precision="fp16"),
    ),
    Claim(
        "precision",
        "Not in Pawlowski 2019: bf16 learns as float32 does",
        CURVES,
        partial(learns_alike, precision="bf16"),
    ),
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
