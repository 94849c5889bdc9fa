"""Signals at once, or when the work can be saved; each in a process of its own, since a signal may end it."""

import functools
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
START = """
import os, signal, sys, time
from common import signals

def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
"""


def run(script, ctrl_c=signal.SIG_DFL):
    """The script's exit code and what it prints; SIGINT does at first what it does in a foreground job."""
    before = functools.partial(signal.signal, signal.SIGINT, ctrl_c)
    words = [sys.executable, "-c", START + textwrap.dedent(script)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30, preexec_fn=before)
    return done.returncode, done.stdout + done.stderr


def test_a_signal_waits_until_it_is_asked_for_and_its_echoes_are_one_request():
    script = """
    with signals.deferred():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # as torchrun and SLURM send them
            send(number)
        print(signals.State.pending == signal.SIGTERM)
    """
    assert run(script) == (0, "True\n")


def test_a_second_request_ends_the_work_at_once():
    script = """
    signals.REPEAT = 0.05
    with signals.deferred():
        send()
        time.sleep(0.1)
        try:
            send()
            print("goes on")
        except signals.Terminated:
            print("ended")
    """
    assert run(script) == (0, "ended\n")


def test_what_waits_is_raised_when_signals_are_released():
    script = """
    with signals.deferred("USR2"):
        send(signal.SIGUSR2)
        try:
            signals.release()
        except signals.Terminated:
            print("ended")
    """
    assert run(script) == (0, "ended\n")


def test_released_signals_act_at_once_and_wait_again_afterwards():
    script = """
    signals.REPEAT = 0
    with signals.deferred():
        signals.release()
        try:
            send(signal.SIGINT)
        except KeyboardInterrupt:
            print("ended")
        signals.defer()
        send(signal.SIGINT)
        print(signals.State.pending == signal.SIGINT)
    """
    assert run(script) == (0, "ended\nTrue\n")


def test_after_the_block_signals_mean_what_they_meant():
    script = """
    with signals.deferred("USR1"):
        pass
    print(signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL, flush=True)
    send()
    """
    assert run(script) == (-signal.SIGTERM, "True\n")


def test_a_process_just_forked_dies_of_what_its_parent_would_defer():
    script = """
    with signals.deferred():
        child = os.fork()
        if child == 0:
            send()
            os._exit(0)
        print(os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM, signals.State.pending)
    """
    assert run(script) == (0, "True 0\n")


def test_ctrl_c_stays_ignored_in_a_shells_background_jobs():
    script = """
    with signals.deferred():
        send(signal.SIGINT)
        print(signals.State.pending)
    """
    assert run(script, ctrl_c=signal.SIG_IGN) == (0, "0\n")


def test_a_loader_process_outlives_the_groups_signals_and_serves_a_while_after_sigterm():
    script = """
    signals.GRACE = 1
    signals.ignore_in_worker()
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        send(number)
    print("serves", flush=True)
    time.sleep(10)
    """
    assert run(script) == (-signal.SIGALRM, "serves\n")


def test_a_signal_that_comes_up_in_a_destructor_is_sent_again():
    script = """
    sys.unraisablehook = signals.resend_if_swallowed

    class Closing:
        def __del__(self):
            send()

    signals.install(signal.SIGTERM)
    try:
        Closing()
        time.sleep(10)
    except signals.Terminated:
        print("ended")
    """
    assert run(script) == (0, "ended\n")


def test_other_errors_in_a_destructor_are_reported_as_ever():
    script = """
    sys.unraisablehook = signals.resend_if_swallowed

    class Closing:
        def __del__(self):
            raise ValueError("lost")

    Closing()
    """
    code, said = run(script)
    assert code == 0
    assert "ValueError: lost" in said
