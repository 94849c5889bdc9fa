"""Divide crops into train, val and test: split_crops.py --pos_path POS --neg_path NEG --by slide --out splits.csv

Crops of one centre, slide, lesion or cluster of near-duplicates stay together; `random` is crop by crop, and leaks.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401 (before torch)
from common import cli, processes
from common.errors import BadInput
from common.files import check_replaceable, make_folder, write_csv
from data import SPLITS, loaders
from data.camelyon import dataset, origins
from models import embedders
from retrieval import audit, index

COLUMNS = ("file", "label", "split")
BY = ("centre", "slide", "lesion", "cluster", "random")
NEIGHBOURS = 16  # of every crop that are looked at first for near-duplicates


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    dataset.add_folder_flags(parser, required=True)
    parser.add_argument("--by", choices=BY, required=True, help="what stays together; negatives of `lesion`: slides")
    parser.add_argument(
        "--fractions", type=_fractions, default=(0.7, 0.1, 0.2), metavar="TRAIN,VAL,TEST", help="shares of the crops"
    )
    parser.add_argument("--seed", type=cli.natural, default=42, help="decides which go where")
    parser.add_argument("--out", "-o", type=cli.path, required=True, help="table to write: file,label,split")
    embedders.add_flags(parser)
    loaders.add_batch_flags(parser, workers=2)
    processes.add_flags(parser)
    return parser.parse_args(argv)


def _fractions(text):
    parts = [cli.positive_float(part) for part in text.split(",")]
    if len(parts) != len(SPLITS) or abs(sum(parts) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"expected three shares that sum to 1, got {text!r}")
    return tuple(parts)


def divide(groups: np.ndarray, labels: np.ndarray, fractions: tuple[float, ...], seed: int) -> np.ndarray:
    """(N,) split of each crop, so that those of a group (N,) int share one and both classes come near the fractions.

    Groups come in random order, those larger than the smallest fraction first. Each goes where its classes lack most,
    the last ones where a class has none yet.
    """
    numbers, groups = np.unique(groups, return_inverse=True)
    counts = np.stack([np.bincount(groups[labels == c], minlength=len(numbers)) for c in (0, 1)], axis=1)  # (G, 2)
    shares = counts / counts.sum(axis=0).clip(1)
    order = np.random.default_rng(seed).permutation(len(numbers))
    order = order[np.argsort(shares[order].max(axis=1) <= min(fractions), kind="stable")]
    lacking, chosen = np.repeat(np.array(fractions)[:, None], 2, axis=1), np.full(len(numbers), -1)  # (splits, 2)
    has, left = np.zeros(lacking.shape, bool), np.count_nonzero(counts, axis=0)  # the class; groups to come with it
    for group in order:
        open_to = np.ones(len(fractions), bool)
        for c in np.flatnonzero(counts[group]):
            if 0 < np.count_nonzero(~has[:, c]) >= left[c]:
                open_to &= ~has[:, c]
        open_to = open_to if open_to.any() else ~open_to
        chosen[group] = split = np.argmax(np.where(open_to, lacking @ shares[group], -np.inf))
        lacking[split] -= shares[group]
        has[split] |= counts[group] > 0
        left -= counts[group] > 0
    return chosen[groups]


def group(origin, labels: np.ndarray, by: str) -> np.ndarray:
    """(N,) number of each crop's centre, slide, lesion, or of itself. BadInput names a crop without one."""
    if by == "random":
        return np.arange(len(labels))
    columns = {"centre": ["centre"], "slide": ["slide"], "lesion": ["slide", "lesion"]}[by]
    missing = origin[columns].isna()
    if by == "lesion":
        missing["lesion"] &= labels == 1
    if missing.any(axis=None):
        where = origin.index[missing.any(axis=1).argmax()]
        raise BadInput(f"--by: {where}: its {by} is not known, neither by its name nor by a crops.csv beside it")
    return origin.groupby(columns, dropna=False, sort=False).ngroup().to_numpy()


def clusters(args, crops, slides: np.ndarray, device) -> np.ndarray:
    """(N,) number of each crop's cluster: near-duplicates by the automatic threshold, and theirs, stay together."""
    network = embedders.build(args, pool="gem").to(device)
    everything = np.arange(len(crops))
    with tempfile.TemporaryDirectory(dir=make_folder(args.out.absolute().parent)) as folder:
        path = Path(folder) / "crops.npy"
        vectors = index.embed(crops, everything, network, 8, path, {}, args, device)
        if vectors.problems:
            raise BadInput(next(iter(vectors.problems.values())))
        nearest = index.search(vectors, vectors, 1, slides, slides, device, "reference")[0][:, 0]
        if not np.isfinite(nearest).any():  # all crops are of one slide
            nearest = index.search(vectors, vectors, 1, everything, everything, device, "reference")[0][:, 0]
        threshold = audit.automatic_threshold(nearest[np.isfinite(nearest)])
        pairs = near_pairs(vectors, threshold, device)
        del vectors
    numbers = audit.components(len(crops), pairs)
    largest = np.bincount(numbers).max()
    print(f"near-duplicates within {threshold:.3f}: {numbers.max() + 1:,} clusters, {largest:,} crops in the largest")
    return numbers


def near_pairs(vectors: index.Vectors, threshold: float, device="cpu") -> np.ndarray:
    """(E, 2) numbers of all images within a distance of each other: neighbours are asked for until one is beyond."""
    own, k = np.arange(len(vectors.array)), NEIGHBOURS
    while True:
        distances, found, _ = index.search(vectors, vectors, k, own, own, device)
        if (distances[:, -1] > threshold).all():
            i, j = np.nonzero(distances <= threshold)
            return np.stack([i, found[i, j]], axis=1)
        k *= 2


def main(argv=None):
    args = parse_args(argv)
    device = processes.select_alone("retrieval/split_crops.py", args.device, args.precision, args.deterministic)
    check_replaceable(args.out, ",".join(COLUMNS).encode(), "a table of splits")
    listed = {flag: dataset.list_crops(getattr(args, flag), flag) for flag in ("pos_path", "neg_path")}
    names = [sorted(name for part in splits.values() for name in part) for splits in listed.values()]
    labels = np.repeat([1, 0], [len(part) for part in names])
    origin = origins.of_folders(dict(zip((args.pos_path, args.neg_path), names, strict=True)))
    if args.by == "cluster":
        crops = dataset.CamelyonCrops(args.pos_path, names[0], args.neg_path, names[1], seed=None)
        slides = origin.groupby("slide", dropna=True, sort=False).ngroup().to_numpy()  # -1 where not known
        groups = clusters(args, crops, np.where(slides < 0, -1 - np.arange(len(slides)), slides), device)
    else:
        groups = group(origin, labels, args.by)
    splits = divide(groups, labels, args.fractions, args.seed)
    rows = [
        {"file": name, "label": int(label), "split": SPLITS[split]}
        for name, label, split in zip(names[0] + names[1], labels, splits, strict=True)
    ]
    report(splits, labels, groups, args)
    write_csv(args.out, rows, COLUMNS)
    print(f"wrote {args.out}; give it as --splits to training, predict_saliency.py and audit_leakage.py")


def report(splits: np.ndarray, labels: np.ndarray, groups: np.ndarray, args) -> None:
    """Print what each split got. BadInput when it got no crop of a class."""
    for number, name in enumerate(SPLITS):
        chosen = splits == number
        counts = np.bincount(labels[chosen], minlength=2)
        if counts.min() == 0:
            raise BadInput(
                f"--by {args.by}: {len(np.unique(groups))} groups are too few: {name} has {counts[1]} positives and "
                f"{counts[0]} negatives"
            )
        share = chosen.mean()
        print(f"{name}: {counts[1]:,} positives, {counts[0]:,} negatives, {share:.1%} of the crops")


if __name__ == "__main__":
    cli.run(main)
