"""Multiple-instance learning at a size of minutes, by the commands a user types: BagNet, features, bags, a summary.

A classifier learns on canvases of 64 px; its features of the four tiles of a canvas of 128 px are a bag, of which
training knows only whether a needle is in it. The settings are chosen to learn in minutes on two CPU cores.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.errors import BadInput
from common.files import read_json
from experiments import demo

BAGS = 2000  # that train
FIGURES = {  # in mil.json -> what the summary calls it
    "auc": "test AUC of bags",
    "acc": "test accuracy of bags",
    "instance_auc": "test AUC of tiles",
    "localization_ap": "localisation AP",
    "localization_ap_chance": "  of random tiles",
}


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=cli.path, default=demo.ROOT / "demo", help="folder of the data and the runs")
    parser.add_argument("--quick", action="store_true", help="few digits and narrow networks: to see that it runs")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    started = time.monotonic()
    summarise(run_all(args.out.absolute(), args.quick), time.monotonic() - started)
    print("\nnext: docs/MIL.md, for slides, features made elsewhere and hard negatives")


def run_all(out: Path, quick: bool) -> Path:
    """All commands; returns the folder of the MIL run."""
    source, passes = ("digits", 1) if quick else demo.mnist_source()
    digits = f"--mnist {source}" if source == "digits" else ""
    small, large = (out / f"nmnist_{canvas}_{source}" for canvas in (64, 128))
    for data, canvas, clutter, each in ((small, 64, 1, passes), (large, 128, 2, -(-passes // 4))):  # few bags are seen
        place = f"--canvas {canvas} --patch-size 64 --distortion-num {clutter} --format none --out {demo.quote(data)}"
        demo.command(f"data/cluttered_mnist/generate_data.py {place} --duplicates {each} {digits}")
    network, bags = out / f"run_bagnet_{source}", out / f"run_mil_{source}"
    settings = demo.QUICK.replace("--width -3", "--width -4") if quick else demo.QUICK
    where = f"--data_path {demo.quote(small)} --logdir {demo.quote(network)}"
    demo.command(f"train_mnist.py {where} {settings} --receptive_field 177 -e 1")
    where = f"--datatype mnist --data_path {demo.quote(large)} --tile 64 --logdir {demo.quote(bags)}"
    embedder = f"--embedder bagnet --embedder_checkpoint {demo.quote(network / 'best_checkpoint.pth')}"
    size = "--num_examples 100 --num_epoch_mil 2" if quick else f"--num_examples {BAGS} --num_epoch_mil 20"
    demo.command(f"train_mil.py {where} {embedder} {size} --lr_mil 1e-3 -b 8 --ranking_loss")
    return bags


def summarise(logdir: Path, seconds: float) -> None:
    """Print the figures of the run and where its pictures lie. BadInput when they cannot be read."""
    test = read_json(logdir / "mil.json").get("test", {})
    if not all(isinstance(test.get(name), float) for name in FIGURES):
        raise BadInput(f"{logdir / 'mil.json'}: expected the scores of test bags")
    print(f"\ndone in {seconds / 60:.1f} minutes, at settings that learn in minutes")
    for name, title in FIGURES.items():
        print(f"{title:<24} {test[name]:.3f}{'   (chance 0.5)' if name in ('auc', 'acc', 'instance_auc') else ''}")
    print(f"{'instance scores':<24} {logdir / 'scores' / 'test' / 'contact_sheet.png'}")
    print(f"{'run folder':<24} {logdir}")


if __name__ == "__main__":
    cli.run(main)
