"""Work on a GPU recorded once as a CUDA graph and replayed: the same kernels on the same memory, launched together."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from common import cli, processes

WARM_UP = 3  # calls before a recording: libraries choose algorithms, gradients and moments get their place


class CudaGraphs:
    """Records on a GPU. A recording draws, when replayed, by the seed and place of the generator at that time."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.failed = None  # a graph

    def warm_up(self, work: Callable):
        """The result of work(), on the stream that will be recorded."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = work()
        current.wait_stream(self.stream)
        return result

    def record(self, work: Callable) -> tuple[Callable, Tensor | None]:
        """What repeats the work, which is not done yet, and the memory that its result will lie in. RuntimeError."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            return graph.replay, self._capture(graph, work)
        except RuntimeError as error:
            self._forget(graph)
            raise RuntimeError(error.__context__ or error) from error  # the first reason; a second says it was there
        finally:
            torch.cuda.set_stream(current)  # which PyTorch leaves undone where recording fails

    def _capture(self, graph, work):
        # loaders pin memory in other threads meanwhile
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            return work()

    def _forget(self, graph):
        """Record a trifle: else the generator draws no more, which PyTorch, to 2.11, leaves as in a recording."""
        self.failed = graph  # to which the allocator still points
        with contextlib.suppress(RuntimeError):
            self._capture(torch.cuda.CUDAGraph(), lambda: torch.zeros(1, device=self.device))


class Recorded:
    """work(*args) -> tensor or None, recorded after WARM_UP calls alike in a row, and replayed for all like them.

    Calls that differ, as those of an epoch's last batch, are worked off as they come. A recording that fails says so
    in one line, after which all are.

    Args:
        work: must leave what it changes (weights, gradients, moments) in its place, and read nothing from the GPU.
        recorder: as CudaGraphs; None: all calls are worked off as they come.
        constants: () -> plain values that go into the work besides its arguments; when they change, it differs.
        unless: args -> whether a call cannot be recorded.
    """

    def __init__(self, work: Callable, recorder, constants: Callable = tuple, unless: Callable = lambda *args: False):
        self.work, self.recorder, self.constants, self.unless = work, recorder, constants, unless
        self.kind = self.last = self.replay = self.result = None
        self.inputs, self.alike = [], 0

    def __call__(self, *args) -> Tensor | None:
        if self.recorder is None or self.unless(*args):
            return self.work(*args)
        leaves, tree = tree_flatten(args)
        kinds = [(leaf.shape, leaf.dtype) if torch.is_tensor(leaf) else leaf for leaf in leaves]
        kind = (tree, *kinds, *self.constants())
        if kind != self.kind:
            self.alike = self.alike + 1 if kind == self.last else 1
            self.last = kind
            if self.alike <= WARM_UP:
                return self.recorder.warm_up(lambda: self.work(*args))
            if not self._record(leaves, tree):
                return self.work(*args)
            self.kind = kind
        self.last = None
        for own, given in zip(self.inputs, filter(torch.is_tensor, leaves), strict=True):
            own.copy_(given, non_blocking=True)
        self.replay()
        return None if self.result is None else self.result.clone()

    def _record(self, leaves, tree) -> bool:
        """Whether it could be recorded."""
        self.kind = self.replay = self.result = None  # an older recording's memory is free
        place = [leaf.to(self.recorder.device, copy=True) if torch.is_tensor(leaf) else leaf for leaf in leaves]
        self.inputs = list(filter(torch.is_tensor, place))
        try:
            self.replay, self.result = self.recorder.record(lambda: self.work(*tree_unflatten(place, tree)))
        except RuntimeError as error:
            self.recorder, self.inputs = None, []
            if processes.rank() == 0:
                print(f"--cuda_graph: not recorded ({cli.plain_line(error)[:300]}); going on without", flush=True)
            return False
        return True
