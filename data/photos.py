"""Pictures of strangers: folders of photographs, scans and crops, lists of them, CIFAR10 and SVHN; as data sets too."""

import functools
import hashlib
import io
from collections import Counter
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch

from common import cli, pictures
from common.errors import BadInput
from common.files import check_folder, files_below, open_input, open_npy, read_text
from data import fingerprints
from data.image_set import ImageSet

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy")
MOST_BYTES = 2**30  # of a picture's file
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how a file begins, whatever its name
CLASSES = {"normal": 0, "abnormal": 1, "anomaly": 1}  # folder -> label
LISTS = {"train": "list", "val": "val_list", "test": "test_list"}  # split -> flag of its normal images
UNKNOWN = -1  # label


def add_flags(parser) -> None:
    """Declare the flags that `load_folder`, `load_lists` and `load_arrays` read."""
    add = parser.add_argument
    add("--photos", type=cli.path, help="folder with {train,val,test}/{normal,abnormal}, pictures anywhere below")
    add("--root", type=cli.path, help="folder of the pictures that lists name, or of cifar10's or svhn's files")
    names = "names below --root, one a line; of cifar10 and svhn numbers in the training part, .npy"
    add("--list", type=cli.path, help=f"normal training images: {names}")
    add("--val_list", type=cli.path, help="normal validation images, likewise")
    add("--test_list", type=cli.path, help="normal test images, likewise (cifar10, svhn: else those of the test part)")
    add("--abnormal_list", type=cli.path, help="abnormal test images, likewise")
    add("--classes", type=cli.natural, nargs="+", help="classes of cifar10 or svhn that are normal (without lists: 0)")


def list_images(folder: Path, extensions: tuple[str, ...] = EXTENSIONS, empty: bool = False) -> list[str]:
    """Names of the pictures in and below a folder, relative to it, sorted.

    BadInput when it is none or, unless it may be empty, has none.
    """
    folder = Path(folder)
    check_folder(folder)
    found = [path for path in files_below(folder, extensions) if not path.name.endswith("_seg.npy")]
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    if not names and not empty:
        raise BadInput(f"{folder}: no pictures in it ({', '.join(extensions)})")
    return names


def read_image(path: Path) -> np.ndarray:
    """A picture as (H, W, 3) uint8: grey is repeated, an alpha channel dropped, 16 bits are scaled to 8.

    BadInput names a file that cannot be read as a picture.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        pixels = np.array(open_npy(path))
    else:
        try:
            with open_input(path, MOST_BYTES) as file:
                pixels = _decode(file.read())
        except BadInput:
            raise
        except Exception as error:  # decoders fail in many ways
            reason = " ".join(str(error.__cause__ or error).split())[:120]
            if reason.endswith("can not handle the given uri."):  # imageio's, of bytes
                reason = f"its {path.stat().st_size:,} bytes are of no known format"
            raise BadInput(f"{path}: not a readable picture: {reason}") from None
    return to_rgb(pixels, path)


def _decode(content):
    """The pixels in a file's bytes; of inks (CMYK), palettes and negatives, whose numbers are no colours, as RGB."""
    import tifffile
    from PIL import Image

    if content[:4] in TIFF:
        pixels = iio.imread(content, plugin="tifffile")
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            plain = file.pages[0].photometric.name in ("MINISBLACK", "RGB", "YCBCR")
            if file.series[0].axes == "SYX":  # a plane for each colour
                pixels = np.moveaxis(pixels, 0, -1)
    else:
        pixels = iio.imread(content, plugin="pillow")
        plain = pixels.ndim != 3 or pixels.shape[2] != 4 or Image.open(io.BytesIO(content)).mode != "CMYK"
    return pixels if plain else np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def to_rgb(pixels: np.ndarray, path: Path | str) -> np.ndarray:
    """A picture (H, W) or (H, W, 1 to 4) as `read_image` gives it; BadInput names the path when it is none."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise BadInput(f"{path}: expected a picture (H, W) or (H, W, 1 to 4), found {pixels.shape}")
    pixels = pixels[..., :1] if pixels.shape[2] < 3 else pixels[..., :3]  # without alpha
    return np.ascontiguousarray(np.broadcast_to(_to_bytes(pixels, path), (*pixels.shape[:2], 3)))


def _to_bytes(pixels, path):
    """Values as uint8: bits scaled, floats taken to be in [0, 1]."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16:
        return (pixels / 257).round().astype(np.uint8)
    if pixels.dtype.kind == "f" and np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1:
        return (pixels * 255).round().astype(np.uint8)
    raise BadInput(f"{path}: expected 8 or 16 bits, or floats in [0, 1], found {pixels.dtype}")


class Photos(ImageSet):
    """Pictures in files. Item: image (3, H, W) float32 in [0, 1], label 1 = abnormal, 0 = normal, -1 = not known."""

    in_channels, outline = 3, pictures.EXAMPLE

    def __init__(self, root: Path, names: list[str], labels: list[int]):
        self.root, self.names, self.labels = Path(root), names, np.array(labels, np.int64)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        return _to_float(read_image(self.root / self.names[i])), int(self.labels[i])

    def check_one_size(self) -> None:
        """BadInput names a picture of another size than most."""
        sizes = [size_of(self.root / name) for name in self.names]
        (usual, n), *others = Counter(sizes).most_common()
        if others:
            i = next(i for i, size in enumerate(sizes) if size != usual)
            raise BadInput(
                f"{self.root / self.names[i]}: has {sizes[i][0]} x {sizes[i][1]} px, {n} others {usual[0]} x "
                f"{usual[1]}; give --resize S or --crop N"
            )

    def fingerprint(self) -> str:
        """Digest of the pictures' names and labels and of some of their bytes, wherever the folder lies."""
        described = "\n".join(self.names).encode() + self.labels.tobytes()
        return fingerprints.of_files(described, [self.root / name for name in self.names], MOST_BYTES)


class Arrays(Photos):
    """Pictures in memory, (N, H, W, 3) uint8."""

    def __init__(self, images: np.ndarray, names: list[str], labels: list[int]):
        super().__init__(Path(), names, labels)
        self.images = images

    def __getitem__(self, i):
        return _to_float(self.images[i]), int(self.labels[i])

    def check_one_size(self) -> None:
        """Nothing to check: the pictures of one array are of one size."""

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a picture, from its header where that is enough. BadInput names what is no picture."""
    from PIL import Image

    if path.suffix.lower() == ".npy":
        return open_npy(path).shape[:2]
    try:
        with open_input(path, MOST_BYTES) as file, Image.open(file) as image:
            return image.size[::-1]
    except BadInput:
        raise
    except Exception:  # of a kind that Pillow does not read
        return read_image(path).shape[:2]


def load_folder(args, split: str) -> Photos | None:
    """A split of args.photos; None where it has no pictures. BadInput for abnormal ones among those to train on."""
    if args.photos is None:
        raise BadInput("--photos is needed with --datatype photos")
    check_folder(args.photos, "--photos")
    folder = args.photos / split
    found = {name: list_images(folder / name, empty=True) if (folder / name).is_dir() else [] for name in CLASSES}
    if split == "train" and (found["abnormal"] or found["anomaly"]):
        name = "abnormal" if found["abnormal"] else "anomaly"
        raise BadInput(f"{folder / name / found[name][0]}: abnormal, but training takes normal images only; move it")
    if found["anomaly"]:
        print(f"{folder / 'anomaly'}: taken as {folder / 'abnormal'}")
    names = [(f"{name}/{file}", label) for name, label in CLASSES.items() for file in found[name]]
    return Photos(folder, *map(list, zip(*names, strict=True))) if names else None


def load_unlabelled(folder: Path) -> Photos:
    """All pictures below a folder. BadInput when there are none."""
    names = list_images(folder)
    return Photos(folder, names, [UNKNOWN] * len(names))


def load_lists(args, split: str) -> Photos | None:
    """The pictures below args.root that a split's lists name; None without lists. BadInput names a missing one."""
    normal, abnormal = _read_list(args, LISTS[split]), _read_list(args, "abnormal_list")
    if args.root is None:
        raise BadInput(f"--root is needed with --datatype {args.datatype}")
    _refuse_both(args, LISTS[split], normal, abnormal)
    abnormal = abnormal if split == "test" else []
    if not normal and not abnormal:
        return None
    for name in (*normal, *abnormal):
        if not (args.root / name).is_file():
            raise BadInput(f"{args.root / name}: no such file, but a list names it")
    return Photos(args.root, normal + abnormal, [0] * len(normal) + [1] * len(abnormal))


def _refuse_both(args, flag, normal, abnormal):
    both = sorted({*normal} & {*abnormal})
    if both:
        raise BadInput(f"--{flag} {getattr(args, flag)}: names {both[0]}, which --abnormal_list names too")


def _read_list(args, flag):
    path = getattr(args, flag)
    if path is None:
        return []
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise BadInput(f"--{flag} {path}: names no picture")
    return names


def load_arrays(args, split: str) -> Arrays | None:
    """A split of CIFAR10 or SVHN: the images that its lists choose or, without lists, that --classes do.

    None: a validation split without a list. BadInput for lists that contradict each other or --classes.
    """
    normal, abnormal = _read_numbers(args, LISTS[split]), _read_numbers(args, "abnormal_list")
    if split == "val" and normal is None:
        return None
    if normal is not None and abnormal is not None:
        _refuse_both(args, LISTS[split], normal.tolist(), abnormal.tolist())
    if split != "test":
        abnormal = None
    if normal is None and abnormal is None:
        return _load_classes(args, split)
    return _load_listed(args, split, normal, abnormal)


def _load_classes(args, part):
    """Images of --classes are normal, all others of the part abnormal; those to train on are normal alone."""
    images, classes = _torchvision(args.datatype, args.root, part)
    labels = (~np.isin(classes, args.classes or [0])).astype(np.int64)
    if labels.all():
        raise BadInput(f"--classes {args.classes}: no image of {args.datatype}'s {part} part is of them")
    numbers = np.flatnonzero(labels == 0) if part == "train" else np.arange(len(images))
    return Arrays(images[numbers], [f"{part}_{i}" for i in numbers], labels[numbers])


def _load_listed(args, split, normal, abnormal):
    """Images of torchvision's training part by their numbers; a list may be None."""
    images, classes = _torchvision(args.datatype, args.root, "train")
    lists = [[] if found is None else found for found in (normal, abnormal)]
    numbers, labels = np.concatenate(lists).astype(np.int64), np.repeat([0, 1], list(map(len, lists)))
    if len(numbers) == 0 or numbers.min() < 0 or numbers.max() >= len(images):
        raise BadInput(f"--{LISTS[split]}: expected numbers from 0 to {len(images) - 1}, found others or none")
    if args.classes and (np.isin(classes[numbers], args.classes) != (labels == 0)).any():
        raise BadInput(f"--{LISTS[split]}: normal and abnormal images are not those of --classes {args.classes}")
    return Arrays(images[numbers], [f"train_{i}" for i in numbers], labels)


def _read_numbers(args, flag):
    path = getattr(args, flag)
    if path is None:
        return None
    numbers = np.array(open_npy(path))
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise BadInput(f"--{flag} {path}: expected a list of whole numbers, found {numbers.dtype} {numbers.shape}")
    return numbers.astype(np.int64)


@functools.lru_cache(2)
def _torchvision(name, root, part):
    """Images (N, H, W, 3) uint8 and classes (N,) of a part, downloaded where they are not."""
    from torchvision.datasets import CIFAR10, SVHN

    def open_it(download):
        if name == "cifar10":
            return CIFAR10(str(root), train=part == "train", download=download)
        return SVHN(str(root), split=part, download=download)

    if root is None:
        raise BadInput(f"--root is needed with --datatype {name}")
    try:
        try:
            data = open_it(download=False)
        except RuntimeError:  # not there, or damaged
            data = open_it(download=True)
    except (RuntimeError, OSError) as error:
        raise BadInput(
            f"--root {root}: no {name} there, and no download: {' '.join(str(error).split())[:120]}"
        ) from None
    if name == "cifar10":
        return data.data, np.array(data.targets)
    return np.ascontiguousarray(data.data.transpose(0, 2, 3, 1)), np.array(data.labels)


def _to_float(pixels):
    """(H, W, 3) uint8 -> (3, H, W) float32 in [0, 1]."""
    return torch.tensor(pixels).permute(2, 0, 1).float() / 255
