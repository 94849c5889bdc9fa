"""Draw figures from experiments/results/*.csv and write the tables of RESULTS.md: plot_results.py [figure4 ...]"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.errors import BadInput
from common.files import atomic_open

HERE = Path(__file__).resolve().parent
MARKS = "<!-- {name}: written by experiments/plot_results.py -->", "<!-- end of {name} -->"


def parse_args(argv=None):
    from experiments.figures import FIGURES

    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="*", choices=[[], *FIGURES], help="which (default: all that have results)")
    add_out_flag(parser)
    parser.add_argument("--results_md", type=cli.path, help="file whose tables are written, for example RESULTS.md")
    return parser.parse_args(argv)


def add_out_flag(parser) -> None:
    """Declare `--out`."""
    parser.add_argument("--out", "-o", type=cli.path, default=HERE, help="folder of results/ and figures/")


def main(argv=None):
    from experiments import tables

    args = parse_args(argv)
    found = [path.stem for path in sorted((args.out / "results").glob("*.csv")) if not path.stem.endswith("_curves")]
    for name in args.figures or found:
        for path in draw_figure(name, args.out):
            print(f"wrote {path}")
    if args.results_md:
        replace_tables(
            args.results_md, {"figures": tables.figures_table(args.out), "claims": tables.claims_table(args.out)}
        )
        print(f"wrote the tables of {args.results_md}")


def draw_figure(name: str, out: Path) -> list[Path]:
    """Draw a figure once for each setting in its table; returns the PNGs: the setting is in the file's name."""
    from experiments import drawing, results
    from experiments.figures import FIGURES

    table = results.load(out, name)
    if table is None:
        raise BadInput(f"{name}: no {results.path_of(out, name)}, expected what run_experiments.py {name} writes")
    curves, paths = results.load(out, f"{name}_curves"), []
    for setting, rows in table.groupby("setting"):
        suffix = "" if setting == "paper" else "_" + re.sub(r"(--|[^\w.-])+", "_", setting)
        paths.append(out / "figures" / f"{name}{suffix}.png")
        own = None if curves is None else curves[curves["setting"] == setting]
        drawing.draw(FIGURES[name], rows, own, paths[-1])
    return paths


def replace_tables(path: Path, tables: dict[str, str]) -> None:
    """Write each table between its two marks. BadInput where they are missing."""
    text = path.read_text()
    for name, table in tables.items():
        start, end = (mark.format(name=name) for mark in MARKS)
        if text.count(start) != 1 or end not in text:
            raise BadInput(f"--results_md {path}: expected the lines {start} and {end}")
        text = f"{text[: text.index(start)]}{start}\n{table}\n{text[text.index(end) :]}"
    with atomic_open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    cli.run(main)
