"""One writer per folder: a lock that the kernel releases when its holder ends, however it ends."""

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path

from common.errors import BadInput
from common.files import make_folder

NAME = ".lock"


@contextlib.contextmanager
def held(folder: Path, flag: str, name: str = NAME):
    """Create the folder, and keep other processes from entering a block of the same folder and name.

    The lock file holds host and process of the holder as text, and is gone afterwards. BadInput names them. A file
    system without locks is no obstacle, as it was none before.
    """
    path = make_folder(folder) / name
    file = _open(path, f"{flag} {folder}")
    os.register_at_fork(after_in_child=file.close)  # else a worker would hold the lock of a process that was killed
    try:
        file.truncate(0)
        file.write(f"{socket.gethostname()} process {os.getpid()}\n")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _open(path, whose):
    """The lock file, locked; tried again when the holder before has just removed it."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BadInput(f"{whose}: in use by {holder}; wait for it or choose another folder") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
        file.close()
