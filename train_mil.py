"""Train a classifier of bags on frozen features: train_mil.py --datatype mnist --data_path nmnist_256 --logdir runs/mil

The bags are images cut into tiles, folders of tiles, or features made elsewhere (--datatype features --bags bags.csv).
"""

import numpy as np

import common  # noqa: F401 (before torch)
from common import cli, lock, processes, runfolder
from common.errors import BadInput
from common.files import check_replaceable, make_folder, make_subfolder, write_csv, write_json
from data import SPLITS, loaders
from mil import bag_list, bags, feature_files, features, folds, pseudo_labels, report, rounds, tiles
from mil.bags import Bags
from models import embedders


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    tiles.add_flags(parser, (*tiles.IMAGES, "tiles", "features"))
    parser.add_argument("--features", type=cli.path, help="folder that the files of features lie in, as --root_dir")
    parser.add_argument("--folds", type=cli.positive, help="cross-validate --datatype features in so many folds")
    parser.add_argument(
        "--fold_scheme", choices=folds.SCHEMES, default="cv", help="test every fold, or a fifth held out of all"
    )
    embedders.add_flags(parser, default="squeezenet")
    features.add_flags(parser)
    rounds.add_flags(parser, aliases=("-b",))
    parser.add_argument(
        "--pseudo_labels", type=cli.path, help="write HNM-WSI's pickle of train and val instance scores"
    )
    parser.add_argument(
        "--seed", type=cli.natural, default=42, help="seed of weights, draws, folds and choice of crops"
    )
    runfolder.add_flags(parser)
    processes.add_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_flags(args)
    device = processes.select_alone("train_mil.py", args.device, args.precision, args.deterministic)
    with lock.held(args.logdir, "--logdir", ".mil.lock"):
        if args.datatype == "features":
            train_on_features(args, device)
        else:
            train_on_tiles(args, device)


def check_flags(args) -> None:
    """BadInput, before hours of work, when flags contradict each other."""
    rounds.check_flags(args)
    if args.folds and args.datatype != "features":
        raise BadInput(f"--folds {args.folds}: is for --datatype features; --datatype {args.datatype} has its splits")
    if args.fold_scheme != "cv" and not args.folds:
        raise BadInput(f"--fold_scheme {args.fold_scheme}: goes with --folds")
    if args.num_examples and args.datatype == "features":
        raise BadInput(f"--num_examples {args.num_examples}: goes with images, not with --datatype features")
    if args.folds and args.pseudo_labels:
        raise BadInput("--pseudo_labels: with --folds there are several models; train without --folds")
    if args.datatype == "features" and args.bags is None:
        raise BadInput("--bags: missing, expected a list of bag,label,split,file")
    if args.pseudo_labels:
        check_replaceable(args.pseudo_labels, b"\x80", "a pickle")
        make_folder(args.pseudo_labels.absolute().parent)


def train_on_tiles(args, device) -> None:
    """Embed the tiles of images or folders, and train on them."""
    cut = tiles.load(args)
    loaders.verify(args, *filter(None, (args.data_path, args.pos_path, args.neg_path)))
    embedder = embedders.build(args)
    found = features.extract_splits(cut, embedder, make_subfolder(args.logdir, "features"), args, device)
    train_and_report(found, args, args.logdir, device, {} if args.datatype == "tiles" else cut)


def train_on_features(args, device) -> None:
    """Train on features made elsewhere, on the list's splits or on folds."""
    rows = bag_list.read(args.bags, folder=args.features or args.root_dir)
    if not args.folds:
        bag_list.by_split(rows, args.bags)  # each has bags of both classes
    everything = feature_files.load(rows, args.logdir / "features", args.feature_dtype)
    if args.folds:
        cross_validate(everything, args, device)
        return
    splits = np.array([row.split for row in rows])
    found = {name: everything.subset(np.flatnonzero(splits == name)) for name in SPLITS}
    train_and_report(found, args, args.logdir, device, {})


def train_and_report(splits: dict[str, Bags], args, logdir, device, images: dict) -> tuple[dict, np.ndarray]:
    """One round and all that it leaves; returns the scores of the test bags, and their logits less the threshold."""
    for split, found in splits.items():
        bags.check(found, split)
    result = rounds.train(splits, args, logdir, device)
    scores = {split: rounds.predict(result.model, found, device) for split, found in splits.items()}
    summary = {
        split: report.write(logdir, split, found, scores[split], result.threshold, images.get(split))
        for split, found in splits.items()
    }
    write_json(logdir / "mil.json", {"best_epoch": result.best["epoch"], **summary})
    if args.pseudo_labels:
        write_pseudo_labels(args.pseudo_labels, splits, result, device)
    say(summary["test"], result, logdir)
    return summary["test"], scores["test"].bags - result.threshold


def cross_validate(everything: Bags, args, device) -> None:
    """A round for each fold in LOGDIR/fold_{k}, epochs and thresholds chosen apart from the bags reported on."""
    rows, margins, schemes = [], [], folds.make(everything.labels, args.folds, args.seed, args.fold_scheme)
    for k, fold in enumerate(schemes):
        splits = {split: everything.subset(indices) for split, indices in fold.items()}
        found, margin = train_and_report(splits, args, make_subfolder(args.logdir, f"fold_{k}"), device, {})
        rows.append({"fold": k, **found})
        margins.append(margin)
    write_csv(args.logdir / "folds.csv", rows)
    for name in ("auc", "acc", "f1"):
        values = np.array([row[name] for row in rows])
        print(f"test {name} over {len(rows)} folds: {values.mean():.3f} +- {values.std(ddof=1):.3f} (sd)")
    if args.fold_scheme != "cv":  # all have tested the same bags
        voted = folds.majority(np.array(margins) >= 0, np.array(margins))
        labels = everything.labels[schemes[0]["test"]]
        print(f"test accuracy of the majority's vote: {np.mean(voted == labels):.3f}")


def write_pseudo_labels(path, splits: dict[str, Bags], result: rounds.Round, device) -> None:
    """HNM-WSI's pickle of all training and validation tiles, by the weights of --epoch_to_extract_mil."""
    names, corners, truth, found = [], [], [], []
    for part in (splits["train"], splits["val"]):
        names, corners, truth = names + part.names, corners + part.corners, truth + part.truth
        found += map(report.probabilities, rounds.predict(result.extracted, part, device).instances)
    pseudo_labels.write_pickle(path, names, corners, truth, found)
    print(f"pseudo labels of {len(names)} bags in {path}")


def say(test: dict, result: rounds.Round, logdir) -> None:
    """Print the test scores."""
    print(
        f"best validation epoch {result.best['epoch']}: validation AUC {result.best['eval_auc']:.3f}, test AUC "
        f"{test['auc']:.3f}, accuracy {test['acc']:.3f}, F1 {test['f1']:.3f} at the validation threshold"
    )
    if "instance_auc" in test:
        print(f"instances: test AUC {test['instance_auc']:.3f}, average precision {test['instance_ap']:.3f}")
    if test["localization_ap"] is not None:
        print(
            f"localisation: average precision {test['localization_ap']:.3f}, of random tiles "
            f"{test['localization_ap_chance']:.3f}"
        )
    print(f"scores, maps and contact sheets in {logdir / 'scores'}")


if __name__ == "__main__":
    cli.run(main)
