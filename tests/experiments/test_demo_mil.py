"""make demo-mil, small."""

import shlex
from pathlib import Path

import pytest

from experiments import demo, demo_mil
from tests.test_commands import run_here


@pytest.mark.slow
def test_the_demo_of_bags_ends_in_a_summary(tmp_path, monkeypatch, capsys):
    def command(line):
        assert run_here(shlex.split(line)) == 0

    monkeypatch.setattr("data.loaders.NEEDLES_TRAIN_SIZE", 64)
    monkeypatch.setattr(demo, "command", command)
    demo_mil.main(["--quick", "--out", str(tmp_path)])
    closing = capsys.readouterr().out.split("done in")[1]
    for figure in (*demo_mil.FIGURES.values(), "run folder"):
        assert figure in closing
    sheet = next(line.split()[-1] for line in closing.splitlines() if line.startswith("instance scores"))
    assert Path(sheet).read_bytes().startswith(b"\x89PNG")
