"""Prepare CAMELYON16 for anomaly detection, step by step: prepare.py all --root CAMELYON16

The steps, 1 to 9, are listed below; each does what is missing, so that an interrupted one continues. Path flags have
the names of the nine scripts that come with DPA (Shvetsova et al. 2021), and defaults below --root.
"""

import contextlib
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common import cli, lock
from common.errors import BadInput
from data.camelyon16 import normalise, outlines, patches, scales, tissue

STEPS = {
    1: outlines.ANNOTATIONS,
    2: outlines.MASKS,
    3: patches.NORMAL_PATCHES,
    4: patches.TUMOR_PATCHES,
    5: normalise.STAIN_TARGET,
    6: normalise.NORMALISED,
    7: scales.SPLIT_LISTS,
    8: scales.X40,
    9: scales.SCALES,
}
EVERYWHERE = ("root", "workers", "seed", "border", "per_slide", "steps")  # flags that a step may ignore
MOST_LINES = 20  # problems that are named


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=f"{__doc__}\n{_listing()}")
    parser.add_argument("steps", nargs="+", metavar="STEP", help="1 to 9, or all")
    parser.add_argument("--root", type=cli.path, default=Path(), help="folder of CAMELYON16, and of what is made of it")
    parser.add_argument("--seed", type=cli.natural, default=0, help="decides which patches of a slide are kept")
    parser.add_argument(
        "--border", type=tissue.border, default="auto", help="coarse pixels of 256 px left out at a slide's sides"
    )
    parser.add_argument("--per_slide", type=cli.positive, default=50, help="patches kept of a slide, at most")
    cli.add_workers_flag(parser, help="slides or patches worked on at once, each in its own process")
    normalise.add_flags(parser)
    flags: dict[str, dict[str, list[int]]] = {}  # flag -> its place -> steps
    for number, step in STEPS.items():
        for flag, place in step.places.items():
            flags.setdefault(flag, {}).setdefault(place, []).append(number)
    for flag, places in flags.items():
        meaning = "; ".join(f"{place} in step {', '.join(map(str, numbers))}" for place, numbers in places.items())
        parser.add_argument(f"--{flag}", type=cli.path, help=f"default: {meaning}")
    args = parser.parse_args(argv)
    try:
        args.steps = _chosen(args.steps)
        _check_flags(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def _listing():
    return "\n".join(f"    {number} {step.summary}" for number, step in STEPS.items())


def _chosen(words):
    """The numbers of the steps in order."""
    numbers = {int(word) for word in words if word.isascii() and word.isdecimal()}
    unknown = next((word for word in words if word != "all" and not (word.isascii() and word.isdecimal())), None)
    unknown = unknown or next((str(number) for number in numbers if number not in STEPS), None)
    if unknown:
        raise ValueError(f"STEP {unknown}: expected 1 to {len(STEPS)}, or all")
    return list(STEPS) if "all" in words else sorted(numbers)


def _check_flags(args):
    """ValueError when a given flag is of no chosen step, or means different places in two of them."""
    for flag, value in vars(args).items():
        if value is None or flag in EVERYWHERE or flag == "neutral":
            continue
        own = [number for number in args.steps if flag in STEPS[number].places or flag in STEPS[number].own]
        if not own:
            raise ValueError(f"--{flag}: not a flag of step {', '.join(map(str, args.steps))}")
        if len({STEPS[number].places.get(flag) for number in own}) > 1:
            raise ValueError(f"--{flag}: means another folder in each of the steps {own}; give them one by one")


def resolve(number: int, args) -> Namespace:
    """The arguments with the places of a step. BadInput when it would write where it reads, or cannot read."""
    places = {flag: getattr(args, flag) or args.root / place for flag, place in STEPS[number].places.items()}
    inputs = {flag: path for flag, path in places.items() if not flag.startswith("output_")}
    for flag, path in inputs.items():
        if not (path.is_file() if flag.endswith("_path") else path.is_dir()):
            raise BadInput(
                f"--{flag} {path}: no such {'file' if flag.endswith('_path') else 'folder'}{_maker(number, flag)}"
            )
    read = {path.resolve(): flag for flag, path in inputs.items()}
    written: dict[Path, str] = {}
    for flag, path in places.items():
        if flag.startswith("output_"):
            other = read.get(path.resolve()) or written.setdefault(path.resolve(), flag)
            if other != flag:
                raise BadInput(f"--{flag} {path}: is the folder of --{other} too; choose another one")
    return Namespace(**{**vars(args), **places})


def _maker(number, flag):
    """Which step makes what a step reads, for messages."""
    place = STEPS[number].places[flag]
    steps = (
        n for n in range(1, number) for name, made in STEPS[n].places.items() if "output_" in name and made == place
    )
    maker = next(steps, None)
    return "" if maker is None else f"; step {maker} makes it"


def run(number: int, args) -> list[str]:
    """Run a step alone in its folders; returns a line for each part that could not be done."""
    step, args = STEPS[number], resolve(number, args)
    print(f"step {number}: {step.summary}")
    with contextlib.ExitStack() as stack:
        for flag in sorted(flag for flag in step.places if flag.startswith("output_")):
            path = getattr(args, flag)
            folder = path.parent if flag.endswith("_path") else path
            stack.enter_context(lock.held(folder, f"--{flag}"))
        return step.run(args)


def main(argv=None):
    args = parse_args(argv)
    for number in args.steps:
        problems = run(number, args)
        for problem in problems[:MOST_LINES]:
            print(cli.plain_line(problem), file=sys.stderr)
        if problems:
            print(f"step {number}: {len(problems)} problems; the same command tries them again", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    cli.run(main)
