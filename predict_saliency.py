"""Write saliency maps, local prediction maps and localisation scores of a trained network's images."""

import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import common  # noqa: F401 (before torch)
from common import checkpoint, cli, lock, metrics, pictures, processes, runfolder, scores
from common.errors import BadInput, WorkFailed
from common.files import check_target, is_whole, make_subfolder, read_json, sha256_of, write_csv, write_json, write_npy
from common.table import BOOK, ROWS, GrowingTable
from data import SPLITS, loaders
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from models import needle
from models.classifier import NeedleClassifier
from models.saliency import saliency_maps

DATA = {"mnist": mnist, "camelyon": camelyon}
COLUMNS = ("img", "img_path", "label", "pred", "prob", "peak_y", "peak_x", "confidence", "hit")  # of pred.csv
NUMBERS = ("label", "pred", "prob", "score", "peak_y", "peak_x", "cell", "confidence")  # of every row
SUMMARY = "localization.json"
OWN = re.compile(  # names of what is written
    r"(sal|pred)_\d+\.npy|overlay_\d+\.png|contact_sheet\.png|pred\.csv|localization\.json"
    r"|run\.json|rows\.jsonl|\.[\w.]+\.part"
)


def parse_args(argv=None):
    known = "The network, --data_scaling and --splits are the run's; their flags may be left out."
    parser = cli.ArgumentParser(description=f"{__doc__} {known}")
    runfolder.add_logdir_flag(parser)
    parser.add_argument("--datatype", choices=DATA, required=True, help="what the network was trained on")
    parser.add_argument("--split", choices=SPLITS, default="val", help="images to explain")
    parser.add_argument("--overlays", type=cli.natural, default=16, help="how many overlay_{i}.png to write")
    for data in DATA.values():
        data.add_flags(parser)
    loaders.add_flags(parser)
    processes.add_flags(parser)
    parser.add_argument("--seed", type=cli.natural, help="seed that chooses the crops of a class (default: the run's)")
    needle.add_flags(parser)
    # the network and its input come from the checkpoint; a flag may only repeat it
    parser.set_defaults(kernel3=None, width=None, pooling=None, norm=None, dropout=None, data_scaling=None)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select_alone("predict_saliency.py", args.device, args.precision, args.deterministic)
    model, scale = load_model(args)
    model.to(device).eval()
    data = DATA[args.datatype].load_splits(args, [args.split])[args.split]
    loaders.verify(args, *([args.data_path] if args.datatype == "mnist" else [args.pos_path, args.neg_path]))
    if (args.datatype, args.split) == ("mnist", "train"):
        print("train: all images of the data set; a run learns from the first 11,276, or those of --num_examples")
    settings = settings_of_maps(args, data)
    with lock.held(args.logdir, "--logdir", ".saliency.lock"):
        maps = MapFolder(args.logdir, args.split, settings, args.batch_size)
        explain(model, data, maps, device, args, scale)
        draw_pictures(data, maps, args.overlays)
        report(maps, data, args.split)
        threshold = 0.0  # of logit 1 minus logit 0
        scores.write(args.logdir, args.split, maps.rows, threshold, settings["checkpoint"])
        maps.publish()
    print(f"scores of {args.split} by object size in {args.logdir / 'scores'}")
    print(f"maps, overlays, pred.csv and contact_sheet.png in {maps.target}")


def load_model(args) -> tuple[NeedleClassifier, float]:
    """The best network of args.logdir, and the factor on its input: 255 for the first release's nCAMELYON networks.

    Fills the arguments that the checkpoint decides. BadInput for a flag that contradicts it.
    """
    path = args.logdir / checkpoint.BEST
    model, content, first_release = needle.load(path)
    if model.config.in_channels != DATA[args.datatype].IN_CHANNELS:
        raise BadInput(f"--datatype {args.datatype}: the network in {path} takes {model.config.in_channels} channels")
    for name in ("kernel3", "width", "pooling", "norm", "dropout"):
        asked, found = getattr(args, name), getattr(model.config, name)
        if asked is not None and asked != found:
            raise BadInput(f"--{name} {asked}: the network in {path} has {found}; leave the flag out")
    with checkpoint.errors_name(path):
        take_data_flags(args, content["config"] if first_release else content["args"], path)
    return model, 255.0 if first_release and args.datatype == "camelyon" else 1.0


def take_data_flags(args, trained_with: dict, path: Path) -> None:
    """Fill in the run's --data_scaling, --seed and --splits; BadInput when --data_scaling is given and another."""
    scaling, seed = trained_with.get("data_scaling"), trained_with.get("seed")
    scaling = float(scaling) if isinstance(scaling, (int, float)) else 1.0  # else absent or a placeholder
    if args.data_scaling not in (None, scaling):
        raise BadInput(f"--data_scaling {args.data_scaling}: the network in {path} has {scaling}; leave the flag out")
    args.data_scaling = scaling
    if args.seed is None:
        args.seed = seed if isinstance(seed, int) else 42
    chosen = args.splits is not None
    if not chosen and trained_with.get("splits"):
        args.splits = Path(trained_with["splits"])
    camelyon.check_same_splits(args.splits, trained_with.get("splits_sha256"), chosen)


class MapFolder:
    """LOGDIR/saliency, of other splits LOGDIR/saliency_{split}, in the making: it grows as saliency.part beside it.

    A later run keeps the part's finished batches. `rows` are those of pred.csv so far. A part of other images, weights
    or settings is begun anew. BadInput when folders of these names are somebody else's.
    """

    def __init__(self, logdir: Path, split: str, settings: dict, batch_size: int):
        name = "saliency" if split == "val" else f"saliency_{split}"
        self.target, self.part = make_subfolder(logdir, name), make_subfolder(logdir, f"{name}.part")
        _refuse_others(self.target, split)
        self.table = GrowingTable(self.part, settings, OWN, ("img_path", *NUMBERS, "hit", "o2i"))
        whole = list(itertools.takewhile(self._is_whole, self.rows))
        self.table.keep(len(whole) // batch_size * batch_size)

    @property
    def rows(self) -> list[dict]:
        return self.table.rows

    def _is_whole(self, row):
        """Whether a row has its numbers and both maps; a power cut empties them, and `publish` moves them away."""
        files = [self.part / f"{kind}_{row['img']}.npy" for kind in ("sal", "pred")]
        numbers = all(isinstance(row[name], (int, float)) for name in NUMBERS)
        return numbers and all(is_whole(path, (None, None)) for path in files)

    def add(self, rows: list[dict], saliency: np.ndarray, local: np.ndarray) -> None:
        """Write the maps of one batch, saliency (B, H, W) and local predictions (B, h, w), and keep its rows."""
        for row, sal, loc in zip(rows, saliency, local, strict=True):
            write_npy(self.part / f"sal_{row['img']}.npy", sal, sync=False)
            write_npy(self.part / f"pred_{row['img']}.npy", loc, sync=False)
            self.table.add(row)

    def saliency(self, i: int) -> np.ndarray:
        """Image i's map, (H, W) float32."""
        return np.load(self.part / f"sal_{i}.npy")

    def publish(self) -> None:
        """Move all but the book-keeping to the target, in place of what an earlier run left there."""
        os.sync()
        write_csv(self.part / "pred.csv", [{name: row[name] for name in COLUMNS} for row in self.rows], COLUMNS)
        for path in _of_maps(self.target):
            if path.name != SUMMARY:
                path.unlink()
        for path in sorted(self.part.iterdir(), key=lambda path: path.name != SUMMARY):  # it says whose the others are
            if path.name not in (BOOK, ROWS):
                check_target(self.target / path.name)
                path.replace(self.target / path.name)
        for name in (BOOK, ROWS):
            (self.part / name).unlink()
        self.part.rmdir()


def _of_maps(folder):
    """The files with names of those that are written, sorted."""
    plain = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()]
    return [path for path in plain if OWN.fullmatch(path.name)]


def _refuse_others(folder, split):
    """BadInput when the folder's maps are somebody else's, or another split's, as earlier versions left them."""
    path, found = folder / SUMMARY, _of_maps(folder)
    if found and path not in found:
        raise BadInput(f"{found[0]}: not of this command, which writes {SUMMARY} beside it; move it elsewhere")
    split_there = read_json(path).get("split", split) if found else split
    if split_there != split:
        raise BadInput(f"{folder}: holds maps of the {split_there} split; rename it to saliency_{split_there}")


def settings_of_maps(args, data) -> dict:
    """What decides the maps."""
    digest = sha256_of(args.logdir / checkpoint.BEST)
    chosen = {"split": args.split, "precision": args.precision, "batch_size": args.batch_size}
    return {"checkpoint": digest, "data": data.fingerprint(), **chosen}


def explain(model, data, maps: MapFolder, device, args, scale: float) -> None:
    """Write the maps of all images that an interrupted run has not finished, while a GPU computes the next batch."""
    for p in model.parameters():
        p.requires_grad_(False)
    loader = loaders.ordered_loader(data, args, device, np.arange(len(maps.rows), len(data)))
    with ThreadPoolExecutor(1) as writer:
        written = None
        for images, labels in cli.progress(loader, len(loader), "saliency", "batch"):
            with processes.autocast(device, args.precision):
                results = saliency_maps(model, images.to(device, non_blocking=True) * scale)
            batch = maps, data, labels.tolist(), *results
            if device.type == "cpu":  # another thread would take cores from the passes
                write_batch(*batch)
                continue
            if written:
                written.result()
            written = writer.submit(write_batch, *batch)
        if written:
            written.result()


def write_batch(maps: MapFolder, data, labels: list[int], saliency, local, logits) -> None:
    """Add a batch's results, as saliency_maps returns them, to the maps. WorkFailed when they are not finite."""
    saliency, local = saliency.float().cpu().numpy(), local.float().cpu().numpy()
    logits = logits.double().cpu().numpy()  # (B, 2)
    probabilities = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    finite = np.isfinite(probabilities) & np.isfinite(saliency).all(axis=(1, 2))
    if not finite.all():  # weights and pixels were, when they were read
        name = data.names[len(maps.rows) + int(np.argmin(finite))]
        raise WorkFailed(f"{name}: the network's numbers overflow on this image; with --precision float32 they may not")
    batch = zip(labels, probabilities.tolist(), (logits[:, 1] - logits[:, 0]).tolist(), saliency, strict=True)
    rows = [describe_image(data, i, *item) for i, item in enumerate(batch, len(maps.rows))]
    maps.add(rows, saliency, local)


def describe_image(data, i: int, label: int, prob: float, score: float, saliency: np.ndarray) -> dict:
    """An image's row of pred.csv and of scores/{split}.csv: its saliency maximum is its detection."""
    mask = data.object_mask(i)
    row = {"img": i, "img_path": data.names[i], "label": label, "pred": int(prob > 0.5), "prob": prob}
    return row | {"score": score} | scores.detection(saliency, mask, label, data.has_objects)


def draw_pictures(data, maps: MapFolder, overlays: int) -> None:
    """Write overlay_{i}.png of the first images, and the contact sheet: the first images of each outcome."""
    for row in maps.rows[:overlays]:
        pictures.write_png(maps.part / f"overlay_{row['img']}.png", pictures.draw(make_panel(data, maps, row)))
    sheet = []
    for outcome in pictures.OUTCOMES:
        rows = [row for row in maps.rows if (row["label"], row["pred"]) == outcome]
        sheet.append([make_panel(data, maps, row) for row in rows[: pictures.PANELS_PER_ROW]])
    pictures.contact_sheet(maps.part / "contact_sheet.png", sheet, list(pictures.OUTCOMES.values()))


def make_panel(data, maps: MapFolder, row: dict) -> pictures.Panel:
    """An image under its saliency, with its object outlined."""
    saliency = maps.saliency(row["img"])
    image = data[row["img"]][0].permute(1, 2, 0).numpy()  # (H, W, 1 or 3)
    title, mask = f"image {row['img']}, p = {row['prob']:.2f}", data.object_mask(row["img"])
    return pictures.Panel(pictures.blend_saliency(image, saliency), title, mask=mask, color=data.outline)


def report(maps: MapFolder, data, split: str) -> None:
    """Print and write the localisation scores."""
    rows = maps.rows
    labels, predictions = [row["label"] for row in rows], [row["pred"] for row in rows]
    accuracy = metrics.rates(*metrics.confusion(labels, predictions))["acc"]
    found = {"split": split, "images": len(rows), "positives": sum(labels), "accuracy": accuracy}
    print(f"{len(rows)} {split} images, accuracy {accuracy:.3f}")
    if data.has_objects:
        hits = np.array([row["hit"] for row in rows])
        confidences = np.array([row["confidence"] for row in rows])
        found["hits"] = int(hits.sum())
        found["average_precision"] = metrics.localization_ap(hits, confidences, found["positives"])
        print(
            f"localisation: average precision {found['average_precision']:.3f}, "
            f"the peak lies on the object in {found['hits']} of {found['positives']} positives"
        )
    else:
        print("localisation left out: the data set does not say where the objects are")
    write_json(maps.part / SUMMARY, found)


if __name__ == "__main__":
    cli.run(main)
