"""Draw figures from experiments/results/*.csv and write the tables of RESULTS.md: plot_results.py [figure4 ...]"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.errors import BadInput
from common.files import atomic_open, read_text
from experiments import drawing, results, tables
from experiments.figures import FIGURES

HERE = Path(__file__).resolve().parent
MARKS = "<!-- {name}: written by experiments/plot_results.py -->", "<!-- end of {name} -->"


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    names = f"which of {', '.join(FIGURES)} (default: all that have results)"
    parser.add_argument("figures", nargs="*", type=figure, metavar="figure", help=names)
    add_out_flag(parser)
    parser.add_argument("--results_md", type=cli.path, help="file whose tables are written, for example RESULTS.md")
    return parser.parse_args(argv)


def figure(text: str) -> str:
    """Parse a figure's name (an argparse type; Python 3.10 takes an empty list of figures for one of the `choices`)."""
    if text not in FIGURES:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(FIGURES)})")
    return text


def add_out_flag(parser) -> None:
    """Declare `--out`."""
    parser.add_argument("--out", "-o", type=cli.path, default=HERE, help="folder of results/ and figures/")


def main(argv=None):
    args = parse_args(argv)
    names = args.figures or sorted(name for name in FIGURES if results.path_of(args.out, name).exists())
    if not names:
        raise BadInput(f"--out {args.out}: no tables of figures in results/ there")
    for name in names:
        for path in draw_figure(name, args.out):
            print(f"wrote {path}")
    if args.results_md:
        replace_tables(
            args.results_md, {"figures": tables.figures_table(args.out), "claims": tables.claims_table(args.out)}
        )
        print(f"wrote the tables of {args.results_md}")


def draw_figure(name: str, out: Path) -> list[Path]:
    """Draw a figure once for each setting in its table; returns the PNGs: the setting is in the file's name."""
    table = results.load(out, name)
    if table is None:
        raise BadInput(f"{name}: no {results.path_of(out, name)}, expected what run_experiments.py {name} writes")
    curves, paths = results.load_curves(out, name), []
    for setting, rows in table.groupby("setting"):
        suffix = "" if setting == "paper" else "_" + re.sub(r"(--|[^\w.-])+", "_", setting)
        paths.append(out / "figures" / f"{name}{suffix}.png")
        own = None if curves is None else curves[curves["setting"] == setting]
        drawing.draw(FIGURES[name], rows, own, paths[-1])
    return paths


def replace_tables(path: Path, parts: dict[str, str]) -> None:
    """Write each table between its two marks. BadInput where they are missing."""
    text = read_text(path)
    for name, table in parts.items():
        start, end = (mark.format(name=name) for mark in MARKS)
        if text.count(start) != 1 or end not in text:
            raise BadInput(f"--results_md {path}: expected the lines {start} and {end}")
        text = f"{text[: text.index(start)]}{start}\n{table}\n{text[text.index(end) :]}"
    with atomic_open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    cli.run(main)
