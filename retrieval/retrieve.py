"""The nearest neighbours of every image of a folder: retrieve.py --folder IMAGES --logdir RUN --out neighbours.csv

Writes a row per image: img, match_0, match_1, ..., dist_0, dist_1, ... (Euclidean, of unit vectors, 0 to 2). An image
is never its own neighbour; an exact copy of it is, at distance 0.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401 (before torch)
from common import cli, lock, processes
from common.files import check_replaceable, make_folder, write_csv
from data import loaders, pairs
from retrieval import index, networks


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=cli.path, required=True, help="images to find, in and below a folder")
    parser.add_argument("--query", type=cli.path, help="folder of images to look up (default: those of --folder)")
    pairs.add_filetype_flag(parser)
    networks.add_flags(parser)
    parser.add_argument("--k", type=cli.positive, default=5, help="neighbours of an image")
    parser.add_argument("--orientations", type=int, choices=(1, 8), default=1, help="8: flip and turn queries too")
    parser.add_argument(
        "--index", type=cli.path, help="folder of the vectors (default: OUT without its ending, else OUT.index)"
    )
    parser.add_argument("--out", "-o", "--o", dest="out", type=cli.path, default=Path("out.csv"), help="table to write")
    loaders.add_batch_flags(parser)
    processes.add_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select_alone("retrieval/retrieve.py", args.device, args.precision, args.deterministic)
    folders = {"gallery": (args.folder, "--folder"), "queries": (args.query or args.folder, "--query")}
    views = {name: pairs.Views(pairs.open_pictures(*each, args.filetype)) for name, each in folders.items()}
    network = networks.load_for_views(args).to(device)
    check_replaceable(args.out, b",img", "a table of neighbours")
    kept = make_folder(args.index or (args.out.with_suffix("") if args.out.suffix else args.out.with_suffix(".index")))
    vectors = {}
    with lock.held(kept, "--index"):
        for name in ("gallery", "queries") if args.query or args.orientations > 1 else ("gallery",):
            turns = args.orientations if name == "queries" else 1
            identity = {"network": network.describe(), "data": views[name].fingerprint()}
            order, path = np.arange(len(views[name])), kept / f"{name}.npy"
            vectors[name] = index.embed(views[name], order, network, turns, path, identity, args, device)
    problems = {why for each in vectors.values() for why in each.problems.values()}
    for problem in sorted(problems):
        print(f"skipped: {cli.plain_line(problem)}", file=sys.stderr)
    queries = vectors.get("queries", vectors["gallery"])
    itself = numbers_of_files(*(views[name].names for name in ("queries", "gallery")), args)
    distances, found, _ = index.search(queries, vectors["gallery"], args.k, *itself, device)
    write_table(args, views, queries.readable, distances, found)
    print(f"{args.k} neighbours of {int(queries.readable.sum()):,} images in {args.out}; their vectors in {kept}")
    return 1 if problems else 0


def numbers_of_files(queries: list[str], gallery: list[str], args) -> tuple[np.ndarray, np.ndarray]:
    """(M,) and (N,) int, equal for one name in one folder, wherever that was found from."""
    paths = [(args.query or args.folder).resolve() / name for name in queries]
    paths += [args.folder.resolve() / name for name in gallery]
    numbers = np.unique([str(path) for path in paths], return_inverse=True)[1]
    return numbers[: len(queries)], numbers[len(queries) :]


def write_table(args, views: dict[str, pairs.Views], readable: np.ndarray, distances, found) -> None:
    """Write the neighbours (M, k) of the queries that could be read; cells stay empty where there are fewer."""
    rows = []
    for i in np.flatnonzero(readable):
        row = {"": len(rows), "img": (args.query or args.folder) / views["queries"].names[i]}
        there = [(j, place) for j, place in enumerate(found[i]) if place >= 0]
        row |= {f"match_{j}": args.folder / views["gallery"].names[place] for j, place in there}
        row |= {f"dist_{j}": distances[i, j] for j, _ in there}
        rows.append(row)
    ranks = range(args.k)
    write_csv(args.out, rows, ["", "img", *(f"match_{j}" for j in ranks), *(f"dist_{j}" for j in ranks)])


if __name__ == "__main__":
    cli.run(main)
