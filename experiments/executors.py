"""Ways to take runs to their end: side by side on this machine's devices, or as SLURM job arrays through submitit."""

import contextlib
import os
import queue
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from common import limits
from common.errors import BadInput, WorkFailed
from common.files import atomic_open, make_folder, make_subfolder, read_text
from experiments import runs
from experiments.runs import ROOT, Children, Trial

ATTEMPTS = 3  # submissions of a run whose job was killed
JOB = "slurm_job.txt"
KILLED = (None, 130, 143)  # outcomes of runs that were ended from outside, besides signals


def devices() -> list[dict[str, str]]:
    """Environment variables that give a run one device: a GPU each, or one CPU core each where there is none."""
    import torch

    if not torch.cuda.is_available():
        return [{"OMP_NUM_THREADS": "1"}] * limits.cores()
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return [{"CUDA_VISIBLE_DEVICES": name} for name in visible[:count]]


def run_local(todo: list[Trial], jobs: int | None) -> Iterator[tuple[Trial, str]]:
    """Each run and how it ended, in the order in which they end; `jobs` at a time, by default one a device.

    On any exception, as of Ctrl-C and SIGTERM, running processes get SIGTERM, after which they can be resumed.
    """
    found = devices()
    free = queue.SimpleQueue()
    for i in range(jobs or len(found)):
        free.put(found[i % len(found)])
    children = Children()

    def work(run):
        device = free.get()
        try:
            print(f"started   {run.name}\n", end="", flush=True)  # in one piece, other threads print too
            return runs.ending(run, runs.execute(run, children, device))
        except BadInput as error:  # its folder is in use, or cannot be written
            return str(error)
        finally:
            free.put(device)

    with ThreadPoolExecutor(free.qsize()) as pool:
        try:
            futures = {pool.submit(work, run): run for run in todo}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
            raise


def settle_all(ended: Iterator[tuple[Trial, str]], settle: Callable) -> list[str]:
    """Take runs to their end, saying how each ended; returns a line for each that failed.

    Args:
        ended: as of run_local. settle: run and how it ended -> None when it is done, else what is wrong with it; it
            writes what the run leaves.
    """
    failures = []
    with contextlib.closing(ended):  # so that a signal that arrives here ends the runs, too
        for run, how in ended:
            try:
                trouble = settle(run, how)
            except BadInput as error:
                trouble = str(error)
            if trouble:
                failures.append(f"{run.name} ({trouble})")
            print(f"failed    {failures[-1]}" if trouble else f"done      {run.name}", flush=True)
    return failures


def raise_failures(failures: list[str]) -> None:
    """WorkFailed when there are any."""
    if failures:
        raise WorkFailed(f"{len(failures)} runs failed: {'; '.join(failures)}")


@dataclass(frozen=True)
class SlurmOptions:
    """What a job asks for."""

    partition: str | None
    minutes: int
    gpus: int
    cpus: int
    at_a_time: int | None


class SlurmTask:
    """What a SLURM job calls; when it is preempted or its time is up, submitit calls `checkpoint` and requeues it."""

    def __init__(self, run: Trial):
        self.run = run

    def __call__(self) -> None:
        """WorkFailed when the run fails, so that SLURM's records show it too."""
        # the signal that tells submitit reaches all processes of the job
        code = runs.execute(self.run, Children(), {}, preexec_fn=_ignore_user_signal)
        if code:
            raise WorkFailed(f"{self.run.name}: exit code {code}")

    def checkpoint(self):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)  # the run continues from its checkpoint.pth


def _ignore_user_signal():
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def run_slurm(batches: dict[str, list[Trial]], options: SlurmOptions) -> Iterator[tuple[Trial, str]]:
    """Submit an array for each figure and wait; each run and how it ended, as it leaves the queue.

    A run whose job was killed is submitted again, up to ATTEMPTS times in all. Interrupting this leaves the jobs in
    the queue, and the same command waits for them again.
    """
    waiting = {run: 1 for batch in batches.values() for run in batch}
    in_queue = _in_queue()
    for name, batch in batches.items():
        _submit(name, [run for run in batch if _job_id(run) not in in_queue], options)
    while waiting:
        in_queue = _in_queue()
        left = [run for run in waiting if _job_id(run) not in in_queue]
        again = [run for run in left if _was_killed(run) and waiting[run] < ATTEMPTS]
        for run in again:
            waiting[run] += 1
            print(f"killed    {run.name}: submitting it again ({waiting[run]} of {ATTEMPTS} times)", flush=True)
        for run in set(left) - set(again):
            del waiting[run]
            code = runs.outcome(run)
            yield run, runs.ending(run, 137 if code is None else code)
        for name, batch in batches.items():
            _submit(name, [run for run in batch if run in again], options)
        time.sleep(1 if waiting else 0)


def _was_killed(run):
    code = runs.outcome(run)
    return not runs.is_done(run) and (code in KILLED or code < 0)


def _submit(name, todo, options):
    """Queue the runs as one array; each run's folder notes its job."""
    import submitit

    if not todo:
        return
    folder = make_subfolder(make_folder(todo[0].places.root), "slurm")
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=1000)
    executor.update_parameters(
        name=name,
        timeout_min=options.minutes,
        gpus_per_node=options.gpus or None,
        cpus_per_task=options.cpus,
        slurm_partition=options.partition,
        slurm_array_parallelism=options.at_a_time or len(todo),
        slurm_additional_parameters={"requeue": True},
        slurm_setup=[f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"],
    )
    for run in todo:
        runs.forget_outcome(run)
    try:
        with executor.batch():
            jobs = [executor.submit(SlurmTask(run)) for run in todo]
    except submitit.core.utils.FailedJobError as error:
        raise BadInput(f"--executor slurm: sbatch refused: {' '.join(str(error).split())[-300:]}") from None
    for run, job in zip(todo, jobs, strict=True):
        with atomic_open(run.logdir / JOB, "w") as file:
            file.write(job.job_id)
    print(f"submitted {name}: {len(jobs)} jobs, {jobs[0].job_id} to {jobs[-1].job_id}, logs in {folder}", flush=True)


def _job_id(run):
    path = run.logdir / JOB
    return read_text(path).strip() if path.exists() else ""


def _in_queue():
    """Ids of the user's jobs that wait or run, array tasks one by one."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise BadInput("--executor slurm: squeue not found, expected a machine of a SLURM cluster") from None
    except subprocess.CalledProcessError as error:
        raise WorkFailed(f"--executor slurm: squeue failed: {error.stderr.strip()}") from None
    return set(done.stdout.split())
