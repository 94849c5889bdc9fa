"""A sweep of quick commands in place of the project's."""

import pytest

from experiments import results, run_experiments, runs, sources

STUB = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
logdir = pathlib.Path(flags["--logdir"])
with open("calls.txt", "a") as file:
    print(logdir.name, file=file)
(logdir / "config.json").write_text(json.dumps({{"device": "cpu (stub)", "data": "the data"}}))
stats = logdir / "stats.csv"
done = len(stats.read_text().splitlines()) - 1 if stats.exists() else 0
for epoch in range(done + 1, int(flags["-e"]) + 1):
    if epoch == 2 and flags["--seed"] in {interrupted}:
        print("terminated"); sys.exit(143)
    if flags["--seed"] in {failing}:
        print("no good"); sys.exit(1)
    row = epoch, 0.5 + epoch / 10, 0.8, 0.4 + epoch / 10, 0.9, (97 + epoch) / 100, 2.0
    with stats.open("a") as file:
        if epoch == 1:
            print("epoch,eval_acc,train_acc,test_acc,test_auc,train_running_acc,seconds", file=file)
        print(*row, sep=",", file=file)
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Replaces the project's commands by quick ones; returns what runs a sweep of three seeds on them."""
    project = tmp_path / "project"
    (project / "data/cluttered_mnist").mkdir(parents=True)
    (project / "data/cluttered_mnist/generate_data.py").write_text("")
    monkeypatch.setattr(runs, "ROOT", project)
    monkeypatch.setattr(sources, "fingerprint", lambda flags, seed: "the data")

    def sweep(*flags, failing=(), interrupted=()):
        (project / "train_mnist.py").write_text(STUB.format(failing=failing, interrupted=interrupted))
        (project / "calls.txt").write_text("")
        places = ["--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
        try:
            run_experiments.main(["figure4", "--canvas", "64", "--epochs", "3", "--seeds", "3", *places, *flags])
        finally:
            sweep.calls = sorted(line[-2:] for line in (project / "calls.txt").read_text().split())
        return results.load(tmp_path / "out", "figure4")

    return sweep
