"""HNM-WSI's folders and files: tiles by slide, lists of bags, truth, bag_reference.csv and embeddings.

    ROOT/training/{normal|tumor}_NNN/{x}_{y}_{z}.jpeg    ROOT/testing/test_NNN/...    z = 1: the tile holds a lesion
    LABELROOT/testing/bag_reference.csv                  NAME,label of the test bags, without a header
    LABELROOT/annotation/gt_ins_labels_{train,large_train,test}.p    {("/training/tumor_050/", x, y): 0 or 1}
    a list of bags                                       a bag a line, `/training/tumor_050/`
Keys of bags are `/training/tumor_050`. A label comes from the slide's own name, never from the folders above it.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import BadInput
from common.files import atomic_open, read_text
from mil import folds, pickles
from mil.bags import Bags
from mil.tiles import TileBags, place_of

CLASSES = {"normal": 0, "tumor": 1}  # what names of training slides begin with
PARTS = {"train": "training", "val": "training", "test": "testing"}
SHARES = {"train": 4, "val": 1}  # of the training bags without lists, as 54 of CAMELYON16's 270 validate


def bags_of(root: Path, labelroot: Path, seed: int) -> list[tuple[str, int, str, Path]]:
    """(bag, label, split, folder) of all bags, for mil.bag_list.write.

    LABELROOT/{train,val,test}.txt are the lists of bags; without train.txt and val.txt a fifth of each class of the
    training folder validates, by the seed; without test.txt all of bag_reference.csv is tested.
    Errors: BadInput when a list names a bag that is missing, or a bag has no label.
    """
    reference = read_reference(labelroot / "testing" / "bag_reference.csv")
    lists = {split: labelroot / f"{split}.txt" for split in PARTS}
    if lists["train"].exists() or lists["val"].exists():
        named = {split: read_list(lists[split]) for split in ("train", "val")}
    else:
        named = _split_training(root / "training", seed)
    named["test"] = read_list(lists["test"]) if lists["test"].exists() else [f"testing/{name}" for name in reference]
    found = []
    for split, names in named.items():
        for bag in names:
            if not (root / bag).is_dir():
                raise BadInput(f"{root / bag}: no such folder, but bag {bag} is listed for {split}")
            label = reference.get(Path(bag).name) if split == "test" else label_of(bag)
            if label is None:
                raise BadInput(f"{labelroot / 'testing' / 'bag_reference.csv'}: has no label of bag {bag}")
            found.append((bag, label, split, root / bag))
    return found


def label_of(bag: str) -> int:
    """1 for tumor_NNN, 0 for normal_NNN. BadInput for another name."""
    kind = Path(bag).name.split("_")[0]
    if kind not in CLASSES:
        raise BadInput(f"bag {bag}: expected a training slide named {' or '.join(f'{name}_NNN' for name in CLASSES)}")
    return CLASSES[kind]


def _split_training(folder, seed):
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder, expected one of tiles for each training slide")
    names = sorted(f"training/{path.name}" for path in folder.iterdir() if path.is_dir())
    splits = folds.share_out([label_of(name) for name in names], SHARES, seed)
    return {split: [name for name, own in zip(names, splits, strict=True) if own == split] for split in SHARES}


def read_list(path: Path) -> list[str]:
    """The bags of a list, without the slashes around their names. BadInput when it is empty or names one twice."""
    bags = [line.strip().strip("/") for line in read_text(path).splitlines() if line.strip()]
    twice = sorted({bag for bag in bags if bags.count(bag) > 1}) if len(set(bags)) < len(bags) else []
    if twice or not bags:
        raise BadInput(f"{path}: {f'names bag {twice[0]} twice' if twice else 'names no bag'}, expected a bag a line")
    return bags


def write_list(path: Path, bags: Sequence[str]) -> None:
    """Write a list of bags, with both slashes."""
    with atomic_open(path, "w") as file:
        file.writelines(f"/{bag.strip('/')}/\n" for bag in bags)


def read_reference(path: Path) -> dict[str, int]:
    """Name -> label of the test bags. BadInput names a wrong line."""
    found = {}
    for number, row in enumerate(csv.reader(read_text(path).splitlines()), 1):
        if not row:
            continue
        values = [value.strip() for value in row]
        if len(values) != 2 or values[1] not in ("0", "1") or values[0] in found:
            raise BadInput(f"{path}, line {number}: found {','.join(row)}, expected NAME,0 or NAME,1, each name once")
        found[values[0]] = int(values[1])
    return found


def write_reference(path: Path, labels: dict[str, int]) -> None:
    """Write bag_reference.csv."""
    with atomic_open(path, "w") as file:
        file.writelines(f"{name},{label}\n" for name, label in labels.items())


def write_truth(path: Path, bags: Sequence[TileBags | Bags]) -> None:
    """Write the truth of all tiles, as HNM-WSI reads it."""
    content = {}
    for each in bags:
        for name, places, truth in zip(each.names, each.corners, each.truth, strict=True):
            rows = zip(places.tolist(), truth.tolist(), strict=True)
            content |= {(f"/{name.strip('/')}/", x, y): int(value) for (y, x), value in rows}
    with atomic_open(path) as file:
        file.write(pickles.write_bytes(content))


def read_embeddings(path: Path, tiles: TileBags) -> Bags:
    """Features of a split as HNM-WSI left them, {bag: array of (tile name, vector)}, joined by name.

    BadInput when a bag or a tile has none, or vectors differ in width.
    """
    content = pickles.read(path)
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a pickled dict of bags")
    content, parts = {str(bag).strip("/"): rows for bag, rows in content.items()}, []
    for name, places in zip(tiles.names, tiles.corners, strict=True):
        rows = content.get(name.strip("/"))
        if rows is None:
            raise BadInput(f"{path}: has no features of bag {name}")
        try:
            found = {place_of(path.parent / f"{tile}.jpeg")[:2]: np.asarray(vector) for tile, vector in rows}
            vectors = [found.get(place) for place in map(tuple, places.tolist())]
            parts.append(np.array([vector for vector in vectors if vector is not None], np.float32))
        except (TypeError, ValueError):
            raise BadInput(f"{path}: bag {name}: expected rows of a tile's name and its vector") from None
        if len(parts[-1]) != len(places) or parts[-1].ndim != 2 or parts[-1].shape[1] != parts[0].shape[1]:
            raise BadInput(f"{path}: bag {name}: expected {len(places)} vectors of one width, found {parts[-1].shape}")
    return tiles.with_features(np.concatenate(parts))
