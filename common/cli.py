"""What every command shares: flags whose help shows defaults, one-line errors, exit codes, progress."""

import argparse
import contextlib
import errno
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

from common import limits, signals, streams
from common.errors import BadInput

OUT_OF_MEMORY = (
    "out of memory: use a smaller -b, canvas or --width, or fewer --workers; "
    "in training also a larger --delayed_step with the smaller -b, and --checkpoint_activations"
)
TOO_MANY_FILES = "too many open files: raise `ulimit -n` or use fewer --workers; the same command continues"
NO_SHARED_MEMORY = (
    "shared memory (/dev/shm) is full: use --workers 0, a smaller -b, or more of it (docker run --shm-size, SLURM or "
    "Kubernetes: a larger /dev/shm); the same command continues"
)
SHORTAGES = {  # what the system or a library says -> what it means
    **dict.fromkeys(
        ["out of memory", "t allocate memory", "Cannot allocate", "killed by signal: Killed"], OUT_OF_MEMORY
    ),
    **dict.fromkeys(["ALLOC_FAILED", "ALLOCATION_FAILED"], OUT_OF_MEMORY),  # of cuBLAS, cuDNN
    **dict.fromkeys(["Too many open files", "received 0 items of ancdata"], TOO_MANY_FILES),
    f"exited unexpectedly with exit code {errno.EMFILE}": TOO_MANY_FILES,  # see `loaders`
    **dict.fromkeys(["killed by signal: Bus error", "allocate shared memory", "</torch_"], NO_SHARED_MEMORY),
}
FIRST_LINE, LINES = 8, 30  # seconds until progress is first printed, and between its lines


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to every flag's help as one types it, except where there is none to speak of.

    Paragraphs of a description stay apart; one that is indented keeps its lines.
    """

    def _get_help_string(self, action):
        default = action.default
        if default is None or default is False or action.required:
            return action.help
        if isinstance(default, (tuple, list)) and "%(default)" not in action.help:
            return f"{action.help} (default: {(' ' if action.nargs else ',').join(map(str, default))})"
        return super()._get_help_string(action)

    def _fill_text(self, text, width, indent):
        paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
        return "\n\n".join(
            part if part.startswith(" ") else super(HelpFormatter, self)._fill_text(part, width, indent)
            for part in paragraphs
        )


class ArgumentParser(argparse.ArgumentParser):
    """argparse with exact flag names, defaults in the help, and errors in one line without the usage block."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **kwargs)

    def parse_args(self, args=None, namespace=None):
        """The flags; `neutral` holds the names of those that change no weight."""
        parsed = super().parse_args(args, namespace)
        parsed.neutral = frozenset(action.dest for action in self._actions if getattr(action, "neutral", False))
        return parsed

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def neutral(action: argparse.Action) -> argparse.Action:
    """Mark a flag that changes no weight: a run is continued with another value of it."""
    action.neutral = True
    return action


def add_workers_flag(parser, default=None, help="worker processes"):
    """Declare `--workers`, also known as `--n_workers`, wherever a command uses processes."""
    cores = limits.cores()
    default = cores if default is None else min(default, cores)
    neutral(parser.add_argument("--workers", "--n_workers", dest="workers", type=natural, default=default, help=help))


def path(text: str) -> Path:
    """Parse a path that is not empty, as an unset shell variable would make it (an argparse type)."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return Path(text)


def natural(text: str) -> int:
    """Parse an int >= 0 (an argparse type)."""
    return _number(text, int, lambda value: value >= 0, "a whole number of 0 or more")


def positive(text: str) -> int:
    """Parse an int >= 1 (an argparse type)."""
    return _number(text, int, lambda value: value >= 1, "a whole number of 1 or more")


def positives(text: str) -> tuple[int, ...]:
    """Parse ints >= 1 as 4 or 32,32,64 (an argparse type)."""
    return tuple(map(positive, text.split(",")))


def positive_float(text: str) -> float:
    """Parse a finite float > 0 (an argparse type)."""
    nonnegative_float(text)
    return _number(text, float, lambda value: value > 0, "a number above 0")


def nonnegative_float(text: str) -> float:
    """Parse a finite float >= 0 (an argparse type)."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a finite number of 0 or more")


def share(text: str) -> float:
    """Parse a float from 0 to 1 (an argparse type)."""
    return _number(text, float, lambda value: 0 <= value <= 1, "a share from 0 to 1")


def _number(text, kind, fits, expected):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def yes_no(text: str) -> bool:
    """Parse yes, no, true, false, 1 or 0 (an argparse type; see `add_yes_no`)."""
    words = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected yes or no, got {text!r}")
    return words[text.lower()]


def add_yes_no(parser, flag: str, default: bool, help: str) -> argparse.Action:
    """Declare a flag that takes yes or no, where the bare flag means yes; returns its action."""
    word = "yes" if default else "no"  # which argparse parses, and shows in the help
    return parser.add_argument(flag, type=yes_no, nargs="?", const=True, default=word, metavar="yes|no", help=help)


def run(main) -> None:
    """Call main() and exit: 0 or what it returns, 2 bad input, 1 no memory or disk, 130 Ctrl-C, 143 SIGTERM.

    Errors of the user's making are one line on stderr; anything unforeseen keeps its traceback.
    """
    handler, hook, others = signals.install(signal.SIGTERM), sys.unraisablehook, multiprocessing.active_children()
    sys.unraisablehook = signals.resend_if_swallowed
    limits.allow_many_files()
    streams.ignore_closed_pipes()
    sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
    interrupted = True
    try:
        code = _exit_code(main)
        interrupted = False
    except KeyboardInterrupt:
        code = _complain("interrupted; the same command continues", 130)
    except (signals.Terminated, Exception) as error:
        if not signals.State.terminating and not isinstance(error, signals.Terminated):
            raise
        code = _complain("terminated; the same command continues", 143)
    finally:
        _kill_children(others)
    if interrupted:  # at once: loaders torn down by the interpreter would complain about workers that ended too
        print(end="", flush=True)
        sys.stderr.flush()
        os._exit(code)
    signal.signal(signal.SIGTERM, handler)
    sys.unraisablehook = hook
    sys.exit(code)


def _kill_children(others):
    """End the processes that were started since; they act on SIGTERM late, and torch would report their end."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in set(multiprocessing.active_children()).difference(others):
        child.kill()
        child.join()
    signal.signal(signal.SIGCHLD, handler)


def _exit_code(main):
    """Call main() and say in one line what failed."""
    try:
        code = main() or 0
        print(end="", flush=True)
        return code
    except BadInput as error:
        too_many = shortage(error) == TOO_MANY_FILES  # of which a file was named that is not to blame
        return _complain(TOO_MANY_FILES, 1) if too_many else _complain(error, error.exit_code)
    except UnicodeEncodeError as error:  # of names: Python reads bytes that are no text, but does not write them
        name = error.object[: error.end].rpartition("\n")[2] + error.object[error.end :].partition("\n")[0]
        return _complain(f"{name!a}: the name of a file is not UTF-8; rename it, or set LC_ALL=C.UTF-8", 2)
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if "is killed by signal: Terminated" in str(error):  # a loader process was told before this one
            raise signals.Terminated from None
        message = shortage(error)
        if message and not signals.State.terminating:
            return _complain(message, 1)
        if isinstance(error, OSError):
            return _os_error(error)
        raise


def shortage(error: BaseException) -> str | None:
    """What ran out, memory, files or shared memory, here or in a loader process, and the ways out."""
    text = getattr(error, "strerror", None) or str(error)  # without the file's name
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    if text.endswith(") exited unexpectedly"):  # a loader process with an exit code that nobody saw
        return TOO_MANY_FILES
    if isinstance(error, (ConnectionResetError, ConnectionRefusedError)):  # one that ended as it handed over a batch
        return TOO_MANY_FILES
    return next((message for sign, message in SHORTAGES.items() if sign in text), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, the C library or a CUDA library ran out of memory, or a loader process was killed for it."""
    return shortage(error) == OUT_OF_MEMORY


def _complain(message, code):
    with contextlib.suppress(OSError):  # of a full disk, which may be what the message says
        print(end="", flush=True)  # first what was said before: a log that holds both streams ends with the reason
    print(f"{Path(sys.argv[0]).name}: {plain_line(message)}", file=sys.stderr)
    return code


def plain_line(message) -> str:
    """The message as one line of at most 600 characters, without what would command a terminal."""
    text = " ".join(str(message).split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 600 else f"{text[:400]} ... {text[-195:]}"


def _os_error(error):
    """One line for what the file system refuses; an OSError that names no file is a bug and is raised again."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" ({error.filename})" if error.filename else ""
        return _complain(f"disk full{place}: free some space, then the same command continues", 1)
    if error.errno == errno.EFBIG:
        return _complain(f"{error.filename}: too large; raise ulimit -f, then the same command continues", 1)
    if error.filename is None:
        raise error
    return _complain(f"{error.filename}: {error.strerror}", 2)


def progress(iterable, total: int, desc: str, unit: str = "it"):
    """Yield from the iterable behind a progress bar on stderr, or where that is no terminal, behind plain lines."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, total=total, desc=desc, unit=unit, leave=False)
        return
    done, finished = 0, threading.Event()
    started = time.monotonic()

    def report():
        wait = FIRST_LINE
        while not finished.wait(wait):
            left = (time.monotonic() - started) / done * (total - done) if done else None
            ahead = "" if left is None else f", {timedelta(seconds=round(left))} left"
            print(f"{desc}: {done}/{total} {unit}{ahead}", file=sys.stderr, flush=True)
            wait = LINES

    threading.Thread(target=report, daemon=True).start()
    try:
        for item in iterable:
            yield item
            done += 1
    finally:
        finished.set()
