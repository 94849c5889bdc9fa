from pathlib import Path

import pytest

from experiments import demo, demo_anomaly
from tests.test_commands import run_here


@pytest.mark.slow
def test_the_demo_of_detectors_says_what_it_found_and_by_which_features(tmp_path, monkeypatch, capsys):
    def command(line):
        assert run_here(demo_anomaly.demo.shlex.split(line)) == 0

    monkeypatch.delenv("WEIGHTS_DIR", raising=False)
    monkeypatch.setattr(demo_anomaly.weights, "find_imagenet", lambda network: None)
    monkeypatch.setattr(demo, "command", command)
    demo_anomaly.main(["--quick", "--out", str(tmp_path)])
    closing = capsys.readouterr().out.split("done in")[1]
    assert "RANDOM weights" in closing and "all sizes" in closing
    sheets = [line.split()[-1] for line in closing.splitlines() if line.startswith("contact sheet")]
    assert len(sheets) == 2
    for sheet in sheets:
        assert Path(sheet).read_bytes().startswith(b"\x89PNG")
