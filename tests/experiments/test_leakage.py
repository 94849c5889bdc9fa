"""The figure of made slides, and the demo of the audit, small and in this process."""

import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import demo_retrieval, leakage, made, run_experiments

ROOT = Path(__file__).parents[2]


def run_here(line):
    words = shlex.split(line)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert exit_info.value.code == 0


@pytest.mark.slow
def test_the_figure_has_a_row_for_each_split_and_is_done_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(made, "call", lambda children, line: run_here(line))
    monkeypatch.setattr(leakage, "BY", ("slide", "random"))
    monkeypatch.setattr(leakage, "SLIDES", "--own_tissue --annotated 1 --negative 1 --width 2048 --height 2048")
    monkeypatch.setattr(leakage, "RATIO", "0.05_0.5")
    monkeypatch.setattr(leakage, "K", (8, 20))
    monkeypatch.setattr(leakage, "TRAIN", leakage.TRAIN.replace("--width -3", "--width -4"))
    flags = ["leakage", "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--seeds", "1", "-e", "1"]
    run_experiments.main(flags)
    table = pd.read_csv(tmp_path / "out" / "results" / "leakage.csv")
    assert list(table) == list(leakage.COLUMNS) and table["by"].tolist() == ["slide", "random"]
    assert table["flagged"][1] > table["flagged"][0] and table["test_acc"].between(0, 1).all()
    assert (tmp_path / "out" / "figures" / "leakage.png").read_bytes().startswith(b"\x89PNG")
    before = table.to_csv()
    run_experiments.main(flags)
    assert pd.read_csv(tmp_path / "out" / "results" / "leakage.csv").to_csv() == before


@pytest.mark.parametrize("name", run_experiments.OTHERS)
def test_a_figure_with_flags_of_its_own_stands_alone(name, capsys):
    for words in ([name, "figure4"], ["figure4", name]):
        with pytest.raises(SystemExit) as exit_info:
            run_experiments.main(words)
        assert exit_info.value.code == 2 and name in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_finds_the_leak_and_none_after_a_clean_split(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_retrieval, "command", run_here)
    demo_retrieval.main(["--quick", "--out", str(tmp_path)])
    closing = capsys.readouterr().out.split("done in")[1].splitlines()
    random, slide = (next(line.split() for line in closing if line.startswith(by)) for by in ("random", "slide"))
    assert float(random[1].rstrip("%")) > 2 * float(slide[1].rstrip("%")) and int(random[2]) > 10
    assert int(slide[2]) <= 1 and slide[3:6] == ["0", "of", "0"]
    pictures = [Path(line.split()[-1]) for line in closing if line.startswith("pairs")]
    assert len(pictures) == 2 and all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert np.all([Path(path.strip(",")).exists() for path in closing[-3].split()[1:]])
