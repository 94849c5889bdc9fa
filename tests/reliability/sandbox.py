"""A command on hostile input: in a process of its own, with little memory and time, its complaints caught."""

import gc
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common import cli

SECONDS = 10
MEGABYTES = 400  # of address space, more than the process had when it began


@dataclass
class Outcome:
    """How a command ended: exit code (None: it had to be killed), stderr, seconds."""

    code: int | None
    said: str
    seconds: float


def run(main: Callable, argv: list) -> Outcome:
    """Call main(argv) as `cli.run` does, in a forked process."""
    with tempfile.TemporaryFile("w+") as errors:
        started, pid = time.monotonic(), os.fork()
        if pid == 0:
            _be_the_command(main, argv, errors)
        code = _wait(pid, started)
        errors.seek(0)
        return Outcome(code, errors.read(), time.monotonic() - started)


def _be_the_command(main, argv, errors):
    code = 70
    gc.freeze()  # what the tests before it left is none of the command's: collecting goes through all of it
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEGABYTES * 2**20,) * 2)
        sys.argv = ["command"]
        cli.run(lambda: main(list(map(str, argv))))
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 71
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _wait(pid, started):
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - started > SECONDS:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


def check(outcome: Outcome, files_before: set, place: Path, output: Path) -> None:
    """AssertionError unless the command ended soon, well or in one line, and wrote only below `output`.

    With exit code 1, of many items some were bad, and each has its line.
    """
    assert outcome.code in (0, 1, 2), outcome
    lines = outcome.said.splitlines()
    assert "Traceback" not in outcome.said, outcome.said
    assert outcome.code == 0 or len(lines) == 1 or outcome.code == 1, outcome.said
    assert all(len(line) < 1000 and line.isprintable() for line in lines), outcome.said
    assert "out of memory" not in outcome.said, outcome.said
    new = {path for path in place.rglob("*") if path.is_file()} - files_before
    assert all(output in path.parents for path in new), new
