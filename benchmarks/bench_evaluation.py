"""What evaluation and saliency cost above the passes through the network that they need, on nMNIST canvases.

evaluation: `train.evaluate`, images read from the recipe, over bare forward passes on images in memory; beside it an
evaluation as the first release ran it, forward and backward. saliency: `predict_saliency.explain`, maps and scores
written to disk, over bare forward and backward passes. Seconds are medians of turns, ratios of seconds. Worker
processes start before the turns of evaluation; saliency, which would start them in every turn, has none.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure
import numpy as np
import torch
from baseline import BaselineNetwork, BaselineTraining
from bench_training import Images, make_network

import predict_saliency
import train
from common import cli, processes
from data import loaders
from data.cluttered_mnist import dataset
from models.saliency import saliency_maps

HEADER = """                       |      evaluation, seconds over a forward pass | saliency, over a
 RF width canvas batch |    ours  baseline  (forward pass, images/s) | forward and backward"""


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", nargs="+", default=["9", "33", "177"], help="receptive fields in px")
    parser.add_argument("--width", type=int, default=-2, help="channels times 2^W")
    parser.add_argument("--canvases", type=cli.positive, nargs="+", default=[64, 256, 512], help="px a side")
    parser.add_argument("--batches", type=cli.positive, help="of a turn (without the flag: 8, on a GPU 64)")
    measure.add_flags(parser)
    return measure.parse_args(parser, argv, fields=["33"], canvases=[64], batches=4, rounds=1)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select(args.device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n{HEADER}")
    for canvas in args.canvases:
        with tempfile.TemporaryDirectory() as folder:
            images = Images(Path(folder), canvas, args.mnist, device)
            # scoring takes milliseconds, which a few batches on a GPU would not outweigh
            data = turn_images(images, args.batches or (64 if device.type == "cuda" else 8))
            for field in args.fields:
                row(images, data, field, args.width, args.rounds)


def turn_images(images: Images, batches: int) -> dataset.ClutteredMNIST:
    """The validation images of a turn, repeated if there are fewer."""
    data = dataset.load_splits(images.train_args())["val"]
    chosen = np.resize(np.arange(len(data)), batches * images.batch_size)
    data.numbers, data.labels, data.positions = data.numbers[chosen], data.labels[chosen], data.positions[chosen]
    data.names = [data.names[i] for i in chosen]
    return data


def row(images: Images, data: dataset.ClutteredMNIST, field: str, width: int, rounds: int) -> None:
    """Measure one network and print."""
    works = [*evaluations(images, data, field, width), *saliencies(images, data, field, width)]
    seconds = measure.seconds_in_turns(works, rounds, images.device)
    ours, baseline, saliency = (np.median(seconds[:, i] / seconds[:, j]) for i, j in ((1, 0), (2, 0), (4, 3)))
    speed = len(data) / np.median(seconds[:, 0])
    print(
        f"{field:>3} {width:5} {images.batch[0].shape[-1]:6} {images.batch_size:5} | "
        f"{ours:7.2f} {baseline:9.2f} {speed:26.1f} | {saliency:20.2f}",
        flush=True,
    )


def evaluations(images: Images, data: dataset.ClutteredMNIST, field: str, width: int) -> list:
    """Bare forward passes, an evaluation, the baseline's, of the same number of images."""
    model = make_network(field, width).to(images.device).eval()
    args, training = images.train_args(), BaselineTraining(BaselineNetwork(model))
    loader = loaders.ordered_loader(data, args, images.device)
    in_memory = [pixels.to(images.device) for pixels, _ in loader]
    batches = images.files.batches(images.batch_size, args.workers, images.device)

    @torch.inference_mode()
    def forward():
        for pixels in in_memory:
            model(pixels)

    def baseline():
        for _ in in_memory:
            training.evaluate(*next(batches))

    return [forward, lambda: train.evaluate(model, loader, images.device), baseline]


def saliencies(images: Images, data: dataset.ClutteredMNIST, field: str, width: int) -> list:
    """Bare forward and backward passes for saliency, and the same with everything that is read and written."""
    model = make_network(field, width).to(images.device).eval()
    args = images.train_args("--workers", "0")
    maps = predict_saliency.MapFolder(images.folder, "val", {}, images.batch_size)
    model.requires_grad_(False)
    in_memory = [pixels.to(images.device) for pixels, _ in loaders.ordered_loader(data, args, images.device)]

    def bare():
        for pixels in in_memory:
            saliency_maps(model, pixels)

    def explain():
        maps.rows.clear()
        predict_saliency.explain(model, data, maps, images.device, args, 1.0)

    return [bare, explain]


if __name__ == "__main__":
    cli.run(main)
