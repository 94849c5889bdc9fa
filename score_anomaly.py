"""Score images by a trained detector, and show where it looks: score_anomaly.py --logdir runs/dpa --split test

The run knows its data; a data flag given here scores other images. Writes LOGDIR/scores/{split}.csv and .json, by size
of the object where it is known, and in LOGDIR/scores/{split}/ overlays, a contact sheet and, with --maps, the maps.
"""

import argparse
import re
from pathlib import Path

import numpy as np

import common  # noqa: F401 (before torch)
from anomaly import runs
from anomaly.methods import METHODS
from anomaly.scoring import AGGREGATES, ScoredImage, score_images
from common import cli, lock, pictures, processes, runfolder, scores
from common.errors import BadInput
from common.files import make_subfolder, sha256_of, write_npy
from common.table import GrowingTable
from data import SPLITS, datatypes, loaders
from data.camelyon import dataset as camelyon
from data.transforms import Transformed

OWN = re.compile(r"map_\d+\.npy|overlay_\d+\.png|contact_sheet\.png")


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    runfolder.add_logdir_flag(parser)
    parser.add_argument("--split", choices=SPLITS, default="test", help="images to score")
    parser.add_argument(
        "--name", type=plain_name, help="of what is written below LOGDIR/scores (default: the split, or images)"
    )
    parser.add_argument("--stride", type=cli.positive, help="px from tile to tile (default: half a tile)")
    parser.add_argument("--tile", type=cli.positive, help="px a side of a tile (default, and no other: the run's)")
    parser.add_argument("--aggregate", choices=AGGREGATES, default="max", help="an image's score from its tiles'")
    parser.add_argument("--maps", action="store_true", help="write every image's map as map_{img}.npy")
    parser.add_argument("--overlays", type=cli.natural, default=16, help="how many overlay_{img}.png to write")
    loaders.add_flags(parser, batch_size=128)
    processes.add_flags(parser)
    group = parser.add_argument_group("data, by default the run's")
    group.add_argument("--seed", type=cli.natural, help="that chooses the crops of a class")
    group.add_argument("--images", type=cli.path, help="folder of images without labels, to score these")
    group.add_argument(
        "--embedder_weights",
        "--vgg_weights",
        type=cli.path,
        metavar="FILE",
        help="the frozen network's weights, where their file is no longer where the training found it",
    )
    datatypes.add_flags_of_run(parser)
    for flag in ("--random_crop", "--flip"):  # of training; without effect here
        parser.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def plain_name(text: str) -> str:
    """Parse the name of a file, without a folder (an argparse type)."""
    if not text.strip(".") or Path(text).name != text:
        raise argparse.ArgumentTypeError(f"expected a name without folders, got {text!r}")
    return text


def main(argv=None):
    args = parse_args(argv)
    device = processes.select_alone("score_anomaly.py", args.device, args.precision, args.deterministic)
    saved, path = runs.read_run(args.logdir)
    settle(args, saved, path)
    data = load_images(args, saved["config"], path)
    method = METHODS[saved["config"]["method"]]
    with lock.held(args.logdir, "--logdir", ".scores.lock"):
        detector = method.load(saved, path, device)
        identity = {"checkpoint": sha256_of(path), "data": data.fingerprint()}
        identity |= {name: getattr(args, name) for name in ("stride", "aggregate", "maps", "precision")}
        if data.transform.resize:
            identity["o2i"] = "before resizing"  # as it was not at first
        folder = make_subfolder(make_subfolder(args.logdir, "scores"), args.name)
        table = GrowingTable(folder, identity | {"images": vars(data.transform)}, OWN, scores.COLUMNS)
        scorer = Scorer(data, args, device, lambda tiles: method.score(detector, tiles.to(device)))
        score_all(scorer, table)
        draw_pictures(scorer, table)
        report(scores.write(args.logdir, args.name, table.rows, of_checkpoint=identity["checkpoint"]), args)
    print(f"scores in {args.logdir / 'scores' / args.name}.csv, pictures in {folder}")


def settle(args, saved: dict, path: Path) -> None:
    """Fill in what the run, saved at `path`, decides. BadInput for a flag that contradicts it."""
    config, own_splits = saved["config"], args.splits
    if args.embedder_weights:
        saved["args"]["embedder_weights"] = args.embedder_weights
    datatypes.take_flags_of_run(args, saved["args"])
    camelyon.check_same_splits(args.splits, config.get("splits_sha256"), chosen=own_splits is not None)
    args.seed = saved["args"].get("seed") if args.seed is None else args.seed
    args.name = args.name or ("images" if args.images else args.split)
    if args.tile not in (None, config["tile"]):
        raise BadInput(f"--tile {args.tile}: the detector in {path} takes {config['tile']} px; leave the flag out")
    if args.stride is not None and args.stride > config["tile"]:
        raise BadInput(f"--stride {args.stride}: expected {config['tile']} px, a tile's side, at most")
    args.tile, args.stride = config["tile"], args.stride or max(1, config["tile"] // 2)


def load_images(args, config: dict, path: Path) -> Transformed:
    """The images to score. BadInput when they have other channels than the detector, saved at `path`, takes."""
    data = datatypes.load_unlabelled(args, args.images) if args.images else datatypes.load(args, args.split)
    datatypes.verify(args)
    if data.in_channels != config["in_channels"]:
        raise BadInput(
            f"{path}: the detector takes {config['in_channels']} channels, the images have {data.in_channels}"
        )
    return data


class Scorer:
    """A detector and the images it scores."""

    def __init__(self, data, args, device, score):
        self.data, self.args, self.device, self.score = data, args, device, score

    def scored(self, numbers: list[int]):
        """Yield the images of these numbers in order, scored."""
        args = self.args
        loader = loaders.batch_loader(self.data, args, self.device, [[i] for i in numbers])
        images = ((image[0], self.data.names[i]) for i, (image, _) in zip(numbers, loader, strict=True))
        with processes.autocast(self.device, args.precision):
            yield from score_images(images, args.tile, args.stride, args.batch_size, self.score)


def score_all(scorer: Scorer, table: GrowingTable) -> None:
    """Add a row for every image that an interrupted run has not scored, and its map if wanted."""
    left = list(range(len(table.rows), len(scorer.data)))
    for i, found in zip(left, cli.progress(scorer.scored(left), len(left), "scoring", "image"), strict=True):
        if scorer.args.maps:
            write_npy(table.folder / f"map_{i}.npy", found.map(), sync=False)
        table.add(describe_image(scorer, i, found))


def describe_image(scorer: Scorer, i: int, found: ScoredImage) -> dict:
    """The image's row of scores/{split}.csv, and `middle`, its map's median."""
    data, label = scorer.data, int(scorer.data.labels[i])
    mask = data.object_mask(i)
    row = {"img": i, "img_path": data.names[i], "label": label if label >= 0 else None}
    row["score"] = float(AGGREGATES[scorer.args.aggregate](found.scores))
    row["middle"] = float(np.median(found.map()))
    return row | found.detection(mask, row["label"], data.has_objects) | {"o2i": data.o2i(i)}


def draw_pictures(scorer: Scorer, table: GrowingTable) -> None:
    """Write overlay_{i}.png of the first images, and the contact sheet: the highest and lowest scores of each class.

    All are drawn on one scale, from the maps' usual median to nearly the highest value of all.
    """
    overlays = table.rows[: scorer.args.overlays]
    wanted = ["contact_sheet.png", *(f"overlay_{row['img']}.png" for row in overlays)]
    if all((table.folder / name).exists() for name in wanted):
        return
    sheet = extremes(table.rows)
    chosen = sorted({row["img"] for row in [*overlays, *(row for rows in sheet.values() for row in rows)]})
    low = np.median([row["middle"] for row in table.rows])
    high = np.percentile([row["confidence"] for row in table.rows], 99)
    panels = {}
    for i, found in zip(chosen, scorer.scored(chosen), strict=True):
        row, image = table.rows[i], found.image.permute(1, 2, 0).numpy()  # (H, W, 1 or 3)
        heat = np.clip((found.pixels() - low) / max(high - low, 1e-12), 0, 1)
        picture = pictures.blend_saliency(image, heat, top=1 / pictures.OPACITY)
        title, mask = f"image {i}, {row['score']:.3g}", scorer.data.object_mask(i)
        panels[i] = pictures.Panel(picture, title, mask=mask, color=scorer.data.outline)
    for row in overlays:
        pictures.write_png(table.folder / f"overlay_{row['img']}.png", pictures.draw(panels[row["img"]]))
    rows = [[panels[row["img"]] for row in rows] for rows in sheet.values()]
    pictures.contact_sheet(table.folder / "contact_sheet.png", rows, list(sheet))


def extremes(rows: list[dict]) -> dict[str, list[dict]]:
    """Title of a line of the contact sheet -> the rows in it."""
    sheet = {}
    for title, label in {"abnormal": 1, "normal": 0, "images": None}.items():
        found = sorted((row for row in rows if row["label"] == label), key=lambda row: -row["score"])
        if found:
            n = min(pictures.PANELS_PER_ROW, -(-len(found) // 2))
            sheet |= {f"{title}, highest": found[:n], f"{title}, lowest": found[-n:][::-1]}
    return sheet


def report(found: dict, args) -> None:
    """Print the scores, overall and by the object's size."""
    print(f"{found['images']} images, {found['positives']} abnormal; tiles of {args.tile} px, stride {args.stride}")
    if found["auc"] is None:
        print("no AUC: it takes images of both classes, 5 abnormal ones at least")
        return
    for part in (found | {"o2i": "all sizes"}, *found["ranges"]):
        if part["auc"] is not None:
            line = f"{part['o2i']:>12}  {part['positives']:5} abnormal  AUC {part['auc']:.3f}  AP {part['ap']:.3f}"
            place = part["localization_ap"]
            print(line if place is None else f"{line}  localisation AP {place:.3f}")


if __name__ == "__main__":
    cli.run(main)
