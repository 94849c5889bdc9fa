"""One training run of a sweep: its folder, the commands a user would type for it, how far it is, its outcome."""

import contextlib
import functools
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from common import lock
from common.errors import BadInput
from common.files import atomic_open, make_folder, make_subfolder, open_input, open_own, read_json, read_text
from data.cluttered_mnist.placements import default_clutter
from data.loaders import shrinkage
from experiments import sources
from experiments.figures import CROP_DATA, Point, Setting
from experiments.stats import read_numbers, read_precision

ROOT = Path(__file__).resolve().parents[1]
OUTCOME, LOCK, LOG = "exit_code.txt", ".sweep.lock", "output.log"


@dataclass(frozen=True)
class Places:
    """Where a sweep reads and writes, and how it is split: the flags that change no weight."""

    root: Path
    mnist: str | None = None
    digits: sources.DigitSource = sources.MNIST  # what `mnist` holds
    crops: Path | None = None
    batch_size: int | None = None  # images at a time; None: whole batches
    workers: int = 0


@dataclass(frozen=True)
class Trial:
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
        return f"{data_name(p, s, self.places)}/{network}_{training}_s{self.seed}"

    @property
    def logdir(self) -> Path:
        return self.places.root / "runs" / self.name

    @property
    def bulky(self) -> tuple[str, ...]:
        """Folders in logdir whose maps or features are not kept."""
        return ("saliency",) if self.localise else ()

    def commands(self) -> list[list[str]]:
        """Script and flags of training and, where the figure needs them, saliency maps."""
        p, s = self.point, self.setting
        step = self.places.batch_size or s.batch_size
        flags = {
            "--logdir": self.logdir,
            "--seed": self.seed,
            "-e": s.epochs,
            "-b": step,
            "--delayed_step": s.batch_size // step,
            "--workers": self.places.workers,
            "--norm": s.norm,
            "--opt": s.opt,
            "--lr": s.lr,
            "--precision": p.precision,
            "--receptive_field": p.receptive_field,
            "--pooling": p.pooling,
            "--width": p.width,
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


def data_name(point: Point, setting: Setting, places: Places) -> str:
    """Folder of a data set, named for its flags that are not the generators' defaults and for its digits or crops."""
    if point.data in CROP_DATA:
        digest = sources.crops_digest(*crop_folders(point, places.crops))
        return f"{point.data}_{point.canvas}_ratio_{point.ratio}_{digest}"
    if point.data == "noise":
        return f"noise_{noise_side(point, setting)}_{point.num_examples}"
    named = {"clutter": clutter(point, setting), "scale": setting.scale, "x": setting.duplicates, "cell": setting.cell}
    usual = {"clutter": default_clutter(point.canvas), "scale": 1.0, "x": 2, "cell": 64}
    differing = (f"{k}{v:g}" for k, v in named.items() if v != usual[k])
    return "_".join(filter(None, [f"nmnist_{point.canvas}", places.digits.name, *differing]))


def noise_side(point: Point, setting: Setting) -> int:
    """Px of a noise canvas: as many as the network gets of an nMNIST canvas."""
    return round(point.canvas * setting.scale)


def data_flags(point: Point, setting: Setting, places: Places) -> dict:
    """Where training finds the data."""
    if point.data in CROP_DATA:
        return dict(zip(("--pos_path", "--neg_path"), crop_folders(point, places.crops), strict=True))
    return {"--data_path": places.root / "data" / data_name(point, setting, places)}


def crop_folders(point: Point, crops: Path) -> tuple[Path, Path]:
    """The extractor's folders of positives of a crop size and O2I range, and of negatives."""
    return crops / f"level3_size_{point.canvas}_ratio_{point.ratio}", crops / f"neg_{point.canvas}"


def generation(run: Trial) -> list[str] | None:
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
    cell = s.cell if s.cell and p.canvas % s.cell == 0 else 0
    return command("data/cluttered_mnist/generate_data.py", flags | {"--patch-size": cell})


def history(run: Trial):
    """The run's stats.csv up to its epochs, a row each (a longer run is cut); None before the first."""
    rows = _all_epochs(run)
    return None if rows is None else rows.head(run.epochs)


def _all_epochs(run):
    path, always = run.logdir / "stats.csv", ("epoch", "eval_acc", "train_running_acc", "seconds")
    return read_numbers(path, always, ("train_acc", "test_acc", "test_auc")) if path.exists() else None


def best_was_replaced(run: Trial) -> bool:
    """Whether the run was trained further and its kept weights are of an epoch beyond."""
    rows = _all_epochs(run)
    return rows is not None and int(rows["eval_acc"].idxmax()) >= run.epochs


def localization(run: Trial) -> float | None:
    """The average precision of the saliency peaks of the run's best epoch, None when there are none or of another."""
    scores, best = run.logdir / "saliency" / "localization.json", run.logdir / "best_checkpoint.pth"
    if not scores.exists() or (best.exists() and best.stat().st_mtime > scores.stat().st_mtime):
        return None
    precision = read_precision(scores)
    return None if best_was_replaced(run) else precision


def is_done(run: Trial) -> bool:
    """Whether all epochs are trained, on the sweep's data, and the saliency maps that the figure needs are scored.

    BadInput when they can no longer be made.
    """
    rows = history(run)
    if run.localise and best_was_replaced(run):
        raise BadInput(
            f"{run.logdir}: trained beyond epoch {run.epochs}, whose best weights are gone; choose another --root"
        )
    if rows is None or len(rows) < run.epochs or (run.localise and localization(run) is None):
        return False
    return saw_its_data(run)


def saw_its_data(run: Trial) -> bool:
    """Whether the run was trained on its data as they are now; not known where they were removed."""
    words = command("", data_flags(run.point, run.setting, run.places))[1:]
    try:
        expected = sources.fingerprint(tuple(words), run.seed if run.point.data in CROP_DATA else None)
    except BadInput:
        return False
    return read_json(run.logdir / "config.json").get("data") == expected


def outcome(run: Trial) -> int | None:
    """Exit code of the last attempt; None before its end, or when it was killed with all its processes."""
    path = run.logdir / OUTCOME
    if not path.exists():
        return None
    text = read_text(path).strip()
    if not re.fullmatch(r"-?\d{1,3}", text):
        raise BadInput(f"{path}: holds {text[:40]!r}, expected an exit code; remove it")
    return int(text)


def make_logdir(run: Trial) -> Path:
    """Create the run's folder; BadInput when a link or a file is in the way."""
    return functools.reduce(make_subfolder, ["runs", *run.name.split("/")], make_folder(run.places.root))


def forget_outcome(run: Trial) -> None:
    """Make the run's folder ready for an attempt whose end is yet to come."""
    (make_logdir(run) / OUTCOME).unlink(missing_ok=True)


def ending(run: Trial, code: int) -> str:
    """How an attempt ended: its exit code and the last line it printed."""
    path, lines = run.logdir / LOG, []
    if path.exists():
        with open_input(path) as file:
            lines = file.read().decode(errors="replace").split("\n")
    return (
        f"exit code {code}: {next((line for line in reversed(lines) if line.strip() and line[0] != '#'), 'no output')}"
    )


def seconds(run: Trial) -> float:
    """What the commands of all attempts took, by the clock."""
    return sum(map(float, re.findall(r"^# (\d+\.\d) s$", read_text(run.logdir / LOG), re.MULTILINE)))


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


def execute(run: Trial, children: Children, environment: dict[str, str], **options) -> int:
    """Take the run to its end by its commands, which print to output.log; returns the first exit code that is not 0.

    The commands continue what an earlier attempt left. BadInput when another process works on it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock.held(make_logdir(run), "--root", LOCK))
        forget_outcome(run)
        log = stack.enter_context(open_own(run.logdir / LOG, os.O_WRONLY | os.O_APPEND, "a"))
        options |= {"stdout": log, "stderr": log, "env": os.environ | environment}
        code = 0
        for words in run.commands():
            print(f"$ python {shlex.join(words)}", file=log, flush=True)
            started = time.monotonic()
            code = children.call(words, **options)
            print(f"# {time.monotonic() - started:.1f} s", file=log, flush=True)
            if code:
                break
        for name in run.bulky if code == 0 else ():
            _remove_maps(run.logdir / name)
        with atomic_open(run.logdir / OUTCOME, "w") as file:
            file.write(f"{code}\n")
        return code


def _remove_maps(folder):
    """Saliency maps and features take more room than images; the scores, the pictures and files of others stay."""
    if folder.is_symlink():
        return
    for path in folder.glob("*.npy"):
        if re.fullmatch(r"(sal|pred)_\d+\.npy|(train|val|test)\.npy", path.name):
            path.unlink()
