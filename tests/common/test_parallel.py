"""Jobs over processes: every result once, a killed worker noticed, none left behind."""

import multiprocessing
import os
import signal
import time

import pytest

from common.errors import BadInput, WorkFailed
from common.parallel import attempt_jobs, map_jobs


def square(n):
    return n * n


def fall_at_three(n):
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


def fail_at_three(n):
    if n == 3:
        raise ValueError("three")
    time.sleep(0.01)
    return n * n


@pytest.mark.parametrize("workers", [0, 1, 2, 9])
def test_every_job_gives_its_result(workers):
    assert sorted(map_jobs(square, list(range(5)), workers)) == [0, 1, 4, 9, 16]


def test_a_killed_worker_is_noticed_and_the_other_jobs_are_done():
    assert sorted(map_jobs(fall_at_three, list(range(8)), 2, killed=lambda n: -n)) == [-3, 0, 1, 4, 16, 25, 36, 49]
    with pytest.raises(WorkFailed, match="a worker process was killed"):
        list(map_jobs(fall_at_three, list(range(8)), 2))


def test_an_error_ends_the_workers():
    with pytest.raises(ValueError, match="three"):
        list(map_jobs(fail_at_three, list(range(2000)), 2))
    assert not multiprocessing.active_children()


def refuse_odd(n):
    if n % 2:
        raise BadInput(f"{n}: is odd")
    return n * n


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_that_are_bad_input_are_named_and_the_others_done(workers):
    results, problems = attempt_jobs(refuse_odd, list(range(6)), workers, "numbers")
    assert (sorted(results), problems) == ([0, 4, 16], ["1: is odd", "3: is odd", "5: is odd"])
    with pytest.raises(ValueError, match="three"):
        attempt_jobs(fail_at_three, list(range(6)), workers, "numbers")
