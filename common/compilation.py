"""torch.compile for single functions, announced; what it cannot build here runs uncompiled."""

import os
import time
import types
from collections.abc import Callable, Hashable
from pathlib import Path

import torch
from torch import Tensor

from common import cli, processes

MOST_KINDS = 128  # of inputs, each of which a function is compiled for; others run uncompiled
CACHE = "TORCHINDUCTOR_CACHE_DIR"


def add_flag(parser) -> None:
    """Declare `--compile`."""
    cli.neutral(
        parser.add_argument(
            "--compile",
            choices=("auto", "on", "off"),
            default="auto",
            help="compile norms and the rows' bottlenecks, a minute or two in the first run; auto: on a GPU",
        )
    )


def wanted(choice: str, device: torch.device) -> bool:
    """What the flag comes to on a device."""
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def keep_builds() -> None:
    """Let later runs find what is built in the user's cache; PyTorch's own place, /tmp, is cleared."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home
        return
    os.environ.setdefault(CACHE, str(cache / "needles" / "inductor"))


class Compiler:
    """Compiles functions of tensors; when one of them cannot be built, it says so and all run uncompiled.

    Args: backend: of torch.compile.
    Attributes: `kinds`, how many kinds of inputs were built for, in `seconds`; `working`, whether it still is.
    """

    def __init__(self, backend: str | Callable = "inductor"):
        self.backend = backend
        self.working, self.announced, self.kinds, self.seconds = True, False, 0, 0.0
        keep_builds()

    def __call__(self, function: Callable, instead: Callable | None = None) -> "Compiled":
        """The function, compiled; where that fails, what runs `instead`, by default the function as it is written."""
        return Compiled(function, instead or function, self)

    def announce(self) -> None:
        """Say once how long the builds of the first step took."""
        if not self.announced and self.kinds and processes.rank() == 0:
            print(f"compiled for {self.kinds} kinds of input in {self.seconds:.0f} s (--compile)", flush=True)
        self.announced = True

    def give_up(self, reason: object) -> None:
        """Say why nothing more is compiled."""
        self.working, self.announced = False, True
        self.say(f"{cli.plain_line(reason)[:300].rstrip('. ')}; going on without")

    @staticmethod
    def say(words: str) -> None:
        if processes.rank() == 0:
            print(f"--compile: {words}", flush=True)


class Compiled:
    """A function of tensors and others, built for each kind of input: sizes, types, what needs gradients.

    The first call of a kind tries forward and backward pass on the inputs, apart from the graph, so that nothing fails
    later. Inputs that are no tensors have a `kind` of their own, or compare by value.
    """

    def __init__(self, function: Callable, instead: Callable, compiler: Compiler):
        self.function, self.instead, self.compiler = function, instead, compiler
        self.built = {}  # kind -> what was built for it, each by itself: nothing is searched when it is called

    def __call__(self, *inputs):
        built = self.ready(*inputs)
        if not built:
            return self.instead(*inputs)
        with torch.set_grad_enabled(_needs_gradients(inputs)):
            return built(*inputs)

    def ready(self, *inputs) -> Callable | None:
        """The function built for inputs like these, perhaps just now, if it can be."""
        if not self.compiler.working:
            return None
        kind = (_needs_gradients(inputs), torch.is_inference_mode_enabled(), *map(_kind, inputs))
        if kind not in self.built and len(self.built) < MOST_KINDS:
            self.built[kind] = self._build(inputs)
            if len(self.built) == MOST_KINDS:
                self.compiler.say(f"{MOST_KINDS} kinds of input; others run uncompiled")
        return self.built.get(kind)

    def _build(self, inputs) -> Callable | None:
        start, needed = time.perf_counter(), _needs_gradients(inputs)
        try:
            built = torch.compile(_copy(self.function), backend=self.compiler.backend, dynamic=False)
            copies = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in inputs]
            with torch.set_grad_enabled(needed):
                out = built(*copies)
            if needed:
                torch.autograd.grad(out.sum(), [x for x in copies if isinstance(x, Tensor) and x.requires_grad])
        except Exception as error:  # a compiler's errors are of any type
            self.compiler.give_up(f"{type(error).__name__}: {error}".split("Set TORCHDYNAMO")[0])
            return None
        self.compiler.kinds += 1
        self.compiler.seconds += time.perf_counter() - start
        return built


def _needs_gradients(inputs):
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def _copy(function):
    """The function with code of its own, to which PyTorch ties what it builds and how often it does."""
    code, scope = function.__code__.replace(), function.__globals__
    return types.FunctionType(code, scope, function.__name__, function.__defaults__, function.__closure__)


def _kind(x) -> Hashable:
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype, x.requires_grad
    return getattr(x, "kind", x)
