"""Find near-duplicates of test images among training images: audit_leakage.py --pos_path POS --neg_path NEG --out audit

A near-duplicate is evidence to look at (pairs.png), not proof; tissue of one stain is the main false alarm.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

import common  # noqa: F401 (before torch)
from common import cli, lock, processes, runfolder, scores
from common.errors import BadInput
from common.files import make_subfolder, write_json
from data import loaders
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from retrieval import audit, index, networks
from retrieval.audited import load_images
from retrieval.index import Vectors
from retrieval.matches import Images, Matches, draw_pairs, hold_against_truth, known_duplicates, write_table

REFERENCE = 2000  # training images that decide the automatic threshold, at most
TRUTH_QUERIES = 2000  # images whose distances to all of training are held against the truth, at most


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    camelyon.add_flags(parser)
    mnist.add_flags(parser)
    parser.add_argument(
        "--folders", type=_folders, metavar="train=A,val=B,test=C", help="plain folders of pictures, by split"
    )
    parser.add_argument("--side", type=cli.positive, default=128, help="px that pictures of --folders are scaled to")
    parser.add_argument("--within", metavar="SPLIT", help="search this split in itself, not the others in train")
    parser.add_argument("--objects", action="store_true", help="compare the boxes of objects, not whole images")
    networks.add_flags(parser, "pixels")
    parser.add_argument("--orientations", type=int, choices=(1, 8), default=8, help="8: flips and quarter turns too")
    parser.add_argument("--k", type=cli.positive, default=5, help="neighbours of every image in audit.csv")
    parser.add_argument(
        "--threshold",
        type=_threshold,
        default="auto",
        metavar="auto|D",
        help="distance of near-duplicates, 0 to 2; auto: what 1 %% of training images have to another slide's image",
    )
    parser.add_argument("--verify", choices=["ncc"], help="correlate candidates over flips, turns and shifts")
    parser.add_argument(
        "--truth", type=cli.path, nargs="+", metavar="crops.csv", help="hold the audit against where crops overlap"
    )
    parser.add_argument(
        "--scores", type=cli.path, help="LOGDIR/scores/SPLIT.csv of a method, to score with and without near-duplicates"
    )
    parser.add_argument(
        "--fail_on_leak",
        type=cli.share,
        nargs="?",
        const=0.02,
        metavar="SHARE",
        help="exit code 1 when a larger share of a split is flagged (0.02 without a number); with --verify, of copies",
    )
    parser.add_argument("--out", "-o", type=cli.path, required=True, help="folder for the report")
    loaders.add_batch_flags(parser, workers=2)
    parser.add_argument("--seed", type=cli.natural, default=42, help="draws the images that set threshold and truth")
    processes.add_flags(parser)
    return parser.parse_args(argv)


def _folders(text):
    parts = [part.partition("=") for part in text.split(",")]
    if not all(re.fullmatch(r"[\w-]+", name) and path for name, _, path in parts):
        raise argparse.ArgumentTypeError(f"expected train=FOLDER,test=FOLDER, got {text!r}")
    if len({name for name, *_ in parts}) < len(parts):
        raise argparse.ArgumentTypeError(f"expected every split once, got {text!r}")
    return {name: Path(path) for name, _, path in parts}


def _threshold(text):
    if text == "auto":
        return text
    value = cli.nonnegative_float(text)
    if value > 2:
        raise argparse.ArgumentTypeError(f"expected auto or a distance from 0 to 2, got {text!r}")
    return value


def main(argv=None):
    args = parse_args(argv)
    device = processes.select_alone("audit_leakage.py", args.device, args.precision, args.deterministic)
    queries, gallery, reference = load_images(args)
    method = read_scores(args.scores, queries) if args.scores else None
    network = networks.load(args)
    with lock.held(args.out, "--out"):
        vectors = embed_all(queries, gallery, reference, network.to(device), args, device)
        report = {"arguments": runfolder.plain(args), "embedder": network.describe()}
        report["threshold"] = choose_threshold(gallery, reference, vectors, args, device)
        threshold = report["threshold"]["distance"]
        found = [look_up(each, gallery, vectors, threshold, args, device) for each in queries]
        report["splits"] = {each.queries.split: summarise(each, vectors, threshold, args) for each in found}
        if method is not None:
            report["scores"] = score(method, found, threshold, args)
        report["unreadable"] = sorted({why for each in vectors.values() for why in each.problems.values()})
        write_report(args.out, found, report)
    return conclude(report, args)


def read_scores(path: Path, queries: list[Images]):
    """Label and score of the images that are looked up, by img_path, and the method's threshold, None without one.

    BadInput: not of a split looked up, or of none of its images.
    """
    names = {each.split: each.names for each in queries}
    if path.stem not in names:
        raise BadInput(f"--scores {path}: expected {' or '.join(f'{split}.csv' for split in names)}")
    try:
        table, threshold = scores.read(path)
    except BadInput as error:
        raise BadInput(f"--scores {error}") from None
    known = table[table["img_path"].isin(names[path.stem])]
    if known.empty:
        raise BadInput(f"--scores {path}: names none of the images, for example {names[path.stem][0]}")
    if len(known) < len(table):
        print(
            f"--scores {path}: {len(table) - len(known):,} of {len(table):,} rows name no image here and are left out"
        )
    return known, threshold


def embed_all(queries: list[Images], gallery: Images, reference: Images, network, args, device) -> dict[str, Vectors]:
    """Vectors of what is looked up in all orientations, of the gallery in one, and of some images of the reference."""
    sample = np.sort(np.random.default_rng(args.seed).permutation(len(reference))[:REFERENCE])
    wanted = {f"{each.split}_queries": (each, np.arange(len(each)), args.orientations) for each in queries}
    wanted[gallery.split] = gallery, np.arange(len(gallery)), 1
    wanted[f"{reference.split}_reference"] = reference, sample, args.orientations
    folder, result = make_subfolder(args.out, "index"), {}
    for name, (images, places, orientations) in wanted.items():
        identity = {"network": network.describe(), "data": images.data.fingerprint(), "objects": args.objects}
        identity |= {"orientations": orientations, "seed": args.seed if len(places) < len(images) else None}
        path = folder / f"{name}.npy"
        result[name] = index.embed(images.images, places, network, orientations, path, identity, args, device)
    return result


def choose_threshold(gallery: Images, reference: Images, vectors: dict[str, Vectors], args, device) -> dict:
    """The distance of near-duplicates, and how often other images are as near: the rate of false alarms."""
    asked, in_gallery = vectors[f"{reference.split}_reference"], vectors[gallery.split]
    if reference is gallery:
        groups, kind = unrelated_groups(gallery)
        own = groups[asked.places]
    else:
        groups, own, kind = None, None, f"of {gallery.split}"
    nearest = index.search(asked, in_gallery, 1, own, groups, device, "reference")[0][:, 0]
    nearest = nearest[np.isfinite(nearest)]
    auto = args.threshold == "auto"
    if len(nearest) == 0 and auto:
        problem = "".join(f"; {why}" for why in list(in_gallery.problems.values())[:1])
        raise BadInput(f"the {gallery.split} split: expected two images at least that can be read{problem}")
    known = known_duplicates(gallery, asked, in_gallery) if args.truth and reference is gallery else None
    threshold = audit.automatic_threshold(nearest, known) if auto else args.threshold
    rate = float((nearest <= threshold).mean()) if len(nearest) else None
    said = f"near-duplicate: distance {threshold:.4f} or less{' (auto)' if auto else ''}"
    if rate is not None:
        said += f"; of {len(nearest):,} {reference.split} images {rate:.2%} have another {kind or 'one'} as near: "
        said += "the rate of false alarms to expect"
    print(said)
    return {"distance": threshold, "auto": auto, "false_alarm_rate": rate, "reference": len(nearest), "neighbour": kind}


def unrelated_groups(images: Images) -> tuple[np.ndarray, str]:
    """(N,) int, equal for images that may be copies of each other, and what the others are called."""
    groups, kind = images.groups(), "of another slide"
    if (images.slides < 0).all():
        folders = [Path(name).parent.as_posix() for name in images.names]
        groups, kind = np.unique(folders, return_inverse=True)[1], "of another folder"
    return (groups, kind) if len(np.unique(groups)) > 1 else (np.arange(len(images)), "")


def look_up(queries: Images, gallery: Images, vectors: dict[str, Vectors], threshold: float, args, device) -> Matches:
    """The nearest gallery images of a split's, in itself of each image but the image itself."""
    own = np.arange(len(queries)) if queries is gallery else None
    asked, in_gallery = vectors[f"{queries.split}_queries"], vectors[gallery.split]
    found = index.search(asked, in_gallery, args.k, own, own, device, f"searching {queries.split}")
    matches = Matches(queries, gallery, *found, asked.readable)
    if args.verify:
        matches.correlate(threshold, args.orientations)
    return matches


def summarise(matches: Matches, vectors: dict[str, Vectors], threshold: float, args) -> dict:
    """A split's part of summary.json."""
    asked, in_gallery = vectors[f"{matches.queries.split}_queries"], vectors[matches.gallery.split]
    found = {"searched_in": matches.gallery.split, "near_duplicates": matches.shares(threshold)}
    if args.verify:
        found["copies"] = matches.shares(threshold, verified=True)
    if args.truth:
        rng = np.random.default_rng(args.seed)
        found["truth"] = hold_against_truth(matches, asked, in_gallery, threshold, TRUTH_QUERIES, rng)
    return found


def score(method, found: list[Matches], threshold: float, args) -> dict:
    """A method's scores of images with and without a near-duplicate, joined by the names of the images."""
    table, own_threshold = method
    matches = next(each for each in found if each.queries.split == args.scores.stem)
    flags = dict(zip(matches.queries.names, matches.flagged(threshold, bool(args.verify)).tolist(), strict=True))
    flagged = table["img_path"].map(flags).to_numpy(bool)
    return audit.score_parts(table["label"].to_numpy(), table["score"].to_numpy(), flagged, own_threshold)


def write_report(out: Path, found: list[Matches], report: dict) -> None:
    """Write audit.csv, pairs.png and summary.json."""
    write_table(out / "audit.csv", found)
    draw_pairs(out / "pairs.png", found, report["threshold"]["distance"])
    write_json(out / "summary.json", report)


def conclude(report: dict, args) -> int:
    """Print what was found; returns the exit code."""
    leaks = []
    for name, found in report["splits"].items():
        say_shares(name, found)
        share = found["copies" if args.verify else "near_duplicates"]["share"]
        if args.fail_on_leak is not None and share is not None and share > args.fail_on_leak:
            leaks.append(f"{name} ({share:.2%})")
    for name, part in report.get("scores", {}).items():
        said = ", ".join(f"{key} {part[key]:.3f}" for key in ("auc", "accuracy") if part[key] is not None)
        print(f"--scores, {name.replace('_', ' ')}: {part['images']:,} images, {said or 'too few for scores'}")
    print(f"audit.csv, summary.json and pairs.png in {args.out}; vectors in {args.out / 'index'}")
    if leaks:
        print(f"leak: {', '.join(leaks)} above --fail_on_leak {args.fail_on_leak:g}", file=sys.stderr)
    for problem in report["unreadable"]:
        print(cli.plain_line(problem), file=sys.stderr)
    return 1 if leaks or report["unreadable"] else 0


def say_shares(name: str, found: dict) -> None:
    """Print a split's shares and what the truth says of them."""
    near, truth = found["near_duplicates"], found.get("truth")
    classes = "; ".join(f"class {label}: {part['share']:.2%}" for label, part in near["by_class"].items())
    where = "itself" if found["searched_in"] == name else found["searched_in"]
    print(
        f"{name}: {near['flagged']:,} of {near['images']:,} images ({near['share'] or 0:.2%}) have a near-duplicate in "
        f"{where}{f' ({classes})' if classes else ''}"
    )
    if "copies" in found:
        print(f"{name}: {found['copies']['flagged']:,} of them correlate as copies ({audit.COPY:g} or more)")
    if truth:
        counts = [f"{value:,} {key.replace('_', ' ')}" for key, value in truth.items() if isinstance(value, int)]
        rates = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in truth.items() if isinstance(value, float)]
        print(f"{name}, truth: {', '.join(counts + rates)}")
        for key, part in truth["images"].items():
            if part["images"]:
                print(
                    f"{name}, truth: {part['share']:.2%} of {part['images']:,} images {key.replace('_', ' ')} flagged"
                )


if __name__ == "__main__":
    cli.run(main)
