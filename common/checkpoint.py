"""Checkpoints: dicts of tensors and plain types, written atomically, read without running anything in them."""

import contextlib
import io
from pathlib import Path

import torch
from torch import nn

from common import torch_format
from common.errors import BadInput
from common.files import atomic_open

LATEST = "checkpoint.pth"
PREVIOUS = "checkpoint.previous.pth"
BEST = "best_checkpoint.pth"
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every parameter's name


def save(path: Path, content: dict, keep: Path | None = None) -> None:
    """Write tensors and plain types; the file is whole or the one before, which moves to `keep` if that is given."""
    buffer = io.BytesIO()  # torch.save itself does not say why it failed when a disk is full
    torch.save(content, buffer)
    with atomic_open(path, keep=keep) as file:
        file.write(buffer.getbuffer())


@contextlib.contextmanager
def errors_name(path: Path):
    """Turn the errors of using a checkpoint's content into a BadInput that names the file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{path}: its content is not as expected: {type(error).__name__}: {reason[:200]}") from None


def load(path: Path) -> dict:
    """Read what `save` wrote, tensors on the CPU; BadInput names a file that is anything else or damaged."""
    content, foreign = torch_format.read(path)
    if foreign:
        raise BadInput(f"{path}: not a readable checkpoint: holds more than tensors and plain types")
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a checkpoint, found a {type(content).__name__}")
    return content


def load_any(path: Path) -> tuple[dict, bool]:
    """Read a best checkpoint of this software or of the first release; also says whether it is the latter."""
    content, foreign = torch_format.read(path)
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a checkpoint, found {_name(content)}")
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        raise BadInput(f"{path}: a bare state_dict of {len(content)} tensors; a checkpoint has a config beside it")
    for name in ("state_dict", "config"):
        if name not in content:
            found = ", ".join(map(str, content)) or "nothing"
            raise BadInput(f"{path}: a checkpoint needs a state_dict and a config, found {found}")
        if not isinstance(content[name], dict):
            raise BadInput(f"{path}: its {name} is {_name(content[name])}, expected a dict")
    return content, foreign or "args" not in content


def _name(value):
    return f"a {'.'.join(value.kind) if isinstance(value, torch_format.Foreign) else type(value).__name__}"


def load_state(part, state, path: Path) -> None:
    """Load what state_dict() of a network, an optimiser or the like gave. BadInput when weights do not fit."""
    if isinstance(part, nn.Module):
        load_weights(part, state, path)
    else:
        part.load_state_dict(state)


def load_weights(model: nn.Module, state: dict, path: Path) -> None:
    """Load a state_dict, without its wrappers' prefixes. BadInput names the first parameter that does not fit."""
    for _ in WRAPPERS * 2:
        for prefix in WRAPPERS:
            if state and all(str(name).startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
    for name, own in model.state_dict().items():
        found = state.get(name)
        if not isinstance(found, torch.Tensor):
            raise BadInput(f"{path}: has no parameter {name}, expected one of shape {tuple(own.shape)}")
        if found.shape != own.shape:
            raise BadInput(f"{path}: parameter {name} has shape {tuple(found.shape)}, expected {tuple(own.shape)}")
        if not found.isfinite().all():
            raise BadInput(f"{path}: parameter {name} holds values that are not finite")
    others = sorted(map(str, state.keys() - model.state_dict().keys()))
    if others:
        raise BadInput(f"{path}: has a parameter {others[0]}, which the network of its config lacks")
    model.load_state_dict(state)
