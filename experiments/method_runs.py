"""The runs of the figure `methods`: its data sets, presets, and the commands that train and score each method."""

import functools
import hashlib
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import numpy as np

from common import cli
from common.files import make_folder, sha256_of
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from data.cluttered_mnist import digits
from experiments import anomaly_runs, made, runs, sources
from experiments.figures import Point
from experiments.runs import Children
from experiments.stats import read_near_duplicates
from models import weights
from models.needle import POOLINGS

FEATURES = {  # method -> its frozen network; of HNM that of its first scores
    "classifier": "",
    "dsmil": "squeezenet",
    "hnm": "squeezenet",
    "dpa": "vgg16",
    "deep_if": "vgg16",
    "deep_knn": "vgg16",
}
DETECTORS = ("dpa", "deep_if", "deep_knn")


@dataclass(frozen=True)
class Preset:
    """Which data sets and runs, and how they are trained; flags are written as they are typed.

    Attributes: ratios, of crops of `side` px, k as made.make_crops; on the first canvas and ratio all poolings and HNM
        run. classifier, bags: flags by --datatype. tile, px, of bags and detectors; stride, of bags. detectors: flags
        beside anomaly_runs.SMALL. seconds: of a run at 64 px on a core, by --datatype.
    """

    name: str
    seeds: int
    canvases: tuple[int, ...]
    side: int
    ratios: tuple[str, ...]
    slides: str
    k: tuple[int, int]
    classifier: dict[str, str]
    tile: int
    stride: int
    bags: dict[str, str]
    dsmil: str
    hnm: str
    detectors: dict[str, str]
    seconds: dict[str, dict[str, float]]


MIL = "--lr_mil 1e-3 --ranking_loss yes"
NARROW = "--norm bn --opt adam --lr 2e-3 -b 16"
SMALL = Preset(
    name="small",
    seeds=3,
    canvases=(64, 96, 128),
    side=64,
    ratios=("0.01_0.1", "0.001_0.01"),
    slides="--own_tissue",
    k=(20, 120),
    classifier={
        "mnist": f"--width -3 {NARROW} --receptive_field 177 -e 2",
        "camelyon": f"--width -3 {NARROW} --receptive_field 33 -e 6",
    },
    tile=32,
    stride=16,
    bags={"mnist": "--num_examples 1000 --tile_resize 64", "camelyon": "--tile_resize 64"},
    dsmil=f"{MIL} -b 16 --num_epoch_mil 15",
    hnm="--encoder_weights random --encoder_width 0.25 -e 4 -b 32 --lr 0.2 --augment_transform 2"
    f" --posi_query_ratio 0.25 --warmup 2 --MIL_every_n_epochs 2 {MIL} --bags_per_step 8 --num_epoch_mil 20",
    detectors={"dpa": "", "deep_if": "--gallery 1000", "deep_knn": "--gallery 1000"},
    seconds={
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
    hnm=f"--encoder_weights random --encoder_width 0.25 -e 1 -b 16 --warmup 0 {MIL} --num_epoch_mil 2",
    detectors={"dpa": "--iters 2", "deep_if": "--gallery 50", "deep_knn": "--gallery 50"},
)
PRESETS = {preset.name: preset for preset in (SMALL, TINY)}


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
        return Point(canvas=self.side, ratio=self.ratio).o2i

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
            canvases = f"--canvas {self.side} --duplicates 1 --format none --mnist {quote(self.digits)}"
            made.call(children, f"data/cluttered_mnist/generate_data.py {canvases} {place}")
        if not (self.audit / "summary.json").exists():
            where = f"--out {quote(str(self.audit))} --workers 0"
            made.call(children, f"audit_leakage.py {self.flags} --k 1 {where}")

    @functools.cached_property
    def near_duplicates(self) -> dict[str, bool]:
        """Test image -> whether the audit finds a near-duplicate of it in training."""
        return read_near_duplicates(self.audit, "test")

    @functools.cached_property
    def masks(self) -> dict[str, np.ndarray]:
        """Positive test image -> the object's pixels, bool (H, W)."""
        parser = cli.ArgumentParser()
        mnist.add_flags(parser)
        camelyon.add_flags(parser)
        args = parser.parse_args(shlex.split(self.flags))
        splits = camelyon.load_splits(args, ["test"], False) if self.ratio else mnist.load_splits(args, ["test"])
        test = splits["test"]
        return {test.names[i]: test.object_mask(i) for i in np.flatnonzero(np.asarray(test.labels) == 1)}


# --- runs ---


@dataclass(frozen=True)
class MethodTrial:
    """A method trained on a data set with a seed, as experiments.executors takes it to its end.

    Attributes: setting, as the table calls it; weights, of the frozen network: imagenet or random; digest, theirs;
        folder, where run folders are.
    """

    setting: str
    preset: Preset
    data: Images
    method: str
    variant: str
    seed: int
    weights: str
    digest: str
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
            own = shlex.join(
                [*anomaly_runs.words("", anomaly_runs.SMALL[self.method])[1:], *p.detectors[self.method].split()]
            )
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
    def features(self) -> str:
        """The frozen network, its weights and their digest."""
        return " ".join(filter(None, [FEATURES[self.method] or "none", self.weights, self.digest]))

    @property
    def is_done(self) -> bool:
        return runs.outcome(self) == 0 and (self.logdir / "scores" / "test.csv").exists()


def trials(args) -> list[MethodTrial]:
    """All runs, the first seed of every one first."""
    root, preset = args.root.absolute(), PRESETS[args.preset]
    source = sources.absolute(args.mnist or digits.default_source())
    canvases = [Images(root, canvas, digits=source) for canvas in preset.canvases]
    crops = [Images(root, preset.side, ratio) for ratio in preset.ratios]
    found = {name: weights_at_hand(name) for name in set(FEATURES.values())}
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
        MethodTrial(setting, preset, data, method, variant, seed, *found[FEATURES[method]], root)
        for seed in range(1, (args.seeds or preset.seeds) + 1)
        for data, method, variant in plans
    ]


def weights_at_hand(network: str) -> tuple[str, str]:
    """A network's weights, imagenet where they need no download, else random, and their digest; empty without one."""
    path = weights.find_imagenet(network) if network else None
    if path is None:
        return "random" if network else "", ""
    return "imagenet", sha256_of(path)[:8]


def estimate(run: MethodTrial) -> float:
    """Seconds of the run on one core, in proportion to the pixels of an image; 0 where none was measured."""
    return run.preset.seconds[run.data.kind].get(run.method, 0) * (run.data.side / 64) ** 2
