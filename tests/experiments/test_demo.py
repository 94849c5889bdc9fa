import subprocess
from pathlib import Path

import pytest

from experiments import demo


@pytest.mark.parametrize("data", ["mnist", "camelyon"])
def test_the_demo_goes_into_any_folder(data, tmp_path, monkeypatch, capsys):
    words = []
    monkeypatch.setattr(demo, "mnist_source", lambda: ("digits", 1))
    monkeypatch.setattr(demo, "summarise", lambda *args: None)
    finished = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: words.extend(command) or finished)
    monkeypatch.chdir(tmp_path)
    demo.main([data, "--out", "50 % done"])
    folders = {word for word in words if "done" in word}
    assert len(folders) > 1
    assert all(Path(folder).is_relative_to(tmp_path / "50 % done") for folder in folders)
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: ")
