"""Peak memory of a training step of one image by canvas size, with and without --checkpoint_activations.

counted: all tensors of the plain network's step, on PyTorch's device without memory; what operators use inside is not
in it. measured: on a GPU what PyTorch took from it, on a CPU what a process of its own had resident above its
start; where the count says that it does not fit, it is not tried.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure
import torch
import torch.nn.functional as F
from bench_training import make_network

from common import cli, processes

INDEX_LIMIT = 2**31  # elements that 32-bit indices reach


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--field", default="33", help="receptive field in px")
    parser.add_argument("--width", type=int, default=0, help="channels times 2^W")
    canvases = [64, 128, 256, 512, 1024, 2048, 4096, 6144]
    parser.add_argument("--canvases", type=cli.positive, nargs="+", default=canvases, help="px a side")
    measure.add_flags(parser)
    return measure.parse_args(parser, argv, canvases=[256])


def main(argv=None):
    args = parse_args(argv)
    device = processes.select(args.device)
    print(f"receptive field {args.field}, width {args.width}, batch 1, float32; GiB")
    print(f"       | counted              | measured on {device}")
    print("canvas | all kept  recomputed | all kept  recomputed | largest tensor, elements")
    for canvas in args.canvases:
        counted = [peak(args, canvas, torch.device("meta"), recompute) for recompute in (False, True)]
        measured = [measure_if_fits(args, canvas, device, r, counted[r]) for r in (False, True)]
        largest = make_network(args.field, args.width).cnn.conv1.out_channels * canvas**2
        beyond = "  beyond 32-bit indices" if largest > INDEX_LIMIT else ""
        print(
            f"{canvas:6} | {counted[0]:8.2f} {counted[1]:11.2f} | {measured[0]:>8} {measured[1]:>11} | "
            f"{largest:.2e}{beyond}",
            flush=True,
        )


def measure_if_fits(args, canvas: int, device: torch.device, recompute: bool, counted: float) -> str:
    """The peak in GiB where the count fits into the memory that is free."""
    if counted * 2**30 > measure.free_memory(device):
        return "no room"
    try:
        if device.type == "cuda":
            return f"{peak(args, canvas, device, recompute):.2f}"
        return f"{measure.resident_peak(step_of, args, canvas, device, recompute) / 2**30:.2f}"
    except RuntimeError as error:
        if cli.is_out_of_memory(error):
            return "no room"
        print(f"{canvas} px: {error}", file=sys.stderr)
        return "fails"


def peak(args, canvas: int, device: torch.device, recompute: bool) -> float:
    """GiB that the tensors of one step take."""
    step, *kept = step_of(args, canvas, device, recompute)
    return measure.peak_bytes(step, device, *kept) / 2**30


def step_of(args, canvas: int, device: torch.device, recompute: bool) -> tuple:
    """One step of RMSprop on one image, as a function, and what lies in memory before: model, optimiser, image."""
    model = make_network(args.field, args.width).to(device)
    model.cnn.recompute, model.background = recompute, "dense"
    optimizer = torch.optim.RMSprop(model.parameters(), 5e-5)
    image, label = torch.zeros(1, 1, canvas, canvas, device=device), torch.zeros(1, dtype=torch.long, device=device)

    def step():
        F.cross_entropy(model(image), label).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, model, optimizer, image


if __name__ == "__main__":
    cli.run(main)
