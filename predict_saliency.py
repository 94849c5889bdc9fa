"""Write saliency maps, local prediction maps and localisation scores of a trained network's images."""

from pathlib import Path

import numpy as np

import models
from common import checkpoint, cli, device, metrics, pictures, runlog
from common.cli import BadInput
from common.files import make_folder, write_csv, write_json, write_npy
from data import loaders
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from models.saliency import saliency_maps

DATA = {"mnist": mnist, "camelyon": camelyon}
IN_CHANNELS = {"mnist": 1, "camelyon": 3}
PANELS_PER_ROW = 5
OUTCOMES = {  # (label, prediction) -> row of the contact sheet, as in figures 16 and 18-21
    (1, 1): "true positives",
    (0, 1): "false positives",
    (1, 0): "false negatives",
    (0, 0): "true negatives",
}


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    runlog.add_logdir_flag(parser)
    parser.add_argument("--datatype", choices=DATA, required=True, help="what the network was trained on")
    parser.add_argument("--split", choices=["train", "val", "test"], default="val", help="images to explain")
    parser.add_argument("--overlays", type=cli.natural, default=16, help="how many overlay_{i}.png to write")
    mnist.add_flags(parser)
    camelyon.add_flags(parser)
    loaders.add_flags(parser)
    device.add_flags(parser)
    parser.add_argument("--seed", type=cli.natural, help="seed that chooses the crops of a class (default: the run's)")
    models.add_flags(parser)
    # the network and its input come from the checkpoint; a flag may only repeat it
    parser.set_defaults(kernel3=None, width=None, pooling=None, norm=None, dropout=None, data_scaling=None)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    where = device.select(args.device, args.precision)
    model, scale = load_model(args)
    model.to(where).eval()
    data = DATA[args.datatype].load_splits(args, [args.split])[args.split]
    folder = make_folder(args.logdir / "saliency")
    remove_stale(folder)
    rows, panels = explain(model, data, loaders.ordered_loader(data, args), where, args, scale, folder)
    write_csv(folder / "pred.csv", rows)
    chosen = [[panel for outcome, panel in panels if outcome == key] for key in OUTCOMES]
    pictures.contact_sheet(folder / "contact_sheet.png", chosen, list(OUTCOMES.values()))
    report(rows, data, args.split, folder)


def load_model(args) -> tuple[models.NeedleClassifier, float]:
    """The best network of args.logdir, and the factor on its input: 255 for the first release's nCAMELYON networks.

    Fills the arguments that the checkpoint decides. BadInput for a flag that contradicts it.
    """
    path = args.logdir / checkpoint.BEST
    content, first_release = checkpoint.load_any(path)
    config = models.read_config(content["config"], first_release, path)
    if config.in_channels != IN_CHANNELS[args.datatype]:
        raise BadInput(f"--datatype {args.datatype}: the network in {path} takes {config.in_channels} channels")
    for name in ("kernel3", "width", "pooling", "norm", "dropout"):
        asked, found = getattr(args, name), getattr(config, name)
        if asked is not None and asked != found:
            raise BadInput(f"--{name} {asked}: the network in {path} has {found}; leave the flag out")
    take_data_flags(args, content["config"] if first_release else content["args"], path)
    model = models.build_model(config)
    try:
        model.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: weights do not fit its config: {str(error).splitlines()[-1].strip()}") from None
    return model, 255.0 if first_release and args.datatype == "camelyon" else 1.0


def take_data_flags(args, trained_with: dict, path: Path) -> None:
    """Fill in the run's --data_scaling and --seed; BadInput when --data_scaling is given and another."""
    scaling, seed = trained_with.get("data_scaling"), trained_with.get("seed")
    scaling = float(scaling) if isinstance(scaling, (int, float)) else 1.0  # else absent or a placeholder
    if args.data_scaling not in (None, scaling):
        raise BadInput(f"--data_scaling {args.data_scaling}: the network in {path} has {scaling}; leave the flag out")
    args.data_scaling = scaling
    if args.seed is None:
        args.seed = seed if isinstance(seed, int) else 42


def remove_stale(folder: Path) -> None:
    """Remove what an earlier run wrote, which may be of another split or network."""
    for kind in ("*.npy", "*.png", "pred.csv", "localization.json"):
        for path in folder.glob(kind):
            path.unlink()


def explain(model, data, loader, where, args, scale, folder):
    """Write every image's maps and the first overlays; returns the rows of pred.csv and the sheet's panels."""
    rows, panels = [], []
    for p in model.parameters():
        p.requires_grad_(False)
    for images, labels in cli.progress(loader, len(loader), "saliency", "batch"):
        with device.autocast(where, args.precision):
            saliency, local, logits = saliency_maps(model, images.to(where) * scale)
        saliency, local = saliency.float().cpu().numpy(), local.float().cpu().numpy()
        probabilities = logits.double().softmax(dim=1)[:, 1].tolist()
        for image, label, sal, loc, prob in zip(images, labels.tolist(), saliency, local, probabilities, strict=True):
            i = len(rows)
            write_npy(folder / f"sal_{i}.npy", sal)
            write_npy(folder / f"pred_{i}.npy", loc)
            rows.append(detection(data, i, label, prob, sal))
            keep_pictures(panels, rows[-1], data, image, sal, folder, args.overlays)
    return rows, panels


def detection(data, i, label, prob, saliency) -> dict:
    """A row of pred.csv: the image's saliency maximum is its detection, a hit when it lies on the object."""
    y, x = divmod(int(saliency.argmax()), saliency.shape[1])
    hit = None
    if data.has_positions:
        hit = int(label == 1 and object_mask(data, i, saliency.shape)[y, x])
    return {
        **{"img": i, "img_path": data.names[i], "label": label, "pred": int(prob > 0.5), "prob": prob},
        **{"peak_y": y, "peak_x": x, "confidence": float(saliency[y, x]), "hit": hit},
    }


def object_mask(data, i, shape) -> np.ndarray:
    """Where image i's object is: the lesion mask, or the needle's box; bool (H, W), all false without an object."""
    mask = np.zeros(shape, bool)
    if hasattr(data, "lesion_mask"):
        lesion = data.lesion_mask(i)
        return mask if lesion is None else lesion
    box = data.needle_box(i)
    if box is not None:
        y0, x0, y1, x1 = (round(side) for side in box)
        mask[y0:y1, x0:x1] = True
    return mask


def keep_pictures(panels, row, data, image, saliency, folder, overlays):
    """Write overlay_{i}.png for the first images, and keep a panel while the outcome's row of the sheet has room."""
    outcome = (row["label"], row["pred"])
    wanted = sum(kept == outcome for kept, _ in panels) < PANELS_PER_ROW
    if row["img"] >= overlays and not wanted:
        return
    picture = image.permute(1, 2, 0).numpy()
    picture = pictures.blend_saliency(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, saliency)
    color = pictures.LESION if hasattr(data, "lesion_mask") else pictures.NEEDLE
    outlined = object_mask(data, row["img"], saliency.shape) if row["label"] == 1 else None
    panel = pictures.Panel(picture, f"image {row['img']}, p = {row['prob']:.2f}", mask=outlined, color=color)
    if row["img"] < overlays:
        pictures.write_png(folder / f"overlay_{row['img']}.png", pictures.draw(panel))
    if wanted:
        panels.append((outcome, panel))


def report(rows, data, split, folder):
    """Print and write the localisation scores."""
    labels, predictions = [row["label"] for row in rows], [row["pred"] for row in rows]
    accuracy = metrics.rates(*metrics.confusion(labels, predictions))["acc"]
    scores = {"split": split, "images": len(rows), "positives": sum(labels), "accuracy": accuracy}
    print(f"{len(rows)} {split} images, accuracy {accuracy:.3f}")
    if data.has_positions:
        hits = np.array([row["hit"] for row in rows])
        confidences = np.array([row["confidence"] for row in rows])
        scores["hits"] = int(hits.sum())
        scores["average_precision"] = metrics.localization_ap(hits, confidences, scores["positives"])
        print(
            f"localisation: average precision {scores['average_precision']:.3f}, "
            f"the peak lies on the object in {scores['hits']} of {scores['positives']} positives"
        )
    else:
        print("localisation left out: the data set does not say where the objects are")
    write_json(folder / "localization.json", scores)
    print(f"maps, overlays, pred.csv and contact_sheet.png in {folder}")


if __name__ == "__main__":
    cli.run(main)
