"""How many images a second the loaders give, beside what a training step takes, on nMNIST canvases and on crops.

Loaders run alone over some batches, with train.py's default of worker processes; the step is train.py's, on a batch in
memory. The last column is the default loader over the step: above 1, input does not limit. On a CPU both share cores.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure
import numpy as np
import torch
from bench_training import Images, ours
from torch.utils.data import BatchSampler, DataLoader

import train_camelyon
from common import cli, graphs, processes
from data import loaders
from data.camelyon.dataset import CamelyonCrops
from data.cluttered_mnist import dataset

BATCHES = 16  # of each loader


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--field", default="33", help="receptive field of the step in px")
    parser.add_argument("--width", type=int, default=-2, help="channels times 2^W of the step")
    parser.add_argument("--canvases", type=cli.positive, nargs="+", default=[64, 128, 256, 512, 1024], help="px a side")
    parser.add_argument("--sizes", type=cli.positive, nargs="+", default=[128, 256, 512], help="px a side of the crops")
    measure.add_flags(parser)
    return measure.parse_args(parser, argv, canvases=[64], sizes=[128], rounds=1)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select(args.device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; images/s")
    print("canvas | baseline files  recipe by workers  recipe on the device |     step  default/step")
    for canvas in args.canvases:
        with tempfile.TemporaryDirectory() as folder:
            canvas_row(Images(Path(folder), canvas, args.mnist, device), args)
    print(" crops |           files")
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            crops = write_crops(Path(folder), size, 64)
            flags = ["--pos_path", folder, "--neg_path", folder, "--logdir", "."]
            loader = loaders.ordered_loader(crops, train_camelyon.parse_args(flags), device)
            print(f"{size:6} | {len(crops) / turn_seconds([loader], args.rounds, device)[0]:15.0f}", flush=True)


def canvas_row(images: Images, args) -> None:
    """Measure the loaders of one canvas size and the step that they feed, and print."""
    data, flags, n = dataset.load_splits(images.train_args())["train"], images.train_args(), images.batch_size
    order = BatchSampler(range(BATCHES * n), n, drop_last=False)
    files = [i % len(images.files) for i in range(BATCHES * n)]
    sources = [
        DataLoader(images.files, n, sampler=files, num_workers=flags.workers, persistent_workers=True),
        loaders.ordered_loader(data, flags, torch.device("cpu"), np.arange(BATCHES * n)),
        data.batches_on(images.device, order),
    ]
    speeds = BATCHES * n / turn_seconds(sources, args.rounds, images.device)
    step = ours(images, args.field, args.width, "ours", []).step
    for _ in range(graphs.WARM_UP + 1):
        step()
    step_speed = n / np.median(measure.seconds_in_turns([step], args.rounds, images.device))
    default = speeds[2 if images.device.type == "cuda" else 1]
    print(
        f"{images.batch[0].shape[-1]:6} | {speeds[0]:14.0f} {speeds[1]:18.0f} {speeds[2]:21.0f} | "
        f"{step_speed:8.1f} {default / step_speed:13.1f}",
        flush=True,
    )


def turn_seconds(sources: list, rounds: int, device: torch.device) -> np.ndarray:
    """Median seconds in which each loader gives all its batches."""
    works = [lambda source=source: [None for _ in source] for source in sources]
    return np.median(measure.seconds_in_turns(works, rounds, device), axis=0)


def write_crops(folder: Path, size: int, pairs: int) -> CamelyonCrops:
    """A data set of noise as the extractor stores crops."""
    rng = np.random.default_rng(0)
    names = [[f"slide_3_1_{i}_img.npy" for i in range(pairs)], [f"slide_3_{i}.npy" for i in range(pairs)]]
    for name in names[0] + names[1]:
        np.save(folder / name, rng.integers(0, 256, (size, size, 3), np.uint8))
    return CamelyonCrops(folder, names[0], folder, names[1], seed=0)


if __name__ == "__main__":
    cli.run(main)
