"""Continuing a training run: its checkpoints, what must be equal to go on from one, when to write one."""

import operator
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from common import checkpoint, device, runlog, signals
from common.errors import BadInput, WorkFailed
from common.moments import GradientVariance

NEUTRAL_FLAGS = {  # flags that change no weight: a run may be resumed with others
    *("epochs", "device", "deterministic", "workers", "test_all", "grad_variance", "batch_size", "delayed_step"),
    *("source", "background", "network_k", "num_classes", "checkpoint_activations", "checkpoint_minutes"),
    *("signal", "verify"),
}
MOMENTS = {
    torch.optim.RMSprop: {"square_avg"},
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.Adam: {"exp_avg", "exp_avg_sq"},
}
NOTHING, DUE = -1, 0  # wishes between two steps; above is the number of a signal


@dataclass
class Progress:
    """How far the epoch in the making has come.

    Every step is seeded by its position, so that no random state is part of it.

    Args:
        steps: optimiser steps taken.
        totals: summed loss, true positives, false positives, false negatives, true negatives of these steps.
        seconds: what they took.
        variance: state of the epoch's GradientVariance, if it is wanted.
    """

    steps: int = 0
    totals: list[float] = field(default_factory=lambda: [0.0] * 5)
    seconds: float = 0.0
    variance: dict | None = None

    def __post_init__(self):
        """ValueError or TypeError for what no epoch can have come to."""
        self.steps, self.seconds = operator.index(self.steps), float(self.seconds)
        self.totals = [float(total) for total in self.totals]
        if len(self.totals) != 5 or not min(self.steps, self.seconds, *self.totals) >= 0:
            raise ValueError("progress of an epoch")


def not_finite(what: str, epoch: int, step: int, precision: str) -> WorkFailed:
    """The error of a run whose numbers have left the range of floats, epoch and step counted from 1."""
    exact = "" if precision == "float32" else " or take --precision float32"
    return WorkFailed(
        f"epoch {epoch}, step {step}: {what} not finite; lower --lr{exact} in a new --logdir (this one keeps the last "
        "good checkpoint)"
    )


def identity(args, fingerprint: str) -> dict:
    """What decides the weights: all flags but the neutral ones and paths, the effective batch, the data."""
    neutral = NEUTRAL_FLAGS | {name for name, value in vars(args).items() if isinstance(value, Path)}
    result = {name: value for name, value in runlog.plain(args).items() if name not in neutral}
    result["effective batch"] = args.batch_size * max(1, args.delayed_step)
    if args.norm == "bn":  # batch norm sees how images are split into batches
        result["batch_size"] = args.batch_size
    return {**result, "data": fingerprint}


class Checkpoints:
    """The checkpoints of a run in its log folder: the latest, the one before it, the best epoch's.

    Args:
        identity: what decides the weights.
        minutes: how often to write one in the middle of an epoch.
    """

    def __init__(self, logdir: Path, identity: dict, minutes: float):
        self.logdir, self.identity, self.seconds = logdir, identity, 60 * minutes
        self.written = time.monotonic()
        self.latest_is_good = False

    def restore(self, run) -> None:
        """Load the latest good checkpoint, if there is one, into the run.

        BadInput when the folder holds another run or none that can be continued.
        """
        path, saved = self._load()
        if saved is None:
            return
        with checkpoint.errors_name(path):
            _refuse_difference(self.logdir, saved["identity"], self.identity)
            checkpoint.load_weights(run.model, saved["state_dict"], path)
            # fp16's loss scaler skips steps until no gradient overflows; before, the optimiser has no state
            if saved["optimizer"]["state"] or not run.scaler.is_enabled():
                _restore_optimizer(run.optimizer, saved["optimizer"])
            if not _all_finite(*saved["optimizer"]["state"].values()):
                raise ValueError("the optimiser's state holds values that are not finite")
            run.scaler.load_state_dict(saved["scaler"])
            run.progress = Progress(**saved.get("progress", {}))
            if run.progress.variance is not None:
                GradientVariance(run.model, run.progress.variance)  # or it does not fit
            run.history, run.best = _restore_history(saved["history"], saved["best_epoch"])
            if run.progress.steps == 0:
                write_results(self.logdir, run, saved)  # the run may have ended before it could
        if run.best and device.rank() == 0 and not (self.logdir / checkpoint.BEST).exists():
            lost = f"{self.logdir / checkpoint.BEST}: missing, was of epoch {run.best['epoch']}"
            print(f"{lost}; only a new run makes it again")

    def _load(self):
        """Path and content of the latest checkpoint or, where that is damaged, of the one before it; or two Nones."""
        latest, previous = self.logdir / checkpoint.LATEST, self.logdir / checkpoint.PREVIOUS
        if latest.exists():
            try:
                content = checkpoint.load(latest)
                self.latest_is_good = True
                return latest, content
            except BadInput as error:
                if not previous.exists():
                    raise
                trouble = error
        elif previous.exists():
            trouble = f"{latest}: missing"
        else:
            _refuse_results(self.logdir)
            return None, None
        content = checkpoint.load(previous)
        if device.rank() == 0:
            print(f"{trouble}; going on from {checkpoint.PREVIOUS}, the checkpoint before it")
        return previous, content

    def save(self, run) -> None:
        """Write checkpoint.pth and, after an epoch, what follows from it; only the first process does.

        WorkFailed, and nothing is written, when a weight is not finite.
        """
        self.written = time.monotonic()
        if device.rank() > 0:
            return
        content = {
            "state_dict": run.model.state_dict(),
            "config": run.model.config.to_dict(),
            "args": runlog.plain(run.args),
            "epoch": len(run.history),
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.scaler.state_dict(),
            "history": run.history,
            "best_epoch": run.best["epoch"] if run.best else None,
            "progress": dict(vars(run.progress)),
            "identity": self.identity,
        }
        if not _all_finite(content["state_dict"], *content["optimizer"]["state"].values()):
            raise not_finite("the weights are", len(run.history) + 1, run.progress.steps, run.args.precision)
        latest = self.logdir / checkpoint.LATEST
        kept = self.logdir / checkpoint.PREVIOUS if self.latest_is_good else None
        checkpoint.save(latest, content, kept)
        self.latest_is_good = True
        if run.progress.steps == 0:
            write_results(self.logdir, run, content)

    def heed(self, run, flush) -> None:
        """Between two steps: save when it is time to, or when a signal asks the processes to stop, and then stop.

        Args:
            flush: brings run.progress up to date.
        """
        due = time.monotonic() - self.written > self.seconds
        wish = device.agree(signals.noted() or (DUE if due else NOTHING))
        if wish == NOTHING:
            return
        flush()
        self.save(run)
        if wish != DUE:
            self._say_saved(run)
            signals.stop(wish)

    def save_interrupted(self, run) -> None:
        """Save what an interrupted evaluation follows on."""
        self.save(run)
        self._say_saved(run)

    def _say_saved(self, run):
        if device.rank() == 0:
            print(f"{self.logdir}: saved in epoch {len(run.history) + 1} after step {run.progress.steps}", flush=True)


def write_results(logdir: Path, run, content: dict) -> None:
    """Write stats.csv and, when the content of checkpoint.pth is the best epoch's, best_checkpoint.pth."""
    if device.rank() > 0:
        return
    if run.history[-1] is run.best:
        kept = {name: content[name] for name in ("state_dict", "config", "args", "epoch")}
        checkpoint.save(logdir / checkpoint.BEST, kept)
    runlog.write_stats(logdir / "stats.csv", run.history)


def _all_finite(*groups):
    """Whether every tensor among the values of some dicts is finite."""
    values = [value for group in groups for value in group.values()]
    return all(bool(value.isfinite().all()) for value in values if torch.is_tensor(value))


def _restore_optimizer(optimizer, saved):
    """Load the moments; what the flags decide stays. ValueError when a moment does not fit its parameter."""
    groups = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)
    for parameter in optimizer.param_groups[0]["params"]:
        state = optimizer.state[parameter]
        moments = {name for name, value in state.items() if value.shape == parameter.shape}
        if not MOMENTS[type(optimizer)] <= moments or not state.keys() <= moments | {"step"}:
            raise ValueError(f"state of {type(optimizer).__name__}")


def _restore_history(rows, best_epoch):
    """The rows of stats.csv and the best one of them, if any. ValueError or TypeError when they are none."""
    for epoch, row in enumerate(rows, 1):
        numbers = all(isinstance(name, str) and isinstance(value, (int, float)) for name, value in row.items())
        if row["epoch"] != epoch or not numbers:
            raise ValueError(f"row {epoch} of the history")
    best = rows[best_epoch - 1] if best_epoch else None
    if best is not None and not set(runlog.COLUMNS) <= best.keys():
        raise ValueError("the best epoch lacks scores")
    return rows, best


def _refuse_results(logdir):
    """BadInput when the folder holds a run that cannot be continued, for example the first release's."""
    for name in (checkpoint.BEST, "stats.csv"):
        if (logdir / name).exists():
            raise BadInput(f"--logdir {logdir}: holds {name} of a run without checkpoint.pth; choose another folder")


def _refuse_difference(logdir, saved, wanted):
    names = [name for name in {**saved, **wanted} if saved.get(name) != wanted.get(name)]
    if names:
        differences = ", ".join(
            "other data" if name == "data" else f"{name} {saved.get(name)} (now {wanted.get(name)})" for name in names
        )
        raise BadInput(f"--logdir {logdir}: holds a run that differs in {differences}; choose another folder")
