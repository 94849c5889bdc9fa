"""The errors that a command answers in one line, without a traceback."""


class BadInput(Exception):
    """The user's input cannot be used. The message is one line naming the flag or file; the exit code is 2."""

    exit_code = 2

    def __init__(self, message):
        super().__init__(str(message).rsplit("BadInput: ", 1)[-1].strip())  # torch prepends a worker's traceback


class WorkFailed(BadInput):
    """Work that began could not be finished, in one line; the exit code is 1."""

    exit_code = 1
