"""What all commands need. Import it before torch: it decides how idle OpenMP threads wait, and how Ctrl-C looks."""

import os
import sys

# Spin briefly, then sleep: on shared cores endless spinning, the default, slows a training step fivefold.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _report_uncaught(kind, error, trace):
    """Ctrl-C ends in one line also while libraries are being imported, before `cli.run` can see to it."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report_uncaught
