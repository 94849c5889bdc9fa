"""Detectors: training steps of DPA against a straightforward loop, and scoring of tiles in batches against one by one.

Training: the baseline computes VGG's features of images and of reconstructions with a graph each. Ours leaves the graph
of the images away, and keeps the features of images that never change. All versions take turns of a few steps; VGG has
random weights, which take as long. Scoring: tile after tile, and in batches, with the main memory that these take.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure
import numpy as np
import torch

import common  # noqa: F401
import train_anomaly
from anomaly import dpa
from anomaly.scoring import score_images
from common import cli, processes
from models import perceptual

STEPS = 3  # in a turn


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--tile", type=cli.positive, default=64, help="px a side")
    parser.add_argument("--layer", default="r42", help="layer of VGG19")
    parser.add_argument("-b", "--batch_size", type=cli.positive, default=32, help="images of a step, tiles of a batch")
    parser.add_argument("--sides", type=cli.positive, nargs="+", default=[512, 1024, 2048], help="px of scored images")
    measure.add_turn_flags(parser)
    return measure.parse_args(parser, argv, tile=16, layer="r12", batch_size=4, sides=[48, 96], rounds=1)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select(args.device)
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; tiles of {args.tile} px, {args.layer}"
    )
    compare_training(args, device)
    compare_scoring(args, device)


def make_learner(args, device: torch.device) -> dpa.Learner:
    """DPA as the settings of CAMELYON16 have it, ready for the first stage."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--method", "dpa", "--photos", folder, "--logdir", folder, "--tile", args.tile, "--layer", args.layer]
        flags += ["-b", args.batch_size, "--vgg_weights", "random", "--latent_res", max(4, args.tile // 8)]
        train_args = train_anomaly.parse_args([*map(str, flags)])
    processes.seed_everything(0)
    learner = dpa.Learner(dpa.Detector(train_args, 3).to(device), train_args, device)
    learner.stage = learner.detector.epochs[0].stage
    return learner


def compare_training(args, device: torch.device) -> None:
    """Print a row per version of a training step."""
    tiles, images = torch.rand(args.batch_size, 3, args.tile, args.tile, device=device), torch.arange(args.batch_size)
    plain, cached, baseline = (make_learner(args, device) for _ in range(3))
    cached.cache = dpa.References(cached.detector.reference(2 * tiles - 1))
    works = {
        "baseline": lambda: baseline_step(baseline, tiles),
        "images that change": lambda: plain.step(tiles, images, 1.0),
        "images that never change": lambda: cached.step(tiles, images, 1.0),
    }
    seconds = measure.seconds_in_turns([turn(work) for work in works.values()], args.rounds, device) / STEPS
    print("training step            | images/s ratio")
    for name, taken in zip(works, seconds.T, strict=True):
        ratio = np.median(seconds[:, 0] / taken)
        print(f"{name:24} | {args.batch_size / np.median(taken):8.1f} {ratio:5.2f}", flush=True)


def turn(work):
    def steps():
        for _ in range(STEPS):
            work()

    return steps


def baseline_step(learner: dpa.Learner, tiles: torch.Tensor) -> torch.Tensor:
    """The same step, the features of images and reconstructions both computed with a graph; returns its loss."""
    detector = learner.detector
    x = (2 * tiles - 1).requires_grad_()
    fx, fy = detector.perceptual(x), detector.perceptual(detector.autoencoder(x))
    loss = 0
    for tap, weight in detector.layers[tiles.shape[-1]].items():
        scale = fx[tap].detach().abs().mean((1, 2, 3)) + perceptual.EPSILON
        loss = loss + weight * ((fx[tap] - fy[tap]).abs().mean((1, 2, 3)) / scale).mean()
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    learner.optimizer.step()
    return loss.detach()


def compare_scoring(args, device: torch.device) -> None:
    """Print a row per image size: images/s tile by tile and in batches, and the memory that the latter takes."""
    detector = make_learner(args, device).detector.eval()
    print("scoring | tiles | images/s, one by one     ours ratio | peak MB above the image")
    for side in args.sides:
        image, tiles = torch.rand(3, side, side), len(range(0, side - args.tile + 1, args.tile // 2)) ** 2
        sizes = (1, args.batch_size) if side == args.sides[0] else (args.batch_size,)  # one by one takes too long
        works = [lambda size=size, image=image: score_all(detector, image, args.tile, size) for size in sizes]
        seconds = np.median(measure.seconds_in_turns(works, min(args.rounds, 2), device), axis=0)
        peak = f"{measure.resident_peak(prepare_scoring, args, side) / 2**20:.0f}" if device.type == "cpu" else "-"
        one, ratio = (f"{1 / seconds[0]:.3f}", f"{seconds[0] / seconds[-1]:.2f}") if len(sizes) > 1 else ("-", "-")
        print(f"{side:4} px | {tiles:5} | {one:>20} {1 / seconds[-1]:8.3f} {ratio:>5} | {peak:>7}", flush=True)


def score_all(detector: dpa.Detector, image: torch.Tensor, tile: int, batch_size: int) -> np.ndarray:
    """The map of one image."""
    device = next(detector.parameters()).device
    images = [(image, "image")]
    (found,) = score_images(images, tile, tile // 2, batch_size, lambda tiles: dpa.score(detector, tiles.to(device)))
    return found.map()


def prepare_scoring(args, side: int) -> tuple:
    """The scoring of one image as a function, and what lies in memory before."""
    torch.set_num_threads(1)
    detector, image = make_learner(args, torch.device("cpu")).detector.eval(), torch.rand(3, side, side)
    score_all(detector, image[:, : args.tile, : args.tile], args.tile, 1)  # libraries are loaded
    return lambda: score_all(detector, image, args.tile, args.batch_size), detector, image


if __name__ == "__main__":
    cli.run(main)
