"""Where the arithmetic runs: CPU, one GPU or several processes (torchrun); its precision; its random state."""

import contextlib
import functools
import os
import random

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from common import cli, tf32
from common.errors import BadInput, WorkFailed

LAUNCHED = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # in the environment of torchrun's processes
PRECISIONS = {"float32": None, "tf32": None, "fp16": torch.float16, "bf16": torch.bfloat16}  # autocast type


def add_flags(parser) -> None:
    """Declare `--device`, `--precision` and `--deterministic`."""
    add_device_flag(parser)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="float32 computes as Pawlowski 2019 did; tf32, fp16 (with loss scaling) and bf16 are less exact and, on "
        "a GPU, faster (a CPU emulates tf32, slowly)",
    )
    cli.neutral(
        parser.add_argument(
            "--deterministic", action="store_true", help="on a GPU: the same bits in every run, at some cost in speed"
        )
    )


def add_device_flag(parser) -> None:
    """Declare `--device`."""
    cli.neutral(
        parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N")
    )


def select(name: str, precision: str = "float32", deterministic: bool = False) -> torch.device:
    """The device called `name`, a GPU with its index; switches TF32, and joins the processes torchrun started.

    BadInput when there is no such device, or when these processes would share one GPU.
    """
    launched = os.environ.keys() >= LAUNCHED
    if launched and name.startswith("cuda:"):
        raise BadInput(f"--device {name}: torchrun gives every process a GPU of its own; leave the flag out")
    if name.split(":")[0] not in ("auto", "cpu", "cuda"):
        raise BadInput(f"--device {name}: expected cpu or cuda, cuda:N or auto")
    _set_deterministic(deterministic)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if name == "cuda":  # without an index it is a GPU to some functions of PyTorch and an error to others
            name = f"cuda:{os.environ.get('LOCAL_RANK') or torch.cuda.current_device()}"
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {name}: cannot be used: {str(error).splitlines()[0]}") from None
    _set_tf32(precision == "tf32")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launched and not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        except ValueError as error:
            raise BadInput(f"{', '.join(sorted(LAUNCHED))}: not as torchrun sets them ({error}); unset them") from None
    return device


def select_alone(command: str, name: str, precision: str = "float32", deterministic: bool = False) -> torch.device:
    """The device as `select` finds it, of a command that runs in one process; BadInput when torchrun began several."""
    if os.environ.keys() >= LAUNCHED and os.environ["WORLD_SIZE"] != "1":
        raise BadInput(f"{command} runs in one process: start it without torchrun")
    return select(name, precision, deterministic)


def _set_deterministic(on):
    """Let cuDNN, cuBLAS and PyTorch's own kernels take the ways that add in a fixed order, or refuse to compute."""
    if on == torch.are_deterministic_algorithms_enabled():
        return  # use_deterministic_algorithms imports a compiler even when nothing changes
    if on:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when the first product is computed
    torch.backends.cudnn.deterministic = on
    torch.use_deterministic_algorithms(on)


def _set_tf32(on):
    """PyTorch computes convolutions in TF32 on a GPU unless told otherwise.

    By the switches of old, which set those of 2.9 too: its compiler reads the old ones, an error after the new alone.
    """
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def uses_tf32() -> bool:
    """Whether a GPU computes in TF32, as select() has switched it."""
    return torch.backends.cuda.matmul.allow_tf32


def autocast(device: torch.device, precision: str):
    """Context of forward passes: autocast for fp16 and bf16, on a CPU an emulation for tf32, else nothing.

    Autocast keeps no rounded weights, which optimisers change meanwhile.
    """
    if precision == "tf32" and device.type == "cpu":
        return tf32.Emulation()
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, cache_enabled=False) if dtype else contextlib.nullcontext()


@contextlib.contextmanager
def exact_products(device: torch.device):
    """Matrix products in whole float32, whatever autocast and TF32 say around it."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.allow_tf32 = before


def seed_everything(seed: int, epoch: int = 0, *position: int) -> None:
    """Seed Python, NumPy and torch by the run's seed and a position (epoch, step, process) in it.

    A run that seeds before every step draws at a position the same, however it got there.
    """
    state = int(np.random.SeedSequence((seed, epoch, *position)).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)  # noqa: NPY002 (libraries draw from the global state)
    torch.default_generator.manual_seed(state)  # torch.manual_seed takes ten times as long without a GPU
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(state)


def rank() -> int:
    """This process among those torchrun started; 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def progress_on_rank_0(iterable, total: int, desc: str, unit: str):
    """Yield from the iterable, behind a progress bar in the first process."""
    return cli.progress(iterable, total, desc, unit) if rank() == 0 else iterable


def share_gradients(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The model, so wrapped that a backward pass averages its gradients over the processes, if there are several."""
    if world_size() == 1:
        return model
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, devices, gradient_as_bucket_view=True)


def max_over_processes(value: int) -> int:
    """The largest value of all processes, without waiting for a GPU."""
    if world_size() == 1:
        return value
    values = torch.tensor([value])
    with peer_errors_as_one_line():
        dist.all_reduce(values, dist.ReduceOp.MAX, group=_messages())
    return int(values)


@functools.cache
def _messages():
    """The group of all processes for messages between CPUs."""
    return dist.new_group(backend="gloo")


def sum_over_processes(tensor: torch.Tensor) -> None:
    """Replace the tensor by its sum over all processes."""
    if world_size() > 1:
        with peer_errors_as_one_line():
            dist.all_reduce(tensor)


def gather_arrays(array: np.ndarray) -> np.ndarray:
    """Concatenate every process's array along the first axis; all processes get the result."""
    if world_size() == 1:
        return array
    parts = [None] * world_size()
    with peer_errors_as_one_line():
        dist.all_gather_object(parts, array, group=_messages())
    return np.concatenate(parts)


def end_processes() -> None:
    """End the group of processes that select() joined, if any; all of them call this at the end of their work."""
    if dist.is_initialized():
        _messages.cache_clear()
        dist.destroy_process_group()


@contextlib.contextmanager
def peer_errors_as_one_line():
    """WorkFailed when another process, which has said why, has ended."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise WorkFailed("another process of this run has ended") from None
        raise
