import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from experiments import demo, plot_results, results, run_experiments, runs, tables
from experiments.figures import SMALL, Point
from experiments.runs import Places, Trial
from tests.experiments.sweeps import refusal, table_of

ROOT = Path(__file__).parents[2]

BROKEN = {
    "empty": lambda path: path.touch(),
    "cut": lambda path: path.write_text("epoch,eval_acc,train_running_acc,seconds,train_acc,test_acc,test_auc\n1,0.5"),
    "columns lack": lambda path: path.write_text("epoch,eval_acc\n1,0.5\n"),
    "no rows": lambda path: path.write_text("epoch,eval_acc\n"),
    "binary": lambda path: path.write_bytes(b"\x89PNG\xff"),
    "text": lambda path: path.write_text("epoch,eval_acc,images_per_s,test_acc,test_auc\n1,good,2,3,4\n"),
    "a folder": lambda path: path.mkdir(),
    "a named pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_tables_and_records_that_are_none_are_named(kind, tmp_path):
    run = Trial(Point(canvas=40), replace(SMALL, epochs=1), 1, True, Places(tmp_path))
    results_table, crops = tmp_path / "results" / "figure4.csv", tmp_path / "crops.csv"
    for path in (run.logdir / "stats.csv", run.logdir / "saliency" / "localization.json", results_table, crops):
        path.parent.mkdir(parents=True, exist_ok=True)
        BROKEN[kind](path)
    BROKEN[kind](run.logdir / "exit_code.txt")
    assert "stats.csv" in refusal(runs.is_done, run)
    assert "stats.csv" in refusal(demo.summarise, run.logdir, 1.0)
    assert "localization.json" in refusal(runs.localization, run)
    assert "exit_code.txt" in refusal(runs.outcome, run)
    assert "figure4.csv" in refusal(plot_results.main, ["figure4", "--out", str(tmp_path)])
    assert "crops.csv" in refusal(run_experiments.slides_of_negatives, tmp_path)


@pytest.mark.parametrize(("column", "value"), [("test_acc", None), ("o2i", "small"), ("fits", "maybe"), ("seed", None)])
def test_a_table_of_results_with_other_content_is_refused(column, value, tmp_path):
    path = results.path_of(tmp_path, "figure4")
    table = table_of("figure4", lambda p: {})
    results.update(path, table.to_dict("records"))
    table = pd.read_csv(path, dtype={"ratio": str, "o2i": str}).astype({column: object})
    table.loc[3, column] = value
    table.to_csv(path, index=False)
    assert column in refusal(results.load, tmp_path, "figure4")
    table.drop(columns=column).to_csv(path, index=False)
    assert f"lack {column}" in refusal(results.load, tmp_path, "figure4")


def test_results_are_replaced_by_configuration_and_kept_otherwise(tmp_path):
    path, table = tmp_path / "results" / "figure4.csv", table_of("figure4", lambda p: {})
    results.update(path, table.to_dict("records"))
    results.update(path, table.assign(test_acc=0.1).head(1).to_dict("records"))
    again = results.read(path)
    assert len(again) == len(table)
    assert (again["test_acc"] == 0.1).sum() == 1
    assert again["setting"].unique().tolist() == ["paper"]


def test_the_tables_of_results_md_are_those_of_the_committed_results():
    text = (ROOT / "RESULTS.md").read_text()
    for table in (tables.figures_table, tables.claims_table):
        up_to_date = table(ROOT / "experiments") in text
        assert up_to_date, "run experiments/plot_results.py --results_md RESULTS.md"
