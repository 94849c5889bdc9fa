"""MNIST files, or the digits inside scikit-learn, as uint8 images with labels in three splits."""

import contextlib
import gzip
import hashlib
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import BadInput
from common.files import make_folder, open_input
from data import SPLITS

SIDE = 28  # px, rows and columns of a digit
VALIDATION = 5000  # the first of the training images
MAX_DIGITS = 2**18
DOWNLOAD_SECONDS = 20
FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
PLACES = ("", "raw", "MNIST/raw")  # in the folder that --mnist names
LOOKALIKE = re.compile(r"mnist|t10k|ubyte|idx\d|(train|test).*(image|label)", re.IGNORECASE)


class Digits(NamedTuple):
    """The digits of one split: images (D, 28, 28) uint8 in file order, labels (D,) uint8 in 0..9."""

    images: np.ndarray
    labels: np.ndarray


def content_digest(splits: dict[str, Digits]) -> str:
    """Hex digest, 16 digits long, of all images and labels."""
    content = hashlib.sha256()
    for images, labels in splits.values():
        content.update(images.tobytes() + labels.tobytes())
    return content.hexdigest()[:16]


def default_source() -> str:
    """Where `--mnist` looks when it is not given: $MNIST_DIR, else a cache folder in the home directory.

    A user without a home has it in the temporary folder.
    """
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 (Path.home fails without one)
    cache = home / ".cache/mnist" if home.is_absolute() else Path(tempfile.gettempdir()) / f"mnist-{os.getuid()}"
    return os.environ.get("MNIST_DIR") or str(cache)


def load(source: str) -> dict[str, Digits]:
    """Read the splits train, val, test from a folder of IDX files (downloaded if absent) or from "digits".

    Returns the first 5,000 training images as val, the others as train. Errors: BadInput names the file.
    """
    if source == "digits":
        return _sklearn_digits()
    folder = Path(os.path.expanduser(source))  # noqa: PTH111 (as above)
    if not str(source) or folder.parts[:1] == ("~",):
        raise BadInput(f"--mnist {str(source)!r}: expected a folder, and ~ only where there is a home")
    files = _find(folder)
    if [] in files.values():
        files = _download(folder, files)
    train = _read_pair(files, "train")
    if len(train.labels) <= VALIDATION:
        found = f"{files['train', 'images'][0]}: {len(train.labels)} images"
        raise BadInput(f"{found}, expected more than {VALIDATION}")
    return {
        "train": Digits(train.images[VALIDATION:], train.labels[VALIDATION:]),
        "val": Digits(train.images[:VALIDATION], train.labels[:VALIDATION]),
        "test": _read_pair(files, "test"),
    }


def _find(folder):
    """Where each of the four files lies, (split, kind) -> paths in the order in which they are tried.

    Folders come last: one without the file in it is refused by name, and nothing is downloaded beside it.
    """
    there = {key: filter(os.path.lexists, _spellings(folder, name)) for key, name in FILES.items()}
    return {key: sorted(paths, key=Path.is_dir) for key, paths in there.items()}


def _spellings(folder, name):
    """Paths of a file: gzipped or not, a dot for the second hyphen, also in a folder of its name (Kaggle's)."""
    stems = (name, name.replace("-idx", ".idx"))
    for place in PLACES:
        for inside in ("", *stems):
            for stem in stems:
                yield from (folder / place / inside / (stem + ending) for ending in (".gz", ""))


def _lookalikes(folder, found):
    """Names in the folder that a person may take for MNIST's, but for the files found: at most eight."""
    places = [folder / place for place in PLACES if (folder / place).is_dir()]
    known = {path for paths in found.values() for path in paths}
    others = (path for place in places for path in sorted(place.iterdir()) if path not in known)
    return [str(path.relative_to(folder)) for path in others if LOOKALIKE.search(path.name)][:8]


def _download(folder, found):
    """Let torchvision fetch the files beside their final place, in a process that can be stopped; then move them."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--mnist {folder}: expected a folder of the four MNIST files, or 'digits'")
    missing = ", ".join(f"{FILES[key]}.gz" for key, paths in found.items() if not paths)
    advice, others = f"put {missing} there, or use --mnist digits (offline)", _lookalikes(folder, found)
    if others:
        advice += f"; {', '.join(others)} there: not the name of one of the four"
    created = not folder.exists()
    try:
        make_folder(folder)
    except BadInput as error:
        raise BadInput(f"--mnist {error}; {advice}") from None
    fetch = "import sys, torchvision; torchvision.datasets.MNIST(sys.argv[1], download=True)"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download") as scratch:
        with contextlib.suppress(subprocess.TimeoutExpired):  # what arrived is judged below
            subprocess.run([sys.executable, "-c", fetch, scratch], timeout=DOWNLOAD_SECONDS, capture_output=True)
        fetched = _find(Path(scratch))
        whole = [] not in fetched.values()
        for key in (key for key, paths in found.items() if whole and not paths):
            fetched[key][0].rename(folder / fetched[key][0].name)
    if not whole:
        if created:
            folder.rmdir()
        raise BadInput(f"--mnist {folder}: download failed; {advice}")
    return _find(folder)


def _read_pair(files, split):
    """A split's images and labels, from the first sound one of the files of each."""
    image_path, images = _read_first(files[split, "images"], 3)
    label_path, labels = _read_first(files[split, "labels"], 1)
    if len(images) != len(labels):
        raise BadInput(f"{label_path}: {len(labels)} labels for the {len(images)} images of {image_path.name}")
    if labels.size and labels.max() > 9:
        raise BadInput(f"{label_path}: label {labels.max()}, expected 0 to 9")
    return Digits(images, labels)


def _read_first(paths, dimensions):
    """(path, content) of the first sound IDX file; one that is passed over is named. BadInput: none is sound."""
    errors = []
    for path in paths:
        try:
            content = _read_idx(path, dimensions)
        except BadInput as error:
            errors.append(error)
            continue
        if errors:
            print(f"{errors[0]}; {path} is read instead")
        return path, content
    raise errors[0]


def _read_idx(path, dimensions):
    """Read an IDX file of unsigned bytes: two zero bytes, type 8, number of dimensions, big-endian sizes, data.

    It is gzipped if its first bytes say so. No more is unpacked than the header announces, and that must be digits or
    their labels.
    """
    with open_input(path) as file:
        zipped = file.peek(2)[:2] == b"\x1f\x8b"
        try:
            return _parse_idx(path, gzip.GzipFile(fileobj=file) if zipped else file, dimensions)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadInput(f"{path}: damaged gzip file ({error})") from None


def _parse_idx(path, file, dimensions):
    header = file.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
        doubt = "damaged gzip file, " if path.suffix == ".gz" else ""
        raise BadInput(f"{path}: {doubt}not an IDX file of unsigned bytes with {dimensions} dimension(s)")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    _check_shape(path, shape)
    content = file.read(math.prod(shape) + 1)
    if len(content) != math.prod(shape):
        found = f"{len(content)} bytes of data" if len(content) < math.prod(shape) else "more data"
        raise BadInput(f"{path}: {found}, its header announces {math.prod(shape)}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _check_shape(path, shape):
    if shape[0] > MAX_DIGITS:
        raise BadInput(f"{path}: announces {shape[0]} digits, expected up to {MAX_DIGITS}")
    if len(shape) > 1 and shape[1:] != (SIDE, SIDE):
        raise BadInput(f"{path}: images of {shape[1]}x{shape[2]} px, expected {SIDE}x{SIDE}")


def _sklearn_digits():
    """The 1,797 handwritten digits of scikit-learn (8x8, 0-16), upscaled bilinearly, split 70/10/20 by index."""
    from scipy import ndimage
    from sklearn.datasets import load_digits

    small = load_digits()
    factors = (1, SIDE / 8, SIDE / 8)
    large = ndimage.zoom(small.images * (255 / 16), factors, order=1, mode="nearest", grid_mode=True)
    images = np.rint(large.round(6)).astype(np.uint8)  # rounded twice, so that no machine's last digit decides
    labels = small.target.astype(np.uint8)
    bounds = [0, len(labels) * 7 // 10, len(labels) * 8 // 10, len(labels)]
    splits = zip(SPLITS, bounds, bounds[1:], strict=False)
    return {split: Digits(images[low:high], labels[low:high]) for split, low, high in splits}
