"""What decides a claim, on tables of two runs at each point."""

import pandas as pd
import pytest

from experiments import judges
from experiments.judges import Evidence, Mean

COLUMNS = ("test_acc", "val_acc", "mean_running_acc", "localization_ap")
NO_FIT = "too few points"


def pair(value, error=0.001, fits=True, **point):
    """Two runs at a point, all of whose scores have this mean and this standard error."""
    rows = [dict.fromkeys(COLUMNS, value + sign * error) for sign in (-1, 1)]
    return [{"setting": "small", "fits": fits} | row | point for row in rows]


def evidence(*pairs):
    return Evidence(pd.DataFrame([row for rows in pairs for row in rows]))


def test_a_mean_has_the_standard_error_of_a_sample():
    runs = pd.DataFrame({"test_acc": [0.7, 0.8, 0.9], "fits": True})
    found = Evidence(runs).mean()
    assert (found.value, found.error, found.n) == (pytest.approx(0.8), pytest.approx(0.1 / 3**0.5), 3)


def test_means_differ_by_more_than_two_standard_errors_of_their_difference():
    low, near, high = (Mean(*each, 3) for each in ((0.7, 0.04), (0.79, 0.03), (0.81, 0.03)))  # 0.05 together
    assert [judges.compare(*each) for each in ((near, low), (high, low), (low, high))] == [0, 1, -1]


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [(0.9, 0.005, "confirmed"), (0.9, 0.02, "undecided"), (0.85, 0.02, "undecided"), (0.8, 0.02, "contradicted")],
)
def test_curves_are_alike_with_two_standard_errors_to_spare_whether_or_not_runs_fit(value, error, verdict):
    runs = pair(0.9, error, fits=False, precision="float32"), pair(value, error, fits=False, precision="fp16")
    assert judges.learns_alike(evidence(*runs), "fp16")[0] == verdict


@pytest.mark.parametrize("lacking", [1, 3])
def test_an_axis_whose_end_has_no_fit_decides_nothing(lacking):
    runs = [pair(n / 10, num_examples=n, pooling="max", fits=n != lacking) for n in (1, 2, 3)]
    with pytest.raises(judges.Undecided, match=NO_FIT):
        judges.trend(evidence(*runs), "num_examples", sign=1)
    falling = [pair(0.9 - n / 10, num_examples=n, pooling="mean") for n in (1, 2, 3)]
    judged = judges.trend(evidence(*runs, *falling), "num_examples", sign=-1, each="pooling")
    assert judged[0] == "confirmed"  # by the other pooling


@pytest.mark.parametrize("lacking", [("logsumexp",), ("logsumexp", "max")])
@pytest.mark.parametrize(("at", "end"), [("largest", "19"), ("smallest", "1")])
def test_who_wins_at_an_end_is_decided_by_runs_there(lacking, at, end):
    poolings = {"logsumexp": 0.9, "max": 0.7}
    runs = [
        pair(value, o2i=o2i, pooling=pooling, fits=o2i != end or pooling not in lacking)
        for o2i in ("19", "1.2", "1")
        for pooling, value in poolings.items()
    ]
    with pytest.raises(judges.Undecided, match=NO_FIT):
        judges.wins(evidence(*runs), "pooling", ("logsumexp",), ("max",), at, "localization_ap")


def test_large_objects_do_not_judge_what_is_said_of_small_ones():
    runs = [pair(value, o2i="19", pooling=pooling) for pooling, value in (("max", 0.9), ("mean", 0.7))]
    with pytest.raises(judges.Missing, match=r"O2I below 1\.5 %"):
        judges.wins(evidence(*runs), "pooling", ("max",), ("mean",), at="smallest")


def test_what_is_reasonable_at_the_smallest_size_contradicts_a_limit():
    for small, verdict in ((0.7, "contradicted"), (0.69, "confirmed")):
        runs = pair(0.9, o2i="10"), pair(small, error=0, o2i="0.1")
        assert judges.limit(evidence(*runs), threshold=0.3)[0] == verdict


def test_the_share_of_runs_that_fit_counts_not_their_number():
    runs = [pair(0.9, pooling="max", fits=fits) for fits in (True, False, False)]
    judged = judges.max_fits_most(evidence(*runs, pair(0.9, pooling="mean")[:1]))
    assert judged == ("contradicted", "max: 2 of 6, mean: 1 of 1")
