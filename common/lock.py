"""One writer per folder: a lock that the kernel releases when its holder ends, however it ends."""

import contextlib
import fcntl
import functools
import os
import re
import socket
import sys
from pathlib import Path

from common.errors import BadInput
from common.files import make_folder, open_own

NAME = ".lock"
HOLDER = rb"\S+ process \d+\n"  # what a lock file holds


@contextlib.contextmanager
def held(folder: Path, flag: str, name: str = NAME):
    """Create the folder, and keep other processes from entering a block of the same folder and name.

    The lock file holds host and process of the holder as text, and is gone afterwards. BadInput names them, or a file
    of that name which is none of ours. Where the file system has no locks it goes on without, after a line.
    """
    path = make_folder(folder) / name
    file = _open(path, f"{flag} {folder}")
    os.register_at_fork(after_in_child=file.close)  # else a worker would hold the lock of a process that was killed
    try:
        file.truncate(0)
        file.write(f"{socket.gethostname()} process {os.getpid()}\n".encode())
        file.flush()
        yield
    finally:
        if _is_at(path, file):
            path.unlink()
        file.close()


def _open(path, whose):
    """The lock file, locked; tried again when the holder before has just removed it."""
    while True:
        file = open_own(path, os.O_RDWR | os.O_APPEND, "ab+")
        locked = _lock(file, whose)
        file.seek(0)
        if not re.fullmatch(HOLDER + rb"|", file.read(1000)):
            raise BadInput(f"{path}: is not a lock of this software; move it away or choose another folder")
        if not locked or _is_at(path, file):
            return file
        file.close()


def _lock(file, whose):
    """Whether the file could be locked. BadInput when another process has done so."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        file.seek(0)
        holder = re.fullmatch(HOLDER, file.read(1000))
        holder = holder[0].decode().strip() if holder else "another process"
        raise BadInput(f"{whose}: in use by {holder}; wait for it or choose another folder") from None
    except OSError as error:
        _say_unlocked(error.strerror)
        return False


@functools.cache  # once
def _say_unlocked(reason):
    advice = "going on without; do not start a second run in the same folder"
    print(f"the file system has no locks ({reason}): {advice}", file=sys.stderr)


def _is_at(path, file):
    """Whether the open file is still what lies at the path."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
