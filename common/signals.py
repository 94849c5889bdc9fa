"""Signals that ask a command to stop: at once, or, within `deferred`, when the work can be saved."""

import contextlib
import os
import signal
import sys
import threading
import time

REPEAT = 2  # seconds in which further signals are the same request: torchrun and SLURM both send one, and more
GRACE = 30  # seconds for which a loader process still serves the main process after SIGTERM


class Terminated(BaseException):
    """A signal other than Ctrl-C asked the process to stop. Not an Exception, so that only clean-up code sees it."""


INTERRUPTS = (KeyboardInterrupt, Terminated)


class State:
    """What signals have asked for: read by others, changed here alone."""

    process: int | None = None  # the one that is to be told, not those forked from it
    terminating = False  # whether Terminated was raised
    deferring = False
    pending = 0  # number of the first signal that arrived while deferring, 0 without one
    last_seen = -REPEAT  # when a signal was last acted on, by the monotonic clock


def install(number: int):
    """Let `_receive` handle a signal of this process; returns the handler before it."""
    State.process, State.terminating, State.last_seen = os.getpid(), False, -REPEAT
    return signal.signal(number, _receive)


@contextlib.contextmanager
def deferred(*names: str):
    """In the block, Ctrl-C, SIGTERM and the named signals wait; a second one ends the work at once."""
    numbers = {signal.SIGTERM, *(signal.Signals[f"SIG{name}"] for name in names)}
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in a shell's background jobs
        numbers.add(signal.SIGINT)
    before = {number: install(number) for number in numbers}
    State.deferring, State.pending = True, 0
    try:
        yield
    finally:
        State.deferring = False
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def release() -> None:
    """Within `deferred`, let signals end the work at once, also one that is pending."""
    State.deferring = False
    if State.pending:
        raise_for(State.pending)


def defer() -> None:
    """Let signals wait again after `release`."""
    State.deferring = True


def raise_for(number: int) -> None:
    """Raise what a signal means: KeyboardInterrupt or Terminated."""
    State.last_seen = time.monotonic()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    State.terminating = True
    signal.signal(signal.SIGCHLD, lambda *_: None)  # else torch reports that its loader processes were told too
    raise Terminated


def _receive(number, frame):
    if os.getpid() != State.process:  # just forked
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    elif time.monotonic() - State.last_seen < REPEAT:
        pass
    elif State.deferring and not State.pending:
        State.pending, State.last_seen = number, time.monotonic()
    else:
        raise_for(number)


def ignore_in_worker() -> None:
    """Loader processes ignore signals sent to the group; the main process may still need a batch."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # of full shared memory, which the main process reports


def resend_if_swallowed(unraisable) -> None:
    """When a signal's exception comes up in a destructor, where Python drops exceptions, send the signal once more."""
    number = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}.get(unraisable.exc_type)
    if number is None:
        sys.__unraisablehook__(unraisable)
    else:
        State.last_seen = -REPEAT
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
