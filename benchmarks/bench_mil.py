"""How fast tiles are embedded, by batches across bags or one bag at a time, and how fast bags train.

embedding: tiles of 64 px of canvases of 128 px, four a bag, read from memory; the ratio is of the seconds that the
same tiles take bag by bag. training: DSMIL steps on features of 512 numbers. Seconds are medians of turns.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure
import numpy as np
import torch

from common import cli, processes, runfolder
from mil import bags, rounds
from models import bagnet, dsmil, embedders, needle

PER_BAG, TILE, DIM = 4, 64, 512


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--tile_batch", type=cli.positive, default=64, help="tiles embedded at a time across bags")
    parser.add_argument("--bags", type=cli.positive, default=64, help="bags of a turn")
    parser.add_argument("--large", type=cli.positive, default=100_000, help="instances of a large bag")
    measure.add_turn_flags(parser)
    return measure.parse_args(parser, argv, bags=8, large=1000, rounds=1)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select(args.device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with torch.inference_mode():
        for name, embedder in {"squeezenet": squeezenet(), "bagnet RF 33 width -2": bagnet_embedder()}.items():
            embedding(name, embedder.to(device), args, device)
    for size, step, n in ((PER_BAG, 1, args.bags), (PER_BAG, 8, args.bags), (args.large, 1, 2)):
        training(size, step, n, args, device)


def squeezenet():
    """Its weights have no part in its speed."""
    flags = argparse.Namespace(embedder="squeezenet", embedder_weights="random", weights_input=None)
    return embedders.build(flags)


def bagnet_embedder():
    """The extractor of a classifier, which has not learnt anything."""
    model = needle.build_model(needle.ModelConfig(in_channels=1, width=-2))
    return embedders.Embedder("bagnet", model.cnn, model.cnn.out_channels, bagnet.MIN_SIDE, {}, in_channels=1)


def embedding(name: str, embedder, args, device) -> None:
    """Measure one embedder and print."""
    tiles = torch.rand(args.bags * PER_BAG, 1, TILE, TILE, device=device)

    def by(size):
        return lambda: [embedder(batch) for batch in tiles.split(size)]

    seconds = measure.seconds_in_turns([by(args.tile_batch), by(PER_BAG)], args.rounds, device)
    ratio, speed = np.median(seconds[:, 1] / seconds[:, 0]), len(tiles) / np.median(seconds[:, 0])
    print(
        f"embedding, {name}: {speed:.0f} tiles/s in batches of {args.tile_batch}, {speed / PER_BAG:.0f} bags/s; "
        f"{ratio:.2f} times bag by bag",
        flush=True,
    )


def training(size: int, step: int, n: int, args, device) -> None:
    """Measure an epoch of n bags of a size, some of them a step, and print."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as logdir:
        parser = cli.ArgumentParser()
        rounds.add_flags(parser)
        runfolder.add_flags(parser)
        parser.set_defaults(seed=0)
        flags = parser.parse_args(["--logdir", logdir, "--bags_per_step", str(step)])
    made = bags.Bags(
        list(map(str, range(n))),
        np.arange(n) % 2,
        [rng.random((size, DIM), np.float32) for _ in range(n)],
        [bags.unplaced(size)] * n,
        [np.zeros(size, np.int8)] * n,
    )
    model = dsmil.DSMIL(DIM).to(device)
    optimizer = torch.optim.Adam(model.parameters(), flags.lr_mil)

    def epoch():
        for chosen in rounds.epoch_steps(made.labels, flags, 0):
            rounds.step(model, optimizer, made, chosen, flags, device)

    seconds = np.median(measure.seconds_in_turns([epoch], args.rounds, device))
    print(f"training, bags of {size:,}, {step} a step: {n / seconds:.2f} bags/s, {n * size / seconds:,.0f} tiles/s")


if __name__ == "__main__":
    cli.run(main)
