"""MNIST files, or the digits inside scikit-learn, as uint8 images with labels in three splits."""

import contextlib
import gzip
import math
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import BadInput
from common.files import make_folder

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


class Digits(NamedTuple):
    """The digits of one split: images (D, 28, 28) uint8 in file order, labels (D,) uint8 in 0..9."""

    images: np.ndarray
    labels: np.ndarray


def default_source() -> str:
    """Where `--mnist` looks when it is not given: $MNIST_DIR, else a cache folder in the home directory."""
    return os.environ.get("MNIST_DIR") or os.path.expanduser("~/.cache/mnist")  # noqa: PTH111 (there may be no home)


def load(source: str) -> dict[str, Digits]:
    """Read the splits train, val, test from a folder of IDX files (downloaded if absent) or from "digits".

    Returns the first 5,000 training images as val, the others as train. Errors: BadInput names the file.
    """
    if source == "digits":
        return _sklearn_digits()
    files = _find(Path(source))
    if None in files.values():
        files = _download(Path(source), files)
    train = _read_pair(files["train", "images"], files["train", "labels"])
    if len(train.labels) <= VALIDATION:
        raise BadInput(f"{files['train', 'images']}: {len(train.labels)} images, expected more than {VALIDATION}")
    return {
        "train": Digits(train.images[VALIDATION:], train.labels[VALIDATION:]),
        "val": Digits(train.images[:VALIDATION], train.labels[:VALIDATION]),
        "test": _read_pair(files["test", "images"], files["test", "labels"]),
    }


def _find(folder):
    """Paths of the four files, gzipped or not, in the folder or in MNIST/raw below it; None where one is absent."""
    found = {}
    for key, name in FILES.items():
        candidates = [place / (name + ending) for place in (folder, folder / "MNIST/raw") for ending in (".gz", "")]
        found[key] = next((path for path in candidates if path.is_file()), None)
    return found


def _download(folder, found):
    """Let torchvision fetch the files beside their final place, in a process that can be stopped; then move them."""
    missing = ", ".join(f"{FILES[key]}.gz" for key, path in found.items() if path is None)
    advice = f"put {missing} there, or use --mnist digits (offline)"
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
        whole = None not in fetched.values()
        for path in fetched.values() if whole else ():
            path.rename(folder / path.name)
    if not whole:
        if created:
            folder.rmdir()
        raise BadInput(f"--mnist {folder}: download failed; {advice}")
    return _find(folder)


def _read_pair(image_path, label_path):
    images, labels = _read_idx(image_path, 3), _read_idx(label_path, 1)
    if len(images) != len(labels):
        raise BadInput(f"{label_path}: {len(labels)} labels for the {len(images)} images of {image_path.name}")
    if labels.size and labels.max() > 9:
        raise BadInput(f"{label_path}: label {labels.max()}, expected 0 to 9")
    return Digits(images, labels)


def _read_idx(path, dimensions):
    """Read an IDX file of unsigned bytes: two zero bytes, type 8, number of dimensions, big-endian sizes, data.

    No more is unpacked than the header announces, and that must be digits or their labels.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
                raise BadInput(f"{path}: not an IDX file of unsigned bytes with {dimensions} dimension(s)")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            _check_shape(path, shape)
            content = file.read(math.prod(shape) + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path}: damaged gzip file ({error})") from None
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
    splits = zip(("train", "val", "test"), bounds, bounds[1:], strict=False)
    return {split: Digits(images[low:high], labels[low:high]) for split, low, high in splits}
