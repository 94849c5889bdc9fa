"""What the benchmarks share: flags, seconds of turns, peak memory, FLOPs, bytes, the roofline."""

import argparse
import multiprocessing
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from common import cli, processes
from data.cluttered_mnist import digits, placements, render

MEMORY, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
PIXELS = 32 * 128**2  # of a batch, but at most 32 images


def add_flags(parser) -> None:
    """Declare `--mnist`, `--rounds` and `--device`."""
    parser.add_argument("-m", "--mnist", default=digits.default_source(), help="folder of MNIST files, or 'digits'")
    add_turn_flags(parser)


def add_turn_flags(parser) -> None:
    """Declare `--rounds` and `--device`."""
    parser.add_argument("--rounds", type=cli.positive, default=5, help="turns of each version, after one to warm up")
    processes.add_device_flag(parser)


def parse_args(parser, argv, **quick) -> argparse.Namespace:
    """The flags, among them `--quick`, with which other defaults hold, to get a row within a minute."""
    parser.add_argument("--quick", action="store_true", help="one row within a minute, where no flag asks for more")
    if "--quick" in (sys.argv[1:] if argv is None else argv):
        parser.set_defaults(**quick)
    return parser.parse_args(argv)


def make_batch(bank: np.ndarray, canvas: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 1, canvas, canvas) of clutter at Pawlowski 2019's density, and labels (B,)."""
    rng, n = np.random.default_rng(0), placements.default_clutter(canvas)
    size = min(32, max(1, PIXELS // canvas**2))
    layers = [(bank[rng.integers(len(bank), size=n)], *rng.integers(canvas - 28, size=(2, n))) for _ in range(size)]
    images = np.stack([render.compose(canvas, layer) for layer in layers])
    return torch.from_numpy(images[:, None]).to(device).float() / 255, torch.arange(size, device=device) % 2


def seconds_in_turns(works: list, rounds: int, device: torch.device) -> np.ndarray:
    """Seconds of every work() in every round, (rounds, works), after one call of each that does not count."""
    for work in works:
        work()
    return np.array([[timed(work, device) for work in works] for _ in range(rounds)])


def timed(work, device: torch.device) -> float:
    """Seconds of one call, the device's part included."""
    _synchronize(device)
    start = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Rates:
    """What the device reaches: matrix products in FLOP/s, copies in bytes read and written per second."""

    matrix: float
    copy: float

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype = torch.float32) -> "Rates":
        """Measure them for a type of numbers, the best of five each."""
        side, length = (8192, 2**28) if device.type == "cuda" else (2048, 2**26)  # milliseconds or more
        a, b = torch.rand(side, side, device=device, dtype=dtype), torch.rand(length, device=device)
        target = torch.empty_like(b)
        matrix = 2 * len(a) ** 3 / min(timed(lambda: a @ a, device) for _ in range(5))
        return cls(matrix, 2 * b.nbytes / min(timed(lambda: target.copy_(b), device) for _ in range(5)))


class Roofline(TorchDispatchMode):
    """Counts what the operators called inside cost if none is fused with another.

    flops: of matrix products and convolutions. bytes: all tensors read and written. seconds: the least time, summed
    over operators of what limits each, its FLOPs or its bytes.
    """

    def __init__(self, rates: Rates):
        super().__init__()
        self.rates, self.flops, self.bytes, self.seconds = rates, 0, 0, 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not _is_view(func):
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
            moved = sum(t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor))
            self.flops, self.bytes = self.flops + flops, self.bytes + moved
            self.seconds += max(flops / self.rates.matrix, moved / self.rates.copy)
        return out


def _is_view(func):
    """Whether an operator's results are its inputs, seen in another way, or memory that nothing was written to."""
    aliases = [result.alias_info for result in func._schema.returns]
    if any(a is not None and not a.is_write for a in aliases):
        return True
    return "empty" in func._schema.name or func is torch.ops.aten._unsafe_view.default


def peak_bytes(work, device: torch.device, *kept) -> int:
    """The most memory that tensors take during work(), the `kept` ones (modules, optimisers, tensors) included.

    A GPU is asked; elsewhere the tensors are counted, without what operators use inside.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        others = torch.cuda.memory_allocated(device) - sum(t.nbytes for thing in kept for t in _tensors(thing))
        work()
        return torch.cuda.max_memory_allocated(device) - others
    tracker = MemTracker()
    tracker.track_external(*kept)
    with tracker:
        work()
    return tracker.get_tracker_snapshot("peak")[device]["Total"]


def _tensors(kept):
    """The tensors of a module, with their gradients, or an optimiser; or the tensor itself."""
    if isinstance(kept, torch.nn.Module):
        return [t for p in kept.parameters() for t in (p, p.grad) if t is not None]
    if isinstance(kept, torch.optim.Optimizer):
        return [t for t in tree_leaves(list(kept.state.values())) if isinstance(t, torch.Tensor)]
    return [kept]


def free_memory(device: torch.device) -> int:
    """Bytes that tensors on the device could still take."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what PyTorch holds of earlier steps
        return torch.cuda.mem_get_info(device)[0]
    if not MEMORY.exists():  # on macOS
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _kibibytes(MEMORY, "MemAvailable")


def most_resident() -> int:
    """The most bytes of main memory that this process has had."""
    if not STATUS.exists():  # on macOS, which counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _kibibytes(STATUS, "VmHWM")  # Linux's ru_maxrss is at least that of the process before this one


def _kibibytes(path, name):
    return int(path.read_text().split(f"{name}:")[1].split()[0]) * 1024


def resident_peak(prepare, *args) -> int:
    """Bytes by which main memory grows while the first of what prepare(*args) returns is called, in a new process."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_resident_peak, args=(results, prepare, args))
    process.start()
    process.join()
    if process.exitcode:
        killed = process.exitcode == -signal.SIGKILL
        raise RuntimeError("out of memory" if killed else f"the process ended with exit code {process.exitcode}")
    return results.get()


def _resident_peak(results, prepare, args):
    before = most_resident()
    work, *_kept = prepare(*args)
    work()
    results.put(most_resident() - before)
