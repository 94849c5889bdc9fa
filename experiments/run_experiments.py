"""Run Pawlowski 2019's experiments: run_experiments.py figure4 --preset small

Generates the data sets that are missing, trains the runs that are not done (interrupted ones continue), writes
results/{figure}.csv, draws figures/{figure}.png and judges Pawlowski 2019's claims.
"""

import argparse
import math
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.errors import BadInput, WorkFailed
from common.files import check_folder, read_json, read_table
from data.cluttered_mnist import digits
from experiments import (
    anomaly,
    claims,
    estimate,
    executors,
    figures,
    leakage,
    methods,
    plot_results,
    results,
    runs,
    sources,
)
from experiments.figures import AXES, CROP_DATA, FIGURES, PRESETS, Point
from experiments.runs import Places, Trial

OTHERS = {"anomaly": anomaly.main, "leakage": leakage.main, "methods": methods.main}  # with flags of their own
REAL_SLIDES = 100  # negatives of CAMELYON17 come from 197 training slides, made ones from a handful


def parse_args(argv=None):
    parser = cli.ArgumentParser(
        description=__doc__, epilog=f"With flags of their own: run_experiments.py {'|'.join(OTHERS)} --help"
    )
    add = parser.add_argument
    add("figures", nargs="+", type=figure_name, choices=FIGURES, help="which")
    add(
        "--preset",
        choices=PRESETS,
        default="paper",
        help="Pawlowski 2019's settings, or few points on a CPU",
    )
    add("--seeds", type=cli.positive, help="how many seeds (default: the preset's)")
    add("--epochs", "-e", type=cli.positive, help="epochs at 11,276 images (default: the preset's)")
    for axis, reading in AXES.items():
        add(f"--{axis}", nargs="+", **{**reading, "help": f"{reading['help']}, in place of the preset's"})
    add("--crops", type=cli.path, help="folder of level3_size_S_ratio_LO_HI/ and neg_S/ for each crop size S")
    add("--mnist", help="folder of the four MNIST files, or 'digits' (default: generate_data.py's)")
    add("--root", type=cli.path, default=Path("runs/paper"), help="folder of data sets and run folders")
    plot_results.add_out_flag(parser)
    add("--dry_run", action="store_true", help="print the runs, their images, hours and disk, and end")
    add("--executor", choices=["local", "slurm"], default="local", help="this machine's devices, or SLURM job arrays")
    add("--jobs", type=cli.positive, help="runs at a time (default: a GPU each, or a CPU core; with SLURM all)")
    add("--batch_size", "-b", type=cli.positive, help="images at a time, accumulated to the setting's batch")
    cli.add_workers_flag(parser, 0, help="processes of each run that render images, 0 = none")
    slurm = parser.add_argument_group("SLURM")
    slurm.add_argument("--partition", help="partition (default: the cluster's)")
    slurm.add_argument(
        "--time", type=cli.positive, default=24 * 60, help="minutes a job may take before it is requeued"
    )
    slurm.add_argument("--gpus", type=cli.natural, default=1, help="GPUs of a job")
    slurm.add_argument("--cpus", type=cli.positive, default=4, help="CPU cores of a job")
    return parser.parse_args(argv)


def figure_name(text: str) -> str:
    """Parse the name of a figure (an argparse type)."""
    if text in OTHERS:
        raise argparse.ArgumentTypeError(f"{text} has flags of its own: run it by itself")
    if text not in FIGURES:
        names = ", ".join([*FIGURES, *OTHERS])
        raise argparse.ArgumentTypeError(f"expected one of {names}, got {text!r}")
    return text


def main(argv=None):
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in OTHERS:
        return OTHERS[words[0]](words[1:])
    args = parse_args(words)
    check(args, PRESETS[args.preset].batch_size)
    plans = {name: trials_of(name, args) for name in dict.fromkeys(args.figures)}
    if not any(plans.values()):
        raise BadInput(f"{' '.join(plans)}: no runs at --preset {args.preset}; nCAMELYON needs --crops")
    check_digits(args, [run for planned in plans.values() for run in planned])
    check_data({run for planned in plans.values() for run in planned if run.point.data == "nmnist"})
    check_tables(args.out, plans)
    batches = outstanding(plans)
    for name in plans:
        announce(name, plans[name], batches[name])
    if args.dry_run:
        return print_commands(batches)
    generate({run for batch in batches.values() for run in batch})
    batches = outstanding(plans)  # fewer, where data had been removed after they were trained on
    for name, planned in plans.items():
        tabulate(name, planned, args.out)  # what was done before
    failures = work(args, plans, batches)
    for name in plans:
        conclude(name, args.out)
    executors.raise_failures(failures)


def check(args, batch_size: int) -> None:
    """BadInput for values that argparse cannot judge."""
    if min(args.canvas or [digits.SIDE + 1]) <= digits.SIDE:
        raise BadInput(f"--canvas {min(args.canvas)}: expected more than the {digits.SIDE} px of a digit")
    if args.crops:
        check_folder(args.crops, "--crops")
    if args.batch_size and batch_size % args.batch_size:
        raise BadInput(f"--batch_size {args.batch_size}: expected a divisor of the setting's {batch_size}")
    if args.executor == "slurm" and "%" in str(args.root.absolute()):
        raise BadInput(f"--root {args.root.absolute()}: SLURM takes the % in it for a pattern; choose another folder")


def check_digits(args, planned: list[Trial]) -> None:
    """BadInput when the digits of --mnist, `duplicates` images of each, make too few training images of a class."""
    for run in planned:
        point, found, passes = run.point, run.places.digits, run.setting.duplicates
        if point.data == "nmnist" and point.num_examples > most_examples(run):
            most = min(most_examples(other) for other in planned if other.point.data == "nmnist")
            advice = "" if found.content == sources.MNIST.content else "use real MNIST, or "
            raise BadInput(
                f"--mnist {run.places.mnist} holds too few digits for --preset {args.preset} ({point.num_examples:,}"
                f" training images from {found.needles:,} of the class, each {passes} times): {advice}"
                f"--num_examples {most} at most"
            )


def most_examples(run: Trial) -> int:
    """How many training images of the run's class balance its digits make: both classes are as large."""
    held = run.places.digits.needles * run.setting.duplicates
    return int(held / max(run.point.balance, 1 - run.point.balance))


def check_data(planned: set[Trial]) -> None:
    """BadInput when a data set is of other digits, as earlier versions called it by the same name."""
    folders = {runs.data_flags(run.point, run.setting, run.places)["--data_path"]: run.places for run in planned}
    for folder, places in folders.items():
        settings = folder / "args.json"
        if settings.exists() and read_json(settings).get("mnist") != places.digits.content:
            raise BadInput(f"--root: {folder} holds other digits than --mnist {places.mnist}; choose another folder")


def check_tables(out: Path, names) -> None:
    """BadInput when a table that is to be added to cannot be read."""
    for name in names:
        results.load(out, name)
        results.load_curves(out, name)


def trials_of(name: str, args) -> list[Trial]:
    """All runs of a figure, the first seed of every point first. Its label says what the flags changed."""
    preset = figures.preset_setting(name, PRESETS[args.preset])
    points = figures.preset_points(name, preset)
    axes = {axis: tuple(getattr(args, axis)) for axis in AXES if getattr(args, axis)}
    changes = [figures.change(points, axis, values) for axis, values in axes.items()]
    setting = replace(preset, seeds=args.seeds or preset.seeds, epochs=args.epochs or preset.epochs)
    if args.batch_size and setting.norm == "bn" and args.batch_size != setting.batch_size:
        raise BadInput(
            f"--batch_size {args.batch_size}: batch norm needs whole batches, of {setting.batch_size} in {name} at"
            f" --preset {args.preset}"
        )
    changes += [f"--epochs {setting.epochs}"] if setting.epochs != preset.epochs else []
    source = sources.absolute(args.mnist or digits.default_source())
    found = sources.digits_of(source) if any(point.data == "nmnist" for point in points) else sources.MNIST
    changes += [f"--mnist {found.name}"] if found.name else []
    setting = replace(setting, label=", ".join(filter(None, [preset.label, *changes])))
    crops = args.crops and args.crops.absolute()
    places = Places(args.root.absolute(), source, found, crops, args.batch_size, args.workers)
    points = [found for point in figures.with_axes(points, axes) if (found := at_hand(point, places.crops))]
    localise = FIGURES[name].localise
    return [Trial(point, setting, seed, localise, places) for seed in runs.seeds(setting) for point in points]


def at_hand(point: Point, crops: Path | None) -> Point | None:
    """The point when its data are there or can be generated; crops of made slides are called so."""
    if point.data not in CROP_DATA:
        return point
    if crops is None:
        return None
    positives, negatives = runs.crop_folders(point, crops)
    if not positives.is_dir():
        return None
    return point if slides_of_negatives(negatives) >= REAL_SLIDES else replace(point, data="made")


def slides_of_negatives(folder: Path) -> int:
    """How many slides the training negatives are cut from."""
    path = folder / "crops.csv"
    if not path.exists():
        raise BadInput(f"--crops: {path} is missing, expected what extract_basic_neg_crops.py writes")
    table = read_table(path)
    if not {"split", "slide"} <= set(table.columns):
        raise BadInput(f"--crops: {path}: no table of crops, its columns lack split or slide")
    return table.loc[table["split"] == "train", "slide"].nunique()


def outstanding(plans: dict[str, list[Trial]]) -> dict[str, list[Trial]]:
    """What is not done yet; a run that figures share is the first one's, with saliency maps if one needs them."""
    localised = {run.logdir for planned in plans.values() for run in planned if run.localise}
    batches, seen = {}, set()
    for name, planned in plans.items():
        merged = [replace(run, localise=run.logdir in localised) for run in planned]
        batches[name] = [run for run in merged if run.logdir not in seen and not runs.is_done(run)]
        seen |= {run.logdir for run in merged}
    return batches


def announce(name: str, planned: list[Trial], todo: list[Trial]) -> None:
    """Say what the figure takes, by the estimates of estimate.py."""
    if not planned:
        print(f"{name}: no runs; nCAMELYON needs --crops")
        return
    setting, parts = planned[0].setting, [(run, estimate.left(run)) for run in todo]
    images, hours = (sum(size(run) * left for run, left in parts) for size in (estimate.images, estimate.hours))
    print(
        f"{name} ({setting.label}): {len(planned)} runs, {len(todo)} to do, {images:,.0f} training images,"
        f" {duration(hours)} on one device of {setting.tflops:g} TFLOP/s, {estimate.disk(todo) / 1e9:.2g} GB of disk",
        flush=True,
    )


def duration(hours: float) -> str:
    """Hours, below one in minutes begun."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{math.ceil(60 * hours)} min"


def print_commands(batches: dict[str, list[Trial]]) -> None:
    """Print everything that would be started, as it could be typed."""
    todo = [run for batch in batches.values() for run in batch]
    for words in [*generations(todo), *(words for run in todo for words in run.commands())]:
        print(f"python {shlex.join(words)}")


def generations(todo) -> list[list[str]]:
    """The commands that generate the runs' data sets, each once."""
    found = {shlex.join(words): words for run in todo if (words := runs.generation(run))}
    return [found[line] for line in sorted(found)]


def generate(todo) -> None:
    """Generate the data sets that are missing; what is there is checked by the generators."""
    for words in generations(todo):
        print(f"$ python {shlex.join(words)}", flush=True)
        code = runs.Children().call(words, stdout=subprocess.DEVNULL)  # which ends in advice on what to type next
        if code:
            raise WorkFailed(f"{words[0]} ended with exit code {code}; the same command continues")


def work(args, plans: dict[str, list[Trial]], batches: dict[str, list[Trial]]) -> list[str]:
    """Take all runs to their end, writing the tables as results come; returns a line for each that failed."""
    if args.executor == "slurm":
        options = executors.SlurmOptions(args.partition, args.time, args.gpus, args.cpus, args.jobs)
        ended = executors.run_slurm(batches, options)
    else:
        ended = executors.run_local([run for batch in batches.values() for run in batch], args.jobs)
    return executors.settle_all(ended, lambda run, how: settle(run, how, plans, args.out))


def settle(run: Trial, how: str, plans: dict[str, list[Trial]], out: Path) -> str | None:
    """Write a run that has ended into its figures' tables; returns what is wrong: how it ended when it is not done."""
    for name, planned in plans.items():
        tabulate(name, [shared for shared in planned if shared.logdir == run.logdir], out)
    return None if runs.is_done(run) else how


def tabulate(name: str, planned: list[Trial], out: Path) -> None:
    """Write the finished runs into the figure's tables."""
    done = [run for run in planned if runs.is_done(run)]
    if not done:
        return
    results.update(results.path_of(out, name), [results.row(run) for run in done])
    if any(view.kind == "curves" for view in FIGURES[name].views):
        lines = [line for run in done for line in results.curve(run)]
        results.update(results.path_of(out, f"{name}_curves"), lines, results.CONFIGURATION + results.CURVE)


def conclude(name: str, out: Path) -> None:
    """Draw the figure and print the verdict on each of its claims."""
    table = results.load(out, name)
    if table is None:
        return
    for path in plot_results.draw_figure(name, out):
        print(f"wrote {path}")
    for claim in claims.CLAIMS:
        if claim.figure == name:
            for setting, rows in table.groupby("setting"):
                verdict, numbers = claims.judge(claim, rows)
                print(f"{name} ({setting}): {verdict}: {claim.text}{f' ({numbers})' if numbers else ''}")


if __name__ == "__main__":
    cli.run(main)
