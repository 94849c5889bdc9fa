"""Training steps of train.py against steps as the first release took them, on canvases of Pawlowski 2019's density.

All versions read their images, and take turns of a few steps. Per row: images/s (median of the turns), the ratio to the
baseline (TF32 off), GFLOP and GB that a step moves per image, the share of the roofline (the least time of every
operator by the machine's measured matrix and copy rates, over the time of the turns) and the peak memory.
"""

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure
import numpy as np
import torch
from baseline import BaselineFiles, BaselineNetwork, BaselineTraining

import train
import train_mnist
from common import cli, processes
from data.cluttered_mnist import dataset, digits, generate_data
from data.loaders import EpochBatches, Loaders, make_loaders, shuffles
from models import needle

STEPS = 4  # in a turn
HEADER = " RF width canvas batch version                | images/s ratio |  GFLOP     GB roofline | peak MB"
ON_CPU = {"ours": []}
EAGER = ["--compile", "off", "--cuda_graph", "off"]
ON_GPU = {
    f"ours {precision} {way}{' eager' * eager}": ["--precision", precision, "--background", way, *EAGER * eager]
    for precision, way, eager in [
        *[("float32", "dense", True), ("float32", "dense", False), ("float32", "rows", False)],
        *[("tf32", "dense", False), ("tf32", "rows", False), ("fp16", "dense", False)],
    ]
}


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--fields", nargs="+", default=["9", "33", "177"], help="receptive fields in px")
    parser.add_argument("--widths", type=int, nargs="+", default=[-2, 0], help="channels times 2^W")
    parser.add_argument("--canvases", type=cli.positive, nargs="+", default=[64, 128, 256, 512, 1024], help="px a side")
    measure.add_flags(parser)
    return measure.parse_args(parser, argv, fields=["33"], widths=[-2], canvases=[64], rounds=1)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select(args.device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rates = measure_rates(device)
    print(HEADER)
    for canvas in args.canvases:
        with tempfile.TemporaryDirectory() as folder:
            images = Images(Path(folder), canvas, args.mnist, device)
            for field in args.fields:
                for width in args.widths:
                    compare(images, field, width, args.rounds, rates)


def measure_rates(device: torch.device) -> dict[str, measure.Rates]:
    """The device's rates at every precision that is compared, also printed."""
    rates = {}
    for precision in ("float32", "tf32", "fp16") if device.type == "cuda" else ("float32",):
        processes.select(str(device), precision)
        found = rates[precision] = measure.Rates.of(device, processes.PRECISIONS[precision] or torch.float32)
        print(f"{found.matrix / 1e9:.0f} GFLOP/s in {precision} matrices, {found.copy / 1e9:.1f} GB/s in copies")
    return rates


class Images:
    """A data set of one canvas size, for the baseline and for train.py, and one batch in memory."""

    def __init__(self, folder: Path, canvas: int, mnist: str, device: torch.device):
        self.folder, self.device = folder, device
        generate = ["--canvas", str(canvas), "--format", "none", "--mnist", mnist, "--out", str(folder)]
        with contextlib.redirect_stdout(io.StringIO()):
            generate_data.main(generate)
        self.batch = measure.make_batch(digits.load(mnist)["train"].images, canvas, device)
        self.batch_size = len(self.batch[0])
        source = dataset.load_splits(self.train_args())["val"].source
        self.files = BaselineFiles(folder, np.stack([source.canvas(i) for i in range(2 * self.batch_size)]))

    def train_args(self, *flags: str):
        """train.py's arguments."""
        fixed = ["--data_path", self.folder, "--logdir", ".", "--device", self.device, "-b", len(self.batch[0])]
        return train_mnist.parse_args([*map(str, fixed), *flags])


@dataclass
class Version:
    """A way to train: `turn()` takes STEPS steps and reads its images, `step()` takes one on the batch in memory.

    counted: the same step, neither compiled nor recorded, so that operators and memory show. kept: its module and
    optimiser. precision: that of matrix products, which is a switch of the whole process.
    """

    name: str
    turn: Callable
    step: Callable
    counted: Callable
    kept: tuple
    precision: str = "float32"


def versions(images: Images, field: str, width: int) -> list[Version]:
    """The baseline first; which others there are depends on the device."""
    on_gpu = images.device.type == "cuda"
    made = [baseline(images, field, width, precision) for precision in ("float32", *["tf32"] * on_gpu)]
    return made + [ours(images, field, width, name, flags) for name, flags in (ON_GPU if on_gpu else ON_CPU).items()]


def baseline(images: Images, field: str, width: int, precision: str) -> Version:
    """The first release's way."""
    network = BaselineNetwork(make_network(field, width)).to(images.device)
    training = BaselineTraining(network)
    batches = images.files.batches(images.batch_size, images.train_args().workers, images.device)

    def turn():
        for _ in range(STEPS):
            training.step(*next(batches))

    def step():
        training.step(*images.batch)

    return Version(f"baseline {precision}", turn, step, step, (network, training.optimizer), precision)


def ours(images: Images, field: str, width: int, name: str, flags: list[str]) -> Version:
    """train.py's own loop, with these flags."""
    args = images.train_args(*flags)
    learner = train.start(make_network(field, width), args, images.device)
    n = STEPS * images.batch_size
    loaders = make_loaders(dataset.load_splits(args), args, images.device, np.arange(n), shuffles(n, seed=0))
    one = EpochBatches(lambda _: np.arange(images.batch_size), images.batch_size, images.batch_size)
    in_memory = Loaders([images.batch], one, {}, "")
    eager = train.start(make_network(field, width), images.train_args(*flags, *EAGER), images.device)
    return Version(
        name,
        lambda: train_epoch(learner, loaders),
        lambda: train_epoch(learner, in_memory),
        lambda: train_epoch(eager, in_memory),
        (eager.model, eager.optimizer),
        args.precision,
    )


def train_epoch(learner: train.Learner, loaders: Loaders) -> None:
    """Take an epoch's steps."""
    learner.model.train()
    for batches in loaders.steps(epoch=0, accumulation=1):
        train.step(learner, batches)


def make_network(field: str, width: int):
    """The network of all versions, with the same weights."""
    processes.seed_everything(0)
    return needle.build_model(needle.ModelConfig(1, needle.parse_kernel3(field), width))


def compare(images: Images, field: str, width: int, rounds: int, rates: dict[str, measure.Rates]) -> None:
    """Print a row per version."""
    canvas, batch_size = images.batch[0].shape[-1], images.batch_size
    start = f"{field:>3} {width:5} {canvas:6} {batch_size:5}"
    try:
        competing = versions(images, field, width)
        costs = [cost(version, images, rates[version.precision]) for version in competing]
        turns = [with_precision(version, version.turn, images.device) for version in competing]
        seconds = measure.seconds_in_turns(turns, rounds, images.device) / STEPS
    except (MemoryError, RuntimeError) as error:
        if not cli.is_out_of_memory(error):
            raise
        return print(f"{start} out of memory", flush=True)
    for version, taken, (line, peak) in zip(competing, seconds.T, costs, strict=True):
        ratio = np.median(seconds[:, 0] / taken)
        print(
            f"{start} {version.name:22} | {batch_size / np.median(taken):8.1f} {ratio:5.2f} | "
            f"{line.flops / 1e9 / batch_size:6.2f} {line.bytes / 1e9 / batch_size:6.2f} "
            f"{line.seconds / np.median(taken):8.0%} | {peak / 1e6:7.0f}",
            flush=True,
        )


def cost(version: Version, images: Images, rates: measure.Rates) -> tuple[measure.Roofline, int]:
    """What one step costs by the roofline, and its peak memory in bytes."""
    step = with_precision(version, version.counted, images.device)
    _, optimizer = version.kept
    while not optimizer.state:  # fp16's loss scaler skips steps at first
        step()
    with measure.Roofline(rates) as line:
        step()
    return line, measure.peak_bytes(step, images.device, *version.kept, *images.batch)


def with_precision(version: Version, work: Callable, device: torch.device) -> Callable:
    """The work, after the process was switched to the version's precision."""

    def switched():
        processes.select(str(device), version.precision)
        work()

    return switched


if __name__ == "__main__":
    cli.run(main)
