"""A training run in its folder: the lock, signals, checkpoints, stats.csv and TensorBoard have their one owner here.

A loop stays a loop:

    with RunFolder(args, settings, state={"state_dict": model, "optimizer": optimizer}, ...) as run:
        for epoch in run.epochs(n_epochs):
            for batches in run.steps(loaders.steps(epoch, run.done)):
                run.count(step(model, optimizer, batches))
            run.end_epoch(evaluate(model))

Stopped anywhere and started again, it ends as if it had not been stopped: each step is seeded by (seed, epoch, step),
and a checkpoint holds the state, the finished epochs' rows and how far the present epoch has come.
"""

import contextlib
import datetime
import operator
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from common import checkpoint, cli, lock, processes, signals
from common.claim import differences
from common.errors import BadInput, WorkFailed
from common.events import EventFile
from common.files import check_target, read_json, write_csv, write_json

CALL = ("started", "command", "git_commit", "versions", "device")  # of config.json: who trained, with what
STEPS_PER_READ = 50  # steps between transfers of their sums from the device
NOTHING, DUE = -1, 0  # what is asked for between two steps; above is the number of a signal


def add_flags(group) -> None:
    """Declare `--logdir`, `--checkpoint_minutes` and `--signal`."""
    add_logdir_flag(group)
    cli.neutral(
        group.add_argument(
            "--checkpoint_minutes",
            type=cli.positive_float,
            default=10.0,
            help="minutes between checkpoints within an epoch; every epoch ends with one too",
        )
    )
    cli.neutral(
        group.add_argument(
            "--signal",
            choices=("USR1", "USR2"),
            help="another signal, as SLURM's --signal sends before it ends a job, at which to save and end",
        )
    )


def add_logdir_flag(group) -> None:
    """Declare `--logdir`."""
    group.add_argument("--logdir", "-l", type=cli.path, required=True, help="folder of the run")


def plain(args) -> dict:
    """A namespace's flags as plain types, paths as text: fit for JSON and checkpoints."""
    values = {name: value for name, value in sorted(vars(args).items()) if name != "neutral"}
    for name, value in values.items():
        value = list(value) if isinstance(value, tuple) else value
        values[name] = value if isinstance(value, (int, float, str, bool, list, type(None))) else str(value)
    return values


def settings_that_matter(args) -> dict:
    """The flags that decide the weights: all but paths and those that are neutral."""
    skipped = args.neutral | {name for name, value in vars(args).items() if isinstance(value, Path)}
    return {name: value for name, value in plain(args).items() if name not in skipped}


def describe_run(args, device: torch.device, **facts) -> dict:
    """What config.json holds: all arguments, versions, git commit, device and further facts of the run."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "command": sys.argv,
        "arguments": plain(args),
        "versions": versions,
        "git_commit": _git_commit(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **facts,
    }


def _git_commit():
    """The source's commit, with -dirty where files were changed since, or None outside a checkout."""
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *describe]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class RunFolder:
    """A run in the making; a context manager.

    Args:
        args: with logdir, checkpoint_minutes, signal (see `add_flags`) and seed.
        settings: name -> plain value of all that must be equal for a run to be continued.
        state: name in the checkpoint -> what is saved, anything with state_dict() and load_state_dict().
        columns: column of stats.csv -> TensorBoard tag of its values, None without.
        sums: names of the numbers that `count` adds up over an epoch's steps.
        best: column and rule, `max` or `min`, of the best epoch, whose `kept` state goes into best_checkpoint.pth.
        steps_per_epoch: in a whole epoch, so that TensorBoard counts them through.
        scalars: the sums of one step -> TensorBoard tag -> value.
        facts: plain content that every checkpoint holds besides; not compared.
        config: content of config.json.
        upgrade: changes a checkpoint of an earlier version to the present form, in place.
        advice: what to do when numbers are not finite.
        limit: above which a step's sums are as bad as infinite.
        place: epoch and step, from 1, -> what an error calls them.
    Attributes: `history`, a stats.csv row per finished epoch; `best`, the best one or None; `done`, steps taken of the
        present epoch; `sums` of these steps by name; `seconds` they took.
    Errors: BadInput when the folder is in use, holds another run or nothing that can be continued; WorkFailed when a
        sum or a weight is not finite.
    """

    def __init__(
        self,
        args,
        settings: dict,
        state: Mapping[str, object],
        columns: Mapping[str, str | None],
        sums: tuple[str, ...],
        best: tuple[str, Callable],
        steps_per_epoch: int,
        kept: tuple[str, ...] = ("state_dict",),
        scalars: Callable[[dict], dict] = dict,
        facts: dict | None = None,
        config: dict | None = None,
        upgrade: Callable[[dict], None] = lambda saved: None,
        advice: str = "",
        limit: float = float("inf"),
        place: Callable[[int, int], str] = "epoch {}, step {}".format,
    ):
        self.logdir, self.args, self.settings, self.state, self.columns = args.logdir, args, settings, state, columns
        self.names, self.rule, self.kept, self.steps_per_epoch = sums, best, kept, steps_per_epoch
        self.scalars, self.facts, self.config, self.upgrade, self.advice = scalars, facts or {}, config, upgrade, advice
        self.limit, self.place = limit, place
        self.history, self.best, self.complete = [], None, False
        self.latest_is_good = False
        self._begin_epoch()

    def _begin_epoch(self, done: int = 0, totals=None, seconds: float = 0.0):
        """Stand after some steps of an epoch. ValueError or TypeError for what no epoch can have come to."""
        self.done = self.read = operator.index(done)  # steps taken, and those of them whose sums were read
        self.seconds = float(seconds)
        self.totals = [float(total) for total in totals or [0.0] * len(self.names)]
        finite = np.isfinite([self.seconds, *self.totals]).all() and self.seconds >= 0
        if len(self.totals) != len(self.names) or not finite or not 0 <= self.done <= self.steps_per_epoch:
            raise ValueError("progress of an epoch")
        self.pending, self.evaluating = [], False
        self.started = time.perf_counter() - self.seconds

    @property
    def sums(self) -> dict[str, float]:
        return dict(zip(self.names, self.totals, strict=True))

    def __enter__(self) -> "RunFolder":
        with contextlib.ExitStack() as stack:
            if processes.rank() == 0:
                stack.enter_context(lock.held(self.logdir, "--logdir"))
                for name in (checkpoint.LATEST, checkpoint.PREVIOUS, checkpoint.BEST, "stats.csv", "config.json"):
                    check_target(self.logdir / name)
            self._restore()
            self.written = time.monotonic()
            self.events = None
            self.stack = stack.pop_all()
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self.stack:
            if self.evaluating and isinstance(error, signals.INTERRUPTS):
                signals.defer()
                self._save_and_say()

    def epochs(self, n: int) -> Iterator[int]:
        """The epochs up to the nth that are left, from 0. In them, signals wait until the state can be saved."""
        complete = self.complete or len(self.history) >= n
        if processes.rank() == 0 and (self.history or self.done):
            after = f"epoch {len(self.history)}" + (f" and {self.done} steps" if self.done else "")
            print(f"{self.logdir}: {'complete' if complete else 'resuming'} after {after}", flush=True)
        if complete:
            return
        if processes.rank() == 0 and self.config is not None:
            write_json(self.logdir / "config.json", self.config | self._earlier_calls())
        first = len(self.history) * self.steps_per_epoch + self.done + 1
        self.stack.enter_context(signals.deferred(*[self.args.signal] if self.args.signal else []))
        self.events = self.stack.enter_context(EventFile(self.logdir, first) if processes.rank() == 0 else EventFile())
        while len(self.history) < n and not self.complete:
            yield len(self.history)

    def _earlier_calls(self):
        """What began the run that is continued, and continued it before: of config.json, one entry each."""
        path = self.logdir / "config.json"
        if not (self.history or self.done) or not path.exists():
            return {}
        try:
            before = read_json(path)
        except BadInput:  # it only informs, and is written anew
            return {}
        return {"earlier": [*before.get("earlier", []), {name: before.get(name) for name in CALL}]}

    def steps(self, steps: Collection) -> Iterator:
        """The steps that are left of the epoch, after `done` of them, each seeded by its place.

        Between two of them it saves when it is time to, or when a signal asks it to, and then stops.

        After the last one a signal stops even an evaluation at once, and the run is saved as after the last step.
        """
        epoch = len(self.history) + 1
        for item in processes.progress_on_rank_0(steps, len(steps), f"epoch {epoch}", "step"):
            processes.seed_everything(self.args.seed, epoch, self.done, processes.rank())
            yield item
            self.done += 1
            self._save_if_due_or_asked()
        self._read_sums()
        self.evaluating = True
        signals.release()

    def count(self, sums: torch.Tensor) -> None:
        """Add one step's sums, (len(names),) float64 on any device; they are read in blocks, so that no step waits."""
        self.pending.append(sums)
        if len(self.pending) == STEPS_PER_READ:
            self._read_sums()

    def is_best(self, row: dict) -> bool:
        """Whether an epoch's row is better than all before it."""
        column, rule = self.rule
        value = row[column]
        return self.best is None or (value != self.best[column] and rule(value, self.best[column]) == value)

    def histogram(self, tag: str, parts: dict[str, list[torch.Tensor]]) -> None:
        """Log a histogram of the present epoch for each part, of the values of its tensors."""
        for part, tensors in parts.items():
            self.events.histogram(f"{tag}/{part}", tensors, len(self.history) + 1)

    def picture(self, tag: str, picture: np.ndarray) -> None:
        """Log a picture (H, W, 3) uint8 of the present epoch."""
        self.events.picture(tag, picture, len(self.history) + 1)

    def end_epoch(self, row: dict) -> None:
        """Close the epoch with the row of its scores: events, checkpoint, best checkpoint, stats.csv."""
        row = {"epoch": len(self.history) + 1, **row, "seconds": time.perf_counter() - self.started}
        signals.defer()
        self.evaluating = False
        if self.is_best(row):
            self.best = row
        self.history.append(row)
        scalars = {tag: row[column] for column, tag in self.columns.items() if tag and column in row}
        self.events.scalars(row["epoch"], scalars)
        self.events.flush()
        self._begin_epoch()
        self._save()

    def save(self) -> None:
        """Save where the present epoch stands: before long work at its end, which a kill would make it repeat."""
        self._read_sums()
        self._save()

    def finish(self) -> None:
        """Mark the run complete after an epoch, before its last; the same command then does nothing."""
        self.complete = True
        self._save()

    # --- sums ---

    def _read_sums(self):
        """Bring totals and the event file up to the last step. WorkFailed when a sum is not finite."""
        if self.pending:
            block = torch.stack(self.pending)
            processes.sum_over_processes(block)
            self._count(block.cpu().numpy())
            self.pending = []
        self.seconds = time.perf_counter() - self.started

    def _count(self, block):
        """Add the sums of some steps, (steps, len(names))."""
        good = np.isfinite(block) & (block <= self.limit)
        if not good.all():
            step, column = divmod(int(np.argmin(good)), len(self.names))
            raise self.not_finite(f"the {self.names[column]} is", self.read + step + 1, block[step, column])
        first = len(self.history) * self.steps_per_epoch + self.read + 1
        for step, sums in enumerate(block.tolist(), first):
            self.events.scalars(step, self.scalars(dict(zip(self.names, sums, strict=True))))
        self.totals = np.cumsum([self.totals, *block], axis=0)[-1].tolist()  # step by step, however divided
        self.read += len(block)

    def not_finite(self, what: str, step: int | None = None, value: float = float("nan")) -> WorkFailed:
        """The error of numbers that have left the range of floats, or the limit, in the present epoch.

        Args: step: counted from 1, default the last one taken. value: finite if it is above the limit.
        """
        place = self.place(len(self.history) + 1, self.done if step is None else step)
        trouble = f"above {self.limit:g}" if np.isfinite(value) else "not finite"
        saved = (self.logdir / checkpoint.LATEST).exists()
        kept = " in a new --logdir (this one keeps the last good checkpoint)" if saved else "; nothing was saved yet"
        return WorkFailed(f"{place}: {what} {trouble}; {self.advice}{kept}")

    # --- checkpoints ---

    def _save_if_due_or_asked(self):
        """Between two steps: save when it is time to, or when a signal asks the processes to stop, and then stop."""
        due = time.monotonic() - self.written > 60 * self.args.checkpoint_minutes
        asked = processes.max_over_processes(signals.State.pending or (DUE if due else NOTHING))
        if asked == DUE:
            self._read_sums()
            self.events.flush()
            self._save()
        elif asked != NOTHING:
            self._save_and_say()
            signals.raise_for(asked)

    def _save_and_say(self):
        self._read_sums()
        self.events.flush()
        self._save()
        if processes.rank() == 0:
            print(f"{self.logdir}: saved in epoch {len(self.history) + 1} after step {self.done}", flush=True)

    def _save(self):
        """Write checkpoint.pth and, after an epoch, what follows from it; only the first process does.

        WorkFailed, and nothing is written, when a weight is not finite.
        """
        self.written = time.monotonic()
        if processes.rank() > 0:
            return
        content = {
            **{name: part.state_dict() for name, part in self.state.items()},
            **self.facts,
            "epoch": len(self.history),
            "history": self.history,
            "best_epoch": self.best["epoch"] if self.best else None,
            "progress": {"steps": self.done, "totals": self.totals, "seconds": self.seconds},
            "complete": self.complete,
            "identity": self.settings,
        }
        if not all(map(_is_finite, [content[name] for name in self.state])):
            raise self.not_finite("the weights are")
        latest = self.logdir / checkpoint.LATEST
        checkpoint.save(latest, content, self.logdir / checkpoint.PREVIOUS if self.latest_is_good else None)
        self.latest_is_good = True
        if self.done == 0:
            self._write_results(content)

    def _write_results(self, content):
        """Write stats.csv and, when the content of checkpoint.pth is the best epoch's, best_checkpoint.pth."""
        if processes.rank() > 0:
            return
        if self.history[-1] is self.best:
            kept = {name: content[name] for name in (*self.kept, *self.facts, "epoch")}
            checkpoint.save(self.logdir / checkpoint.BEST, kept)
        write_csv(self.logdir / "stats.csv", self.history, tuple(self.columns))

    def _restore(self):
        """Load the latest good checkpoint, if there is one."""
        path, saved = self._load()
        if saved is None:
            return
        with checkpoint.errors_name(path):
            _refuse_difference(self.logdir, saved["identity"], self.settings)
            self.upgrade(saved)
            for name, part in self.state.items():
                checkpoint.load_state(part, saved.get(name), path)
            if not all(_is_finite(saved.get(name)) for name in self.state):
                raise ValueError("values that are not finite")
            progress = saved.get("progress", {"steps": 0, "totals": None, "seconds": 0.0})
            self._begin_epoch(progress["steps"], progress["totals"], progress["seconds"])
            self.complete = bool(saved.get("complete", False))
            self._restore_history(saved["history"], saved["best_epoch"])
            if self.done == 0 and self.history:
                self._write_results(saved)  # the run may have ended before it could
        if self.best and processes.rank() == 0 and not (self.logdir / checkpoint.BEST).exists():
            lost = f"{self.logdir / checkpoint.BEST}: missing, was of epoch {self.best['epoch']}"
            print(f"{lost}; only a new run makes it again")

    def _restore_history(self, rows, best_epoch):
        """Take over the rows of stats.csv. ValueError: rows are not numbered from 1 or not of numbers."""
        for epoch, row in enumerate(rows, 1):
            numbers = all(isinstance(name, str) and isinstance(value, (int, float)) for name, value in row.items())
            if row["epoch"] != epoch or not numbers:
                raise ValueError(f"row {epoch} of the history")
        fits = best_epoch in range(1, len(rows) + 1) if rows else best_epoch is None
        if not fits:
            raise ValueError(f"best epoch {best_epoch} of {len(rows)}")
        self.history, self.best = rows, rows[best_epoch - 1] if rows else None
        if self.best is not None and not set(self.columns) <= self.best.keys():
            raise ValueError("the best epoch lacks scores")

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
        if processes.rank() == 0:
            print(f"{cli.plain_line(trouble)}; going on from {checkpoint.PREVIOUS}, the checkpoint before it")
        return previous, content


def _is_finite(value):
    """Whether every tensor in nested dicts and lists is finite."""
    if torch.is_tensor(value):
        return bool(value.isfinite().all())
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return all(map(_is_finite, inner))


def _refuse_results(logdir: Path):
    """BadInput when the folder holds what is not replaced: a run without checkpoint.pth, a config.json of no run."""
    for name in (checkpoint.BEST, "stats.csv"):
        if (logdir / name).exists():
            raise BadInput(f"--logdir {logdir}: holds {name} of a run without checkpoint.pth; choose another folder")
    config = logdir / "config.json"
    if config.exists() and not {"command", "arguments"} <= read_json(config).keys():
        raise BadInput(f"{config}: not of a run; choose another --logdir")


def _refuse_difference(logdir, saved, wanted):
    changed = differences(saved, wanted, dash="")
    if changed:
        raise BadInput(f"--logdir {logdir}: holds a run that differs in {changed}; choose another folder")
