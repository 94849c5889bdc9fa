"""The long form of the reliability tests: torture.py kills|load [--kills 50] [--minutes 30]; see make torture."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common import cli
from data.camelyon import make_slides
from data.cluttered_mnist import generate_data
from tests.reliability import kills, load

SLIDES = "--width 8192 --height 6144 --annotated 2 --negative 1 --compression deflate --workers 1"
DATA = "--mnist digits --canvas 64 --distortion-num 2 --patch-size 64 --duplicates 1 --workers 1"


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("kills", "load"), help="kill commands at random moments, or watch memory")
    parser.add_argument("--kills", type=cli.positive, default=50, help="kills of each command")
    parser.add_argument("--minutes", type=cli.positive_float, default=30.0, help="of generation, loading and training")
    parser.add_argument("--seed", type=cli.natural, default=0, help="decides the moments")
    return parser.parse_args(argv)


def kill_everything(place: Path, args) -> None:
    """Kill generation, extraction and training; a line on each."""
    make_slides.main(["--out", str(place / "slides"), *SLIDES.split()])
    generate_data.main([*DATA.split(), "--out", str(place / "data")])
    targets = [kills.generation(256), kills.extraction(place / "slides", size=128, k=20)]
    targets.append(kills.training(place / "data", 3, "--source", "files"))
    for target in targets:
        own = place / target.name
        own.mkdir()
        print(kills.kill_until_done(target, own / "whole", own, args.kills, args.seed), flush=True)


def main(argv=None):
    args = parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="torture") as place:
        if args.what == "kills":
            kill_everything(Path(place), args)
        else:
            load.run(Path(place), args.minutes)


if __name__ == "__main__":
    cli.run(main)
