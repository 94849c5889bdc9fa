"""Reads the first release's checkpoints, which hold pickled pandas tables, without building any of their classes."""

import pickle
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from common.errors import BadInput
from common.files import check_zip

SIGNATURES = (b"PK\x03\x04", b"\x80\x02")  # PyTorch's zip format, and the plain pickle before 1.6


class Placeholder:
    """Stands for an object of a class that is not built: takes anything, does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass


class _DType(Placeholder):
    """A NumPy dtype's name, all that decoding a scalar needs; the byte order comes with the state."""

    def __init__(self, name="", *args):
        self.name = name if isinstance(name, str) else ""
        self.order = "="

    def __setstate__(self, state):
        self.order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">") else "="


def _scalar(dtype=None, data=b"", *args):
    """A pickled NumPy number as a Python one; anything else a placeholder."""
    if not isinstance(dtype, _DType) or dtype.name[:1] not in tuple("biuf") or not isinstance(data, bytes):
        return Placeholder()
    return np.frombuffer(data, np.dtype(dtype.name).newbyteorder(dtype.order))[0].item()


def _encode(text="", encoding="", *args):
    """Bytes, which pickle protocol 2 writes as text with their encoding."""
    return text.encode("latin1") if isinstance(text, str) and encoding == "latin1" else Placeholder()


ALLOWED = {
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    ("torch", "Size"): torch.Size,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}
STORAGES = ("FloatStorage", "DoubleStorage", "HalfStorage", "LongStorage", "IntStorage", "BoolStorage", "ByteStorage")


class RestrictedUnpickler(pickle.Unpickler):
    """Builds tensors and plain types; every other class becomes an inert placeholder of its own."""

    def find_class(self, module, name):
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module == "torch" and name in STORAGES:
            return getattr(torch, name)
        return type("Placeholder", (Placeholder,), {})


def _load(file, **kwargs):
    return RestrictedUnpickler(file, **kwargs).load()


RESTRICTED_PICKLE = types.SimpleNamespace(__name__="restricted", Unpickler=RestrictedUnpickler, load=_load)


def load(path: Path) -> dict:
    """The checkpoint's dict, tensors on the CPU, foreign objects as placeholders; BadInput names an unreadable file."""
    _refuse_other_formats(path)
    try:
        content = torch.load(path, map_location="cpu", pickle_module=RESTRICTED_PICKLE, weights_only=False)
    except Exception as error:  # a damaged or hostile file fails in many ways, all of them the file's
        raise BadInput(f"{path}: not a readable checkpoint ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a checkpoint, found a {type(content).__name__}")
    return content


def _refuse_other_formats(path):
    """torch.load also runs TorchScript archives and unpacks tar files; neither was ever a checkpoint of this kind."""
    with Path(path).open("rb") as file:
        known = file.read(4).startswith(SIGNATURES)
    if not known or tarfile.is_tarfile(path):
        raise BadInput(f"{path}: not a checkpoint")
    check_zip(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise BadInput(f"{path}: a TorchScript archive, not a checkpoint")
