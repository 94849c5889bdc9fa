"""The runs of the figure `anomaly`: its data sets, presets, and the commands that train and score each detector."""

import argparse
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import train_anomaly
from common import cli
from common.errors import BadInput
from common.files import read_json, sha256_of
from data import datatypes
from experiments.runs import Places, command

LISTS = {"--list": "normal/train", "--test_list": "normal/test", "--abnormal_list": "anomaly/test"}
TEN = tuple(map(str, range(10)))


@dataclass(frozen=True)
class Data:
    """A data set: help of its flag, number of paths, classes that are normal in turn, and its flags.

    Attributes: flags, from paths and class; settings, class -> rows of anomaly/settings.py by variant.
    """

    help: str
    paths: int
    flags: Callable[[list[Path], str], dict]
    classes: tuple[str, ...] = ("",)
    settings: Callable[[str], dict[str, str]] = lambda _: {}
    without_setting: tuple[tuple[str, object], ...] = ()  # crop and the like, of methods without a setting


def listed(images: Path, lists: Path) -> dict:
    """Flags of pictures that lists choose."""
    return {"--root": images, **{flag: lists / name for flag, name in LISTS.items()}}


def torchvisions(name: str) -> Data:
    """A data set of torchvision, each class of which is the normal one in turn."""
    return Data(
        f"folder of torchvision's {name}",
        1,
        lambda paths, normal: {"--datatype": name, "--root": paths[0], "--classes": normal},
        TEN,
        lambda _: {"": "cifar10_class0"} if name == "cifar10" else {},
        (("--tile", 32), *([("--grey", True)] if name == "svhn" else [])),
    )


DATASETS = {
    "photos": Data("folder of {train,test}/{normal,abnormal}", 1, lambda paths, _: {"--photos": paths[0]}),
    "mnist": Data("nMNIST folder", 1, lambda paths, _: {"--data_path": paths[0]}),
    "camelyon": Data(
        "nCAMELYON: folders of positives and of negatives",
        2,
        lambda paths, _: {"--pos_path": paths[0], "--neg_path": paths[1]},
    ),
    "camelyon16": Data(
        "root of data/camelyon16/prepare.py",
        1,
        lambda paths, _: {"--datatype": "list", **listed(paths[0] / "x10", paths[0] / "splits" / "healthy")},
        settings=lambda _: {
            "": "camelyon16",
            "growing": "camelyon16_pg",
            "l1": "camelyon16_l1",
            "adversarial": "camelyon16_adversarial",
        },
        without_setting=(("--crop", 64),),
    ),
    "nih": Data(
        "folders of nih.py resize and of nih.py folds",
        2,
        lambda paths, view: {"--datatype": "nih", **listed(paths[0], paths[1] / view)},
        ("AP", "PA"),
        lambda view: {"": "nih", "growing": f"nih_{view.lower()}_pg"},
        (("--resize", 64),),
    ),
    "cifar10": torchvisions("cifar10"),
    "svhn": torchvisions("svhn"),
}
ABLATIONS = {  # of DPA: what is added to its flags where no setting says it
    "growing": {"--progressive": True},
    "pixels": {"--loss": "l1"},
    "l1": {"--l1_weight": 0.1},
    "adversarial": {"--adv_weight": 0.1, "--n_dis": 2, "--lr": 2e-4},
}
PAPER = {  # Shvetsova et al. 2021's repository
    "piad": {"--iters": 100_000, "-b": 32},
    "deep_if": {"--embedder": "inception_resnet_v2", "--layers": "concat", "-b": 32},
}
SMALL = {  # in minutes on a CPU
    "dpa": {"--latent_res": 1, "--latent_dim": 16, "--dims": 16, "--layer": "r32", "--iters": 200, "-b": 16},
    "piad": {"--latent_dim": 16, "--dims": 16, "--critic_dims": 16, "--layer": "r32", "--iters": 100, "-b": 16},
    "deep_geo": {"-e": 1, "--wrn_depth": 10, "--wrn_widen": 1},
    "deep_if": {"--layers": "r32"},
    "deep_knn": {"--layer": "r32"},
}
PRESETS = {"paper": PAPER, "small": SMALL}


# --- runs ---


@dataclass(frozen=True)
class DetectorTrial:
    """A detector trained on a data set with a seed, as experiments.executors takes it to its end.

    Attributes: setting, what all runs of a table share; training, scoring: flags of the two commands.
    """

    places: Places
    setting: str
    dataset: str
    normal: str
    method: str
    variant: str
    seed: int
    training: tuple
    scoring: tuple
    bulky = ()

    @property
    def name(self) -> str:
        parts = (self.method, self.variant, as_name(self.setting), f"s{self.seed}")
        data = "_".join(filter(None, (self.dataset, self.normal)))
        return f"{data}/{'_'.join(filter(None, parts))}"

    @property
    def logdir(self) -> Path:
        return self.places.root / "runs" / self.name

    def commands(self) -> list[list[str]]:
        """Script and flags of training and scoring."""
        return [
            words("train_anomaly.py", {"--method": self.method, "--logdir": self.logdir, **dict(self.training)}),
            words("score_anomaly.py", {"--logdir": self.logdir, "--overlays": 0, **dict(self.scoring)}),
        ]

    @property
    def scores(self) -> Path:
        return self.logdir / "scores" / "test.json"


def as_name(setting: str) -> str:
    """The setting in a file's name."""
    return re.sub(r"[^\w.]+", "_", setting)


def words(script: str, flags: dict) -> list[str]:
    """The words after `python`; True is a flag without value."""
    given = {flag: value for flag, value in flags.items() if value is not True}
    return command(script, given) + [flag for flag, value in flags.items() if value is True]


def detector_trials(args) -> Iterator[DetectorTrial]:
    """All runs, the first seed of every one first."""
    changes = [args.preset, args.side and f"{args.side} px", args.embedder, args.embedder_weights]
    setting = " ".join(Path(str(change)).name for change in changes if change)
    for seed in range(1, args.runs + 1):
        for dataset in chosen(args):
            for normal in classes_of(dataset, args.classes):
                for method in args.methods:
                    for variant in ["", *ABLATIONS] if args.ablation and method == "dpa" else [""]:
                        flags = training_flags(args, dataset, normal, method, variant) | {"--seed": seed}
                        scoring = {"--workers": args.workers}
                        yield DetectorTrial(
                            Places(args.root.absolute()),
                            setting,
                            dataset,
                            normal,
                            method,
                            variant,
                            seed,
                            tuple(flags.items()),
                            tuple(scoring.items()),
                        )


def chosen(args) -> list[str]:
    """The data sets. BadInput when the place of one, or of all, is not given."""
    given = [name for name in DATASETS if getattr(args, name)]
    lacking = [name for name in args.datasets or [] if name not in given]
    if lacking or not given:
        where = " or ".join(f"--{name} DIR" for name in lacking or DATASETS)
        raise BadInput(f"where the data are is not said: give {where}")
    return args.datasets or given


def classes_of(dataset: str, asked: list[str] | None) -> tuple[str, ...]:
    """The classes that are normal in turn. BadInput for one that the data set lacks."""
    own = DATASETS[dataset].classes
    if asked is None or own == ("",):
        return own
    unknown = [name for name in asked if name not in own]
    if unknown:
        raise BadInput(f"--classes {unknown[0]}: {dataset} has {', '.join(own)}")
    return tuple(asked)


def training_flags(args, dataset: str, normal: str, method: str, variant: str) -> dict:
    """Flags of train_anomaly.py, but for method, seed and folder."""
    data = DATASETS[dataset]
    paths = [path.absolute() for path in getattr(args, dataset)]
    setting = data.settings(normal) if method == "dpa" and args.preset == "paper" else {}
    flags = data.flags(paths, normal)
    if not setting:
        flags |= dict(data.without_setting)
    flags |= PRESETS[args.preset].get(method, {})
    if setting:
        flags["--setting"] = setting.get(variant, setting[""])
    if variant not in setting:
        flags |= ABLATIONS[variant] if variant else {}
        flags |= {"--stage_iters": SMALL["dpa"]["--iters"]} if (variant, args.preset) == ("growing", "small") else {}
    if args.side:
        flags |= {"--resize": args.side, "--tile": args.side}
    if method != "deep_geo":
        own = {"--embedder": args.embedder, "--embedder_weights": args.embedder_weights}
        flags |= {flag: value for flag, value in own.items() if value}
    return flags | {"--workers": args.workers}


def is_done(run: DetectorTrial) -> bool:
    """Whether the last detector is scored, and of the data and weights as they are now."""
    best = run.logdir / "best_checkpoint.pth"
    if not run.scores.exists() or not best.exists() or best.stat().st_mtime > run.scores.stat().st_mtime:
        return False
    args, paths = train_anomaly.parse_args(run.commands()[0][1:]), ("config.json", "scores/test/run.json")
    try:
        config, scored = (read_json(run.logdir / path) for path in paths)
        found = fingerprints(data_of(args))
    except BadInput:  # they were removed
        return False
    weights = Path(getattr(args, "embedder_weights", ""))
    same_weights = not weights.is_file() or config["model"].get("weights_sha256") == digest_of(weights)
    return same_weights and found == (config.get("data"), scored.get("data"))


digest_of = functools.cache(sha256_of)  # half a gigabyte, asked for every run


def data_of(args) -> tuple[tuple[str, object], ...]:
    """The flags that say what the data are, with their values; of nCAMELYON the seed chooses among the crops."""
    parser = cli.ArgumentParser()
    datatypes.add_flags(parser)
    found = {name: getattr(args, name) for name in vars(parser.parse_args([]))}
    found |= {"classes": tuple(args.classes or ()), "seed": args.seed if args.datatype == "camelyon" else 0}
    return tuple(found.items())


@functools.cache
def fingerprints(data: tuple[tuple[str, object], ...]) -> tuple[str, str]:
    """Of the training and test split that such flags name, as a run and its scores hold them."""
    args = argparse.Namespace(**dict(data))
    return datatypes.load_normals(args, "train").fingerprint(), datatypes.load(args, "test").fingerprint()
