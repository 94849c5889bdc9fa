import pytest

from experiments import claims
from experiments.figures import SMALL
from tests.experiments.sweeps import size_needed, small, table_of


def is_max(point):
    return point.pooling == "max"


SCORES = {  # claim -> (scores that confirm it, scores that contradict it)
    "Accuracy falls as": (lambda p: {"test_acc": 0.9 - 0.1 * small(p)}, lambda p: {"test_acc": 0.5 + 0.1 * small(p)}),
    "Accuracy is reasonable above": (
        lambda p: {"test_acc": 0.9 if p.canvas <= 256 else 0.5},
        lambda p: {"test_acc": 0.6},
    ),
    "Crops: accuracy is reasonable": (lambda p: {"test_acc": 0.9 - 0.09 * small(p)}, lambda p: {"test_acc": 0.8}),
    "More training images generalise": (
        lambda p: {"test_acc": 0.5 + p.num_examples / 1e5},
        lambda p: {"test_acc": 0.9 - p.num_examples / 1e5},
    ),
    "More images help most": (
        lambda p: {"test_acc": 0.5 + p.num_examples / 1e5 * (1 + small(p))},
        lambda p: {"test_acc": 0.7 + p.num_examples / 1e6 * (5 - small(p))},
    ),
    "Higher capacity": (lambda p: {"test_acc": 0.7 + 0.05 * p.width}, lambda p: {"test_acc": 0.7 - 0.05 * p.width}),
    "Capacity helps most": (
        lambda p: {"test_acc": 0.7 + 0.01 * p.width * (1 + small(p))},
        lambda p: {"test_acc": 0.7 + 0.01 * p.width * (5 - small(p))},
    ),
    "Crops: capacity": (lambda p: {"test_acc": 0.7 + 0.001 * p.width}, lambda p: {"test_acc": 0.7 + 0.05 * p.width}),
    "The training set needed grows rapidly as objects get smaller": (
        lambda p: size_needed(p, True),
        lambda p: size_needed(p, False),
    ),
    "Receptive fields larger": (
        lambda p: {"test_acc": 0.9 if p.receptive_field > 28 else 0.7},
        lambda p: {"test_acc": 0.7 if p.receptive_field == 177 else 0.9},
    ),
    "Crops: the smallest field": (
        lambda p: {"test_acc": 0.9 - p.receptive_field / 1000},
        lambda p: {"test_acc": 0.7 + p.receptive_field / 1000},
    ),
    "At large O2I all": (
        lambda p: {"test_acc": 0.8 + 0.04 * is_max(p) * (p.canvas < 200)},
        lambda p: {"test_acc": 0.8 + 0.1 * is_max(p)},
    ),
    "At small O2I max pooling is": (
        lambda p: {"test_acc": 0.5 if p.canvas == 1024 else 0.8 + 0.1 * is_max(p)},
        lambda p: {"test_acc": 0.9 - 0.1 * is_max(p) * (p.canvas == 1024)},
    ),
    "Crops: at the smallest O2I": (
        lambda p: {"test_acc": 0.8 - 0.1 * (p.pooling in ("max", "logsumexp"))},
        lambda p: {"test_acc": 0.8 + 0.1 * is_max(p)},
    ),
    "Fitting takes longer": (
        lambda p: {"epochs_to_fit": 10 + 9 * small(p)},
        lambda p: {"epochs_to_fit": 90 - 9 * small(p)},
    ),
    "Max pooling fits most": (lambda p: {"fits": is_max(p) or p.canvas < 200}, lambda p: {"fits": not is_max(p)}),
    "Every network memorises": (lambda p: {}, lambda p: {"fits": p.canvas < 1024}),
    "Accuracy drops as training": (
        lambda p: {"test_acc": 0.9 - abs(p.balance - 0.5)},
        lambda p: {"test_acc": 0.5 + p.balance / 3},
    ),
    "Max and logsumexp": (
        lambda p: {"test_acc": 0.9 - 0.1 * (p.pooling in ("mean", "attention"))},
        lambda p: {"test_acc": 0.8 - 0.1 * is_max(p)},
    ),
    "Capacity helps less on": (
        lambda p: {"test_acc": 0.7 + 1e-6 * p.width * p.num_examples},
        lambda p: {"test_acc": 0.8 + 0.05 * p.width * (p.num_examples < 3000)},
    ),
    "Larger sets reach": (
        lambda p: {"val_acc": 0.5 + p.num_examples / 1e5},
        lambda p: {"val_acc": 0.8 - p.num_examples / 1e5},
    ),
    "Localisation deteriorates": (
        lambda p: {"localization_ap": 0.9 - 0.2 * small(p)},
        lambda p: {"localization_ap": 0.2 * small(p)},
    ),
    "At small O2I max localises": (
        lambda p: {"localization_ap": 0.5 + 0.1 * is_max(p)},
        lambda p: {"localization_ap": 0.5 - 0.1 * is_max(p)},
    ),
    "At large O2I logsumexp": (
        lambda p: {"localization_ap": 0.5 + 0.1 * (p.pooling == "logsumexp")},
        lambda p: {"localization_ap": 0.5 + 0.1 * is_max(p)},
    ),
    "Not in Pawlowski 2019": (lambda p: {}, lambda p: {"val_acc": 0.9 - 0.2 * (p.precision != "float32")}),
}


def scores_of(claim):
    return next(scores for start, scores in SCORES.items() if claim.text.startswith(start))


JUDGED = [claim for claim in claims.CLAIMS if claim.judge is not claims.seeds_agree]


@pytest.mark.parametrize("claim", JUDGED, ids=lambda claim: f"{claim.figure} {claim.text[:30]}")
def test_claims_are_confirmed_and_contradicted_by_what_says_so(claim):
    verdicts = [claims.judge(claim, table_of(claim.figure, score))[0] for score in scores_of(claim)]
    assert verdicts == ["confirmed", "contradicted"]
    assert claim.rule and "\n" not in claim.rule


def test_seeds_that_part_contradict_their_agreement():
    claim = next(claim for claim in claims.CLAIMS if claim.judge is claims.seeds_agree)
    table = table_of("figure9", lambda p: {"fits": p.canvas < 200})
    assert claims.judge(claim, table) == ("confirmed", "20 of 20 points")
    table.loc[(table["seed"] == 1) & (table["data"] == "nmnist"), "fits"] = False
    assert claims.judge(claim, table)[0] == "contradicted"


def test_claims_about_runs_that_do_not_fit_are_undecided_unless_at_the_papers_setting():
    claim = next(claim for claim in claims.CLAIMS if claim.figure == "figure7" and claim.data == "nmnist")
    score = lambda p: {"test_acc": 0.9, "fits": p.receptive_field > 9}  # noqa: E731
    assert claims.judge(claim, table_of("figure7", score))[0] == "confirmed"
    verdict, why = claims.judge(claim, table_of("figure7", score, SMALL))
    assert (verdict, why) == ("undecided", "runs fit the training data at too few points to compare")
    verdict, why = claims.judge(claim, table_of("figure7", lambda p: {"fits": False}, SMALL))
    assert verdict == "undecided"
    assert why.startswith("0 of 3 runs fit the training data at object-to-image ratio (%) 49 receptive field (px) 33")


@pytest.mark.parametrize(
    "claim", [claim for claim in claims.CLAIMS if claim.receptive_field], ids=lambda c: c.text[:30]
)
def test_runs_of_other_receptive_fields_have_no_part_in_a_claim_of_one(claim):
    right, wrong = scores_of(claim)
    score = lambda p: (right if p.receptive_field == claim.receptive_field else wrong)(p)  # noqa: E731
    assert claims.judge(claim, table_of(claim.figure, score))[0] == "confirmed"


def test_differences_within_two_standard_errors_are_undecided():
    claim = claims.CLAIMS[0]
    table = table_of("figure4", lambda p: {"test_acc": 0.8 - 0.001 * small(p)}, spread=0.05)
    assert claims.judge(claim, table)[0] == "undecided"


def test_made_slides_judge_no_claim():
    made = [claim for claim in claims.CLAIMS if claim.data == "ncamelyon"]
    for claim in made:
        table = table_of(claim.figure, scores_of(claim)[0])
        table.loc[table["data"] == "ncamelyon", "data"] = "made"
        assert claims.judge(claim, table) == ("not yet run", "")
    assert len(made) == 4
