"""Cut a training set into folds on which hyperparameters are chosen: folds.py camelyon16 -i NORMAL ANOMALY -o FOLDS

    FOLDS/[CLASS/]fold_K/normal/{train,val,test}    normal images; test is a fold, val a fifth of the others
    FOLDS/[CLASS/]fold_K/anomaly/test               a few anomalies of one kind, at most 0.5 % of the normal images

File names, one a line, or for cifar10 and svhn, which have a folder for each normal class, the numbers of training
images as .npy. Patches of a slide stay together in all of this, and no two folds share anomalies.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.errors import BadInput
from common.files import atomic_open, make_folder, npy_bytes, read_text
from data.camelyon16.patches import slide_of

N_CLASSES = 10  # of cifar10 and of svhn
ANOMALIES = 0.005  # of a fold, as a share of the normal images
VALIDATION = 0.2  # of the images or slides that are not of the fold


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=["cifar10", "svhn", "camelyon16"])
    parser.add_argument(
        "-i",
        "--input",
        type=cli.path,
        nargs="+",
        required=True,
        help="cifar10, svhn: the folder of torchvision's files; camelyon16: list of normal, list of tumour patches",
    )
    parser.add_argument("--download", action="store_true", help="cifar10, svhn: download what is missing")
    add_flags(parser)
    args = parser.parse_args(argv)
    expected = 2 if args.dataset == "camelyon16" else 1
    if len(args.input) != expected:
        parser.error(f"-i: expected {expected} paths for {args.dataset}, found {len(args.input)}")
    return args


def add_flags(parser) -> None:
    """Declare what all folds have: where they go, how many, seed."""
    parser.add_argument("-o", "--output_root", type=cli.path, required=True, help="folder for the folds")
    parser.add_argument("-n", "--n_splits", type=cli.positive, default=3, help="folds, 2 or more")
    parser.add_argument("--seed", type=cli.natural, default=0, help="decides what is in which fold")


def deal(groups: Sequence, n: int, seed: Sequence[int], least: int = 0, what: str = "") -> np.ndarray:
    """The fold (N,) of every item, 0 to n - 1; items of one group, a slide or a patient, are in the same one.

    ValueError when there are fewer groups than `least` for each fold.
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < n * least:
        found = f"{len(names)} {what} slides, patients or images"
        raise ValueError(f"-n {n}: found {found}, expected {n * least} or more")
    fold_of_group = np.empty(len(names), np.int64)
    fold_of_group[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % n
    return fold_of_group[group]


def make_folds(normal_groups: Sequence, anomaly_groups: Sequence, n: int, seed: Sequence[int]) -> list[dict]:
    """The folds: "normal/train", "normal/val", "normal/test", "anomaly/test" -> positions, in order.

    Args:
        normal_groups, anomaly_groups: the slide, patient or number of each image.
    ValueError says which images are too few.
    """
    if n < 2:
        raise ValueError(f"-n {n}: expected 2 or more")
    most = max(1, int(ANOMALIES * len(normal_groups)))
    fold = deal(normal_groups, n, [*seed, 0], least=2, what="normal")
    pool = deal(anomaly_groups, n, [*seed, 1], least=1, what="abnormal")
    folds = []
    for k in range(n):
        others = np.flatnonzero(fold != k)
        own = deal(np.asarray(normal_groups)[others], round(1 / VALIDATION), [*seed, 2, k])
        anomalies = np.random.default_rng([*seed, 3, k]).permutation(np.flatnonzero(pool == k))[:most]
        parts = {"normal/train": others[own != 0], "normal/val": others[own == 0]}
        folds.append({**parts, "normal/test": np.flatnonzero(fold == k), "anomaly/test": np.sort(anomalies)})
    return folds


def read_names(path: Path, flag: str) -> list[str]:
    """The file names of a list, one a line. BadInput names flag and file when it is empty or a name stands twice."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise BadInput(f"{flag} {path}: an empty list")
    if len(set(names)) < len(names):
        double = next(name for i, name in enumerate(names) if name in names[:i])
        raise BadInput(f"{flag} {path}: names {double} twice")
    return names


def write(path: Path, content: bytes) -> None:
    """Write a list, unless it is there. BadInput when another is."""
    if path.exists():
        if path.read_bytes() != content:
            raise BadInput(f"{path}: is there already and differs; choose another -o")
        return
    make_folder(path.parent)
    with atomic_open(path) as file:
        file.write(content)


def names_bytes(names: Sequence[str]) -> bytes:
    """What a list of names holds."""
    return "".join(f"{name}\n" for name in names).encode()


def write_named_folds(folder: Path, normal: Sequence[str], anomaly: Sequence[str], folds: list[dict]) -> None:
    """Write the folds of images that have names."""
    for k, fold in enumerate(folds):
        for part, positions in fold.items():
            names = normal if part.startswith("normal") else anomaly
            write(folder / f"fold_{k}" / part, names_bytes([names[i] for i in positions]))


def camelyon16_folds(args) -> None:
    """Folds of slides, from a list of normal patches and one of patches of tumour."""
    normal, anomaly = (read_names(path, "-i") for path in args.input)
    groups = []
    for path, names in zip(args.input, (normal, anomaly), strict=True):
        slides = [slide_of(name) for name in names]
        if None in slides:
            raise BadInput(f"-i {path}: {names[slides.index(None)]} is not the name of a patch")
        groups.append(slides)
    folds = make_folds(*groups, args.n_splits, [args.seed])
    write_named_folds(args.output_root, normal, anomaly, folds)
    print(f"{args.n_splits} folds of {len(set(groups[0]))} normal slides in {args.output_root}")


def read_labels(args) -> np.ndarray:
    """The class (N,) of every training image. BadInput when torchvision does not find the files."""
    from torchvision import datasets

    try:
        if args.dataset == "cifar10":
            labels = datasets.CIFAR10(args.input[0], train=True, download=args.download).targets
        else:
            labels = datasets.SVHN(args.input[0], split="train", download=args.download).labels
    except (RuntimeError, OSError) as error:
        raise BadInput(f"-i {args.input[0]}: {' '.join(str(error).split())}") from None
    return np.asarray(labels)


def class_folds(args) -> None:
    """Folds of images for each class as the normal one; the anomalies are of one other class, drawn by seed."""
    labels = read_labels(args)
    for normal in range(N_CLASSES):
        seed = [args.seed, normal]
        kind = (normal + np.random.default_rng(seed).integers(1, N_CLASSES)) % N_CLASSES
        images = {"normal": np.flatnonzero(labels == normal), "anomaly": np.flatnonzero(labels == kind)}
        folds = make_folds(images["normal"], images["anomaly"], args.n_splits, seed)
        for k, fold in enumerate(folds):
            for part, positions in fold.items():
                path = args.output_root / str(normal) / f"fold_{k}" / f"{part}.npy"
                write(path, bytes(npy_bytes(images[part.split("/")[0]][positions])))
    print(f"{args.n_splits} folds of each of {N_CLASSES} classes in {args.output_root}")


def main(argv=None):
    args = parse_args(argv)
    try:
        (camelyon16_folds if args.dataset == "camelyon16" else class_folds)(args)
    except ValueError as error:
        raise BadInput(error) from None


if __name__ == "__main__":
    cli.run(main)
