"""Pawlowski 2019's figures as data: the points of each one's grid, its axes and its metric, two ways to train them."""

from dataclasses import dataclass, field, replace
from itertools import product

from common import cli
from common.processes import PRECISIONS
from data.cluttered_mnist.digits import SIDE
from models.needle import POOLINGS
from models.needle import WIDTHS as NETWORK_WIDTHS

CANVASES = (64, 128, 256, 512, 1024)  # px; O2I 19.1, 4.8, 1.2, 0.3 and 0.075 %
SIZES = (1400, 2819, 5638, 7500, 11276, 22552)  # training images
BALANCES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)  # shares of positives
RECEPTIVE_FIELDS = (9, 33, 177)  # px
WIDTHS = (-2, -1, 0, 1)  # capacities 1/4, 1/2, 1 and 2
CROPS = (128, 256, 512)  # px
CROP_DATA = ("ncamelyon", "made")
RATIOS = ("0.5_1", "0.1_0.5", "0.01_0.1", "0.001_0.01")  # O2I of crops, as in the extractor's folder names


@dataclass(frozen=True)
class Point:
    """All that decides a training run but its seed and its setting; the defaults are Pawlowski 2019's."""

    data: str = "nmnist"  # or "noise", "ncamelyon", "made" (crops of made slides)
    canvas: int = 64  # px; for crops their side
    ratio: str = ""  # O2I range of crops
    num_examples: int | None = 11276  # None: all crops
    balance: float = 0.5
    receptive_field: int = 33
    pooling: str = "max"
    width: int = 0
    precision: str = "float32"

    @property
    def o2i(self) -> str:
        """Object-to-image ratio in percent, for crops a range."""
        if not self.ratio:
            return f"{100 * (SIDE / self.canvas) ** 2:.3g}"
        low, high = (100 * float(edge) for edge in self.ratio.split("_"))
        return f"{low:g}-{high:g}"


@dataclass(frozen=True)
class Setting:
    """How all runs of a sweep are trained. `tflops`: what one device is taken to sustain, for estimates."""

    label: str
    seeds: int
    epochs: int
    norm: str
    opt: str
    lr: float
    batch_size: int
    duplicates: int  # canvases of each needle digit
    scale: float  # zoom of the finished canvas
    px_per_digit: int | None  # canvas area for each digit, needle included; None: the generator's density
    cell: int  # px; on canvases of whole cells needles lie in one of them, 0: anywhere
    tflops: float


PAPER = Setting("paper", 6, 200, "in_aff", "rmsprop", 5e-5, 32, 2, 1.0, px_per_digit=None, cell=64, tflops=10)
SMALL = Setting("small", 3, 8, "bn", "adam", 2e-3, 32, 1, 0.5, px_per_digit=1600, cell=64, tflops=0.014)
# O2I changes, the density of clutter does not
DENSITY = Setting("density", 3, 3, "bn", "adam", 2e-3, 16, 1, 1.0, px_per_digit=None, cell=0, tflops=0.014)
PRESETS = {setting.label: setting for setting in (PAPER, SMALL, DENSITY)}
FEW, NARROW = (700, 1400), (-4, -3)  # of the small preset
SMALL_AXES = {
    "canvas": (40, 48),
    "num_examples": (1400,),
    "receptive_field": (33,),
    "pooling": ("max",),
    "width": (-3,),
}
DENSITY_AXES = {"canvas": (64, 96, 128, 192), "num_examples": (11276,), "receptive_field": (177,), "width": (-3,)}
AXES = {  # flag -> how argparse reads it
    "canvas": {"type": cli.positive, "help": "canvases of nMNIST and noise in px"},
    "num_examples": {"type": cli.positive, "help": "training images of nMNIST and noise"},
    "receptive_field": {"type": int, "choices": RECEPTIVE_FIELDS, "help": "receptive fields in px"},
    "pooling": {"choices": POOLINGS, "help": "poolings"},
    "width": {"type": int, "choices": NETWORK_WIDTHS, "help": "network widths, channels times 2^W"},
    "precision": {"choices": PRECISIONS, "help": "arithmetic"},
}


@dataclass(frozen=True)
class View:
    """One panel: `metric` over `x`, a colour for each `hue`, of the results whose columns have the values of `where`.

    kind: points (seeds, mean and standard deviation), count (runs that fit), heat, smallest (set that reaches an
    accuracy of 70 and 85 %), curves (over epochs).
    """

    title: str
    hue: str | None = None
    metric: str = "test_acc"
    x: str = "o2i"
    kind: str = "points"
    where: tuple[tuple[str, object], ...] = (("data", "nmnist"),)


@dataclass(frozen=True)
class Figure:
    """A figure's runs, how they are drawn, and the axes of its small preset that differ from SMALL_AXES.

    setting: preset -> what replaces its own.
    """

    title: str
    points: tuple[Point, ...]
    views: tuple[View, ...]
    small: dict
    localise: bool = False  # needs saliency maps
    setting: dict[str, dict] = field(default_factory=dict)


def grid(**axes) -> tuple[Point, ...]:
    """Every combination of the axes' values, the last axis fastest."""
    return tuple(Point(**dict(zip(axes, values, strict=True))) for values in product(*axes.values()))


def crops(**axes) -> tuple[Point, ...]:
    """nCAMELYON's points: every crop size and O2I range that has validation crops in Pawlowski 2019's Table 1."""
    fixed = {"data": ("ncamelyon",), "num_examples": (None,), "receptive_field": (9,)}
    points = grid(ratio=RATIOS, canvas=CROPS, **fixed | axes)
    return tuple(point for point in points if (point.canvas, point.ratio) != (128, "0.5_1"))


def both(hue: str | None) -> tuple[View, View]:
    """nMNIST beside nCAMELYON."""
    return View("nMNIST", hue), View("nCAMELYON", hue, where=(("data", "ncamelyon"),))


def one_for_each(name: str, values, **view) -> tuple[View, ...]:
    """A panel for each value of a column."""
    return tuple(View(f"{LABELS[name]} {v}", where=(("data", "nmnist"), (name, v)), **view) for v in values)


def with_axes(points, axes: dict[str, tuple]) -> tuple[Point, ...]:
    """The points with each axis's values in place of their own; crops keep their sizes and numbers."""
    for axis, values in axes.items():
        replaced = [
            replace(point, **{axis: value})
            for point in points
            for value in ([getattr(point, axis)] if _is_own(point, axis) else values)
        ]
        points = dict.fromkeys(replaced)
    return tuple(points)


def _is_own(point, axis):
    return point.data in CROP_DATA and axis in ("canvas", "num_examples")


def preset_setting(name: str, setting: Setting) -> Setting:
    """How a figure's runs are trained at a preset."""
    return replace(setting, **FIGURES[name].setting.get(setting.label, {}))


def preset_points(name: str, setting: Setting) -> tuple[Point, ...]:
    """A figure's points at a preset; crops are Pawlowski 2019's alone."""
    figure = FIGURES[name]
    if setting.label == PAPER.label:
        return figure.points
    axes = SMALL_AXES | (DENSITY_AXES if setting.label == DENSITY.label else figure.small)
    return with_axes([point for point in figure.points if point.data not in CROP_DATA], axes)


def change(points, axis: str, values: tuple) -> str:
    """How a flag reads in a setting's label; empty when it only chooses among the points."""
    own = {getattr(point, axis) for point in points if not _is_own(point, axis)}
    return "" if not own or set(values) <= own else f"--{axis} {' '.join(map(str, values))}"


LABELS = {  # column of the results -> how it reads on an axis
    "o2i": "object-to-image ratio (%)",
    "num_examples": "training images",
    "receptive_field": "receptive field (px)",
    "pooling": "pooling",
    "width": "width (log2 of capacity)",
    "balance": "share of positives in training",
    "precision": "precision",
    "epoch": "epoch",
    "test_acc": "test accuracy",
    "val_acc": "validation accuracy",
    "train_running_acc": "training accuracy (running)",
    "epochs_to_fit": "epochs to fit the training data",
    "localization_ap": "localisation average precision",
    "fits": "runs that fit the training data",
}
EXTRACTORS = {"receptive_field": RECEPTIVE_FIELDS, "width": WIDTHS}
ARCHITECTURES = {"pooling": POOLINGS, **EXTRACTORS}  # Pawlowski 2019's 48
LIMIT = {"canvas": CANVASES, "num_examples": SIZES}
# Pawlowski 2019's memory did not hold the widest network on the largest canvas
CAPACITY = tuple(p for p in grid(canvas=CANVASES, width=WIDTHS) if (p.canvas, p.width) != (1024, 1))
HEAT, SMALLEST = {"metric": "val_acc", "kind": "heat"}, {"metric": "val_acc", "kind": "smallest"}
NOISE = (("data", "noise"),)

FIGURES = {
    "figure4": Figure("Accuracy against O2I", grid(canvas=CANVASES) + crops(), both(None), {"canvas": (40, 48, 56)}),
    "figure5a": Figure(
        "O2I limit against training-set size", grid(**LIMIT), (View("nMNIST", "num_examples"),), {"num_examples": FEW}
    ),
    "figure5b": Figure("Capacity", CAPACITY, (View("nMNIST", "width"),), {"width": NARROW}),
    "figure5c": Figure("Capacity", crops(width=WIDTHS), both("width")[1:], {"width": NARROW}),
    "figure6": Figure(
        "O2I limit, max pooling",
        grid(**LIMIT, **EXTRACTORS),
        (View("max", **HEAT), View("smallest training set that reaches an accuracy", "pooling", **SMALLEST)),
        {"num_examples": FEW},
    ),
    "figure7": Figure(
        "Receptive field, max pooling",
        grid(canvas=CANVASES, receptive_field=RECEPTIVE_FIELDS) + crops(receptive_field=RECEPTIVE_FIELDS),
        both("receptive_field"),
        {"canvas": SMALL_AXES["canvas"][:1], "receptive_field": RECEPTIVE_FIELDS},
    ),
    "figure8": Figure(
        "Global pooling",
        grid(canvas=CANVASES, pooling=POOLINGS) + crops(pooling=POOLINGS),
        both("pooling"),
        {"pooling": POOLINGS},
    ),
    "figure9": Figure(
        "Optimisation",
        grid(data=("nmnist", "noise"), canvas=CANVASES, pooling=POOLINGS),
        (
            View("nMNIST", "pooling", "epochs_to_fit"),
            View("nMNIST", "pooling", "fits", kind="count"),
            View("Gaussian noise", "pooling", "epochs_to_fit", where=NOISE),
            View("Gaussian noise", "pooling", "fits", kind="count", where=NOISE),
        ),
        {"pooling": ("max", "mean")},
    ),
    "figure12": Figure(
        "Class balance",
        grid(canvas=(256,), **EXTRACTORS | {"width": (0,)}, pooling=POOLINGS, balance=BALANCES),
        one_for_each("receptive_field", RECEPTIVE_FIELDS, hue="pooling", x="balance"),
        {"canvas": SMALL_AXES["canvas"][:1], "pooling": ("max", "mean"), "balance": (0.01, 0.5, 0.99)},
        setting={"density": {"duplicates": 2}},  # else MNIST has too few digits of one class
    ),
    "figure13": Figure(
        "Capacity and training-set size",
        grid(canvas=(256,), num_examples=(2819, 11276), **EXTRACTORS),
        one_for_each("receptive_field", RECEPTIVE_FIELDS, hue="num_examples", x="width"),
        {"canvas": SMALL_AXES["canvas"][:1], "num_examples": FEW, "width": NARROW},
    ),
    "figure14": Figure(
        "O2I limit",
        grid(**LIMIT, **ARCHITECTURES),
        one_for_each("pooling", POOLINGS, **HEAT),
        {"num_examples": FEW, "pooling": ("max", "mean")},
    ),
    "figure15": Figure(
        "O2I limit",
        grid(**LIMIT, **ARCHITECTURES),
        (View("smallest training set that reaches an accuracy", "pooling", **SMALLEST),),
        {"num_examples": FEW, "pooling": ("max", "mean")},
    ),
    "figure17": Figure(
        "Localisation by saliency maxima, validation images",
        grid(canvas=CANVASES, pooling=POOLINGS) + grid(canvas=CANVASES, receptive_field=(9, 177)),
        (
            View(
                "receptive field 33", "pooling", "localization_ap", where=(("data", "nmnist"), ("receptive_field", 33))
            ),
            View("max pooling", "receptive_field", "localization_ap", where=(("data", "nmnist"), ("pooling", "max"))),
        ),
        {"pooling": POOLINGS},
        localise=True,
    ),
    "precision": Figure(
        "Learning curves by arithmetic precision",
        grid(precision=("float32", "tf32", "fp16", "bf16")),
        (
            View("training", "precision", "train_running_acc", x="epoch", kind="curves"),
            View("validation", "precision", "val_acc", x="epoch", kind="curves"),
        ),
        {"canvas": SMALL_AXES["canvas"][:1]},
        # instance norm is what magnifies rounding; and a CPU is slow in fp16
        setting={"paper": {"seeds": 3}, "small": {"norm": "in_aff", "epochs": 4}},
    ),
}
