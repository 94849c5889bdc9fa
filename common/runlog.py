"""What a training run leaves in its folder: config.json, stats.csv and TensorBoard events."""

import datetime
import platform
import subprocess
import sys
from pathlib import Path

from common import cli, device
from common.files import write_csv, write_json

SPLIT_COLUMNS = ("loss", "acc", "prec", "recall", "auc", "ap")
COLUMNS = (
    "epoch",
    *(f"{split}_{name}" for split in ("eval", "train", "test") for name in SPLIT_COLUMNS),
    *("train_running_acc", "lr", "seconds", "images_per_s"),
)
TAG = {"eval": "eval", "train": "train_eval", "test": "test"}  # column prefix -> TensorBoard folder
HISTOGRAM_VALUES = 100_000


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
    import numpy
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
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
    """The run's event file, written by the first process. Steps count optimiser steps, epochs count from 1."""

    def __init__(self, logdir: Path, first_step: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(logdir), purge_step=first_step, write_to_disk=device.rank() == 0)

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
            self.writer.add_scalar("train/loss", loss / images, step)
            self.writer.add_scalar("train/precision", values["prec"], step)
            self.writer.add_scalar("train/recall", values["recall"], step)
            self.writer.add_scalar("train/accuracy", values["acc"], step)
            self.writer.add_scalar("train/labels", (tp + fn) / images, step)  # share of positives

    def epoch(self, row: dict) -> None:
        """Write the scores of a stats.csv row and its learning rate."""
        self.writer.add_scalar("stats/lr", row["lr"], row["epoch"])
        for prefix, folder in TAG.items():
            for name in SPLIT_COLUMNS:
                if f"{prefix}_{name}" in row:
                    self.writer.add_scalar(f"{folder}/{name}", row[f"{prefix}_{name}"], row["epoch"])
        self.writer.flush()

    def histogram(self, tag: str, named_tensors, epoch: int) -> None:
        """Write one histogram per top-level part of the network, of at most 100,000 evenly spaced values each."""
        import torch

        parts = {}
        for name, tensor in named_tensors:
            part = ".".join(name.split(".")[:2]) if name.startswith("cnn.layer") else name.split(".")[0]
            parts.setdefault(part, []).append(tensor.detach().flatten())
        for part, tensors in parts.items():
            values = torch.cat(tensors)
            values = values[:: -(-len(values) // HISTOGRAM_VALUES)].float().cpu().numpy()
            self.writer.add_histogram(f"{tag}/{part}", values, epoch)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.writer.close()
