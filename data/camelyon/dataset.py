"""nCAMELYON crops on disk -> class-balanced splits of images and labels, by their folders or by a splits.csv."""

import functools
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from common import cli, pictures
from common.errors import BadInput
from common.files import check_file, check_folder, open_npy, read_table, sha256_of
from common.manifest import Manifest
from data import fingerprints
from data.camelyon.slides import SPLIT_FOLDERS
from data.image_set import ImageSet

IN_CHANNELS = 3
ADVICE = "the command that extracted the crops writes it again"


def add_flags(parser) -> None:
    """Declare `--pos_path`, `--neg_path` and `--splits`; which command needs them is its own to check."""
    holds = "with the training crops, valid/ and test/; crops.csv names the crops, where there is one"
    add_folder_flags(parser, f": {holds}")
    parser.add_argument(
        "--splits", type=cli.path, help="table file,label,split of split_crops.py, in place of the folders' own splits"
    )


def add_folder_flags(parser, holds: str = "", required: bool = False) -> None:
    """Declare `--pos_path` and `--neg_path`; the help says what they hold."""
    add = parser.add_argument
    add("--pos_path", "-p", type=cli.path, required=required, help=f"folder of positive crops{holds}")
    add("--neg_path", "-n", type=cli.path, required=required, help=f"folder of negative crops{holds}")


def load_splits(args, names: Sequence[str] = tuple(SPLIT_FOLDERS), balanced: bool = True) -> dict[str, "CamelyonCrops"]:
    """The splits called for, by name, from args.pos_path, args.neg_path, args.splits if any, and args.seed.

    BadInput: a path not given, a folder missing, unfinished, of the other class or without crops of a split called
    for, crops of mixed sizes, a damaged crop.
    """
    for flag in ("pos_path", "neg_path"):
        if getattr(args, flag) is None:
            raise BadInput(f"--{flag} is needed")
    listed = {flag: list_crops(getattr(args, flag), flag) for flag in ("pos_path", "neg_path")}
    table = getattr(args, "splits", None)
    if table is not None:
        listed = read_splits(table, listed)
    splits = {}
    for name in names:
        for flag, files in listed.items():
            if not files[name]:
                place = (
                    f"--splits {table}, --{flag}" if table else f"--{flag} {getattr(args, flag) / SPLIT_FOLDERS[name]}"
                )
                raise BadInput(f"{place}: no crops for the {name} split")
        crops = args.pos_path, listed["pos_path"][name], args.neg_path, listed["neg_path"][name]
        splits[name] = CamelyonCrops(*crops, args.seed if balanced else None)
    sizes = {split.size: name for name, split in splits.items()}
    if len(sizes) > 1:
        raise BadInput(
            "--pos_path, --neg_path: crops differ in size: " + ", ".join(f"{sizes[s]} {s} px" for s in sizes)
        )
    return splits


def load_negatives(args, name: str) -> "CamelyonCrops | None":
    """All negative crops of a split of args.neg_path; None where there are none. BadInput as above."""
    if args.neg_path is None:
        raise BadInput("--neg_path is needed")
    listed = {"neg_path": list_crops(args.neg_path, "neg_path")}
    if getattr(args, "splits", None) is not None:
        listed = read_splits(args.splits, listed)
    files = listed["neg_path"][name]
    return CamelyonCrops(args.pos_path, [], args.neg_path, files, None) if files else None


def list_crops(folder: Path, flag: str) -> dict[str, list[str]]:
    """Split -> sorted names, relative to the folder, of its crops: those in crops.csv, or else all that lie there."""
    check_folder(folder, f"--{flag}")
    if os.path.lexists(folder / "crops.csv"):
        Manifest(folder).check("crops.csv")
        found = _read_names(folder / "crops.csv")
    elif (folder / "extraction.json").exists():
        raise BadInput(f"--{flag} {folder}: the extraction has not finished; run the same command again")
    else:
        found = [
            path.relative_to(folder).as_posix()
            for part in SPLIT_FOLDERS.values()
            for path in (folder / part).glob("*.npy")
            if not path.name.startswith(".")
        ]
    positive = flag == "pos_path"
    crops = sorted(name for name in found if _is_crop(name, positive))
    if not crops:
        other = f", but crops for --{'neg' if positive else 'pos'}_path" if found else _crops_below(folder, positive)
        raise BadInput(f"--{flag} {folder}: no {'positive' if positive else 'negative'} crops in it{other}")
    parts = {split: f"{part}/" if part else "" for split, part in SPLIT_FOLDERS.items()}
    return {split: [name for name in crops if name[: name.rfind("/") + 1] == part] for split, part in parts.items()}


def _read_names(path):
    """The crops that a crops.csv names. BadInput for one named twice, or in a folder of no split."""
    table = read_table(path, usecols=["file"], dtype=str).dropna()
    for line, name, again in zip(table.index + 2, table["file"], table.duplicated(), strict=True):
        if again:
            raise BadInput(f"{path}, line {line}: {name} is named twice")
        if name.rpartition("/")[0] not in SPLIT_FOLDERS.values():
            places = ", ".join(f"{part}/NAME" if part else "NAME" for part in SPLIT_FOLDERS.values())
            raise BadInput(f"{path}, line {line}: found {name}, expected {places}")
    if table.empty:
        raise BadInput(f"{path}: names no crops")
    return table["file"].tolist()


def note_splits(args) -> None:
    """Put the digest of --splits, if any, among the flags that a checkpoint holds, for `check_same_splits`."""
    if args.splits is not None:
        args.splits_sha256 = sha256_of(args.splits)
        args.neutral |= {"splits_sha256"}


def check_same_splits(table: Path | None, digest: str | None, chosen: bool) -> None:
    """BadInput when a run's table of splits has changed since, so that its training images may be another split's.

    Args: chosen: by --splits; another table is then only told of.
    """
    if table is not None and digest and sha256_of(table) != digest:
        if not chosen:
            raise BadInput(f"{table}: has changed since the run was trained with it; --splits names a table")
        print(f"--splits {table}: not as the run was trained with; it may have learned from images scored here")


def read_splits(path: Path, listed: dict[str, dict[str, list[str]]]) -> dict[str, dict[str, list[str]]]:
    """Flag -> split -> names, sorted, as a table of file,label,split divides what `list_crops` found for each flag.

    Files are relative to --pos_path (label 1) or to --neg_path (label 0); a crop that the table does not name is in no
    split. BadInput with the first row that is wrong: another split, a crop that is not there or was named before.
    """
    table = read_table(path, dtype=str)
    missing = [name for name in ("file", "label", "split") if name not in table]
    if missing or table.empty:
        raise BadInput(f"--splits {path}: expected rows of file,label,split, found {len(table)} of {','.join(table)}")
    flags = {"1": "pos_path", "0": "neg_path"}
    left = {flag: {name for names in parts.values() for name in names} for flag, parts in listed.items()}
    divided = {flag: {split: [] for split in SPLIT_FOLDERS} for flag in listed}
    for line, (name, label, split) in enumerate(zip(table["file"], table["label"], table["split"], strict=True), 2):
        if label not in flags or split not in SPLIT_FOLDERS:
            expected = f"label 0 or 1 and split {', '.join(SPLIT_FOLDERS)}"
            raise BadInput(f"--splits {path}, line {line}: found {name},{label},{split}, expected {expected}")
        if flags[label] not in listed:
            continue
        if name not in left[flags[label]]:
            there = any(name in names for names in listed[flags[label]].values())
            wrong = "is named twice" if there else f"is no crop of --{flags[label]}"
            raise BadInput(f"--splits {path}, line {line}: {name} {wrong}")
        left[flags[label]].remove(name)
        divided[flags[label]][split].append(name)
    return {flag: {split: sorted(names) for split, names in parts.items()} for flag, parts in divided.items()}


def _is_crop(name, positive):
    return not name.endswith("_seg.npy") and name.endswith("_img.npy") == positive


def _crops_below(folder, positive):
    """The end of a message that names the folders with such crops right below this one."""
    below = [path for path in sorted(folder.glob("*/")) if any(_is_crop(p.name, positive) for p in path.glob("*.npy"))]
    names = " and ".join(path.name for path in below)
    return f"; {names} below it hold{'s' * (len(below) == 1)} some" if below else ""


class CamelyonCrops(ImageSet):
    """A class-balanced nCAMELYON split. Item: image (3, S, S) float32 in [0, 1], label 1 = lesion, 0 = none.

    The smaller class decides how many crops of each are taken, the seed which; without a seed all are. Positives come
    first, each class in sorted order. `labels` (N,) int64; `names` are relative to the folders; `size` is S. BadInput
    when the files differ in size or one is damaged.
    """

    in_channels = IN_CHANNELS
    outline = pictures.LESION

    def __init__(
        self, pos_path: Path | None, positives: list[str], neg_path: Path, negatives: list[str], seed: int | None
    ):
        chosen = [sorted(positives), sorted(negatives)]
        if seed is not None:
            n = min(map(len, chosen))
            if n == 0:
                found = f"{len(positives)} positive, {len(negatives)} negative"
                raise BadInput(f"need crops of both classes, found {found}")
            rng = random.Random(seed)
            chosen = [sorted(rng.sample(names, n)) for names in chosen]
        self.names = chosen[0] + chosen[1]
        self.files = [Path(pos_path) / name for name in chosen[0]] + [Path(neg_path) / name for name in chosen[1]]
        self.labels = np.repeat(np.array([1, 0], np.int64), [len(names) for names in chosen])
        self.manifests = {label: Manifest(path) for label, path in ((1, pos_path), (0, neg_path)) if path is not None}
        self.size = _common_size(self.files)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i: int):
        crop = torch.from_numpy(self._load(i, self.files[i], (self.size, self.size, 3)))  # (S, S, 3) uint8
        return crop.permute(2, 0, 1).float() / 255, int(self.labels[i])  # (3, S, S)

    @functools.cached_property  # asked for every image
    def has_objects(self) -> bool:
        """Whether the lesion masks were kept. BadInput names one that is missing among others."""
        paths = [_seg_path(path) for path, label in zip(self.files, self.labels, strict=True) if label == 1]
        missing = [path for path in paths if not os.path.lexists(path)]
        if 0 < len(missing) < len(paths):
            raise BadInput(f"{missing[0]}: no such file ({len(missing)} of {len(paths)} lesion masks are missing)")
        return not missing

    def object_mask(self, i: int) -> np.ndarray | None:
        """Lesion pixels of crop i, bool (S, S); None for negatives and where no mask was kept."""
        path = _seg_path(self.files[i])
        if self.labels[i] == 0 or not (os.path.lexists(path) or self._listed_as(i, path) in self.manifests[1].entries):
            return None
        values = self._load(i, path, (self.size, self.size))
        return (values == 1) | (values == 255)

    def _load(self, i, path, shape):
        """The uint8 array of this shape in a file of crop i. BadInput when it is another, or not as it was written."""
        self.manifests[int(self.labels[i])].check(self._listed_as(i, path))
        array = open_npy(path, ADVICE)
        if array.dtype != np.uint8 or array.shape != shape:
            raise BadInput(f"{path}: expected a uint8 array of shape {shape}, found {array.dtype} {array.shape}")
        return np.array(array)

    def _listed_as(self, i, path):
        return Path(self.names[i]).with_name(path.name).as_posix()

    def fingerprint(self) -> str:
        """Digest of the chosen crops' names and of some of their bytes, wherever the folders lie."""
        return fingerprints.of_files("\n".join(self.names).encode(), self.files)


def _seg_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix("_img.npy") + "_seg.npy")


def _common_size(files):
    """S of the crops, all (S, S, 3); BadInput names one of those that differ from most.

    A file's length tells its shape, so that few need to be opened.
    """
    lengths, shape_of = [], {}
    for path in files:
        lengths.append(check_file(path).st_size)
        if lengths[-1] not in shape_of:
            shape_of[lengths[-1]] = open_npy(path, ADVICE).shape
    counts = Counter(shape_of[length] for length in lengths)
    shape, n = counts.most_common(1)[0]
    odd = next((path for path, length in zip(files, lengths, strict=True) if shape_of[length] != shape), None)
    if odd:
        found = shape_of[lengths[files.index(odd)]]
        raise BadInput(f"{odd}: expected a crop of shape {shape} like {n} others, found {found} ({counts[found]} such)")
    if len(shape) != 3 or shape != (shape[0], shape[0], 3):
        raise BadInput(f"{files[0]}: expected a crop of shape (S, S, 3), found {shape}")
    return shape[0]
