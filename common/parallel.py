"""Jobs spread over worker processes: results as they come, no worker left behind, a killed worker noticed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from common import cli
from common.errors import BadInput, WorkFailed

KILLED = "a worker process was killed, probably for lack of memory: the same command continues, with fewer --workers"


def _raise_killed(job):
    raise WorkFailed(KILLED)


def map_jobs(task: Callable, jobs: list, workers: int, killed: Callable = _raise_killed) -> Iterator:
    """Results of task(job), in the order in which they finish; on any error the workers stop at once.

    killed(job) is the result of a job whose process was killed. With several workers it is not known which job that
    was, so the unfinished ones are tried again, one at a time.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(task, jobs)
        return
    for job in (yield from _run_pool(task, jobs, workers)):
        if (yield from _run_pool(task, [job], 1)):
            yield killed(job)


def attempt_jobs(task: Callable, jobs: list, workers: int, what: str) -> tuple[list, list[str]]:
    """The results of task(job) in the order in which they finish, and a sorted line for each job that was BadInput.

    What else goes wrong stops the work, as in `map_jobs`. Progress is shown in units of `what`.
    """
    outcomes = map_jobs(partial(_attempt, task), jobs, workers)
    outcomes = list(cli.progress(outcomes, len(jobs), what, what))
    return [result for result, line in outcomes if line is None], sorted(line for _, line in outcomes if line)


def _attempt(task, job):
    try:
        return task(job), None
    except BadInput as error:
        return None, str(error)


def _run_pool(task, jobs, workers):
    """Yield the results of the jobs; returns those that are unfinished since a worker was killed."""
    others, unfinished = set(multiprocessing.active_children()), list(jobs)
    context = multiprocessing.get_context("fork")  # other kinds complain when the process ends in the middle
    with ProcessPoolExecutor(workers, context, _obey_parent) as pool:
        try:
            futures = {pool.submit(task, job): job for job in jobs}
            for future in as_completed(futures):
                yield future.result()
                unfinished.remove(futures[future])
        except BrokenProcessPool:
            pass
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise
    return unfinished


def _obey_parent():
    """Ctrl-C and SIGTERM are the parent's to handle, and a worker does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
