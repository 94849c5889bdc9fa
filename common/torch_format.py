"""Reads what torch.save writes, the zip format and the one before PyTorch 1.6, without PyTorch's own readers.

Those choose among formats by bytes that other programs judge otherwise, and some formats run code. Here a file is what
its first bytes say, one program reads it, nothing in it is run, and sizes are compared before memory is taken. A pickle
may name tensors, their storages, NumPy numbers and plain types; an object of any other class becomes a `Foreign`.
"""

import io
import math
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.errors import BadInput
from common.files import open_input

ZIP = b"PK\x03\x04"
MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # pickled at the head of a file before 1.6
MAX_PICKLE = 2**26  # bytes of a pickle without its tensors
MAX_READS = 2**22  # parts of a pickle: 20,000 epochs of statistics have two million
MAX_NODES, MAX_DEPTH = 2**22, 32  # values in all, however often one is shared, and containers in containers
MAX_DIRECTORY = 2**22  # bytes of a zip's table of contents
END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}


class _Global(NamedTuple):
    """What a pickle names; nothing is imported."""

    module: str
    name: str


class Foreign:
    """Stands for an object of a class that is not built."""

    def __init__(self, kind: _Global):
        self.kind = kind


class _NumpyType(Foreign):
    """A NumPy dtype, all that decoding a number needs; the byte order comes with the state."""

    def __init__(self, code="", *_):
        super().__init__(_Global("numpy", "dtype"))
        self.code, self.order = code if isinstance(code, str) else "", "="


def read(path: Path) -> tuple[object, bool]:
    """What torch.save wrote into a file, tensors on the CPU; and whether there are foreign objects in it.

    BadInput names a file of another format, a damaged one and one that is larger than it can sensibly be.
    """
    with open_input(path) as file:
        start = file.read(len(MAGIC))
        file.seek(0)
        if not start.startswith(ZIP) and start != MAGIC:
            raise BadInput(f"{path}: not a checkpoint, by its first bytes")
        try:
            content, foreign = (_read_zip if start.startswith(ZIP) else _read_old)(file)
            _check_size(content)
        except (BadInput, zipfile.BadZipFile) as error:
            raise BadInput(f"{path}: {error}") from None
        except (MemoryError, OSError):
            raise
        except Exception as error:  # a damaged file fails in many ways, all of them the file's
            raise BadInput(f"{path}: not a readable checkpoint ({type(error).__name__})") from None
    return content, foreign


def _check_size(content):
    """BadInput when content has too many values, too deep: lists that share lists have few parts and no end."""
    nodes, stack = 0, [(content, 0)]
    while stack:
        value, depth = stack.pop()
        nodes += 1
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            raise BadInput("damaged: more values in it, or in each other, than a checkpoint has")
        if isinstance(value, dict):
            value = value.values()
        elif not isinstance(value, (list, tuple)):
            continue
        stack.extend((inner, depth + 1) for inner in value)
        if len(stack) > MAX_NODES:
            raise BadInput("damaged: more values in it than a checkpoint has")


def _read_zip(file):
    members = _open_zip(file)
    folder = next(name for name in members.names if name.endswith("/data.pkl")).removesuffix("data.pkl")
    if members.names.get(f"{folder}byteorder") and members.read(f"{folder}byteorder") != b"little":
        raise BadInput("written on a big-endian machine")
    storages = {}

    def storage(kind, key, location, numel):
        if key not in storages:
            member, size = f"{folder}data/{key}", _size(kind, numel)
            if members.names[member].file_size != size:
                raise BadInput(f"damaged: {member} has another size than its tensor")
            storages[key] = torch.empty(size, dtype=torch.uint8)
            with members.archive.open(member) as source:  # which compares the checksum
                source.readinto(storages[key].numpy())
        return _typed(storages[key], kind, numel)

    reader = _Reader(io.BytesIO(members.read(f"{folder}data.pkl")), storage)
    return reader.load(), reader.foreign


class _Members(NamedTuple):
    archive: zipfile.ZipFile
    names: dict[str, zipfile.ZipInfo]

    def read(self, name):
        if self.names[name].file_size > MAX_PICKLE:
            raise BadInput(f"damaged: {name} is larger than a checkpoint's")
        return self.archive.read(name)


def _open_zip(file):
    """The archive and its members by name. BadInput unless they are stored one after another, as PyTorch does it."""
    size = os.fstat(file.fileno()).st_size
    if _directory_size(file, size) > MAX_DIRECTORY:
        raise BadInput("damaged: its table of contents is larger than a checkpoint has")
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    names = {member.filename: member for member in members}
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        raise BadInput("a TorchScript archive, not a checkpoint")
    if sum(name.endswith("/data.pkl") for name in names) != 1 or len(names) != len(members):
        raise BadInput("a zip archive, not a checkpoint")
    if any(member.compress_type or member.file_size != member.compress_size for member in members):
        raise BadInput("damaged: its members are compressed, expected them stored")
    if sum(member.file_size for member in members) > size:
        raise BadInput("damaged: its members are larger than the file")
    return _Members(archive, names)


def _directory_size(file, size):
    """Bytes of the table of contents, from the record that ends the file."""
    file.seek(max(0, size - 42))
    locator, end = file.read(20), file.read(22)
    if end[:4] != END or len(end) < 22:
        raise BadInput("damaged: cut, or something follows its end")
    directory = struct.unpack("<4s4H2LH", end)[5]
    if directory < 2**32 - 1 or locator[:4] != LOCATOR64:
        return directory
    file.seek(struct.unpack("<4sLQL", locator)[2])
    end64 = file.read(56)
    return struct.unpack_from("<Q", end64, 40)[0] if end64[:4] == END64 else math.inf


def _read_old(file):
    """Pickles of magic number, version, system, content and the storages' keys, then the storages' bytes."""
    free, storages = os.fstat(file.fileno()).st_size, {}

    def storage(kind, key, location, numel, view=None):
        nonlocal free
        if key not in storages:
            free -= _size(kind, numel)
            if view is not None or free < 0:
                raise BadInput("damaged: its tensors are larger than the file")
            storages[key] = kind, numel, torch.zeros(_size(kind, numel), dtype=torch.uint8)
        return _typed(storages[key][2], kind, numel)

    reader = _Reader(file, storage)
    _, version, system, content, keys = (reader.load() for _ in range(5))
    if version != 1001 or not system["little_endian"] or sorted(keys) != sorted(storages):
        raise BadInput("damaged: not as PyTorch wrote it")
    for key in keys:
        _, numel, values = storages[key]
        whole = file.read(8) == struct.pack("<q", numel)
        if not whole or file.readinto(values.numpy()) != len(values):
            raise BadInput("damaged: cut, or its tensors do not follow each other")
    return content, reader.foreign


def _dtype(kind):
    if kind.module != "torch":
        raise BadInput(f"holds a storage of {'.'.join(kind)}")
    return DTYPES[kind.name]


def _size(kind, numel):
    """Bytes of a storage."""
    if not isinstance(numel, int) or numel < 0:
        raise BadInput("damaged: a storage of no size")
    return numel * _dtype(kind).itemsize


def _typed(storage, kind, numel):
    """The (numel,) tensor of a storage's bytes."""
    return storage.view(_dtype(kind)) if numel else torch.empty(0, dtype=_dtype(kind))


def _tensor(storage, offset, size, stride, *_):
    """A view of a storage, no larger than it is: an expanded tensor would be copied at its full size."""
    numbers = (offset, *_sizes(size), *_sizes(stride))
    if any(number < 0 for number in numbers):
        raise BadInput("damaged: a tensor of no size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > len(storage) or (0 not in size and last >= len(storage)):
        raise BadInput("damaged: a tensor does not fit its storage")
    return storage.as_strided(size, stride, offset)


def _sizes(sizes=()):
    """Whole numbers of a shape or its strides; a tensor in their place would unfold into as many objects."""
    if not isinstance(sizes, (list, tuple)) or len(sizes) > 16 or any(type(size) is not int for size in sizes):
        raise BadInput("damaged: a tensor of no size")
    return tuple(sizes)


def _ordered(pairs=()):
    """An OrderedDict, also as Python 2 wrote it."""
    if not isinstance(pairs, (list, tuple)):
        raise BadInput("damaged: a dict of something that is not a list")
    return {_key(key): value for key, value in pairs}


def _numpy_number(dtype=None, data=b"", *_):
    """A pickled NumPy number as a Python one; anything else stays foreign."""
    if not isinstance(dtype, _NumpyType) or dtype.code[:1] not in tuple("biuf") or not isinstance(data, bytes):
        return Foreign(_Global("numpy", "scalar"))
    return np.frombuffer(data, np.dtype(dtype.code).newbyteorder(dtype.order))[0].item()


def _bytes(text="", encoding="", *_):
    """Bytes, which pickle protocol 2 writes as text with their encoding; those of numbers are short."""
    short = isinstance(text, str) and len(text) <= 64
    return text.encode("latin1") if encoding == "latin1" and short else Foreign(_Global("", "bytes"))


def _key(key):
    """A key of a dict: hashing tuples of shared tuples has no end."""
    if not isinstance(key, (str, int, float, type(None))):
        raise BadInput(f"damaged: a key that is a {type(key).__name__}")
    return key


BUILDERS = {
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch.nn.parameter", "Parameter"): lambda tensor, *_: tensor,
    ("torch", "Size"): _sizes,
    ("numpy", "dtype"): _NumpyType,
    ("numpy.core.multiarray", "scalar"): _numpy_number,
    ("numpy._core.multiarray", "scalar"): _numpy_number,
}
OPCODES = (
    pickle.PROTO,
    pickle.STOP,
    pickle.MARK,
    pickle.GLOBAL,
    pickle.BINPERSID,
    pickle.POP,
    pickle.POP_MARK,
    pickle.NONE,
    pickle.NEWTRUE,
    pickle.NEWFALSE,
    pickle.BININT,
    pickle.BININT1,
    pickle.BININT2,
    pickle.LONG1,
    pickle.BINFLOAT,
    pickle.BINUNICODE,
    pickle.BINSTRING,
    pickle.SHORT_BINSTRING,
    pickle.BINBYTES,
    pickle.SHORT_BINBYTES,
    pickle.EMPTY_TUPLE,
    pickle.TUPLE,
    pickle.TUPLE1,
    pickle.TUPLE2,
    pickle.TUPLE3,
    pickle.EMPTY_LIST,
    pickle.EMPTY_DICT,
    pickle.BINPUT,
    pickle.LONG_BINPUT,
    pickle.BINGET,
    pickle.LONG_BINGET,
)


class _Reader(pickle._Unpickler):
    """Python's own unpickler with protocol 2's opcodes alone, its builders above in place of any callable.

    Args:
        file: where the pickle begins.
        storage: (type, key, location, number of elements) of a storage -> tensor.
    """

    dispatch = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in OPCODES}  # noqa: RUF012 (as its base has it)

    def __init__(self, file, storage):
        self.limits = _Limited(file)
        super().__init__(self.limits, encoding="latin1")
        self.storage, self.foreign = storage, False

    def find_class(self, module, name):
        return _Global(module, name)

    def persistent_load(self, item):
        if not isinstance(item, tuple) or len(item) < 5 or item[0] != "storage" or not isinstance(item[1], _Global):
            raise BadInput("damaged: refers to something that is not a storage")
        if not isinstance(item[2], str):
            raise BadInput("damaged: a storage without a name")
        return self.storage(*item[1:])

    def load_reduce(self):
        """Build what the stack names from the arguments above it."""
        args, what = self.stack.pop(), self.stack.pop()
        if not isinstance(what, _Global) or not isinstance(args, tuple):
            raise BadInput("damaged: builds with something that is not a class")
        if what in BUILDERS:
            self.limits.spend(sum(len(arg) for arg in args if isinstance(arg, (str, list, tuple))))
            self.append(BUILDERS[what](*args))
        else:
            self.foreign = True
            self.append(Foreign(what))

    def load_state(self):
        """The state of the object below it on the stack; only a NumPy type needs its own."""
        state, item = self.stack.pop(), self.stack[-1]
        if isinstance(item, _NumpyType) and len(state) > 1 and state[1] in ("<", ">"):
            item.order = state[1]

    def load_items(self):
        """What goes into the dict below it on the stack."""
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(key, value)

    def load_item(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set(key, value)

    def _set(self, key, value):
        target = self.stack[-1]
        if isinstance(target, dict):
            target[_key(key)] = value
        elif not isinstance(target, Foreign):
            raise BadInput("damaged: items of something that is not a dict")

    def load_elements(self):
        self._extend(self.pop_mark())

    def load_element(self):
        self._extend([self.stack.pop()])

    def _extend(self, values):
        """What goes into the list below it on the stack."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Foreign):
            raise BadInput("damaged: elements of something that is not a list")

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.BUILD[0]: load_state,
        pickle.SETITEM[0]: load_item,
        pickle.SETITEMS[0]: load_items,
        pickle.APPEND[0]: load_element,
        pickle.APPENDS[0]: load_elements,
    }


class _Limited:
    """A file of which a pickle takes no more than a checkpoint's has."""

    def __init__(self, file):
        self.file, self.reads, self.bytes = file, 0, 0

    def read(self, n):
        self.spend(n)
        return self.file.read(n)

    def readline(self):
        self.spend(0)
        return self.file.readline(200)

    def spend(self, n):
        """BadInput when one part more, of n bytes or values, is too much."""
        self.reads, self.bytes = self.reads + 1, self.bytes + n
        if self.reads > MAX_READS or self.bytes > MAX_PICKLE:
            raise BadInput("damaged: more in it than a checkpoint has beside tensors")
