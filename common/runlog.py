"""What a training run leaves in its folder: config.json, stats.csv and TensorBoard events."""

import datetime
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from common import cli, device
from common.files import errors_name, write_csv, write_json

SPLIT_COLUMNS = ("loss", "acc", "prec", "recall", "auc", "ap")
COLUMNS = (
    "epoch",
    *(f"{split}_{name}" for split in ("eval", "train", "test") for name in SPLIT_COLUMNS),
    *("train_running_acc", "lr", "seconds", "images_per_s"),
)
TAG = {"eval": "eval", "train": "train_eval", "test": "test"}  # column prefix -> TensorBoard folder
HISTOGRAM_VALUES = 100_000
_EDGES = 1e-12 * 1.1 ** np.arange(774)  # to 1e20, as TensorBoard's own histograms have them
HISTOGRAM_BINS = np.concatenate([-_EDGES[::-1], [0], _EDGES])


def add_logdir_flag(parser) -> None:
    """Declare `--logdir`."""
    parser.add_argument("--logdir", "-l", type=cli.path, required=True, help="folder of the run")


def plain(args) -> dict:
    """A namespace's values as plain types, paths as text: fit for JSON and checkpoints."""
    values = {}
    for name, value in sorted(vars(args).items()):
        if isinstance(value, tuple):
            value = list(value)
        values[name] = value if isinstance(value, (int, float, str, bool, list, type(None))) else str(value)
    return values


def write_config(logdir: Path, args, device, **facts) -> None:
    """Write config.json: all arguments, versions, git commit, device and further facts of the run."""
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    write_json(
        logdir / "config.json",
        {
            **{"command": sys.argv, "arguments": plain(args), "versions": versions, "git_commit": _git_commit()},
            **{"device": f"{device} ({name})", "threads": torch.get_num_threads(), "started": started, **facts},
        },
    )


def _git_commit():
    """The source's commit, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_stats(path: Path, rows: list[dict]) -> None:
    """Write stats.csv, one row an epoch; a split that was not evaluated leaves its cells empty."""
    write_csv(path, rows, COLUMNS)


class TensorBoard:
    """The run's event file, written by the first process. Steps count optimiser steps, epochs count from 1.

    What was written before `flush` returned outlasts the process: tensorboardX's own writer leaves it to a thread.
    """

    def __init__(self, logdir: Path, first_step: int):
        self.file = None
        if device.rank() > 0:
            return
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import RecordWriter

        self.path = logdir / f"events.out.tfevents.{int(time.time())}.{platform.node()}.{first_step}"
        self.file = RecordWriter(str(self.path))
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))  # voids later steps
        self.flush()

    def steps(self, first_step: int, counts) -> None:
        """Write train/* of consecutive optimiser steps.

        Args:
            first_step: step of the first row.
            counts: (steps, 5) rows of summed loss, true positives, false positives, false negatives, true negatives.
        """
        from common.metrics import rates

        for step, (loss, tp, fp, fn, tn) in enumerate(counts, first_step):
            images = tp + fp + fn + tn
            values = rates(tp, fp, fn, tn)
            scores = {"precision": values["prec"], "recall": values["recall"], "accuracy": values["acc"]}
            scores |= {"loss": loss / images, "labels": (tp + fn) / images}  # labels: share of positives
            self._scalars(step, {f"train/{name}": value for name, value in scores.items()})

    def epoch(self, row: dict) -> None:
        """Write the scores of a stats.csv row and its learning rate."""
        cells = ((f"{prefix}_{name}", f"{folder}/{name}") for prefix, folder in TAG.items() for name in SPLIT_COLUMNS)
        scores = {tag: row[column] for column, tag in cells if column in row}
        self._scalars(row["epoch"], {"stats/lr": row["lr"], **scores})

    def histogram(self, tag: str, named_tensors, epoch: int) -> None:
        """Write one histogram per top-level part of the network, of at most 100,000 evenly spaced values each."""
        import torch
        from tensorboardX import summary

        parts = {}
        for name, tensor in named_tensors:
            part = ".".join(name.split(".")[:2]) if name.startswith("cnn.layer") else name.split(".")[0]
            parts.setdefault(part, []).append(tensor.detach().flatten())
        for part, tensors in parts.items():
            values = torch.cat(tensors)
            values = values[:: -(-len(values) // HISTOGRAM_VALUES)].float().cpu().numpy()
            self._write(step=epoch, summary=summary.histogram(f"{tag}/{part}", values, HISTOGRAM_BINS))

    def flush(self) -> None:
        """Bring what was written to the disk."""
        if self.file:
            with errors_name(self.path):
                self.file.flush()

    def _scalars(self, step, values):
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=Summary(value=values))

    def _write(self, **content):
        from tensorboardX.proto.event_pb2 import Event

        if self.file:
            with errors_name(self.path):
                self.file.write(Event(wall_time=time.time(), **content).SerializeToString())

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        if self.file:
            with errors_name(self.path):
                self.file.close()
