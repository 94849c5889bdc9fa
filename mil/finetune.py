"""Fine-tune an encoder by contrast on tiles that bag labels have made confident, and the bag classifier with it.

mil/finetune.py --datatype mnist --data_path nmnist_128 --encoder_weights random --logdir runs/hnm

Alternates between MIL rounds on frozen features, whose instance scores are pseudo labels, and epochs of supervised
contrast between confident positive tiles and hard negative ones. Source: HNM-WSI (2410.02212), on ItS2CLR
(2210.09452). LOGDIR/epoch_init and LOGDIR/epoch{e} are run folders of the rounds; e counts from 0, as HNM-WSI's.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401, I001 (before torch)
import numpy as np
import torch
from torch import Tensor

from common import checkpoint, cli, lock, processes, runfolder, signals
from common.errors import BadInput
from common.files import make_subfolder, sha256_of
from common.optimizers import set_rate
from common.runfolder import RunFolder
from data import loaders
from mil import augment, contrastive, features, mining, pseudo_labels, rounds, self_paced
from mil import tile_rounds, tiles, tracker
from mil.mining import Selection
from mil.self_paced import INIT, Holder, Pace
from mil.tiles import Draws, Joined, Thinned, TileBags
from models import encoder as encoders
from models.encoder import TileEncoder

EVAL_EVERY = 3  # epochs between validation losses
ENCODER_BAGS = {"train": ("train",), "train+val": tile_rounds.SCORED}
SUMS = ("negative loss", "positive loss", "tiles", "tiles of positive steps")
ROUND = ("val_auc", "val_f1", "val_instance_auc")  # what a row says of a MIL round
COLUMNS = {
    "epoch": None,
    **{name: f"train/{name}" for name in ("negative_loss", "positive_loss")},
    "val_loss": "eval/loss",
    **{name: f"mil/{name}" for name in ROUND},
    **{name: f"selection/{name}" for name in ("share", "negative_share", "p_full", "p", "n", "n_clean", "updated")},
    "lr": "stats/lr",
    "tiles_per_s": None,
    "seconds": None,
}
BEST = ("val_loss", min)


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    tiles.add_flags(parser)
    encoders.add_flags(parser, aliases=("--pretrain_weight",))
    add_flags(parser)
    self_paced.add_flags(parser)
    features.add_flags(parser)
    rounds.add_flags(parser, ranking_loss=True)
    tracker.add_flags(parser)
    parser.add_argument(
        "--seed", type=cli.natural, default=42, help="seed of weights, draws, views and choice of crops"
    )
    runfolder.add_flags(parser)
    processes.add_flags(parser)
    return parser.parse_args(argv)


def add_flags(parser) -> None:
    """Declare the flags of the contrastive epochs and of when MIL rounds are."""
    group = parser.add_argument_group("fine-tuning")
    add = group.add_argument
    add("-e", "--epochs", type=cli.positive, default=20, help="epochs over the hard negatives")
    add("-b", "--batch_size", type=cli.positive, default=128, help="tiles per step, in two views each")
    add("--lr", type=cli.positive_float, default=0.01, help="rate of plain SGD, along a cosine after 10 epochs")
    add("--weight_decay", type=cli.nonnegative_float, default=1e-4, help="weight decay")
    add("--temperature", type=cli.positive_float, default=0.07, help="of the contrastive loss")
    add("--posi_batch_ratio", type=cli.share, default=0.2, help="share of positives where negatives attract")
    add("--posi_query_ratio", type=cli.share, default=0.05, help="share of positives where positives attract")
    cli.add_yes_no(
        group, "--loss_over_all_anchors", False, "divide losses as HNM-WSI does, by tiles without partners too"
    )
    augment.add_flag(group)
    add("--encoder_bags", choices=ENCODER_BAGS, default="train", help="bags that the encoder learns from")
    cli.add_yes_no(group, "--validate_on_all_instance", True, "validation loss of all tiles, or of the selected")
    labels = add(
        "--pseudo_label_path",
        type=cli.path,
        nargs="+",
        help="initial scores of all train and val tiles, tables bag,y,x,score or HNM-WSI's pickle (default: those of "
        "the first MIL round)",
    )
    cli.neutral(labels)  # their content is compared, not where it lies
    add(
        "--MIL_every_n_epochs",
        type=cli.positive,
        default=5,
        help="epochs between MIL rounds; one follows the last epoch",
    )
    cli.add_yes_no(group, "--init_MIL_training", True, "a MIL round before the first epoch")
    add(
        "--witness_rate",
        type=cli.positive_float,
        help="below 1: keep that share of the negative tiles in positive training bags; above: of their positive tiles "
        "keep 1/rate",
    )
    cli.neutral(cli.add_yes_no(group, "--keep_features", False, "keep the features of every MIL round"))


def main(argv=None):
    args = parse_args(argv)
    check_flags(args)
    log = tracker.Tracker(args.tracker, args.logdir.name)
    device = processes.select_alone("mil/finetune.py", args.device, args.precision, args.deterministic)
    splits = tiles.load(args)
    loaders.verify(args, *filter(None, (args.data_path, args.pos_path, args.neg_path)))
    splits["train"] = with_witness_rate(splits["train"], args)
    processes.seed_everything(args.seed)  # before the weights are drawn
    encoder, loaded = encoders.build(args)
    print(loaded, flush=True)
    args.encoder_weights = loaded.sha256 or loaded.source  # wherever the file lies
    with lock.held(args.logdir, "--logdir", ".mil.lock"):
        pace = fit(encoder.to(device), splits, args, device, log)
        tile_rounds.report_best(pace, splits, args, device)


def check_flags(args) -> None:
    """BadInput, before hours of work, when flags cannot go together."""
    rounds.check_flags(args)
    for name, size in zip(("n_clean", "p_full", "n", "p"), batch_sizes(args), strict=True):
        if size < 1:
            ratio = "posi_batch_ratio" if name in ("n_clean", "p_full") else "posi_query_ratio"
            raise BadInput(
                f"--batch_size {args.batch_size}, --{ratio} {getattr(args, ratio):g}: leave no place for "
                f"{'positives' if name.startswith('p') else 'negatives'} in a batch"
            )
    if not args.init_MIL_training and not args.pseudo_label_path:
        raise BadInput("--init_MIL_training no: leaves no scores to begin with; give --pseudo_label_path")


def batch_sizes(args) -> list[int]:
    """Tiles of N_clean and P_full in a batch where negatives attract, of N and P where positives do."""
    ratios = args.posi_batch_ratio, args.posi_query_ratio
    return [int(args.batch_size * share) for ratio in ratios for share in (1 - ratio, ratio)]


def with_witness_rate(train: TileBags, args) -> TileBags:
    """The training bags, thinned where --witness_rate says so."""
    if args.witness_rate in (None, 1):
        return train
    return Thinned(train, mining.thinned(train.flat_truth, train.bag_of, train.positive, args.witness_rate, args.seed))


# --- the loop ---


@dataclass
class Learner:
    """What a step works on and changes."""

    encoder: TileEncoder
    optimizer: torch.optim.Optimizer  # plain SGD, which has no state
    scaler: torch.amp.GradScaler
    device: torch.device
    args: argparse.Namespace


def fit(encoder: TileEncoder, splits: dict[str, TileBags], args, device, log: tracker.Tracker) -> Pace:
    """All epochs and MIL rounds in args.logdir, continuing what is there; returns where they ended."""
    data = Joined([splits[name] for name in ENCODER_BAGS[args.encoder_bags]])
    optimizer = torch.optim.SGD(encoder.parameters(), args.lr, weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
    learner = Learner(encoder, optimizer, scaler, device, args)
    holder = Holder(first_pace(encoder, splits, args, device))
    draws = Draws()
    loader = loaders.batch_loader(data, reading(args), device, draws)
    with open_folder(learner, holder, data, splits, args) as run:
        for epoch in run.epochs(args.epochs):
            lr = set_rate(optimizer, contrastive.cosine_rate(args.lr, epoch, args.epochs))
            chosen = holder.pace.selection(data, ENCODER_BAGS[args.encoder_bags], epoch, args)
            draws.batches = epoch_batches(chosen, epoch, args)[run.done :]
            encoder.train()
            for pictures, labels in run.steps(loader):
                run.count(step(learner, pictures, labels, positives_too=epoch >= args.warmup))
            run.save()
            row = {"lr": lr, "tiles_per_s": run.sums["tiles"] / run.seconds, **mean_losses(run.sums)}
            sizes = {name: len(getattr(chosen, name)) for name in ("p_full", "p", "n", "n_clean")}
            pace, found = end_of_epoch(learner, holder.pace, splits, epoch)
            row |= sizes | found | {"val_loss": validate(learner, pace, splits["val"], epoch, run)}
            if run.is_best(row):
                save_encoder(args.logdir / "model.pth", encoder, optimizer)
            signals.defer()  # the pace and the epoch change together
            holder.pace = pace
            run.end_epoch(row)
            log.log(run.history[-1])
            tile_rounds.drop_features(pace, args)
            say_epoch(run, args)
    return holder.pace


def first_pace(encoder, splits, args, device) -> Pace:
    """The scores to begin with, of files or of a MIL round; a run that goes on has them in its checkpoint."""
    scores = {name: np.zeros(len(splits[name])) for name in tile_rounds.SCORED}
    pace = Pace(scores, args.ro, args.ro_neg)
    if args.pseudo_label_path:
        pace = Pace(read_scores(splits, args), args.ro, args.ro_neg)
    if not args.init_MIL_training or any((args.logdir / n).exists() for n in (checkpoint.LATEST, checkpoint.PREVIOUS)):
        return pace
    path = make_subfolder(args.logdir.parent, args.logdir.name) / tile_rounds.INITIAL
    if not path.exists():
        save_encoder(path, encoder)
    found, scores = tile_rounds.train_round(INIT, splits, args, device)
    first = pace.after_round(found, scores, args)
    return replace(first, scores=pace.scores if args.pseudo_label_path else scores, updated=False)


def read_scores(splits, args) -> dict[str, np.ndarray]:
    """Initial scores of all training and validation tiles, from the files of --pseudo_label_path."""
    found, names = {}, {name for split in splits.values() for name in split.names}
    for path in args.pseudo_label_path:
        found |= pseudo_labels.read(path)
    path = args.pseudo_label_path[-1]
    return {name: pseudo_labels.align(found, splits[name], path, names) for name in tile_rounds.SCORED}


def open_folder(learner: Learner, holder: Holder, data: TileBags, splits, args) -> RunFolder:
    """The run's folder, to be continued by the same settings, bags and first scores."""
    fingerprint = " ".join(split.fingerprint() for split in splits.values())
    if args.pseudo_label_path:
        fingerprint += " " + " ".join(map(sha256_of, args.pseudo_label_path))
    config = learner.encoder.config.to_dict()
    return RunFolder(
        args,
        runfolder.settings_that_matter(args) | {"data": fingerprint},
        {"state_dict": learner.encoder, "scaler": learner.scaler, "pace": holder},
        COLUMNS,
        SUMS,
        BEST,
        steps_per_epoch=max(1, len(data) // batch_sizes(args)[0]),  # at most: what is selected varies
        scalars=mean_losses,
        facts={"config": config},
        config=runfolder.describe_run(args, learner.device, model=config, data=fingerprint),
        advice="lower --lr",
    )


def reading(args) -> argparse.Namespace:
    """Of a loader whose batches hold the tiles of both losses."""
    return argparse.Namespace(batch_size=sum(batch_sizes(args)), workers=args.workers)


def epoch_batches(chosen: Selection, epoch: int, args) -> list[list[int]]:
    """An epoch's batches: one walk through N_clean beside P_full and, after the warm-up, N and P, which cycle."""
    sizes = batch_sizes(args)
    steps = max(1, len(chosen.n_clean) // sizes[0])
    sets = (chosen.n_clean, chosen.p_full, chosen.n, chosen.p)[: 4 if epoch >= args.warmup else 2]
    parts = [
        mining.epoch_batches(each, size, steps, (args.seed, epoch, k))
        for k, (each, size) in enumerate(zip(sets, sizes, strict=False))
    ]
    return np.concatenate(parts, axis=1).tolist()


def step(learner: Learner, pictures: Tensor, bag_labels: Tensor, positives_too: bool) -> Tensor:
    """One SGD step in which negatives attract each other, and after the warm-up one in which positives do.

    Args:
        pictures: tiles of N_clean and P_full, then of N and P, as `epoch_batches` lays them out; bag_labels: theirs.
    Returns: (4,) float64 on the device, as SUMS says.
    """
    sizes = batch_sizes(learner.args)
    half = sum(sizes[:2])
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))  # of the run's step
    found = [contrast(learner, pictures[:half], bag_labels[:half], sizes[0], 2, generator)]
    if positives_too:
        found.append(contrast(learner, pictures[half:], bag_labels[half:], sizes[2], 1, generator))
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=learner.device)
    for k, (loss, n) in enumerate(found):
        sums[k], sums[k + 2] = loss.double() * n, n
    return sums


def contrast(learner, pictures, bag_labels, n_negatives, mode, generator) -> tuple[Tensor, int]:
    """One SGD step on two views of tiles, the negative ones first; returns loss and number of tiles."""
    labels = (torch.arange(len(pictures)) >= n_negatives).long()
    loss = view_loss(learner, pictures, labels, bag_labels, mode, generator)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.scaler.scale(loss).backward()
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    return loss.detach(), len(pictures)


def view_loss(learner: Learner, pictures: Tensor, labels: Tensor, bag_labels: Tensor, mode: int, generator) -> Tensor:
    """SupCon of two views of tiles (M, C, s, s) with labels (M,) of their own and of their bags."""
    args, device = learner.args, learner.device
    pictures = features.resize(pictures.to(device, non_blocking=True), args.tile_resize)
    views = augment.views(pictures, args.augment_transform, generator)  # (2, M, 3, s, s)
    uncertain = ((bag_labels == 1) & (labels == 0)).to(device) if args.mask_uncertain_neg else None
    with processes.autocast(device, args.precision):
        z = learner.encoder.project(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    return contrastive.supcon(z, labels.to(device), mode, uncertain, args.temperature, args.loss_over_all_anchors)


def mean_losses(sums: dict[str, float]) -> dict[str, float]:
    """Both losses as means over the tiles that had them, NaN without."""
    pairs = (("negative_loss", "negative loss", "tiles"), ("positive_loss", "positive loss", "tiles of positive steps"))
    return {name: sums[total] / sums[count] if sums[count] else float("nan") for name, total, count in pairs}


# --- the end of an epoch ---


def end_of_epoch(learner: Learner, pace: Pace, splits, epoch: int) -> tuple[Pace, dict]:
    """Save the encoder, let the shares grow, take a MIL round where one is due; the new pace, and a row of it."""
    args = learner.args
    path = args.logdir / f"epoch{epoch}model.pth"
    if not path.exists():  # else a kill in the round below has left it
        save_encoder(path, learner.encoder, learner.optimizer)
    pace, found = pace.grown(epoch, args), dict.fromkeys(ROUND, float("nan"))
    if tile_rounds.is_round(epoch, args):
        result, scores = tile_rounds.train_round(epoch, splits, args, learner.device)
        pace = with_positives(pace.after_round(result, scores, args), pace, splits, args)
        found |= {name: result[name] for name in ROUND}
    return pace, found | {"share": pace.share, "negative_share": pace.negative_share, "updated": float(pace.updated)}


def with_positives(after: Pace, before: Pace, splits, args) -> Pace:
    """The pace after a round, with the scores of before where none of its own would leave a positive to learn from."""
    parts = [(after.scores[name], splits[name].positive) for name in ENCODER_BAGS[args.encoder_bags]]
    if any((scores[positive] > args.threshold).any() for scores, positive in parts):
        return after
    print(f"--threshold {args.threshold:g}: no tile of a positive bag passes it in this round; scores stay")
    return replace(after, scores=before.scores, updated=before.updated)


def save_encoder(path: Path, encoder: TileEncoder, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Write the encoder as HNM-WSI does, {net, optimizer}, with its config."""
    content = {"net": encoder.state_dict(), "optimizer": optimizer.state_dict() if optimizer else {}}
    checkpoint.save(path, content | {"config": encoder.config.to_dict()})


@torch.inference_mode()
def validate(learner: Learner, pace: Pace, val: TileBags, epoch: int, run: RunFolder) -> float:
    """The loss of validation tiles by which negatives attract, of the same views each time; every third epoch anew."""
    args = learner.args
    if epoch % EVAL_EVERY:
        return run.history[-1]["val_loss"]
    learner.encoder.eval()
    positive = val.positive & (pace.scores["val"] > args.threshold)
    chosen = np.arange(len(val)) if args.validate_on_all_instance else np.flatnonzero(positive | ~val.positive)
    order = np.random.default_rng(args.seed).permutation(chosen)
    starts = range(0, len(order), args.batch_size)
    draws = Draws([order[start : start + args.batch_size].tolist() for start in starts])
    loader = loaders.batch_loader(val, args, learner.device, draws)
    total = 0.0
    for k, (pictures, bag_labels) in enumerate(
        processes.progress_on_rank_0(loader, len(loader), "validating", "batch")
    ):
        labels, generator = torch.from_numpy(positive[draws.batches[k]]).long(), torch.Generator().manual_seed(k)
        total += float(view_loss(learner, pictures, labels, bag_labels, 2, generator)) * len(labels)
    return total / len(order)


def say_epoch(run: RunFolder, args) -> None:
    """Print what an epoch has come to."""
    row = run.history[-1]
    text = f"epoch {row['epoch']}/{args.epochs}: loss {row['negative_loss']:.3f}, validation {row['val_loss']:.3f}"
    if np.isfinite(row["val_auc"]):
        text += f"; MIL round: validation AUC {row['val_auc']:.3f}, F1 {row['val_f1']:.3f}"
    print(text, flush=True)


if __name__ == "__main__":
    cli.run(main)
