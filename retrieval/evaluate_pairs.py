"""How well a network tells near-duplicates, by Koker 2020's protocol: evaluate_pairs.py --test_path D --logdir RUN ...

Each pair's distance stands against the nearest image of another group (hardest) and against a random one. Writes
scores.json, pairs.csv, roc_{kind}.npy, farthest_duplicates.png and closest_different.png.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401 (before torch)
from common import cli, lock, pictures, processes
from common.errors import BadInput
from common.files import make_folder, write_csv, write_json, write_npy
from data import loaders, pairs
from retrieval import index, manipulate, networks, protocol

SHOWN = 8  # pairs of a montage, two a line


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--test_path", type=cli.path, required=True, help="a folder per group of near-duplicates")
    parser.add_argument("--synth_test", action="store_true", help="--test_path holds any images; make the pairs, once")
    manipulate.add_flag(parser, "YAML table, of --synth_test")
    pairs.add_filetype_flag(parser)
    networks.add_flags(parser)
    parser.add_argument("--orientations", type=int, choices=(1, 8), default=1, help="8: flip and turn queries too")
    parser.add_argument("--all_pairs", action="store_true", help="both images of a pair are queries and candidates")
    parser.add_argument("--n", "--runs", dest="n", type=cli.positive, default=5, help="draws of pairs; medians count")
    parser.add_argument("--seed", type=cli.natural, default=0, help="seed of the first draw, and of pairs made")
    parser.add_argument("--out", "-o", type=cli.path, required=True, help="folder for the results")
    loaders.add_batch_flags(parser)
    processes.add_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select_alone("retrieval/evaluate_pairs.py", args.device, args.precision, args.deterministic)
    views, groups = load_views(args)
    network = networks.load_for_views(args).to(device)
    make_folder(args.out)
    with lock.held(args.out, "--out"):
        identity = {"network": network.describe(), "data": views.fingerprint(), **made_by(args)}
        path = args.out / "vectors.npy"
        vectors = index.embed(views, np.arange(len(views)), network, args.orientations, path, identity, args, device)
        groups = without_unreadable(groups, vectors.problems, args)
        comparisons = [compare(vectors.array, groups, args, args.seed + run) for run in range(args.n)]
        report(comparisons, views, network, len(groups), args)
    return 1 if vectors.problems else 0


def load_views(args) -> tuple[pairs.Views, dict[str, list[int]]]:
    """The images as views, and group -> their numbers. BadInput when there is a group of one, or one group."""
    files = pairs.open_pictures(args.test_path, "--test_path", args.filetype)
    if not args.synth_test:
        return pairs.Views(files), pairs.groups_of(files.names, f"--test_path {args.test_path}")
    if len(files) < 2:
        raise BadInput(f"--test_path {args.test_path}: holds one image; negatives need two or more")
    made = pairs.MadePairs(files, manipulate.Manipulator(args.manipulations), args.seed)
    return pairs.MadeViews(made), {name: [2 * i, 2 * i + 1] for i, name in enumerate(files.names)}


def made_by(args) -> dict:
    """What decides pairs that are made."""
    if not args.synth_test:
        return {}
    return {"seed": args.seed, "manipulations": str(manipulate.Manipulator(args.manipulations).table)}


def without_unreadable(groups: dict, problems: dict[int, str], args) -> dict[str, list[int]]:
    """The groups without what could not be read, which is named. BadInput when fewer than two are left."""
    for problem in problems.values():
        print(f"skipped: {cli.plain_line(problem)}", file=sys.stderr)
    left = {name: [i for i in files if i not in problems] for name, files in groups.items()}
    left = {name: files for name, files in left.items() if len(files) > 1}
    if len(left) < 2:
        raise BadInput(f"--test_path {args.test_path}: {len(left)} groups can be read, negatives need two or more")
    return left


def compare(vectors: np.ndarray, groups: dict[str, list[int]], args, seed: int) -> protocol.Comparison:
    """One draw of pairs and random negatives."""
    rng = np.random.default_rng(seed)
    return protocol.compare(vectors, pairs.draw_pairs(groups, rng), rng, args.all_pairs)


def report(comparisons: list[protocol.Comparison], views: pairs.Views, network, groups: int, args) -> None:
    """Write all results, and print the medians."""
    runs = [protocol.scores(comparison) for comparison in comparisons]
    medians = protocol.median(runs)
    facts = {"groups": groups, "seed": args.seed, "all_pairs": args.all_pairs, "orientations": args.orientations}
    write_json(args.out / "scores.json", {"network": network.describe(), **facts, "median": medians, "runs": runs})
    write_csv(args.out / "pairs.csv", [row for run, each in enumerate(comparisons) for row in rows(run, each, views)])
    for kind in protocol.KINDS:
        write_npy(args.out / f"roc_{kind}.npy", protocol.roc(comparisons[0], kind))
    near, far = comparisons[0].distances["duplicate"], comparisons[0].distances["hardest"]
    first = comparisons[0]
    montage(args.out / "farthest_duplicates.png", views, first.query, first.duplicate, near, np.argsort(-near))
    montage(args.out / "closest_different.png", views, first.query, first.negative["hardest"], far, np.argsort(far))
    spread = {kind: [run[f"{kind}_auc"] for run in runs] for kind in protocol.KINDS}
    print(f"{groups} groups, median of {len(runs)} draws (range), {network.describe()['embedder']}:")
    for kind, values in spread.items():
        print(f"  AUC {kind:8} {np.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    print(f"  recall@1 {medians['recall@1']:.3f}, recall@5 {medians['recall@5']:.3f}")
    threshold = medians["hardest_threshold"]
    print(f"  99 % precision against hardest negatives: {'never' if threshold is None else f'below {threshold:.3f}'}")
    print(f"pairs.csv, scores.json, ROC curves and montages in {args.out}")


def rows(run: int, comparison: protocol.Comparison, views: pairs.Views) -> list[dict]:
    """Rows of pairs.csv: each query with its duplicate (label 1) and its negatives (0)."""
    matches = {"duplicate": comparison.duplicate} | comparison.negative
    return [
        {
            "run": run,
            "kind": kind,
            "query": views.names[query],
            "match": views.names[match],
            "distance": distance,
            "label": int(kind == "duplicate"),
        }
        for kind, others in matches.items()
        for query, match, distance in zip(comparison.query, others, comparison.distances[kind], strict=True)
    ]


def montage(path: Path, views: pairs.Views, queries, matches, distances, order: np.ndarray) -> None:
    """Draw the first pairs of an order, two a line, each query beside its match; those met both ways once."""
    panels, pairs_of = [], np.sort(np.stack([queries, matches], 1), axis=1)[order]
    first = np.sort(np.unique(pairs_of, axis=0, return_index=True)[1])
    for i in order[first[:SHOWN]]:
        for number, title in ((queries[i], "query"), (matches[i], f"match, distance {distances[i]:.3f}")):
            panels.append(pictures.Panel(views[number][0][0].numpy(), f"{title}\n{views.names[number][-24:]}"))
    pictures.contact_sheet(path, [panels[i : i + 4] for i in range(0, len(panels), 4)])


if __name__ == "__main__":
    cli.run(main)
