"""DSMIL's files of features and this software's lists of bags, one into the other.

    mil/convert_dsmil.py import --dataset datasets/NAME/NAME.csv --out bags.csv
    mil/convert_dsmil.py export --bags features/bags.csv --out datasets/NAME

DSMIL: datasets/NAME/CLASS/SLIDE.csv, a tile a line under a header, four decimals; CLASS.csv and NAME.csv, path,label of
the bags. A label is the class's place in the alphabet.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401, I001 (before torch)
import numpy as np

from common import cli
from common.errors import BadInput
from common.files import atomic_open, make_folder, make_subfolder, read_table, write_csv
from mil import bag_list, feature_files, folds

SHARES = {"train": 3, "val": 1, "test": 1}  # of the bags of a file that knows no splits


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    ways = parser.add_subparsers(dest="way", required=True, parser_class=cli.ArgumentParser)
    way = ways.add_parser("import", description="List DSMIL's bags for train_mil.py --datatype features --bags.")
    way.add_argument("--dataset", type=cli.path, required=True, help="DSMIL's NAME.csv: path,label")
    way.add_argument("--root", type=cli.path, help="folder that its paths are relative to (default: that of datasets/)")
    way.add_argument("--out", type=cli.path, required=True, help="bags.csv to write")
    way.add_argument("--seed", type=cli.natural, default=42, help="shares the bags among splits")
    way = ways.add_parser("export", description="Write features as DSMIL reads them.")
    way.add_argument("--bags", type=cli.path, required=True, help="list of bags with files of features")
    way.add_argument("--out", type=cli.path, required=True, help="folder datasets/NAME")
    way.add_argument(
        "--classes", nargs="+", default=["0_negative", "1_positive"], help="names, in the alphabet's order"
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    (import_bags if args.way == "import" else export_bags)(args)


def import_bags(args) -> None:
    """Write bags.csv of a NAME.csv."""
    table = read_table(args.dataset, dtype=str, keep_default_na=False)
    if table.shape[1] < 2 or table.empty:
        raise BadInput(f"{args.dataset}: expected rows of path,label, found {len(table)} of {','.join(table.columns)}")
    root = args.root or [*args.dataset.absolute().parents][:3][-1]  # of datasets/NAME/NAME.csv
    rows = []
    for line, (path, label) in enumerate(table.iloc[:, :2].itertuples(index=False), 2):
        file = root / path
        if not label.isdecimal() or not os.path.lexists(file):
            raise BadInput(
                f"{args.dataset}, line {line}: found {path},{label}, expected a file below {root} and a label"
            )
        rows.append([f"{file.parent.name}/{file.stem}", int(label), file])
    splits = folds.share_out([label for _, label, _ in rows], SHARES, args.seed)
    listed = [(bag, label, split, file) for (bag, label, file), split in zip(rows, splits, strict=True)]
    bag_list.write(args.out, listed)
    print(f"{len(rows)} bags in {args.out}")


def export_bags(args) -> None:
    """Write datasets/NAME of a list of bags."""
    if sorted(args.classes) != args.classes or len(set(args.classes)) < 2:
        raise BadInput(f"--classes {' '.join(args.classes)}: expected two names or more in the alphabet's order")
    if len(args.out.absolute().parents) < 2:
        raise BadInput(f"--out {args.out}: expected a folder datasets/NAME")
    rows = bag_list.read(args.bags, classes=len(args.classes))
    out = make_folder(args.out)
    paths = {name: [] for name in args.classes}
    with tempfile.TemporaryDirectory(dir=out) as folder:
        write_bags(feature_files.load(rows, Path(folder), "float32"), rows, paths, out)
    for name, listed in paths.items():
        write_csv(out / f"{name}.csv", listed, ("0", "label"))
    write_csv(out / f"{out.name}.csv", [row for listed in paths.values() for row in listed], ("0", "label"))
    print(f"{len(rows)} bags in {out / f'{out.name}.csv'}")


def write_bags(bags, rows: list[bag_list.Row], paths: dict[str, list], out: Path) -> None:
    """Write a table of features for each bag, and note it under its class in `paths`."""
    for row, features in zip(rows, bags.features, strict=True):
        name = list(paths)[row.label]
        path = make_subfolder(out, name) / f"{row.bag.strip('/').replace('/', '_')}.csv"
        with atomic_open(path, "w", sync=False) as file:
            np.savetxt(file, features, "%.4f", ",", header=",".join(map(str, range(features.shape[1]))), comments="")
        paths[name].append({"0": os.path.relpath(path, out.absolute().parents[1]), "label": row.label})


if __name__ == "__main__":
    cli.run(main)
