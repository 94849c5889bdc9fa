"""Checkpoints: dicts of tensors and plain types, written atomically, read without running anything in them."""

import contextlib
import io
from pathlib import Path

import torch

from common import first_release
from common.errors import BadInput
from common.files import atomic_open, check_zip

LATEST = "checkpoint.pth"
PREVIOUS = "checkpoint.previous.pth"
BEST = "best_checkpoint.pth"


def save(path: Path, content: dict, keep: Path | None = None) -> None:
    """Write tensors and plain types; the file is whole or the one before, which moves to `keep` if that is given."""
    buffer = io.BytesIO()  # torch.save itself does not say why it failed when a disk is full
    torch.save(content, buffer)
    with atomic_open(path, keep=keep) as file:
        file.write(buffer.getbuffer())


@contextlib.contextmanager
def naming(path: Path):
    """Turn the errors of using a checkpoint's content into a BadInput that names the file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{path}: its content is not as expected: {type(error).__name__}: {reason[:200]}") from None


def load(path: Path) -> dict:
    """Read what `save` wrote, tensors on the CPU; BadInput names a file that is anything else or damaged."""
    try:
        check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except BadInput:
        raise
    except FileNotFoundError:
        raise BadInput(f"{path}: no such checkpoint") from None
    except Exception as error:  # a damaged file fails in many ways, all of them the file's
        raise BadInput(f"{path}: not a readable checkpoint ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a checkpoint, found a {type(content).__name__}")
    return content


def load_any(path: Path) -> tuple[dict, bool]:
    """Read a best checkpoint of this software or of the first release; also says whether it is the latter."""
    try:
        content, old = load(path), False
    except BadInput:
        if not Path(path).is_file():
            raise
        content, old = first_release.load(path), True
    if not isinstance(content.get("state_dict"), dict) or not isinstance(content.get("config"), dict):
        raise BadInput(f"{path}: a checkpoint needs a state_dict and a config, found {', '.join(map(str, content))}")
    return content, old or "args" not in content
