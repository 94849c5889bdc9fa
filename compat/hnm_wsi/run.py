"""HNM-WSI's command line, translated into mil/finetune.py's flags: cd compat/hnm_wsi && python run.py --expname EXP ...

Flags and defaults are HNM-WSI's. What its traps were is mended: see docs/MIL.md. Results go to MODEL_SAVE_ROOT/EXP.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: F401, I001 (before torch)
import torch

from common import cli
from common.errors import BadInput
from common.files import make_folder
from mil import bag_list, finetune, hnm_layout, tracker

SAME = {  # flags of finetune.py with HNM-WSI's names -> HNM-WSI's defaults
    "threshold": 0.3,
    "batch_size": 512,
    "epochs": 100,
    "lr": 0.01,
    "temperature": 0.07,
    "posi_batch_ratio": 0.5,
    "posi_query_ratio": 0.05,
    "warmup": 5,
    "ro": 0.2,
    "ro_neg": 0.2,
    "rT": 0.8,
    "neg_ratio": 0.2,
    "MIL_every_n_epochs": 1,
    "num_epoch_mil": 350,
    "epoch_to_extract_mil": 349,
    "lr_mil": 2e-4,
    "weight_decay_mil": 1e-4,
    "rank_k": 10,
    "loss_weight_ranking": 0.1,
    "loss_weight_bag": 0.5,
    "loss_weight_ins": 0.5,
    "augment_transform": 0,
}
YES_NO = {
    "negfilter": True,
    "mask_uncertain_neg": True,
    "init_MIL_training": True,
    "update_pseudo_label": True,
    "use_ema": False,
    "ranking_loss": True,
    "validate_on_all_instance": True,
}
FEATURES = 512  # of the encoder


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--expname", default="supsimCLR", help="run folder below --model_save_root")
    add("--model_save_root", type=cli.path, default=Path("model_save"), help="folder of all runs")
    add("--root_dir", type=cli.path, default=Path("single"), help="folder of training/ and testing/ with the tiles")
    add("--labelroot", type=cli.path, help="folder of testing/bag_reference.csv and of the lists of bags")
    add("--pretrain_weight", help="encoder weights: a file, imagenet or random")
    add("--pseudo_label_path", type=cli.path, help="initial scores of the tiles")
    for name, default in SAME.items():
        add(f"--{name}", type=type(default), default=default, help="see mil/finetune.py")
    for name, default in YES_NO.items():
        cli.add_yes_no(parser, f"--{name}", default, "see mil/finetune.py")
    add("--witness_rate", type=float, help="see mil/finetune.py")
    add(
        "--num_feats", type=int, default=FEATURES, help=f"numbers of a feature: {FEATURES}, or {FEATURES} at a fraction"
    )
    add("--gpuid", default="0", help="GPU, by its number; one that is not there: auto")
    add("--comet_api_key", help=f"key of the tracker; better in {tracker.KEY} in the environment")
    add("--workspace", help="unused")
    add("--dataset", help="unused")
    add("--seed", type=int, default=42, help="see mil/finetune.py")
    add("--workers", type=int, default=4, help="see mil/finetune.py")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    for name in ("labelroot", "pretrain_weight"):
        if getattr(args, name) is None:
            expected = {"labelroot": "the folder of testing/bag_reference.csv"}
            raise BadInput(f"--{name}: missing, expected {expected.get(name, 'a file of weights, imagenet or random')}")
    if args.comet_api_key:
        os.environ[tracker.KEY] = args.comet_api_key
    rows = hnm_layout.bags_of(args.root_dir, args.labelroot, args.seed)
    logdir = make_folder(args.model_save_root / args.expname)
    bags = logdir / "bags.csv"
    bag_list.write(bags, rows)
    flags = translate(args, logdir, bags)
    sys.argv = ["mil/finetune.py", *flags]  # which config.json holds: without the key
    finetune.main(flags)


def translate(args, logdir: Path, bags: Path) -> list[str]:
    """The flags of mil/finetune.py."""
    flags = ["--datatype", "tiles", "--bags", bags, "--encoder_weights", args.pretrain_weight, "--logdir", logdir]
    flags += [word for name in SAME for word in (f"--{name}", getattr(args, name))]
    flags += [word for name in YES_NO for word in (f"--{name}", "yes" if getattr(args, name) else "no")]
    if args.num_feats != FEATURES:  # else it is as wide as its weights
        flags += ["--encoder_width", args.num_feats / FEATURES]
    flags += ["--device", device_of(args.gpuid), "--seed", args.seed, "--workers", args.workers]
    for name in ("pseudo_label_path", "witness_rate"):
        if getattr(args, name) is not None:
            flags += [f"--{name}", getattr(args, name)]
    if os.environ.get(tracker.KEY):
        if find_spec("comet_ml") is None:
            print("--comet_api_key: needs the package comet_ml; going on without", file=sys.stderr)
        else:
            flags += ["--tracker", "comet"]
    return list(map(str, flags))


def device_of(gpuid: str) -> str:
    """The device of a GPU's number; auto, after a line, where there is no such GPU."""
    first = gpuid.split(",")[0].strip()
    if first.isdecimal() and int(first) < torch.cuda.device_count():
        return f"cuda:{int(first)}"
    print(f"--gpuid {gpuid}: no such GPU here; going on with --device auto", file=sys.stderr)
    return "auto"


if __name__ == "__main__":
    cli.run(main)
