"""An experiment tracker beside stats.csv and TensorBoard, for who has one; no run needs it."""

import math
import os
import sys

from common import cli
from common.errors import BadInput

KEY = "COMET_API_KEY"


def add_flags(parser) -> None:
    """Declare `--tracker`."""
    cli.neutral(
        parser.add_argument(
            "--tracker",
            choices=("none", "comet"),
            default="none",
            help=f"log each epoch to a tracker too; its key is read from {KEY} in the environment and written nowhere",
        )
    )


class Tracker:
    """Logs an epoch's row under a name; does nothing without a tracker or a key."""

    def __init__(self, kind: str, name: str):
        self.experiment = None
        if kind == "none":
            return
        try:
            import comet_ml
        except ImportError:
            raise BadInput("--tracker comet: needs the package comet_ml (pip install comet_ml)") from None
        if not os.environ.get(KEY):
            print(f"--tracker comet: {KEY} is not set; logging to stats.csv and TensorBoard alone", file=sys.stderr)
            return
        try:
            self.experiment = comet_ml.start(project_name=name)
        except Exception as error:  # no network, or a wrong key
            said = cli.plain_line(error)[:200]
            print(f"--tracker comet: {said}; logging to stats.csv and TensorBoard alone", file=sys.stderr)

    def log(self, row: dict) -> None:
        """Send the finite numbers of an epoch."""
        if self.experiment is not None:
            found = {name: value for name, value in row.items() if math.isfinite(value)}
            self.experiment.log_metrics(found, epoch=row["epoch"])
