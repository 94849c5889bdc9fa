"""Near-duplicates to order: an image -> (anchor, manipulated copy), by a table of manipulations (Koker 2020, table I).

A step whose key is absent from the table is left out:

p_horizontal_flip, p_vertical_flip, p_invert   chances, needed
perspective_range                              px that each corner moves in y and x, whole numbers, upper end excluded
affine: scale_range, rotation_range, translation_range   factor, degrees, px
gamma_range, hue_range, brightness_range, contrast_range
p_global_hist, p_local_hist                    chances of one or, failing that, the other histogram equalisation
p_blur, p_jpeg, p_noise                        chances of Gaussian blur, JPEG of quality 50, Gaussian noise
grayscale                                      1 or 3 channels of grey for both pictures
"""

import io
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from common.errors import BadInput
from common.files import read_text

SIZE = 128  # px of anchor and copy
DEFAULT = Path(__file__).with_name("manipulations.yml")
NEEDED = ("p_horizontal_flip", "p_vertical_flip", "p_invert")
CHANCES = (*NEEDED, "p_global_hist", "p_local_hist", "p_blur", "p_jpeg", "p_noise")
RANGES = {  # key -> least and largest number
    "perspective_range": (-SIZE // 3, SIZE // 3),  # beyond, three corners can come to lie on a line
    **dict.fromkeys(["gamma_range", "brightness_range", "contrast_range"], (0, 100)),
    "hue_range": (-0.5, 0.5),
}
AFFINE = {"scale_range": (0.01, 100), "rotation_range": (-360, 360), "translation_range": (-1000, 1000)}
QUALITY, RADIUS, SIGMA, DISK = 50, 2, 16, 10  # of JPEG, blur, noise, local equalisation


def add_flag(parser, help: str = "YAML table of manipulations") -> None:
    """Declare `--manipulations`."""
    parser.add_argument("--manipulations", type=Path, default=DEFAULT, help=help)


class Manipulator:
    """A callable that makes pairs by the table in a YAML file, or by a dict of the same form.

    Errors: BadInput names the file and a key that is unknown, needed or has a wrong value.
    """

    def __init__(self, table: Path | str | dict = DEFAULT):
        name, content = ("manipulations", table) if isinstance(table, dict) else (table, read_table(Path(table)))
        self.table = check(content, name)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Anchor and copy of an image (H, W, 3) uint8 of at least 128 px a side: (128, 128) or (128, 128, 3) uint8.

        The anchor is the image's centre; the copy that of the manipulated image.
        """
        if min(image.shape[:2]) < SIZE:
            raise BadInput(f"an image of {image.shape[0]} x {image.shape[1]} px, expected {SIZE} px a side or more")
        picture = Image.fromarray(image)
        pair = [centre(picture), centre(self._copy(picture, rng))]
        channels = self.table.get("grayscale")
        if channels:
            pair = [each.convert("L") if channels == 1 else each.convert("L").convert("RGB") for each in pair]
        return np.asarray(pair[0]), np.asarray(pair[1])

    def _copy(self, picture, rng):
        table = self.table
        if rng.random() < table["p_horizontal_flip"]:
            picture = ImageOps.mirror(picture)
        if rng.random() < table["p_vertical_flip"]:
            picture = ImageOps.flip(picture)
        if "perspective_range" in table:
            picture = move_corners(picture, _whole_numbers(rng, table["perspective_range"], (4, 2)))
        if "affine" in table:
            affine = table["affine"]
            scale, angle = rng.uniform(*affine["scale_range"]), rng.uniform(*affine["rotation_range"])
            picture = move(picture, scale, angle, rng.uniform(*affine["translation_range"], 2))
        picture = self._recolour(picture, rng)
        if rng.random() < table.get("p_blur", 0):
            picture = picture.filter(ImageFilter.GaussianBlur(RADIUS))
        if rng.random() < table.get("p_jpeg", 0):
            picture = compress(picture)
        if rng.random() < table.get("p_noise", 0):
            noisy = np.asarray(picture) + rng.normal(0, SIGMA, (*picture.size[::-1], 3))
            picture = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
        return picture

    def _recolour(self, picture, rng):
        table = self.table
        if "gamma_range" in table:
            gamma = rng.uniform(*table["gamma_range"])
            picture = picture.point([round(255 * (value / 255) ** gamma) for value in range(256)] * 3)
        if "hue_range" in table:
            picture = turn_hue(picture, rng.uniform(*table["hue_range"]))
        if "brightness_range" in table:
            picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(*table["brightness_range"]))
        if "contrast_range" in table:
            picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(*table["contrast_range"]))
        if rng.random() < table.get("p_global_hist", 0):
            picture = ImageOps.equalize(picture)
        elif rng.random() < table.get("p_local_hist", 0):
            picture = equalise_locally(picture)
        return ImageOps.invert(picture) if rng.random() < table["p_invert"] else picture


def _whole_numbers(rng, limits, shape):
    """Whole numbers from the lower limit on, below the upper one; of an empty range, its limit."""
    low, high = map(int, limits)
    return rng.integers(low, max(high, low + 1), shape)


def centre(picture: Image.Image, size: int = SIZE) -> Image.Image:
    """The square of this side about the centre."""
    x, y = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((x, y, x + size, y + size))


def move_corners(picture: Image.Image, offsets: np.ndarray) -> Image.Image:
    """The perspective view in which the four corners, clockwise from the upper left, move by offsets (4, 2) x, y.

    A point x', y' of the view shows x = (a x' + b y' + c) / (g x' + h y' + 1), and y likewise with d, e, f; the eight
    coefficients solve the four corners' equations.
    """
    right, bottom = picture.width - 1, picture.height - 1
    corners = np.array([(0, 0), (right, 0), (right, bottom), (0, bottom)], float)
    rows = []
    for (x, y), (u, v) in zip(corners, corners + offsets, strict=True):
        rows += [(u, v, 1, 0, 0, 0, -x * u, -x * v), (0, 0, 0, u, v, 1, -y * u, -y * v)]
    coefficients = np.linalg.solve(np.array(rows), corners.ravel()).round(12)  # of no move exactly 0 and 1
    return picture.transform(picture.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)


def move(picture: Image.Image, scale: float, angle: float, shift: np.ndarray) -> Image.Image:
    """The picture scaled, turned (clockwise, degrees) and shifted (x, y) about its centre; nearest neighbour."""
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    inverse = np.array([[c, s], [-s, c]]) / scale  # where a pixel of the result comes from
    middle = np.array([picture.width, picture.height]) / 2 + 0.5
    offset = middle - inverse @ (middle + shift)
    coefficients = np.column_stack([inverse, offset]).ravel()
    return picture.transform(picture.size, Image.Transform.AFFINE, coefficients, Image.Resampling.NEAREST)


def turn_hue(picture: Image.Image, turn: float) -> Image.Image:
    """The picture with its hues turned by this share of the circle."""
    hsv = np.array(picture.convert("HSV"))
    hsv[..., 0] += np.uint8(round(turn * 255) % 256)  # modulo 256
    return Image.fromarray(hsv, "HSV").convert("RGB")


def equalise_locally(picture: Image.Image) -> Image.Image:
    """The picture with the histogram about every pixel equalised, channel by channel."""
    from skimage.filters import rank
    from skimage.morphology import disk

    channels = [Image.fromarray(rank.equalize(np.array(channel), disk(DISK))) for channel in picture.split()]
    return Image.merge("RGB", channels)


def compress(picture: Image.Image) -> Image.Image:
    """The picture as JPEG keeps it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return Image.open(file).convert("RGB")


def read_table(path: Path) -> dict:
    """A YAML file's mapping. BadInput names a file that holds anything else; `.yml` and `.yaml` are one."""
    other = path.with_suffix({".yaml": ".yml", ".yml": ".yaml"}.get(path.suffix, path.suffix))
    path = other if other.exists() and not path.exists() else path
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: of dates that are none
        raise BadInput(f"{path}: not YAML: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected keys and values of manipulations, found a {type(content).__name__}")
    return content


def check(content: dict, name: Path | str) -> dict:
    """The table under today's names, checked. BadInput names a key that is unknown, needed or of a wrong value."""
    table = {}
    for key, value in content.items():
        known = _todays_name(key)
        if known != key:
            print(f"{name}: {key} is called {known} today", file=sys.stderr)
        if known not in (*CHANCES, *RANGES, "affine", "grayscale"):
            raise BadInput(f"{name}: unknown key {key!r}; expected some of {', '.join((*CHANCES, *RANGES))}, affine")
        table[known] = value
    for key in NEEDED:
        if key not in table:
            raise BadInput(f"{name}: needs {key}, a chance from 0 to 1")
    for key in table.keys() & {*CHANCES}:
        if not _is_number(table[key]) or not 0 <= table[key] <= 1:
            raise BadInput(f"{name}: {key} is {table[key]!r}, expected a chance from 0 to 1")
    for key in table.keys() & RANGES.keys():
        _check_range(table[key], *RANGES[key], f"{name}: {key}")
    if "affine" in table:
        affine = table["affine"]
        if not isinstance(affine, dict) or affine.keys() != AFFINE.keys():
            raise BadInput(f"{name}: affine needs {', '.join(AFFINE)}, and nothing else")
        for key, limits in AFFINE.items():
            _check_range(affine[key], *limits, f"{name}: affine: {key}")
    if table.get("grayscale", 1) not in (1, 3):
        raise BadInput(f"{name}: grayscale is {table['grayscale']!r}, expected 1 or 3 channels")
    return table


def _todays_name(key):
    """`jpeg_p` and `p_jpeg_p` of old files are `p_jpeg`, their `hue` is `hue_range`."""
    if key == "hue":
        return "hue_range"
    return f"p_{key.removeprefix('p_').removesuffix('_p')}" if str(key).endswith("_p") else key


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_range(value, least, most, name):
    numbers = value if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) else [1, 0]
    if not least <= numbers[0] <= numbers[1] <= most:
        raise BadInput(f"{name} is {value!r}, expected two ascending numbers from {least} to {most}")
