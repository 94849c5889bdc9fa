"""One MIL round: a classifier of bags trained on frozen features, in a run folder.

The epoch and the threshold are chosen on validation bags; test bags are scored once, at the end, by whoever wants.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import checkpoint, cli, metrics, processes, runfolder
from common.errors import BadInput
from common.optimizers import Resumable, set_rate
from common.runfolder import RunFolder
from mil.bags import Bags, let_go
from models import dsmil

EXTRACT = "epoch_extract.pth"  # the weights whose instance scores become pseudo labels
HALVED_EVERY = 75  # epochs of one learning rate
EVALUATED = 2**14  # instances evaluated at a time; a bag is never divided
SUMS = ("loss", "bags")
BEST = ("eval_auc", max)
BAG_SCORES = ("loss", "auc", "ap", "acc", "prec", "recall", "f1", "threshold")  # of each epoch, on validation bags


def add_flags(parser, ranking_loss: bool = False, aliases: tuple[str, ...] = ()) -> None:
    """Declare the flags of a round, with a command's aliases of `--bags_per_step`."""
    group = parser.add_argument_group("MIL round")
    add = group.add_argument
    add("--aggregator", choices=("dsmil", *dsmil.AGGREGATORS), default="dsmil", help="what makes a bag of instances")
    add("--dsmil_variant", choices=dsmil.VARIANTS, default="hnm", help="HNM-WSI's layers or those of DSMIL in 2024")
    add("--num_epoch_mil", type=cli.positive, default=50, help="epochs over the training bags")
    add(
        "--epoch_to_extract_mil",
        type=cli.natural,
        help="epoch, from 0, whose weights score the instances for pseudo labels (default: the last)",
    )
    add(*aliases, "--bags_per_step", type=cli.positive, default=1, help="bags, or pairs of bags, an optimiser step")
    add("--lr_mil", type=cli.positive_float, default=2e-4, help=f"Adam's rate, halved every {HALVED_EVERY} epochs")
    add("--weight_decay_mil", type=cli.nonnegative_float, default=1e-4, help="weight decay")
    add("--loss_weight_bag", type=cli.nonnegative_float, default=0.5, help="of the bag logit's cross entropy")
    add("--loss_weight_ins", type=cli.nonnegative_float, default=0.5, help="of DSMIL's highest instance's")
    cli.add_yes_no(group, "--ranking_loss", ranking_loss, "train on pairs of bags, ranked by their top instances")
    add("--rank_k", type=cli.positive, default=10, help="top instances that are ranked, at most all of a bag")
    add("--loss_weight_ranking", type=cli.nonnegative_float, default=0.1, help="of the ranking loss")
    cli.add_yes_no(
        group, "--pos_weight_in_pairs", False, "weight positives by negatives/positives although pairs are balanced"
    )


@dataclass
class Round:
    """What a round leaves.

    model: of the best validation epoch. extracted: of --epoch_to_extract_mil. threshold: on bag logits, the best
    epoch's. best: its row of stats.csv. f1: the highest validation F1 of all epochs.
    """

    model: nn.Module
    extracted: nn.Module
    threshold: float
    best: dict
    f1: float


@dataclass
class Scores:
    """bags: (N,) float64 bag logits. instances: for each bag (n,) float32 instance logits."""

    bags: np.ndarray
    instances: list[np.ndarray]


def check_flags(args) -> None:
    """BadInput, before hours of work, when the epoch to extract is not reached."""
    if args.epoch_to_extract_mil is not None and args.epoch_to_extract_mil >= args.num_epoch_mil:
        raise BadInput(
            f"--epoch_to_extract_mil {args.epoch_to_extract_mil}: counts from 0 and must be below --num_epoch_mil "
            f"{args.num_epoch_mil}"
        )


def train(splits: dict[str, Bags], args, logdir: Path, device: torch.device) -> Round:
    """Train a fresh classifier on splits["train"], chosen by splits["val"], in a run folder; continues what is there.

    Args:
        args: the flags of `add_flags` and `runfolder.add_flags`, and seed; its own logdir is not used.
    """
    check_flags(args)
    args = argparse.Namespace(**{**vars(args), "logdir": Path(logdir)})
    config = {"dim": splits["train"].dim, "classes": 1}
    config |= {"aggregator": args.aggregator, "variant": args.dsmil_variant}
    processes.seed_everything(args.seed)  # before the weights are drawn
    model = dsmil.build(config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), args.lr_mil, weight_decay=args.weight_decay_mil)
    with open_folder(model, optimizer, config, splits, args, device) as run:
        for epoch in run.epochs(args.num_epoch_mil):
            lr = set_learning_rate(optimizer, args.lr_mil, epoch)
            model.train()
            for bags in run.steps(epoch_steps(splits["train"].labels, args, epoch)[run.done :]):
                run.count(step(model, optimizer, splits["train"], bags, args, device))
            row = {"lr": lr, "train_loss": run.sums["loss"] / run.sums["bags"]}
            row["bags_per_s"] = run.sums["bags"] / run.seconds
            if epoch == extract_epoch(args):
                checkpoint.save(args.logdir / EXTRACT, {"state_dict": model.state_dict(), "config": config})
            run.end_epoch(row | validate(model, splits["val"], device))
    return finished(run, config, device)


def open_folder(model, optimizer, config: dict, splits: dict[str, Bags], args, device) -> RunFolder:
    """The round's folder, to be continued by the same settings and bags."""
    data = " ".join(splits[name].fingerprint() for name in ("train", "val"))
    columns = {"epoch": None, "train_loss": "train/loss"}
    columns |= {f"eval_{name}": f"eval/{name}" for name in BAG_SCORES}
    if splits["val"].truth_known:
        columns["eval_instance_auc"] = "eval/instance_auc"
    return RunFolder(
        args,
        runfolder.settings_that_matter(args) | {"data": data},
        {"state_dict": model, "optimizer": Resumable(optimizer)},
        {**columns, "lr": "stats/lr", "bags_per_s": None, "seconds": None},
        SUMS,
        BEST,
        steps_per_epoch=len(epoch_steps(splits["train"].labels, args, 0)),
        scalars=lambda sums: {"train/step_loss": sums["loss"] / sums["bags"]},
        facts={"config": config},
        config=runfolder.describe_run(args, device, model=config, data=data),
        advice="lower --lr_mil",
    )


def extract_epoch(args) -> int:
    """The epoch, from 0, whose weights make pseudo labels."""
    return args.num_epoch_mil - 1 if args.epoch_to_extract_mil is None else args.epoch_to_extract_mil


def set_learning_rate(optimizer, lr: float, epoch: int) -> float:
    """Set and return the rate of an epoch (from 0)."""
    return set_rate(optimizer, lr * 0.5 ** (epoch // HALVED_EVERY))


def finished(run: RunFolder, config: dict, device) -> Round:
    """The networks and figures that a complete round has left in its folder."""
    loaded = []
    for name in (checkpoint.BEST, EXTRACT):
        path = run.logdir / name
        network = dsmil.build(config).to(device).eval()
        with checkpoint.errors_name(path):
            checkpoint.load_weights(network, checkpoint.load(path)["state_dict"], path)
        loaded.append(network)
    return Round(*loaded, run.best["eval_threshold"], run.best, max(row["eval_f1"] for row in run.history))


# --- training ---


def epoch_steps(labels: np.ndarray, args, epoch: int) -> list[np.ndarray]:
    """The bags of each optimiser step of an epoch, drawn by seed and epoch.

    With the ranking loss a step has as many positives as negatives, positives first, and an epoch min(positives,
    negatives) pairs, no bag twice.
    """
    rng, size = np.random.default_rng((args.seed, epoch)), args.bags_per_step
    if not args.ranking_loss:
        order = rng.permutation(len(labels))
        return [order[start : start + size] for start in range(0, len(order), size)]
    positives, negatives = (rng.permutation(np.flatnonzero(labels == label)) for label in (1, 0))
    pairs = min(len(positives), len(negatives))
    ends = [*range(0, pairs, size), pairs]
    return [np.concatenate([positives[a:b], negatives[a:b]]) for a, b in itertools.pairwise(ends)]


def step(model, optimizer, bags: Bags, chosen: np.ndarray, args, device) -> Tensor:
    """Take one optimiser step on the chosen bags; returns its SUMS, (2,) float64 on the device."""
    features, sizes = gather(bags, chosen, device)
    labels = torch.from_numpy(bags.labels[chosen]).to(device, torch.float32)
    bag_logits, instance_logits, _ = model(features, sizes)
    ins_weight = args.loss_weight_ins if model.has_instance_loss else 0.0
    loss = round_loss(bag_logits[:, 0], instance_logits[:, 0], sizes, labels, pos_weight(bags, args), ins_weight, args)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    count = torch.full((), len(sizes), dtype=torch.float64, device=device)
    return torch.stack([loss.detach().double() * count, count])


def gather(bags: Bags, chosen, device) -> tuple[Tensor, list[int]]:
    """Features (T, d) float32 of the chosen bags on the device, one bag after the other, and their sizes."""
    arrays = [bags.features[i] for i in chosen]
    features = np.empty((sum(map(len, arrays)), bags.dim), np.float32)
    np.concatenate(arrays, out=features, casting="same_kind")
    for array in arrays:
        let_go(array)
    return torch.from_numpy(features).to(device), list(map(len, arrays))


def pos_weight(bags: Bags, args) -> float:
    """Weight of positives in the cross entropy: negatives/positives; 1 for pairs, which are balanced."""
    if args.ranking_loss and not args.pos_weight_in_pairs:
        return 1.0
    return float(np.sum(bags.labels == 0) / np.sum(bags.labels == 1))


def round_loss(
    bag_logits: Tensor,
    instance_logits: Tensor,
    sizes: list[int],
    labels: Tensor,
    weight: float,
    ins_weight: float,
    args,
) -> Tensor:
    """w_bag BCE(bag) + w_ins BCE(max c) + w_rank max(0, 1 + mean top-K c- - mean top-K c+), each a mean over bags.

    Args:
        bag_logits: (B,). instance_logits: c, (T,). labels: (B,) float; with the ranking loss positives come first, as
            many as negatives, which they are paired with in order.
        weight: of positives in both cross entropies. ins_weight: w_ins.
    """
    weight = labels.new_tensor(weight)
    loss = args.loss_weight_bag * F.binary_cross_entropy_with_logits(bag_logits, labels, pos_weight=weight)
    if ins_weight:
        highest = torch.stack(dsmil.by_bag(torch.amax, sizes, instance_logits))  # (B,)
        loss = loss + ins_weight * F.binary_cross_entropy_with_logits(highest, labels, pos_weight=weight)
    if args.ranking_loss:
        tops = [c.topk(min(args.rank_k, len(c))).values.mean() for c in instance_logits.split(sizes)]
        positive, negative = torch.stack(tops).view(2, -1)
        loss = loss + args.loss_weight_ranking * F.relu(1 + negative - positive).mean()
    return loss


# --- scores ---


@torch.inference_mode()
def predict(model: nn.Module, bags: Bags, device: torch.device) -> Scores:
    """The logits of all bags and of their instances."""
    model.eval()
    bag_logits, instances = [], []
    for chosen in blocks(bags.sizes):
        features, sizes = gather(bags, chosen, device)
        logits, scores, _ = model(features, sizes)
        bag_logits.append(logits[:, 0].double().cpu().numpy())
        instances += [bag.numpy() for bag in scores[:, 0].float().cpu().split(sizes)]
    return Scores(np.concatenate(bag_logits), instances)


def blocks(sizes: np.ndarray) -> Iterator[list[int]]:
    """Consecutive bags of EVALUATED instances or less, or one larger bag."""
    block, total = [], 0
    for i, size in enumerate(sizes.tolist()):
        if block and total + size > EVALUATED:
            yield block
            block, total = [], 0
        block.append(i)
        total += size
    yield block


def validate(model: nn.Module, bags: Bags, device) -> dict[str, float]:
    """A row's eval_ scores, with the threshold that these bags choose."""
    scores = predict(model, bags, device)
    found = evaluate(bags, scores, metrics.youden_threshold(bags.labels, scores.bags))
    names = (*BAG_SCORES, *(["instance_auc"] if bags.truth_known else []))
    return {f"eval_{name}": found[name] for name in names}


def evaluate(bags: Bags, scores: Scores, threshold: float) -> dict[str, float | None]:
    """Scores of the bags at a threshold and, where the instances' truth is known, of the instances.

    instance_auc, instance_ap and instance_f1 (at instance_threshold, its best) are of all instances, those that end in
    _positive_bags of the instances of positive bags alone.
    """
    losses = np.logaddexp(0, np.where(bags.labels == 1, -scores.bags, scores.bags))
    found = {"bags": len(bags), "loss": float(losses.mean()), "threshold": threshold}
    found |= metrics.classification(bags.labels, scores.bags)
    found |= metrics.at_threshold(bags.labels, scores.bags, threshold)
    if bags.truth_known:
        found |= instance_scores(bags.truth, scores.instances)
        positive = np.flatnonzero(bags.labels == 1)
        parts = [bags.truth[i] for i in positive], [scores.instances[i] for i in positive]
        found |= {f"{name}_positive_bags": value for name, value in instance_scores(*parts).items()}
    return found


def instance_scores(truth: list[np.ndarray], instances: list[np.ndarray]) -> dict[str, float | None]:
    """AUC, AP and best F1 of instances, (n,) for each bag, and the logit from which on that F1 counts them positive."""
    from sklearn.metrics import precision_recall_curve

    labels, logits = np.concatenate(truth), np.concatenate(instances)
    found = metrics.classification(labels, logits)
    scores = {"instance_auc": found["auc"], "instance_ap": found["ap"]}
    if not labels.any():
        return scores | {"instance_f1": 0.0, "instance_threshold": None}
    precision, recall, thresholds = precision_recall_curve(labels, logits)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-30)
    best = int(f1[:-1].argmax())  # the last point calls none positive
    return scores | {"instance_f1": float(f1[best]), "instance_threshold": float(thresholds[best])}
