"""Every method on the same images, AUC and localisation AP against O2I: run_experiments.py methods --preset small

Makes nMNIST, crops of made slides (a check of the programs, no result) and their audits, trains and scores the runs
that are not done (interrupted ones continue), writes results/methods.csv after each and draws figures/methods.png.
"""

import functools
import hashlib
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common import cli, metrics
from common.errors import BadInput
from common.files import atomic_open, make_folder, make_subfolder, read_json, write_csv
from data import tiles
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from data.cluttered_mnist import digits
from experiments import anomaly, drawing, executors, made, plot_results, runs, sources
from experiments.runs import Children
from experiments.stats import read_numbers, update_table
from models import weights
from models.needle import POOLINGS
from retrieval import audit

NAME = "methods"
FEATURES = {"classifier": "", "dsmil": "squeezenet", "hnm": "squeezenet", "dpa": "vgg16"}  # frozen networks
FEATURES |= {"deep_if": "vgg16", "deep_knn": "vgg16"}
DETECTORS = ("dpa", "deep_if", "deep_knn")
KEY = ("setting", "data", "size", "o2i", "method", "variant", "seed")
NUMBERS = ("size", "o2i_percent", "seed", "positives", "auc", "ap", "near_duplicates", "seconds")
GAPS = ("localization_ap", "chance_ap", "cell", "auc_with_near_duplicate", "auc_without")
TEXTS = ("setting", "data", "o2i", "method", "variant", "device", "weights")
COLUMNS = (*KEY, *NUMBERS[1:2], *NUMBERS[3:7], *GAPS, "seconds", "device", "weights")
CHANCE = 0.5
PANELS = {"auc": "test AUC", "localization_ap": "localisation AP"}
TITLES = {"nmnist": "nMNIST", "made": made.TITLE}
LABELS = [*(f"classifier {pooling}" for pooling in POOLINGS), "dsmil", "hnm", *DETECTORS]
MARKERS = "osD^v<>Ph"
SHIFT, MARGIN = 1.035, 1.5  # factors of O2I: from method to method, and beside the outermost sizes


@dataclass(frozen=True)
class Preset:
    """Which data sets and runs, and how they are trained; flags are written as they are typed.

    Attributes: ratios, of crops of `side` px, k as made.make_crops; on the first canvas and ratio all poolings and HNM
        run. classifier, bags, seconds: by --datatype; seconds, of a run at 64 px on a core, for estimates.
    """

    name: str
    seeds: int
    canvases: tuple[int, ...]
    side: int
    ratios: tuple[str, ...]
    slides: str
    k: tuple[int, int]
    classifier: dict[str, str]
    tile: int  # px, of bags and detectors
    stride: int  # of bags
    bags: dict[str, str]
    dsmil: str
    hnm: str
    detectors: dict[str, dict]
    seconds: dict[str, dict[str, float]]


MIL = "--lr_mil 1e-3 --ranking_loss yes"
NARROW = "--norm bn --opt adam --lr 2e-3 -b 16"
SMALL = Preset(
    "small",
    3,
    (64, 96, 128),
    64,
    ("0.01_0.1", "0.001_0.01"),
    "--own_tissue",
    (20, 120),
    {
        "mnist": f"--width -3 {NARROW} --receptive_field 177 -e 2",
        "camelyon": f"--width -3 {NARROW} --receptive_field 33 -e 6",
    },
    32,
    16,
    {"mnist": "--num_examples 1000 --tile_resize 64", "camelyon": "--tile_resize 64"},
    f"{MIL} -b 16 --num_epoch_mil 15",
    "--encoder_weights random --encoder_width 0.25 -e 4 -b 32 --lr 0.2 --augment_transform 2"
    f" --posi_query_ratio 0.25 --warmup 2 --MIL_every_n_epochs 2 {MIL} --bags_per_step 8 --num_epoch_mil 20",
    {method: anomaly.SMALL[method] | {"--gallery": 1000} for method in ("deep_if", "deep_knn")}
    | {"dpa": anomaly.SMALL["dpa"]},
    {
        "mnist": {"classifier": 300, "dsmil": 65, "hnm": 200, "dpa": 120, "deep_if": 60, "deep_knn": 60},
        "camelyon": {"classifier": 120, "dsmil": 60, "hnm": 200, "dpa": 60, "deep_if": 20, "deep_knn": 20},
    },
)
TINY = replace(
    SMALL,
    name="tiny",
    seeds=1,
    canvases=(40,),
    side=40,
    ratios=("0.05_0.5",),
    slides="--own_tissue --annotated 1 --negative 1 --width 2048 --height 2048",
    k=(8, 30),
    classifier=dict.fromkeys(("mnist", "camelyon"), f"--width -4 {NARROW} --receptive_field 9 -e 1"),
    bags=dict.fromkeys(("mnist", "camelyon"), "--num_examples 20 --tile_resize 40"),
    dsmil=f"{MIL} -b 16 --num_epoch_mil 2",
    hnm="--encoder_weights random --encoder_width 0.25 -e 1 -b 16 --warmup 0"
    f" --posi_query_ratio 0.25 {MIL} --num_epoch_mil 2",
    detectors={"dpa": anomaly.SMALL["dpa"] | {"--iters": 2, "-b": 4}}
    | {"deep_if": {"--layers": "r12", "--gallery": 50}, "deep_knn": {"--layer": "r12", "--gallery": 50}},
)
PRESETS = {preset.name: preset for preset in (SMALL, TINY)}


def parse_args(argv=None):
    parser = cli.ArgumentParser(prog=f"run_experiments.py {NAME}", description=__doc__)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="small", help="hours of a CPU, or minutes, to see that it runs")
    add("--methods", nargs="+", choices=FEATURES, default=list(FEATURES), help="which")
    add("--seeds", type=cli.positive, help="how many seeds (default: the preset's)")
    add("--mnist", help="folder of the four MNIST files, or 'digits' (default: generate_data.py's)")
    add("--root", type=cli.path, default=Path("runs/methods"), help="folder of data sets and run folders")
    plot_results.add_out_flag(parser)
    add("--dry_run", action="store_true", help="print the commands and the hours, and end")
    add("--jobs", type=cli.positive, help="runs at a time (default: a GPU each, or a CPU core)")
    return parser.parse_args(argv)


# --- data sets ---


@dataclass(frozen=True)
class Images:
    """nMNIST of a canvas, or crops of made slides of a range of O2I; `digits` as generate_data.py's --mnist."""

    root: Path
    side: int
    ratio: str = ""
    digits: str = ""

    @property
    def name(self) -> str:
        if self.ratio:
            return f"made_{self.side}_ratio_{self.ratio}"
        found = sources.digits_of(self.digits).name
        return "_".join(filter(None, [f"nmnist_{self.side}", found]))

    @property
    def table_name(self) -> str:
        """Its column `data`."""
        return "made" if self.ratio else "nmnist"

    @property
    def kind(self) -> str:
        """The --datatype."""
        return "camelyon" if self.ratio else "mnist"

    @property
    def o2i(self) -> str:
        """In percent; of crops a range."""
        if self.ratio:
            return "-".join(f"{100 * float(edge):g}" for edge in self.ratio.split("_"))
        return f"{100 * (digits.SIDE / self.side) ** 2:.3g}"

    @property
    def flags(self) -> str:
        if self.ratio:
            return made.crop_flags(self.crops, self.side, self.ratio)
        return f"--data_path {quote(str(self.root / 'data' / self.name))}"

    @property
    def crops(self) -> Path:
        return self.root / "data" / f"made_{self.side}"

    @property
    def audit(self) -> Path:
        return self.root / "audits" / self.name

    def make(self, children: Children, preset: Preset) -> None:
        """Make what is missing of the images and of their audit by pixels."""
        if self.ratio:
            made.make_crops(make_folder(self.crops), children, preset.slides, self.side, self.ratio, preset.k)
        else:
            place = self.flags.replace("--data_path", "--out")
            generate = (
                f"generate_data.py --canvas {self.side} --duplicates 1 --format none --mnist {quote(self.digits)}"
            )
            made.call(children, f"data/cluttered_mnist/{generate} {place}")
        if not (self.audit / "summary.json").exists():
            where = f"--out {quote(str(self.audit))} --workers 0"
            made.call(children, f"audit_leakage.py {self.flags} --k 1 {where}")

    @functools.cached_property
    def near_duplicates(self) -> dict[str, bool]:
        """Test image -> whether the audit finds a near-duplicate of it in training."""
        threshold = read_json(self.audit / "summary.json")["threshold"]["distance"]
        table = read_numbers(self.audit / "audit.csv", ["label"], ["distance"], ["query", "split"])
        table = table[table["split"] == "test"]
        return dict(zip(table["query"], table["distance"] <= threshold, strict=True))

    @functools.cached_property
    def masks(self) -> dict[str, np.ndarray]:
        """Positive test image -> the object's pixels, bool (H, W)."""
        parser = cli.ArgumentParser()
        mnist.add_flags(parser), camelyon.add_flags(parser)
        args = parser.parse_args(shlex.split(self.flags))
        splits = camelyon.load_splits(args, ["test"], False) if self.ratio else mnist.load_splits(args, ["test"])
        test = splits["test"]
        return {test.names[i]: test.object_mask(i) for i in np.flatnonzero(np.asarray(test.labels) == 1)}


# --- runs ---


@dataclass(frozen=True)
class MethodTrial:
    """A method trained on a data set with a seed, as experiments.executors takes it to its end.

    Attributes: setting, as the table calls it; weights, of the frozen network: imagenet or random; folder, where run
        folders are.
    """

    setting: str
    preset: Preset
    data: Images
    method: str
    variant: str
    seed: int
    weights: str
    folder: Path
    bulky = ("saliency_test", "features", "first/features")

    @functools.cached_property
    def name(self) -> str:
        """Tells all flags but those that name places."""
        flags = hashlib.sha256("\n".join(self.lines("", "LOGDIR")).encode()).hexdigest()[:6]
        return f"{self.data.name}/{'_'.join(filter(None, (self.method, self.variant, f's{self.seed}', flags)))}"

    @property
    def places(self) -> runs.Places:
        return runs.Places(self.folder)

    @property
    def logdir(self) -> Path:
        return self.folder / "runs" / self.name

    def commands(self) -> list[list[str]]:
        return [shlex.split(line) for line in self.lines(self.data.flags, quote(str(self.logdir)))]

    def lines(self, data: str, logdir: str) -> list[str]:
        """The commands as they are typed, of training and scoring the test images."""
        p, kind, end = self.preset, self.data.kind, f"--workers 0 --logdir {logdir}"
        seed, tile = f"--seed {self.seed}", f"--tile {p.tile}"
        if self.method == "classifier":
            train = f"train_{kind}.py {data} {p.classifier[kind]} --pooling {self.variant} {seed} {end}"
            return [train, f"predict_saliency.py --datatype {kind} {data} --split test --overlays 0 {end}"]
        if self.method in DETECTORS:
            own = shlex.join(anomaly.words("", p.detectors[self.method])[1:])
            network = "--vgg vgg16 --vgg_weights" if self.method == "dpa" else "--embedder vgg16 --embedder_weights"
            train = f"train_anomaly.py --method {self.method} {data} {tile} {own} {network} {self.weights}"
            return [f"{train} {seed} {end}", f"score_anomaly.py --stride {p.tile} --overlays 0 {end}"]
        bags = f"--datatype {kind} {data} {tile} --stride {p.stride} {p.bags[kind]} {seed}"
        dsmil = f"train_mil.py {bags} --embedder squeezenet --embedder_weights {self.weights}"
        dsmil += f" --feature_dtype float16 {p.dsmil}"
        if self.method == "dsmil":
            return [f"{dsmil} {end}"]
        first = f"{dsmil} --pseudo_labels {logdir}/first/scores.p {end}/first"
        return [first, f"mil/finetune.py {bags} {p.hnm} --pseudo_label_path {logdir}/first/scores.p {end}"]

    @property
    def is_done(self) -> bool:
        return runs.outcome(self) == 0 and (self.logdir / "scores" / "test.csv").exists()


def trials(args) -> list[MethodTrial]:
    """All runs, the first seed of every one first."""
    root, preset = args.root.absolute(), PRESETS[args.preset]
    source = args.mnist or digits.default_source()
    canvases = [Images(root, canvas, digits=source) for canvas in preset.canvases]
    crops = [Images(root, preset.side, ratio) for ratio in preset.ratios]
    found = {name: "imagenet" if weights.find_imagenet(name) else "random" for name in set(FEATURES.values()) - {""}}
    plans = [
        (data, method, variant)
        for kind in (canvases, crops)
        for data in kind
        for method in args.methods
        for variant in ((POOLINGS if data is kind[0] else POOLINGS[:1]) if method == "classifier" else ("",))
        if method != "hnm" or data is kind[0]
    ]
    setting = ", ".join(filter(None, [preset.name, sources.digits_of(source).name]))
    return [
        MethodTrial(setting, preset, data, method, variant, seed, found.get(FEATURES[method], ""), root)
        for seed in range(1, (args.seeds or preset.seeds) + 1)
        for data, method, variant in plans
    ]


def estimate(run: MethodTrial) -> float:
    """Seconds of the run on one core, in proportion to the pixels of an image; 0 where none was measured."""
    return run.preset.seconds[run.data.kind].get(run.method, 0) * (run.data.side / 64) ** 2


# --- the table ---


def row(run: MethodTrial) -> dict:
    """A finished run's line of the results; writes images.csv, its scores beside the audit's verdicts."""
    table = read_numbers(
        run.logdir / "scores" / "test.csv", ["label", "score", "confidence", "cell"], ["o2i", "hit"], ["img_path"]
    )
    found = read_json(run.logdir / "scores" / "test.json")
    table["near_duplicate"] = table["img_path"].map(run.data.near_duplicates)
    if table["near_duplicate"].isna().any():
        raise BadInput(f"{run.data.audit}: lacks images of {run.logdir}; remove the folder, so that it is made again")
    flagged, labels = table["near_duplicate"].to_numpy(bool), table["label"].to_numpy()
    columns = ["img_path", "label", "o2i", "score", "confidence", "hit", "near_duplicate"]
    write_csv(run.logdir / "images.csv", table[columns].to_dict("records"))
    parts = audit.score_parts(labels, table["score"].to_numpy(), flagged, None)
    shares = np.array([cells_on_object(run, name, int(cell)) for name, cell in table[["img_path", "cell"]].to_numpy()])
    chance = metrics.localization_ap_at_chance(shares, table["confidence"].to_numpy(), int(labels.sum()))
    return {
        "setting": run.setting,
        "data": run.data.table_name,
        "size": run.data.side,
        "o2i": run.data.o2i,
        "method": run.method,
        "variant": run.variant,
        "seed": run.seed,
        "o2i_percent": 100 * table.loc[labels == 1, "o2i"].mean(),
        **{name: found[name] for name in ("positives", "auc", "ap", "localization_ap")},
        "chance_ap": chance,
        "cell": int(table["cell"].max()),
        "near_duplicates": flagged.mean(),
        "auc_with_near_duplicate": parts["with_near_duplicate"]["auc"],
        "auc_without": parts["without"]["auc"],
        "seconds": round(runs.seconds(run), 1),
        "device": read_json(run.logdir / "config.json").get("device"),
        "weights": features_of(run),
    }


def cells_on_object(run: MethodTrial, name: str, cell: int) -> float:
    """The share of the method's cells in an image that hold a pixel of the object."""
    mask = run.data.masks.get(name)
    if mask is None or cell == 1:
        return 0.0 if mask is None else float(mask.mean())
    tile, stride = run.preset.tile, cell if run.method in DETECTORS else run.preset.stride
    corners = tiles.corners(*mask.shape, tile, stride) + (tile - cell) // 2
    return float(tiles.holds_object(mask, corners, cell).mean())


def features_of(run: MethodTrial) -> str:
    """The frozen network, its weights and their digest."""
    network = FEATURES[run.method]
    path = weights.find_imagenet(network) if run.weights == "imagenet" else None
    return " ".join(filter(None, [network or "none", run.weights, path and weights.sha256_of(path)[:8]]))


def read(path: Path):
    """The table of results. BadInput when it is none."""
    table = read_numbers(path, NUMBERS, GAPS, TEXTS, dtype=dict.fromkeys(TEXTS, str))
    return table.fillna(dict.fromkeys(TEXTS, ""))


def tabulate(path: Path, done: list[MethodTrial]) -> None:
    """Write finished runs into the table."""
    if done:
        update_table(path, [row(run) for run in done], KEY, COLUMNS, read)


def is_in(table, run: MethodTrial) -> bool:
    """Whether the table has the run's line."""
    own = (run.setting, run.data.table_name, run.data.side, run.data.o2i, run.method, run.variant, run.seed)
    return bool((table[list(KEY)] == pd.Series(own, KEY)).all(axis=1).any())


def main(argv=None):
    args = parse_args(argv)
    planned, path = trials(args), args.out / "results" / f"{NAME}.csv"
    todo = [run for run in planned if not run.is_done]
    hours = sum(map(estimate, todo)) / 3600
    print(f"{NAME} ({planned[0].setting}): {len(planned)} runs, {len(todo)} to do, about {hours:.1f} h of one core")
    print("frozen features: " + ", ".join(sorted({features_of(run) for run in planned if run.weights})), flush=True)
    if args.dry_run:
        for line in (shlex.join(words) for run in todo for words in run.commands()):
            print(f"python {line}")
        return
    known = read(path) if path.exists() else pd.DataFrame(columns=COLUMNS)  # one that is damaged is named here
    children = Children()
    for data in dict.fromkeys(run.data for run in todo):
        print(f"making    {data.name} and its audit", flush=True)
        data.make(children, todo[0].preset)
    tabulate(path, [run for run in planned if run.is_done and not is_in(known, run)])

    def settle(run, how):
        if not run.is_done:
            return how
        tabulate(path, [run])

    failures = executors.settle_all(executors.run_local(todo, args.jobs), settle)
    if path.exists():
        for picture in draw(path, args.out / "figures"):
            print(f"wrote {picture}")
    executors.raise_failures(failures)


# --- the figure ---


def draw(path: Path, folder: Path) -> list[Path]:
    """Draw each setting of the table: AUC and localisation AP, on nMNIST and on made slides; returns the PNGs."""
    pictures = []
    for setting, table in read(path).groupby("setting"):
        table = table.assign(label=(table["method"] + " " + table["variant"]).str.strip())
        labels = [label for label in LABELS if label in set(table["label"])]
        styles = {label: (drawing.colours(LABELS)[label], MARKERS[LABELS.index(label)]) for label in labels}
        kinds = [kind for kind in TITLES if kind in set(table["data"])]
        canvas = Figure(figsize=(4.8 * len(kinds) + 1.6, 6.6), dpi=110, layout="constrained")
        axes = canvas.subplots(len(PANELS), len(kinds), squeeze=False, sharex="col")
        for column, kind in enumerate(kinds):
            axes[0][column].set_title(TITLES[kind], fontsize=10)
            for line, metric in enumerate(PANELS):
                draw_panel(axes[line][column], table[table["data"] == kind], metric, styles)
            axes[-1][column].set_xlabel("object-to-image ratio (%, mean of the positives)")
        canvas.legend(handles=legend(styles), loc="outside right center", frameon=False, fontsize=8)
        n = table["seed"].nunique()
        canvas.suptitle(
            f"setting: {setting}; small markers: {n} seed{'s' * (n > 1)}; large: mean and standard deviation",
            fontsize=8,
        )
        name = NAME if setting == "small" else f"{NAME}_{anomaly.as_name(setting)}"
        pictures.append(make_subfolder(make_folder(folder.parent), folder.name) / f"{name}.png")
        with atomic_open(pictures[-1]) as file:
            FigureCanvasAgg(canvas).print_png(file)
    return pictures


def draw_panel(axis, table, metric: str, styles: dict) -> None:
    """A metric against O2I: methods side by side at each size, dashes where chance is."""
    sizes = table.groupby("o2i")["o2i_percent"].mean()
    for place, (label, (colour, marker)) in enumerate(styles.items()):
        shift = SHIFT ** (place - (len(styles) - 1) / 2)
        for o2i, own in table[table["label"] == label].dropna(subset=metric).groupby("o2i"):
            at, values = sizes[o2i] * shift, own[metric]
            axis.plot([at] * len(own), values, marker, color=colour, markersize=3, alpha=0.7)
            axis.errorbar(at, values.mean(), np.nan_to_num(values.std()), color=colour, marker=marker, capsize=2)
            if metric == "localization_ap":
                axis.plot(at, own["chance_ap"].mean(), "_", color=colour, markersize=9)
    if metric == "auc":
        axis.axhline(CHANCE, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    axis.set(xscale="log", ylabel=PANELS[metric], ylim=(0.2, 1.03) if metric == "auc" else (-0.03, 1.03))
    axis.set_xlim(sizes.min() / MARGIN, sizes.max() * MARGIN)
    axis.set_xticks(sorted(sizes), [f"{size:.2g}" for size in sorted(sizes)])
    axis.minorticks_off()


def legend(styles: dict) -> list[Line2D]:
    """A marker for each method, and what dashes mean."""
    entries = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
        for label, (colour, marker) in styles.items()
    ]
    return [
        *entries,
        Line2D([], [], color="grey", marker="_", linestyle="", label="random cell"),
        Line2D([], [], color="grey", linestyle="--", linewidth=0.8, label="chance"),
    ]
