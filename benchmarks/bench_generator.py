"""Time the nMNIST generator on one core, against straightforward float64 NumPy and NumPy's own npz.

Prints one table: what is timed, ours, the baseline, their ratio. Nothing is kept on disk.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure
import numpy as np

from common import cli
from data.cluttered_mnist import canvas_files, digits, placements, recipe

TURN = 10
SETTINGS = {"patch-size": 64, "scale": 1.0}


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--mnist", default=digits.default_source(), help="folder of MNIST files, or 'digits'")
    parser.add_argument("--canvas", type=cli.positive, default=1024, help="rows and columns of an image in px")
    parser.add_argument("--images", type=cli.positive, default=50, help="canvases per figure; the median counts")
    return measure.parse_args(parser, argv, canvas=256, images=10)


def main(argv=None):
    args = parse_args(argv)
    splits = digits.load(args.mnist)
    layout = placements.Layout(args.canvas, placements.default_clutter(args.canvas), patch_size=64)
    with tempfile.TemporaryDirectory() as scratch:
        print(f"canvas {args.canvas}, {layout.clutter} clutter digits, one core, median CPU time: {args.images} images")
        print(f"{'':32}{'ours':>10}{'baseline':>10}{'ratio':>8}", flush=True)
        out = Path(scratch)
        start = time.perf_counter()
        recipe.write(out, splits, layout, digit=3, passes=2, seed=1234)
        drawing = time.perf_counter() - start
        source = recipe.Recipe(out, "train", SETTINGS | {"canvas": args.canvas})
        images = range(min(args.images, len(source)))
        n = 2 * 2 * count_needles(splits)
        print(f"{'draw and save the recipe, s':32}{drawing:10.2f}   ({n:,} images)", flush=True)
        print_row("compose one canvas, ms", *median_ms(images, source.canvas, lambda i: compose_float64(source, i)))
        write = median_ms(
            images,
            lambda i: canvas_files.save_npz(out / "ours.npz", source.arrays(i)),
            lambda i: save_float64(out / "baseline.npz", source, i),
        )
        print_row("compose and write one npz, ms", *write)
        size = [(out / name).stat().st_size / 1000 for name in ("ours.npz", "baseline.npz")]
        print_row("size of one npz, kB", *size)


def compose_float64(source: recipe.Recipe, i: int) -> np.ndarray:
    """Baseline: digits as floats in [0, 1] added one after another, clipped, rounded; (H, W) uint8."""
    canvas = np.zeros((source.canvas_side,) * 2)
    for digits_of_layer, ys, xs in source.layers(i):
        for digit, y, x in zip(digits_of_layer, ys, xs, strict=True):
            canvas[y : y + digit.shape[0], x : x + digit.shape[1]] += digit / 255
    return np.rint(255 * canvas.clip(0, 1)).astype(np.uint8)


def save_float64(path: Path, source: recipe.Recipe, i: int) -> None:
    """Baseline: a float64 canvas in [0, 1] in NumPy's compressed npz."""
    np.savez_compressed(path, compose_float64(source, i) / 255, source.arrays(i)[1])


def median_ms(images: range, *functions) -> list[float]:
    """Median CPU milliseconds of each function(i), in turns of TURN images, each after a call that does not count."""
    seconds = [[] for _ in functions]
    for first in images[::TURN]:
        for function, its_seconds in zip(functions, seconds, strict=True):
            function(first)
            for i in images[first : first + TURN]:
                start = time.process_time()  # other programs on the core do not count
                function(i)
                its_seconds.append(time.process_time() - start)
    return [1000 * statistics.median(its_seconds) for its_seconds in seconds]


def count_needles(splits: dict) -> int:
    """Needle digits in all splits."""
    return sum(int((labels == 3).sum()) for _, labels in splits.values())


def print_row(name: str, ours: float, baseline: float) -> None:
    """Print one line of the table."""
    print(f"{name:32}{ours:10.2f}{baseline:10.2f}{baseline / ours:7.1f}x", flush=True)


if __name__ == "__main__":
    cli.run(main)
