"""The training loop the commands share: fit(model, loaders, args, where), evaluate(model, loader, device)."""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from common import cli, device, lock, metrics, resume, runlog, signals
from common.errors import BadInput, WorkFailed
from common.moments import GradientVariance
from common.resume import Checkpoints, Progress
from data.loaders import Loaders

MILESTONES = (80, 120, 160)  # epochs after which the learning rate falls tenfold
PAPER_BATCH = 32
STEPS_PER_LOG = 50  # optimiser steps between transfers of the training scores from the device


def add_flags(parser) -> None:
    """Declare the flags of optimiser, schedule, seed and log folder."""
    group = parser.add_argument_group("training")
    runlog.add_logdir_flag(group)
    group.add_argument("-e", "--epochs", type=cli.positive, default=200, help="epochs")
    group.add_argument(
        "--delayed_step", type=cli.natural, default=0, help="batches accumulated per optimiser step (0 = 1)"
    )
    group.add_argument("--opt", choices=["rmsprop", "momentum", "adam"], default="rmsprop", help="optimiser")
    group.add_argument(
        "--lr", type=cli.positive_float, default=5e-5, help="learning rate, x0.1 after 80, 120, 160 epochs"
    )
    group.add_argument("--l2", type=cli.nonnegative_float, default=0.0, help="weight decay")
    group.add_argument("--seed", type=cli.natural, default=42, help="seed of weights, draws and dropout")
    group.add_argument("--test_all", action="store_true", help="evaluate training and test data in every epoch")
    group.add_argument("--grad_variance", action="store_true", help="log histograms of each epoch's gradient variance")
    _add_memory_flags(group)
    _add_checkpoint_flags(group)
    device.add_flags(group)


def _add_memory_flags(group):
    group.add_argument(
        "--background",
        choices=("auto", "rows", "dense"),
        default="auto",
        help="rows: compute black background once, exactly, with instance norm; auto: on a CPU",
    )
    group.add_argument(
        "--checkpoint_activations",
        action="store_true",
        help="keep few activations and compute the others twice: less than half the memory, a third more time",
    )


def _add_checkpoint_flags(group):
    group.add_argument(
        "--checkpoint_minutes",
        type=cli.positive_float,
        default=10.0,
        help="minutes between checkpoints within an epoch; every epoch ends with one too",
    )
    group.add_argument(
        "--signal",
        choices=("USR1", "USR2"),
        help="another signal, as SLURM's --signal sends before it ends a job, at which to save and end",
    )


@dataclass
class Run:
    """A training run in progress; `history` holds a stats.csv row per finished epoch, `best` the best one's."""

    model: nn.Module
    network: nn.Module  # the model, its gradients shared by all processes
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    args: object
    history: list[dict] = field(default_factory=list)
    best: dict | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def accumulation(self) -> int:
        return max(1, self.args.delayed_step)


def fit(model: nn.Module, loaders: Loaders, args, where: torch.device) -> dict:
    """Train on a device up to args.epochs epochs in args.logdir, continuing what is there.

    Returns: the stats.csv row of the best validation epoch. BadInput when the folder holds a run that differs in a
    flag that changes weights, or in its data.
    """
    run = start(model, args, where)
    logdir = args.logdir
    checkpoints = Checkpoints(logdir, resume.identity(args, loaders.fingerprint), args.checkpoint_minutes)
    with lock.held(logdir, "--logdir") if device.rank() == 0 else contextlib.nullcontext():
        checkpoints.restore(run)
        _announce(run, loaders)
        if len(run.history) < args.epochs * loaders.epoch_factor:
            _train(run, loaders, checkpoints)
        _report(run, logdir)
    device.leave()
    return run.best


def _train(run, loaders, checkpoints):
    """Train the epochs that are left; Ctrl-C, SIGTERM and --signal wait until the state can be saved."""
    args, epochs = run.args, run.args.epochs * loaders.epoch_factor
    if device.rank() == 0:
        facts = {"model": run.model.config.to_dict(), "data": loaders.fingerprint}
        runlog.write_config(checkpoints.logdir, args, run.device, **facts)
    taken = len(run.history) * _steps_per_epoch(run, loaders) + run.progress.steps
    with (
        signals.deferred(*[args.signal] if args.signal else []),
        runlog.TensorBoard(checkpoints.logdir, taken + 1) as board,
    ):
        while len(run.history) < epochs:
            _epoch(run, loaders, board, checkpoints, epochs)
            checkpoints.save(run)


def _steps_per_epoch(run, loaders):
    return sum(1 for _ in loaders.batches.groups(run.accumulation))


def start(model: nn.Module, args, where: torch.device) -> Run:
    """A run at epoch 0: the model on its device, with optimiser and loss scaler."""
    if args.norm == "bn" and device.world_size() > 1:
        raise BadInput(
            "--norm bn: batch norm needs whole batches, so one process; train instance norm, or without torchrun"
        )
    if args.checkpoint_activations and args.precision == "tf32" and where.type == "cpu":
        raise BadInput(
            "--checkpoint_activations: a CPU emulates --precision tf32 in the forward pass alone; leave one out"
        )
    model.to(where)
    model.background, model.cnn.recompute = args.background, args.checkpoint_activations
    scaler = torch.amp.GradScaler(where.type, enabled=args.precision == "fp16")
    return Run(model, device.share_gradients(model, where), make_optimizer(model, args), scaler, where, args)


def make_optimizer(model: nn.Module, args) -> torch.optim.Optimizer:
    """RMSprop (the paper's: eps 1e-5, smoothing 0.99, no momentum), SGD with momentum 0.9, or Adam."""
    if args.opt == "rmsprop":
        return torch.optim.RMSprop(model.parameters(), args.lr, alpha=0.99, eps=1e-5, weight_decay=args.l2)
    if args.opt == "momentum":
        return torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=args.l2)
    return torch.optim.Adam(model.parameters(), args.lr, weight_decay=args.l2)


def learning_rate(args, epoch: int, epoch_factor: int = 1) -> float:
    """The rate of an epoch (from 0): times 0.1 after each milestone, which the factor stretches."""
    passed = sum(epoch >= milestone * epoch_factor for milestone in MILESTONES)
    return args.lr * 0.1**passed


def _epoch(run, loaders, board, checkpoints, epochs):
    """Train what is left of an epoch, evaluate, and append the epoch's row to the history."""
    epoch = len(run.history)
    lr = learning_rate(run.args, epoch, loaders.epoch_factor)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    log = StepLog(run, board, epoch * _steps_per_epoch(run, loaders))
    train_epoch(run, loaders, epoch, log, lambda: checkpoints.heed(run, log.settle))
    row = {"epoch": epoch + 1, "lr": lr, "images_per_s": loaders.batches.length / run.progress.seconds}
    row["train_running_acc"] = metrics.rates(*run.progress.totals[1:])["acc"]
    try:
        with signals.immediate():
            _evaluate_splits(run, loaders, row, last=epoch + 1 == epochs)
    except signals.INTERRUPTS:
        log.settle()
        checkpoints.save_interrupted(run)
        raise
    row["seconds"] = log.seconds()
    run.history.append(row)
    if run.best is None or row["eval_acc"] > run.best["eval_acc"]:
        run.best = row
    if device.rank() == 0:
        _log_epoch(run, board, row, log.variance)
        print(_epoch_line(row, epochs, row is run.best), flush=True)
    run.progress = Progress()


def train_epoch(run: Run, loaders: Loaders, epoch: int, log: "StepLog | None" = None, between=None) -> np.ndarray:
    """Take one epoch's optimiser steps, each over `accumulation` batches weighted by their images.

    Args:
        log: of an epoch to go on with after run.progress; without it, the epoch begins anew.
        between: called without arguments after every step.
    Returns: (5,) sums over the epoch: loss, true positives, false positives, false negatives, true negatives.
    """
    run.model.train()
    if log is None:
        run.progress = Progress()
        log = StepLog(run)
    done = run.progress.steps
    loaders.batches.epoch, loaders.batches.first = epoch, done * run.accumulation
    batches = iter(loaders.train)
    groups = list(loaders.batches.groups(run.accumulation))[done:]
    steps = device.progress(groups, len(groups), f"epoch {epoch + 1}", "step")
    for step, (shares, n_images) in enumerate(steps, done):
        device.seed_everything(run.args.seed, epoch + 1, step, device.rank())
        counts = torch.zeros(5, dtype=torch.float64, device=run.device)
        for number, share in enumerate(shares, 1):
            with _gradients_shared(run.network, number == len(shares)):
                counts += _accumulate(run, *next(batches), share, n_images)
        _step(run, log.variance)
        log.add(counts)
        if between:
            between()
    log.flush()
    return np.array(run.progress.totals)


def _gradients_shared(network, now):
    """Context of a backward pass: the processes add their gradients up with the last batch of a step."""
    return contextlib.nullcontext() if now or device.world_size() == 1 else network.no_sync()


def _accumulate(run, images, labels, share, n_images):
    """Add the gradient of a batch's first `share` images, the others fill it up, to that of a step of n_images.

    Returns: their summed loss and confusion counts (5,) on the device.
    """
    images = images.to(run.device, non_blocking=True)  # (b, in, H, W)
    labels = labels.to(run.device, non_blocking=True)[:share]
    with device.autocast(run.device, run.args.precision):
        logits = run.network(images)[:share]  # (share, 2)
    loss = F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), labels, reduction="sum")
    with device.others_needed():
        run.scaler.scale(loss * (device.world_size() / n_images)).backward()  # the processes' mean is taken
    return torch.cat([loss.detach().double().view(1), _confusion(logits.detach(), labels)])


def _confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """True positives, false positives, false negatives, true negatives (4,) without leaving the device."""
    predicted, actual = logits[:, 1] > logits[:, 0], labels == 1
    cells = (actual & predicted, ~actual & predicted, actual & ~predicted, ~actual & ~predicted)
    return torch.stack([cell.sum() for cell in cells]).double()


def _step(run, variance):
    if variance:
        run.scaler.unscale_(run.optimizer)
        variance.add()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)


class StepLog:
    """Adds the scores of the steps to run.progress and writes them in blocks, so that no step waits for the device.

    Args:
        first_step: optimiser steps before the epoch.
    """

    def __init__(self, run: Run, board=None, first_step: int = 0):
        self.run, self.board, self.first_step = run, board, first_step
        self.started = time.perf_counter() - run.progress.seconds
        self.variance = GradientVariance(run.model, run.progress.variance) if run.args.grad_variance else None
        self.pending: list[Tensor] = []

    def seconds(self) -> float:
        """What the epoch has taken so far, also in runs that were interrupted."""
        return time.perf_counter() - self.started

    def add(self, counts: Tensor) -> None:
        self.pending.append(counts)
        if len(self.pending) == STEPS_PER_LOG:
            self.flush()

    def flush(self) -> None:
        """Bring run.progress and the event file up to the last step. WorkFailed when a loss is not finite."""
        progress = self.run.progress
        if self.pending:
            block = torch.stack(self.pending)
            device.sum_over_processes(block)
            self._count(progress, block.cpu().numpy())
            self.pending = []
        progress.seconds = self.seconds()
        progress.variance = self.variance.state() if self.variance else None

    def settle(self) -> None:
        """Flush, and bring the event file to the disk: what a checkpoint counts as done must not get lost."""
        self.flush()
        self.board.flush()

    def _count(self, progress, block):
        """Add the scores of some steps, (steps, 5)."""
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            step = progress.steps + int(np.argmin(finite)) + 1
            raise resume.not_finite("the loss is", len(self.run.history) + 1, step, self.run.args.precision)
        if self.board:
            self.board.steps(self.first_step + progress.steps + 1, block)
        progress.totals = np.cumsum([progress.totals, *block], axis=0)[-1].tolist()  # step by step, however divided
        progress.steps += len(block)


def _evaluate_splits(run, loaders, row, last):
    """Fill the row's eval_*, and train_* and test_* in the best epoch so far, the last one and under --test_all."""
    row.update(_scores("eval", run, loaders))
    best = run.best is None or row["eval_acc"] > run.best["eval_acc"]
    if best or last or run.args.test_all:
        row.update(_scores("train", run, loaders))
        row.update(_scores("test", run, loaders))


def _scores(split, run, loaders):
    loader = device.progress(loaders.evaluation[split], len(loaders.evaluation[split]), f"evaluating {split}", "batch")
    try:
        scores = evaluate(run.model, loader, run.device, run.args.precision)
    except OutputsNotFinite:
        what, at = f"the network's outputs on {split} images are", (len(run.history) + 1, run.progress.steps)
        raise resume.not_finite(what, *at, run.args.precision) from None
    return {f"{split}_{name}": value for name, value in scores.items()}


class OutputsNotFinite(WorkFailed):
    """A network computed infinities or NaN."""


def evaluate(model: nn.Module, loader: Iterable, where: torch.device, precision: str = "float32") -> dict[str, float]:
    """Loss (mean over images), acc, prec, recall, auc and ap of a split; builds no graph."""
    labels, logits = predict(model, loader, where, precision)
    losses = np.logaddexp(logits[:, 0], logits[:, 1]) - logits[np.arange(len(labels)), labels]
    if not np.isfinite(losses).all():
        raise OutputsNotFinite("the network's outputs are not finite")
    return {"loss": float(losses.mean()), **metrics.classification(labels, logits[:, 1] - logits[:, 0])}


@torch.inference_mode()
def predict(model: nn.Module, loader: Iterable, where: torch.device, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and float64 logits (N, 2) of all images, from all processes."""
    model.eval()
    labels, logits = [], []
    for images, targets in loader:
        with device.autocast(where, precision):
            logits.append(model(images.to(where, non_blocking=True)).double())
        labels.append(targets)
    if not labels:  # fewer images than processes
        return device.gather_arrays(np.zeros(0, np.int64)), device.gather_arrays(np.zeros((0, 2)))
    return device.gather_arrays(torch.cat(labels).numpy()), device.gather_arrays(torch.cat(logits).cpu().numpy())


def _log_epoch(run, board, row, variance):
    board.epoch(row)
    state = run.optimizer.state
    moments = [(name, state[p]["square_avg"]) for name, p in run.model.named_parameters() if "square_avg" in state[p]]
    if moments:
        board.histogram("rmsprop_second_moment", moments, row["epoch"])
    if variance:
        board.histogram("gradient_variance", variance.values(), row["epoch"])
    board.flush()


def _announce(run, loaders):
    if device.rank() > 0:
        return
    args, effective = run.args, run.args.batch_size * run.accumulation
    note = "" if effective == PAPER_BATCH else f" (the paper: {PAPER_BATCH})"
    print(models.describe(run.model))
    print(f"batch {args.batch_size} x accumulation {run.accumulation} = {effective}{note}")
    factor = loaders.epoch_factor
    epochs = f"{args.epochs} epochs"
    if factor > 1:
        epochs += f" x shrinkage {factor} = {args.epochs * factor} epochs"
    print(f"{loaders.batches.length:,} training images, {epochs}, on {run.device}")
    if run.history or run.progress.steps:
        done = len(run.history) >= args.epochs * factor
        where = f"epoch {len(run.history)}" + (f" and {run.progress.steps} steps" if run.progress.steps else "")
        print(f"{args.logdir}: {'complete' if done else 'resuming'} after {where}", flush=True)


def _epoch_line(row, epochs, is_best):
    test = f"  test {row['test_acc']:.3f}" if "test_acc" in row else ""
    return (
        f"epoch {row['epoch']}/{epochs}  train {row['train_running_acc']:.3f} (running)  val {row['eval_acc']:.3f}"
        f"  AUC {row['eval_auc']:.3f}  loss {row['eval_loss']:.3f}{test}  lr {row['lr']:.1e}"
        f"  {row['images_per_s']:.0f} images/s  {row['seconds']:.0f} s{'  best' if is_best else ''}"
    )


def _report(run, logdir):
    if device.rank() > 0:
        return
    best = run.best
    print(
        f"best validation epoch {best['epoch']} of {len(run.history)}: validation accuracy {best['eval_acc']:.3f}, "
        f"test accuracy {best['test_acc']:.3f}, test AUC {best['test_auc']:.3f}; in {logdir}"
    )
