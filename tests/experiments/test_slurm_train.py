"""The SLURM script starts torchrun on the job's nodes and sends a job whose time is up back into the queue.

Stand-ins for SLURM's commands show what the script asks of them; on a real cluster it was tried by hand.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def job(tmp_path):
    """Starts the script with a Python program and its arguments, as job 7 on one node."""
    commands = {
        "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> asked; fi',
        "scancel": 'echo cancel "$@" >> asked; kill $(cat pid)',
        "srun": 'echo $$ > pid; shift 3; exec "$@"',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "localhost"}
    env = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable}

    def start(program, *arguments, **more):
        (tmp_path / "program.py").write_text(program)
        command = ["bash", ROOT / "experiments" / "slurm_train.sh", "program.py", *arguments]
        return subprocess.Popen(command, cwd=tmp_path, env={**env, **more}, stderr=subprocess.DEVNULL)

    return start


def test_a_process_per_gpu_with_the_users_flags(job, tmp_path):
    program = "import os, sys; open('rank' + os.environ['RANK'], 'w').write(os.environ['WORLD_SIZE'] + sys.argv[1])"
    assert job(program, "--epochs", SLURM_GPUS_ON_NODE="2").wait(timeout=60) == 0
    assert [(tmp_path / f"rank{r}").read_text() for r in (0, 1)] == ["2--epochs"] * 2


def test_a_program_that_fails_fails_the_job(job):
    assert job("raise SystemExit(3)").wait(timeout=60) != 0


def test_a_job_whose_time_is_up_is_queued_again_and_its_processes_told(job, tmp_path):
    program = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('told').touch(), sys.exit(143)))\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)\n"
    )
    started = job(program)
    while not (tmp_path / "ready").exists():
        time.sleep(0.1)
    started.send_signal(signal.SIGUSR1)
    started.wait(timeout=60)
    assert (tmp_path / "told").exists()
    assert (tmp_path / "asked").read_text().splitlines() == ["cancel --signal TERM 7.0", "requeue 7"]
