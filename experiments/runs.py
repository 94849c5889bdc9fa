"""One training run of a sweep: its folder, the commands a user would type for it, how far it is, its outcome."""

import contextlib
import os
import shlex
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from common import lock
from common.errors import BadInput
from common.files import atomic_open, make_folder, read_json
from data.cluttered_mnist.placements import default_clutter
from data.loaders import shrinkage
from experiments.figures import CROP_DATA, Point, Setting

ROOT = Path(__file__).resolve().parents[1]
IN_USE = 75  # outcome of a run that another process is working on
OUTCOME, LOCK = "exit_code.txt", ".sweep.lock"


@dataclass(frozen=True)
class Places:
    """Where a sweep reads and writes, and how it is split: the flags that change no weight."""

    root: Path
    mnist: str | None = None
    crops: Path | None = None
    batch_size: int | None = None  # images at a time; None: whole batches
    workers: int = 0


@dataclass(frozen=True)
class Run:
    """A point trained with a setting and a seed; runs that figures share have one folder."""

    point: Point
    setting: Setting
    seed: int
    localise: bool
    places: Places

    @property
    def epochs(self) -> int:
        """Epochs in all, those of small training sets multiplied as train_mnist.py does."""
        point = self.point
        return self.setting.epochs * (1 if point.data in CROP_DATA else shrinkage(point.num_examples))

    @property
    def name(self) -> str:
        p, s = self.point, self.setting
        network = f"rf{p.receptive_field}_{p.pooling}_w{p.width}_{s.norm}"
        training = f"n{p.num_examples or 'all'}_b{p.balance:g}_{s.opt}{s.lr:g}_{s.batch_size}_{p.precision}"
        return f"{data_name(p, s)}/{network}_{training}_s{self.seed}"

    @property
    def logdir(self) -> Path:
        return self.places.root / "runs" / self.name

    def commands(self) -> list[list[str]]:
        """Script and flags of training and, where the figure needs them, saliency maps."""
        p, s = self.point, self.setting
        step = self.places.batch_size or s.batch_size
        flags = {
            **{"--logdir": self.logdir, "--seed": self.seed, "-e": s.epochs, "-b": step},
            **{"--delayed_step": s.batch_size // step, "--workers": self.places.workers},
            **{"--norm": s.norm, "--opt": s.opt, "--lr": s.lr, "--precision": p.precision},
            **{"--receptive_field": p.receptive_field, "--pooling": p.pooling, "--width": p.width},
        }
        data = data_flags(p, s, self.places)
        if p.data in CROP_DATA:
            return [command("train_camelyon.py", data | flags)]
        subset = {} if p.num_examples == Point.num_examples else {"--num_examples": p.num_examples}
        subset |= {} if p.balance == 0.5 else {"--data_balance": p.balance}
        train = command("train_mnist.py", data | subset | flags)
        maps = {"--logdir": self.logdir, "--datatype": "mnist", "--overlays": 0, "--workers": self.places.workers}
        return [train, command("predict_saliency.py", data | maps)] if self.localise else [train]


def seeds(setting: Setting) -> range:
    return range(1, setting.seeds + 1)


def command(script: str, flags: dict) -> list[str]:
    """The words after `python`."""
    return [script, *(str(word) for flag in flags.items() for word in flag)]


def clutter(point: Point, setting: Setting) -> int:
    """Clutter digits on a positive."""
    if setting.px_per_digit is None:
        return default_clutter(point.canvas)
    return max(0, round(point.canvas**2 / setting.px_per_digit) - 1)


def data_name(point: Point, setting: Setting) -> str:
    """Folder of a data set; what differs from the generators' defaults is in its name."""
    if point.data in CROP_DATA:
        return f"{point.data}_{point.canvas}_ratio_{point.ratio}"
    if point.data == "noise":
        return f"noise_{noise_side(point, setting)}_{point.num_examples}"
    named = {"clutter": clutter(point, setting), "scale": setting.scale, "x": setting.duplicates}
    usual = {"clutter": default_clutter(point.canvas), "scale": 1.0, "x": 2}
    return "_".join([f"nmnist_{point.canvas}", *(f"{k}{v:g}" for k, v in named.items() if v != usual[k])])


def noise_side(point: Point, setting: Setting) -> int:
    """Px of a noise canvas: as many as the network gets of an nMNIST canvas."""
    return round(point.canvas * setting.scale)


def data_flags(point: Point, setting: Setting, places: Places) -> dict:
    """Where training finds the data."""
    if point.data in CROP_DATA:
        return {"--pos_path": positives(point, places.crops), "--neg_path": places.crops / f"neg_{point.canvas}"}
    return {"--data_path": places.root / "data" / data_name(point, setting)}


def positives(point: Point, crops: Path) -> Path:
    """The extractor's folder of a crop size and O2I range."""
    return crops / f"level3_size_{point.canvas}_ratio_{point.ratio}"


def generation(run: Run) -> list[str] | None:
    """The command that generates the run's data set as a recipe; None for crops."""
    p, s = run.point, run.setting
    if p.data in CROP_DATA:
        return None
    flags = {"--out": data_flags(p, s, run.places)["--data_path"], "--format": "none"}
    if p.data == "noise":
        flags |= {"--canvas": noise_side(p, s), "--num_train": -(-p.num_examples // 2)}  # pairs
        return command("data/cluttered_mnist/generate_noise_data.py", flags)
    flags |= {"--canvas": p.canvas, "--distortion-num": clutter(p, s), "--duplicates": s.duplicates, "--scale": s.scale}
    flags |= {"--mnist": run.places.mnist} if run.places.mnist else {}
    cell = 64 if p.canvas % 64 == 0 else 0
    return command("data/cluttered_mnist/generate_data.py", flags | {"--patch-size": cell})


def history(run: Run):
    """The run's stats.csv up to its epochs, a row each (a longer run is cut); None before the first."""
    import pandas as pd

    path = run.logdir / "stats.csv"
    return pd.read_csv(path).head(run.epochs) if path.exists() else None


def localization(run: Run) -> dict | None:
    """The localisation scores of the run's best epoch, None when there are none or older ones."""
    scores, best = run.logdir / "saliency" / "localization.json", run.logdir / "best_checkpoint.pth"
    if not scores.exists() or (best.exists() and best.stat().st_mtime > scores.stat().st_mtime):
        return None
    return read_json(scores)


def is_done(run: Run) -> bool:
    """Whether all epochs are trained and the saliency maps that the figure needs are scored."""
    rows = history(run)
    return rows is not None and len(rows) == run.epochs and not (run.localise and localization(run) is None)


def outcome(run: Run) -> int | None:
    """Exit code of the last attempt; None before its end, or when it was killed with all its processes."""
    path = run.logdir / OUTCOME
    return int(path.read_text()) if path.exists() else None


def forget_outcome(run: Run) -> None:
    """Make the run's folder ready for an attempt whose end is yet to come."""
    (make_folder(run.logdir) / OUTCOME).unlink(missing_ok=True)


def last_words(run: Run) -> str:
    """The last line a run printed."""
    path = run.logdir / "output.log"
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "no output")


class Children:
    """Processes of this sweep; once stopped, they get SIGTERM and no other starts."""

    def __init__(self):
        self.lock, self.processes, self.stopped = threading.Lock(), set(), False

    def call(self, words: list[str], **options) -> int:
        """Run a script of the project to its end; returns its exit code, 143 when stopped."""
        with self.lock:
            if self.stopped:
                return 143
            # in a session of its own, so that Ctrl-C reaches it through stop() alone
            process = subprocess.Popen([sys.executable, *words], cwd=ROOT, start_new_session=True, **options)
            self.processes.add(process)
        try:
            return process.wait()
        except BaseException:
            self.stop()
            process.wait()
            raise
        finally:
            self.processes.discard(process)

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.terminate()


def execute(run: Run, children: Children, environment: dict[str, str], **options) -> int:
    """Take the run to its end by its commands, which print to output.log; returns the first exit code that is not 0.

    IN_USE when another process works on it. The commands continue what an earlier attempt left.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.held(run.logdir, "--root", LOCK))
        except BadInput:
            return IN_USE
        forget_outcome(run)
        log = stack.enter_context((run.logdir / "output.log").open("a"))
        options |= {"stdout": log, "stderr": log, "env": os.environ | environment}
        code = 0
        for words in run.commands():
            print(f"$ python {shlex.join(words)}", file=log, flush=True)
            code = code or children.call(words, **options)
        if code == 0:
            _remove_maps(run)
        with atomic_open(run.logdir / OUTCOME, "w") as file:
            file.write(f"{code}\n")
        return code


def _remove_maps(run):
    """Saliency maps take as much room as the images; the scores and the contact sheet stay."""
    for path in (run.logdir / "saliency").glob("*.npy"):
        path.unlink()
