"""The standard streams: a command goes on where one of them is closed or has lost its reader."""

import errno
import io
import os
import sys
from pathlib import Path


def open_closed() -> None:
    """Let closed ones lead to os.devnull; else C libraries would print into the next file that is opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (until the end)


def ignore_closed_pipes() -> None:
    """Let stdout and stderr drop what is printed once nobody reads it, as after `| head -1`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # else it is a test's or wrapped already
            raw = _PipeOrNull(stream.fileno(), "w", closefd=False)
            buffer = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)  # raw: python -u
            options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, stream.errors, **options))


class _PipeOrNull(io.FileIO):
    """A pipe or a terminal, and os.devnull after its other end has gone."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)
