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


class _State:
    process: int | None = None  # the one that is to be told, not those forked from it
    told = False  # whether Terminated was raised
    deferring = False
    noted = 0  # the first signal that arrived while deferring
    heeded = -REPEAT  # when a signal was last noted or acted on, by the monotonic clock


def listen(number: int):
    """Let `_receive` handle a signal of this process; returns the handler before it."""
    _State.process, _State.told, _State.heeded = os.getpid(), False, -REPEAT
    return signal.signal(number, _receive)


def noted() -> int:
    """The number of the signal that waits to be heeded, 0 without one."""
    return _State.noted


def told() -> bool:
    """Whether the process has been told to end."""
    return _State.told


@contextlib.contextmanager
def deferred(*names: str):
    """In the block, Ctrl-C, SIGTERM and the named signals are noted; a second one ends the work at once."""
    numbers = {signal.SIGTERM, *(signal.Signals[f"SIG{name}"] for name in names)}
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in a shell's background jobs
        numbers.add(signal.SIGINT)
    before = {number: listen(number) for number in numbers}
    _State.deferring, _State.noted = True, 0
    try:
        yield
    finally:
        _State.deferring = False
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def immediate():
    """In a block within `deferred`, a signal ends the work at once, also one that was noted before."""
    _State.deferring = False
    if _State.noted:
        stop(_State.noted)
    try:
        yield
    finally:
        _State.deferring = True


def stop(number: int) -> None:
    """Raise what a signal means: KeyboardInterrupt or Terminated."""
    _State.heeded = time.monotonic()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    _State.told = True
    signal.signal(signal.SIGCHLD, lambda *_: None)  # else torch reports that its loader processes were told too
    raise Terminated


def _receive(number, frame):
    if os.getpid() != _State.process:  # just forked
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    elif time.monotonic() - _State.heeded < REPEAT:
        pass
    elif _State.deferring and not _State.noted:
        _State.noted, _State.heeded = number, time.monotonic()
    else:
        stop(number)


def serve_on(worker: int = 0) -> None:
    """In a loader process: what all processes are sent is the main one's to heed, which may need another batch."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # of full shared memory, which the main process reports


def send_again(unraisable) -> None:
    """When a signal's exception comes up in a destructor, where Python drops exceptions, send the signal once more."""
    number = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}.get(unraisable.exc_type)
    if number is None:
        sys.__unraisablehook__(unraisable)
    else:
        _State.heeded = -REPEAT
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
