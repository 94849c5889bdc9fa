"""DPA's YAML files -> the flags of train_anomaly.py and score_anomaly.py (Shvetsova et al. 2021's repository).

Every key is taken, is known to have no effect, or is named in an error; so is one that asks for what is not offered.
"""

import shlex
from pathlib import Path

import common  # noqa: F401 (before torch)
from common import cli, processes
from common.errors import BadInput
from common.files import make_folder, read_json, write_csv
from compat.dpa import networks
from compat.dpa.datasets import test_flags, training_flags
from compat.dpa.section import Section, read

METHODS = {  # name -> what reads a training config, but for its data
    "dpa": networks.dpa_flags,
    "piad": networks.piad_flags,
    "deep_geo": networks.deep_geo_flags,
    "deep_if": networks.deep_if_flags,
}
ACTIONS = {"train": 1, "eval": 1, "train_eval": 2}  # -> number of configs
SWITCHES = {"--equalize": "equalize_hist", "--grey": "to_grayscale"}  # -> key of transform_kwargs
# what evaluation takes of a file that also says how to train
EVALUATION = ("results_root", "test_batch_size", "test_model_path", "test_checkpoint_path", "test_datasets")
NO_EFFECT = ("verbose", "log_root", "log_iter", "image_sample_iter")  # TensorBoard logs every step, in the run's folder


def main(method: str, argv: list[str]) -> None:
    """Train, evaluate or both, as the configs say; all are read before anything is done."""
    parser = cli.ArgumentParser(epilog="Further flags are those of train_anomaly.py, and overrule the config.")
    parser.add_argument("action", choices=["train_eval"] if method == "deep_if" else list(ACTIONS))
    parser.add_argument("configs", nargs="+", type=cli.path, metavar="CONFIG", help="YAML file")
    parser.add_argument("--device", default="cuda", help="auto, cpu, cuda or cuda:N")
    args, more = parser.parse_known_args(argv)
    expected = 1 if method == "deep_if" else ACTIONS[args.action]
    if len(args.configs) != expected:
        parser.error(f"{args.action}: expected {expected} CONFIG, found {len(args.configs)}")
    if more and args.action == "eval":
        parser.error(f"eval: has no further flags, found {' '.join(more)}")
    training, evaluation, results = None, None, None
    config, test_config = read(args.configs[0]), read(args.configs[-1])
    if len(args.configs) == 2 and args.configs[0].samefile(args.configs[1]):
        config.drop(*EVALUATION)
        test_config.keep(*EVALUATION)
    if args.action != "eval":
        training = training_words(method, config)
    if args.action != "train":
        evaluation, results = evaluation_words(method, test_config, training, logdir_among(more))
    device = device_at_hand(args.device)
    if training is not None:
        run("train_anomaly.py", [*training, "--device", device, *more])
    if evaluation is not None:
        run("score_anomaly.py", [*evaluation, "--device", device])
        report(results, Path(evaluation[evaluation.index("--logdir") + 1]))


def training_words(method: str, config: Section) -> list[str]:
    """The flags of train_anomaly.py that a config asks for."""
    logdir = "results_root" if method == "deep_if" else "checkpoint_root"
    flags = {"--method": method, "--logdir": config.text(logdir), "--seed": config.whole("random_seed", None)}
    config.drop(*NO_EFFECT)
    if method == "deep_if":  # its one config says how it is evaluated, too
        config.drop("test_datasets", "test_batch_size")
    flags |= METHODS[method](config)
    flags |= training_flags(config, flags.get("--tile"))
    config.finish()
    return words(flags)


def logdir_among(flags: list[str]) -> Path | None:
    """The run's folder where further flags name it."""
    parser = cli.ArgumentParser(add_help=False)
    parser.add_argument("--logdir", type=cli.path)
    return parser.parse_known_args(flags)[0].logdir


def evaluation_words(
    method: str, config: Section, training: list[str] | None = None, logdir: Path | None = None
) -> tuple[list[str], Path]:
    """The flags of score_anomaly.py that a config asks for, and the folder for results.csv.

    Args: training: flags of the training that comes before, if one does. logdir: of its run, in place of the config's.
    """
    results = Path(config.text("results_root"))
    config.drop(*NO_EFFECT)
    if method == "deep_if":
        flags = {"--logdir": results, "-b": config.whole("batch_size", 32)}
        config.drop("feature_extraction_type", "random_seed", "train_dataset", "image_dim")
    else:
        key = "test_checkpoint_path" if method == "deep_geo" else "test_model_path"
        flags = {"--logdir": run_of(config, key), "-b": config.whole("test_batch_size", 32)}
    flags |= test_flags(config)
    flags |= {"--logdir": logdir} if logdir else {}
    check_same_images(flags, training, config)
    config.finish()
    return words(flags), results


def check_same_images(flags: dict, training: list[str] | None, config: Section) -> None:
    """BadInput for a switch of training that is off in evaluation, where score_anomaly.py takes it from the run."""
    if training is None:
        path = flags["--logdir"] / "config.json"
        arguments = read_json(path).get("arguments", {}) if path.exists() else {}
        training = [flag for flag in SWITCHES if arguments.get(flag[2:])]
    for flag, key in SWITCHES.items():
        if flag in training and flags.get(flag) is False:
            raise config.error("test_datasets", f"transform_kwargs.{key}: false, but the run is trained with true")


def run_of(config: Section, key: str) -> Path:
    """The run's folder, from the path of a model in it."""
    path = Path(config.text(key))
    if path.stem.startswith("anomaly_detection_res_"):
        raise config.error(key, f"{path.name}: of the stages only the last one's detector is kept")
    return path if path.is_dir() else path.parent


def words(flags: dict) -> list[str]:
    """Flags as they are typed; those that are None or False are left out."""
    found = []
    for flag, value in flags.items():
        if value is not None and value is not False:
            values = value if isinstance(value, list) else [] if value is True else [value]
            found += [flag, *(f"{each:g}" if isinstance(each, float) else str(each) for each in values)]
    return found


def device_at_hand(name: str) -> str:
    """The device, or auto with a line where there is no such one."""
    try:
        processes.select(name)
    except BadInput as error:
        print(f"{error}; going on with --device auto", flush=True)
        return "auto"
    return name


def run(script: str, arguments: list[str]) -> None:
    """Call a command of the project, shown as it could be typed."""
    import score_anomaly
    import train_anomaly

    print(f"$ python {script} {shlex.join(arguments)}", flush=True)
    {"train_anomaly.py": train_anomaly, "score_anomaly.py": score_anomaly}[script].main(arguments)


def report(results: Path, logdir: Path) -> None:
    """Write results.csv, with the run's seed, and print it."""
    seed = read_json(logdir / "config.json")["arguments"]["seed"]
    auc = read_json(logdir / "scores" / "test.json")["auc"]
    write_csv(make_folder(results) / "results.csv", [{"seed": seed, "ROC AUC": auc}])
    print(f"seed {seed}, ROC AUC {auc}; in {results / 'results.csv'}")


def run_experiments(argv: list[str]) -> None:
    """The same experiments by the project's own command, whose flag for methods is --methods."""
    from experiments.run_experiments import main as run_figures

    run_figures(["anomaly", *("--methods" if word == "--model" else word for word in argv)])
