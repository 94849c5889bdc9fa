"""Training-step speed of train.py against a baseline that steps as the first release did, on nMNIST canvases.

Both take the same batches from memory, in turns. Per row: images/s (median of the rounds) of baseline and ours, their
ratio, GFLOP of a step per image, MB kept per image for the backward pass, and the share of the machine's float32 matrix
rate that our step reaches.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from baseline import BaselineNetwork, BaselineTraining
from torch.utils.flop_counter import FlopCounterMode

import models
import train
import train_mnist
from common import cli, device
from data.cluttered_mnist import digits, placements, render
from data.loaders import EpochBatches, Loaders

PIXELS = 32 * 128**2  # of a batch, but at most 32 images
COLUMNS = """                       |      images/s            |   GFLOP/image     |     MB/image    | matrix
 RF width canvas batch | baseline     ours ratio | baseline     ours |   base     ours |  rate"""


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--mnist", default=digits.default_source(), help="folder of MNIST files, or 'digits'")
    parser.add_argument("--fields", nargs="+", default=["9", "33", "177"], help="receptive fields in px")
    parser.add_argument("--widths", type=int, nargs="+", default=[-2], help="channels times 2^W")
    parser.add_argument("--canvases", type=cli.positive, nargs="+", default=[64, 128, 256, 512], help="px a side")
    parser.add_argument("--rounds", type=cli.positive, default=5, help="steps of each version, after one to warm up")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    where = device.select(args.device)
    bank, rate = digits.load(args.mnist)["train"].images, matrix_rate(where)
    print(
        f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, {rate / 1e9:.0f} GFLOP/s in matrices"
    )
    print(COLUMNS)
    for field in args.fields:
        for width in args.widths:
            for canvas in args.canvases:
                batch = make_batch(bank, canvas, where)
                try:
                    print(row(field, width, batch, args.rounds, where, rate), flush=True)
                except (MemoryError, RuntimeError) as error:
                    if not cli.is_out_of_memory(error):
                        raise
                    print(f"{field:>3} {width:5} {canvas:6}   out of memory", flush=True)


def make_batch(bank: np.ndarray, canvas: int, where: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 1, canvas, canvas) of clutter at the paper's density, and labels (B,)."""
    rng, n = np.random.default_rng(0), placements.default_clutter(canvas)
    size = min(32, max(1, PIXELS // canvas**2))
    layers = [(bank[rng.integers(len(bank), size=n)], *rng.integers(canvas - 28, size=(2, n))) for _ in range(size)]
    images = np.stack([render.compose(canvas, layer) for layer in layers])
    return torch.from_numpy(images[:, None]).to(where).float() / 255, torch.arange(size, device=where) % 2


def row(field: str, width: int, batch, rounds: int, where: torch.device, rate: float) -> str:
    """Measure one configuration."""
    steps = baseline_step(field, width, batch, where), our_step(field, width, batch)
    flops = [count_flops(step) for step in steps]
    kept = [count_kept_bytes(step) for step in steps]
    seconds = np.array([[timed(step, where) for step in steps] for _ in range(rounds)])
    images = len(batch[0])
    speeds = images / np.median(seconds, axis=0)
    ratio = statistics.median(seconds[:, 0] / seconds[:, 1])
    gflops, megabytes = (np.array(values) / images / scale for values, scale in ((flops, 1e9), (kept, 1e6)))
    return (
        f"{field:>3} {width:5} {batch[0].shape[-1]:6} {images:5} | {speeds[0]:8.1f} {speeds[1]:8.1f} {ratio:5.2f} | "
        f"{gflops[0]:8.2f} {gflops[1]:8.2f} | {megabytes[0]:7.1f} {megabytes[1]:7.1f} | "
        f"{gflops[1] * 1e9 * speeds[1] / rate:5.0%}"
    )


def baseline_step(field: str, width: int, batch, where: torch.device):
    """A function that takes one step of the baseline."""
    network = BaselineNetwork(make_network(field, width)).to(where)
    training = BaselineTraining(network)
    return lambda: training.step(*batch)


def our_step(field: str, width: int, batch):
    """A function that takes one step of train.py, by its own loop."""
    images, labels = batch
    flags = ["--data_path", ".", "--logdir", ".", "--device", str(images.device)]
    run = train.start(make_network(field, width), train_mnist.parse_args(flags), images.device)
    batches = EpochBatches(lambda _: np.arange(len(images)), len(images), len(images))
    loaders = Loaders([(images, labels)], batches, {}, "")
    return lambda: train.train_epoch(run, loaders, 0)


def make_network(field: str, width: int):
    """The network of both versions, with the same weights."""
    device.seed_everything(0)
    return models.build_model(models.ModelConfig(1, models.parse_kernel3(field), width))


def count_flops(step) -> int:
    """Floating-point operations of matrix products and convolutions in one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def count_kept_bytes(step) -> int:
    """Bytes of the distinct tensors that autograd keeps for the backward pass of one step."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr(), tensor._version] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(kept.values())


def timed(step, where: torch.device) -> float:
    """Seconds of one step."""
    synchronize(where)
    start = time.perf_counter()
    step()
    synchronize(where)
    return time.perf_counter() - start


def synchronize(where: torch.device) -> None:
    """Wait for the device."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def matrix_rate(where: torch.device, side: int = 2048) -> float:
    """FLOP per second of float32 matrix products on the device, the best of five."""
    a = torch.rand(side, side, device=where)
    return 2 * side**3 / min(timed(lambda: a @ a, where) for _ in range(5))


if __name__ == "__main__":
    cli.run(main)
