"""Detect what is abnormal from normal images alone, in minutes and without a network: made slides, two detectors.

The slides are textures with painted blobs, not histology; what they show is that the programs work. The settings are
chosen for two CPU cores and are not those of Shvetsova 2021.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401 (before torch)
from common import cli
from common.files import read_json
from experiments import demo
from experiments.demo import ROOT, quote
from models import weights

SIZE, TILE = 80, 32  # px of a crop, and of the tile to which it is scaled
DPA = "--layer r32 --latent_res 8 --latent_dim 4 --dims 16,16,4 --lr 3e-3 -b 16"
METHODS = ("dpa", "deep_knn")


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=cli.path, default=ROOT / "demo" / "anomaly", help="folder of data and runs")
    parser.add_argument("--iters", type=cli.positive, default=300, help="optimiser steps of DPA")
    parser.add_argument("--quick", action="store_true", help="few and small slides, few steps, to see that it works")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    started, out = time.monotonic(), args.out.absolute()
    features, source = find_features()
    where = make_crops(out, args.quick)
    data = f"{where} --resize {TILE} --workers 0"
    vgg = {"dpa": f"--vgg vgg16 --vgg_weights {source}", "deep_knn": f"--embedder vgg16 --embedder_weights {source}"}
    flags = {"dpa": f"{DPA} --iters {5 if args.quick else args.iters}", "deep_knn": "--layer r32"}
    for method in METHODS:
        logdir = quote(out / f"run_{method}_{source}")
        demo.command(
            f"train_anomaly.py --method {method} --tile {TILE} {data} {vgg[method]} {flags[method]} --logdir {logdir}"
        )
        demo.command(f"score_anomaly.py --logdir {logdir} --split test --workers 0")
    summarise({method: out / f"run_{method}_{source}" for method in METHODS}, features, time.monotonic() - started)


def find_features() -> tuple[str, str]:
    """What the features are called, and the value of the flag: ImageNet's where they lie at hand, else random."""
    if weights.find_imagenet("vgg16"):
        return "VGG16, trained on ImageNet", "imagenet"
    return (
        "VGG16 with RANDOM weights (no ImageNet weights at hand: set WEIGHTS_DIR to a folder that has them)",
        "random",
    )


def make_crops(out: Path, quick: bool) -> str:
    """Negatives to train on, and test crops of both kinds, of made slides; returns the flags that name them."""
    slides, pos, neg = out / "slides", out / "crops" / "pos", out / "crops" / "neg"
    crop, k = f"--base_path {quote(slides / 'training')} --size {SIZE}", 1 if quick else 3
    demo.command(
        f"data/camelyon/make_slides.py --out {quote(slides)}" + (" --annotated 2 --negative 2" if quick else "")
    )
    annotations, labels = quote(slides / "annotations"), quote(slides / "stage_labels.csv")
    ranges = f"--low_roir 0.001 --high_roir 1 --k {k}"
    demo.command(f"extract_basic_pos_crops.py --data {annotations} {crop} {ranges} --save_dir {quote(pos)}")
    demo.command(f"extract_basic_neg_crops.py --label_path {labels} {crop} --save_dir {quote(neg)}")
    return f"--pos_path {quote(pos)}/level3_size_{SIZE}_ratio_0.001_1 --neg_path {quote(neg)}"


def summarise(runs: dict[str, Path], features: str, seconds: float) -> None:
    """Print AUC by the object's size, and where the pictures lie."""
    found = {method: read_json(folder / "scores" / "test.json") for method, folder in runs.items()}
    print(f"\ndone in {seconds / 60:.1f} minutes, at settings that learn in minutes, on made slides (not histology)")
    print(f"features: {features}")
    print(f"{'test AUC, object of':>21}  {'crops':>5}  " + "  ".join(f"{method:>8}" for method in found))
    rows = [("all sizes", found)]
    for i, part in enumerate(found[METHODS[0]]["ranges"]):
        rows.append((part["o2i"], {method: scores["ranges"][i] for method, scores in found.items()}))
    for name, scores in rows:
        auc = [part["auc"] for part in scores.values()]
        if None not in auc:
            positives = scores[METHODS[0]]["positives"]
            print(f"{name:>21}  {positives:5}  " + "  ".join(f"{value:8.3f}" for value in auc))
    for method, folder in runs.items():
        print(f"contact sheet of {method:9} {folder / 'scores' / 'test' / 'contact_sheet.png'}")
    print("\nnext: your own pictures, as docs/ANOMALY.md shows: train_anomaly.py --photos DIR")


if __name__ == "__main__":
    cli.run(main)
