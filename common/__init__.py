"""What all commands need. Import it before torch and matplotlib: it decides how idle OpenMP threads wait, how pictures
are drawn, and how Ctrl-C looks.
"""

import os
import sys

from common.streams import open_closed

open_closed()
try:
    import fcntl  # noqa: F401
except ImportError:
    print("this software runs on Linux and macOS; on Windows use WSL", file=sys.stderr)
    raise SystemExit(2) from None

# Spin briefly, then sleep: on shared cores endless spinning, the default, slows a training step fivefold.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ["MPLBACKEND"] = "agg"  # pictures go to files; a notebook's backend is not there for the commands it starts


def _report_uncaught(kind, error, trace):
    """Ctrl-C ends in one line also while libraries are being imported, before `cli.run` can see to it."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report_uncaught
