"""A stand-in for CUDA graphs on a CPU: operators are recorded with their tensors, undone, and run again on replay."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READERS = {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.nonzero}
aten = torch.ops.aten
COUNTING = {  # whose result's shape, or value, is only known to the device; the first is bool() and float(), too
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
}


class TapeRecorder:
    """In place of common.graphs.CudaGraphs. `recordings` and `replays` count."""

    device = torch.device("cpu")

    def __init__(self):
        self.recordings = self.replays = 0

    def warm_up(self, work):
        return work()

    def record(self, work):
        tape, state = Tape(), torch.get_rng_state()
        try:
            with NothingIsRead(), tape:
                result = work()
        finally:
            tape.undo()
            torch.set_rng_state(state)
        self.recordings += 1

        def replay():
            self.replays += 1
            tape.replay()

        return replay, result


class NothingIsRead(TorchFunctionMode):
    """Refuses to bring numbers from the device, as a GPU does while it records."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in READERS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.__name__}")
        return func(*args, **(kwargs or {}))


def _indices(func, args):
    """The tensors by which an operator looks up or writes places; masks among them are counted on the host."""
    return args[1] if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) else ()


class Tape(TorchDispatchMode):
    """All operators called inside, backward passes included, with the very tensors and numbers that they worked on."""

    def __init__(self):
        super().__init__()
        self.calls, self.before = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in COUNTING or any(isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in _indices(func, args)):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        formals = zip(func._schema.arguments, args, strict=False)
        written = [value for formal, value in formals if formal.alias_info is not None and formal.alias_info.is_write]
        if "native_batch_norm" in func._schema.name and "backward" not in func._schema.name:
            written += args[3:5]  # moments, written without a word in the schema
        self.before += [(t, t.clone()) for t in tree_leaves(written) if isinstance(t, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def undo(self):
        """Leave memory as it was: recording does nothing."""
        for tensor, value in reversed(self.before):
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self):
        """Do it all again on the same memory, without the Python between."""
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for own, value in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(own, torch.Tensor) and own.data_ptr() != value.data_ptr():
                    own.copy_(value)
