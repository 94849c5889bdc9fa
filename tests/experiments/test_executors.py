import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import results

ROOT = Path(__file__).parents[2]


def epochs_of(root, seed):
    """How many epochs the run of a seed has finished."""
    stats = list(root.glob(f"runs/*/*_s{seed}/stats.csv"))
    return len(stats[0].read_text().splitlines()) - 1 if stats else 0


def slurm(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def cluster():
    """A SLURM cluster that answers."""
    if not shutil.which("sbatch") or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("needs a SLURM cluster: sbatch, and sinfo that answers (SLURM_CONF names the configuration)")


@pytest.mark.slow
@pytest.mark.parametrize("how", [["scancel"], ["scancel", "--signal=USR2"]], ids=["killed", "preempted"])
def test_a_slurm_sweep_with_a_job_ended_midway_is_completed(how, tmp_path, cluster):
    """A preempted job, to which SLURM sends USR2, goes back into the queue; a killed one is submitted again."""
    root, out = tmp_path / "root", tmp_path / "out"
    small = "figure4 --preset small --canvas 40 --width -4 --num_examples 260 --epochs 1 --mnist digits --seeds 2"
    where = f"--root {root} --out {out} --executor slurm --gpus 0 --cpus 1 --time 30"
    command = [sys.executable, "experiments/run_experiments.py", *small.split(), *where.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w") as said:
        runner = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
    while epochs_of(root, 1) < 3:
        assert runner.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.1)
    job = next(root.glob("runs/*/*_s1/slurm_job.txt")).read_text()
    slurm(*how, job)
    assert runner.wait(timeout=400) == 0, (tmp_path / "said").read_text()
    assert results.load(out, "figure4")["seed"].tolist() == [1, 2]
    assert [epochs_of(root, seed) for seed in (1, 2)] == [43, 43]
    log = next(root.glob("runs/*/*_s1/output.log")).read_text()
    assert "resuming after epoch" in log
    assert ("submitting it again (2 of 3 times)" in (tmp_path / "said").read_text()) == (how == ["scancel"])
