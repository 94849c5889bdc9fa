"""Reads HNM-WSI's pickles without running anything in them: plain containers, text, numbers and NumPy arrays alone.

Python's own unpickler calls whatever a file names. This one knows few names, each with a builder of ours, and gives
up at any other.
"""

import io
import pickle
from pathlib import Path

import numpy as np

from common.errors import BadInput
from common.files import open_input

MAX_BYTES = 2**33  # embeddings of CAMELYON16's tiles take 3 GB
MAX_DEPTH = 16  # containers in containers


class _Global:
    """A name that a pickle gives; nothing is imported."""

    def __init__(self, module, name):
        self.key = module, name


class _DType:
    """A NumPy dtype of numbers, objects or text, in the making: the byte order comes with the state."""

    def __init__(self, code="", *_):
        if not isinstance(code, str) or code[:1] not in tuple("biufUO") or len(code) > 8:
            raise BadInput("holds an array of a kind that is not read")
        self.code, self.order = code, "="

    def build(self, state):
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]

    def dtype(self):
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """A NumPy array in the making."""

    def __init__(self, *_):
        self.state = None

    def build(self, state):
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _DType):
            raise BadInput("damaged: an array without its kind")
        self.state = state[1:]

    def array(self, plain):
        """The array; `plain` makes the values of an object array."""
        if self.state is None:
            raise BadInput("damaged: an array without content")
        shape, kind, fortran, data = self.state
        order = "F" if fortran else "C"
        if kind.code[0] == "O":
            values = np.empty(len(data), object)
            values[:] = [plain(value) for value in data]
        else:
            values = np.frombuffer(data if isinstance(data, bytes) else data.encode("latin1"), kind.dtype())
        return values.reshape(shape, order=order)


def _number(kind=None, data=b"", *_):
    """A NumPy number as a Python one."""
    if not isinstance(kind, _DType) or not isinstance(data, bytes):
        raise BadInput("damaged: a number without its kind")
    return np.frombuffer(data, kind.dtype())[0].item()


def _from_buffer(data, kind, shape, order):
    """An array as protocol 5 writes it."""
    found = _Array()
    found.build((1, shape, kind, order == "F", bytes(data)))
    return found


def _encoded(text="", encoding="", *_):
    """Bytes as protocol 2 writes them."""
    return str(text).encode("latin1")


def _ordered(pairs=()):
    return {_key(key): value for key, value in pairs}


def _empty(*_):
    """A defaultdict, whose items follow."""
    return {}


BUILDERS = {
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): _empty,
    ("_codecs", "encode"): _encoded,
    **{(module, "_reconstruct"): _Array for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{(module, "scalar"): _number for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{(module, "_frombuffer"): _from_buffer for module in ("numpy.core.numeric", "numpy._core.numeric")},
    ("numpy", "dtype"): _DType,
}
TYPES = ("list", "dict", "int", "float", "long")  # that a defaultdict makes
NAMES = {("numpy", "ndarray"), *((module, name) for module in ("builtins", "__builtin__") for name in TYPES)}
REFUSED = (  # opcodes
    "INST",
    "OBJ",
    "EXT1",
    "EXT2",
    "EXT4",
    "PERSID",
    "BINPERSID",
    "NEXT_BUFFER",
    "READONLY_BUFFER",
    "NEWOBJ_EX",
    "EMPTY_SET",
    "ADDITEMS",
    "FROZENSET",
)


class _Reader(pickle._Unpickler):
    """Python's own unpickler in Python, its builders above in place of any callable."""

    dispatch = {  # noqa: RUF012 (as its base has it)
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code not in {getattr(pickle, name)[0] for name in REFUSED}
    }

    def find_class(self, module, name):
        if (module, name) not in BUILDERS and (module, name) not in NAMES:
            raise BadInput(f"names {module}.{name}, which is not read: expected dicts, lists, numbers and NumPy arrays")
        return _Global(module, name)

    def load_reduce(self):
        args, what = self.stack.pop(), self.stack.pop()
        if not isinstance(what, _Global) or what.key not in BUILDERS or not isinstance(args, tuple):
            raise BadInput("damaged: builds with something that is not a class")
        self.append(BUILDERS[what.key](*args))

    def load_build(self):
        state, item = self.stack.pop(), self.stack[-1]
        if not isinstance(item, (_DType, _Array)):
            raise BadInput("damaged: a state of something that has none")
        item.build(state)

    def load_setitems(self):
        items = self.pop_mark()
        target = self._dict()
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._dict()[_key(key)] = value

    def load_dict(self):
        items = self.pop_mark()
        self.append({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def _dict(self):
        if not isinstance(self.stack[-1], dict):
            raise BadInput("damaged: items of something that is not a dict")
        return self.stack[-1]

    def load_bytearray(self):
        """As bytes, of which the file holds as many as it says, before memory is taken for them."""
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch |= {pickle.REDUCE[0]: load_reduce, pickle.NEWOBJ[0]: load_reduce, pickle.BUILD[0]: load_build}
    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems, pickle.DICT[0]: load_dict}
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray


def read(path: Path):
    """What a pickle holds, in plain containers and arrays. BadInput names a file that is damaged or holds more."""
    with open_input(path, MAX_BYTES) as file:
        content = file.read()
    try:
        return _Plain(len(content)).value(_Reader(io.BytesIO(content), encoding="latin1").load())
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except (MemoryError, OSError):
        raise
    except Exception as error:  # a damaged file fails in many ways, all of them the file's
        raise BadInput(f"{path}: not a readable pickle ({type(error).__name__})") from None


class _Plain:
    """Puts finished arrays in the place of those in the making; no more values than the file has bytes.

    Lists that share lists have few bytes and no end.
    """

    def __init__(self, most: int):
        self.left, self.depth = most, 0

    def value(self, value):
        self.left -= 1
        if self.left < 0 or self.depth > MAX_DEPTH:
            raise BadInput("damaged: more values in it, or in each other, than such files have")
        self.depth += 1
        if isinstance(value, dict):
            value = {key: self.value(inner) for key, inner in value.items()}
        elif isinstance(value, (list, tuple)):
            value = type(value)(self.value(inner) for inner in value)
        elif isinstance(value, _Array):
            value = value.array(self.value)
        elif isinstance(value, (_Global, _DType)):
            raise BadInput("damaged: a class where a value is expected")
        self.depth -= 1
        return value


def _key(key):
    """A key of a dict: text, a number, or a tuple of them; hashing tuples of shared tuples has no end."""
    parts = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(part, (str, int, float, type(None))) for part in parts):
        raise BadInput("damaged: a key that is neither text nor number")
    return key


def write_bytes(content) -> bytes:
    """What HNM-WSI's readers load: plain dicts, text and numbers, in a protocol of its time."""
    return pickle.dumps(content, protocol=4)
