"""The training loop the commands share: fit(model, loaders, args, where), evaluate(model, loader, device)."""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from common import checkpoint, cli, device, metrics, runlog
from common.cli import BadInput, WorkFailed
from common.files import make_folder
from common.moments import GradientVariance
from data.loaders import Loaders

MILESTONES = (80, 120, 160)  # epochs after which the learning rate falls tenfold
PAPER_BATCH = 32
STEPS_PER_LOG = 50  # optimiser steps between transfers of the training scores from the device
NEUTRAL_FLAGS = {  # flags that change no weight: a run may be resumed with others
    *("epochs", "device", "workers", "test_all", "grad_variance", "batch_size", "delayed_step"),
    *("source", "network_k", "num_classes", "checkpoint_activations"),
}


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
    group.add_argument(
        "--checkpoint_activations",
        action="store_true",
        help="keep few activations and compute the others twice: less than half the memory, a third more time",
    )
    device.add_flags(group)


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

    @property
    def accumulation(self) -> int:
        return max(1, self.args.delayed_step)


def fit(model: nn.Module, loaders: Loaders, args, where: torch.device) -> dict:
    """Train on a device up to args.epochs epochs in args.logdir, continuing what is there.

    Returns: the stats.csv row of the best validation epoch. BadInput when the folder holds a run that differs in a
    flag that changes weights, or in its data.
    """
    run = start(model, args, where)
    identity = _identity(args, loaders.fingerprint)
    logdir = make_folder(args.logdir)
    _resume(run, logdir, identity)
    _announce(run, loaders)
    epochs = args.epochs * loaders.epoch_factor
    steps_per_epoch = sum(1 for _ in loaders.batches.groups(run.accumulation))
    done = len(run.history)
    if done < epochs:
        if device.rank() == 0:
            runlog.write_config(logdir, args, run.device, model=model.config.to_dict(), data=loaders.fingerprint)
        with runlog.TensorBoard(logdir, done * steps_per_epoch + 1) as board:
            for epoch in range(done, epochs):
                _epoch(run, loaders, board, epoch, epochs)
                _save(run, logdir, identity)
    _report(run, logdir)
    return run.best


def start(model: nn.Module, args, where: torch.device) -> Run:
    """A run at epoch 0: the model on its device, with optimiser and loss scaler."""
    if args.norm == "bn" and device.world_size() > 1:
        raise BadInput(
            "--norm bn: batch norm needs whole batches, so one process; train instance norm, or without torchrun"
        )
    model.to(where)
    model.cnn.recompute = args.checkpoint_activations
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


def _epoch(run, loaders, board, epoch, epochs):
    """Train one epoch, evaluate, and append the epoch's row to the history."""
    started = time.perf_counter()
    lr = learning_rate(run.args, epoch, loaders.epoch_factor)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    device.seed_everything(run.args.seed, epoch + 1, device.rank())
    variance = GradientVariance(run.model) if run.args.grad_variance else None
    totals = train_epoch(run, loaders, epoch, board, variance)
    train_seconds = time.perf_counter() - started
    row = {"epoch": epoch + 1, "lr": lr, "images_per_s": loaders.batches.length / train_seconds}
    row["train_running_acc"] = metrics.rates(*totals[1:].tolist())["acc"]
    _evaluate_splits(run, loaders, row, last=epoch + 1 == epochs)
    row["seconds"] = time.perf_counter() - started
    run.history.append(row)
    if run.best is None or row["eval_acc"] > run.best["eval_acc"]:
        run.best = row
    if device.rank() == 0:
        _log_epoch(run, board, row, variance)
        print(_epoch_line(row, epochs, row is run.best), flush=True)


def train_epoch(run: Run, loaders: Loaders, epoch: int, board=None, variance=None) -> np.ndarray:
    """Take one epoch's optimiser steps, each over `accumulation` batches weighted by their images.

    Returns: (5,) sums over the epoch: loss, true positives, false positives, false negatives, true negatives.
    """
    run.model.train()
    loaders.batches.epoch = epoch
    batches = iter(loaders.train)
    groups = list(loaders.batches.groups(run.accumulation))
    log = StepLog(board, epoch * len(groups) + 1)
    for shares, n_images in device.progress(groups, len(groups), f"epoch {epoch + 1}", "step"):
        counts = torch.zeros(5, dtype=torch.float64, device=run.device)
        for number, share in enumerate(shares, 1):
            with _gradients_shared(run.network, number == len(shares)):
                counts += _accumulate(run, *next(batches), share, n_images)
        _step(run, variance)
        log.add(counts)
    return log.finish()


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
    """Sums the scores of the steps and writes them in blocks, so that no step waits for the device."""

    def __init__(self, board, first_step: int):
        self.board, self.next_step = board, first_step
        self.pending: list[Tensor] = []
        self.total = np.zeros(5)

    def add(self, counts: Tensor) -> None:
        self.pending.append(counts)
        if len(self.pending) == STEPS_PER_LOG:
            self._flush()

    def finish(self) -> np.ndarray:
        """The sums over all steps, (5,)."""
        if self.pending:
            self._flush()
        return self.total

    def _flush(self):
        block = torch.stack(self.pending)
        device.sum_over_processes(block)
        block = block.cpu().numpy()  # (steps, 5)
        if not np.isfinite(block).all():
            step = self.next_step + int(np.argmin(np.isfinite(block).all(axis=1)))
            raise WorkFailed(f"step {step}: the loss is not finite; lower --lr (checkpoint.pth keeps the last epoch)")
        if self.board:
            self.board.steps(self.next_step, block)
        self.total += block.sum(axis=0)
        self.next_step += len(self.pending)
        self.pending = []


def _evaluate_splits(run, loaders, row, last):
    """Fill the row's eval_*, and train_* and test_* in the best epoch so far, the last one and under --test_all."""
    row.update(_scores("eval", run, loaders))
    best = run.best is None or row["eval_acc"] > run.best["eval_acc"]
    if best or last or run.args.test_all:
        row.update(_scores("train", run, loaders))
        row.update(_scores("test", run, loaders))


def _scores(split, run, loaders):
    loader = device.progress(loaders.evaluation[split], len(loaders.evaluation[split]), f"evaluating {split}", "batch")
    scores = evaluate(run.model, loader, run.device, run.args.precision)
    return {f"{split}_{name}": value for name, value in scores.items()}


def evaluate(model: nn.Module, loader: Iterable, where: torch.device, precision: str = "float32") -> dict[str, float]:
    """Loss (mean over images), acc, prec, recall, auc and ap of a split; builds no graph."""
    labels, logits = predict(model, loader, where, precision)
    losses = np.logaddexp(logits[:, 0], logits[:, 1]) - logits[np.arange(len(labels)), labels]
    if not np.isfinite(losses).all():
        raise WorkFailed("the network's outputs are not finite; lower --lr")
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


def _identity(args, fingerprint):
    """What decides the weights: all flags but the neutral ones and paths, the effective batch, the data."""
    neutral = NEUTRAL_FLAGS | {name for name, value in vars(args).items() if isinstance(value, Path)}
    identity = {name: value for name, value in runlog.plain(args).items() if name not in neutral}
    identity["effective batch"] = args.batch_size * max(1, args.delayed_step)
    if args.norm == "bn":  # batch norm sees how images are split into batches
        identity["batch_size"] = args.batch_size
    return {**identity, "data": fingerprint}


def _resume(run, logdir, identity):
    """Load checkpoint.pth, if there is one, into the run."""
    path = logdir / checkpoint.LATEST
    if not path.exists():
        return _refuse_results(logdir)
    saved = checkpoint.load(path)
    with checkpoint.naming(path):
        _refuse_difference(logdir, saved["identity"], identity)
        run.model.load_state_dict(saved["state_dict"])
        run.optimizer.load_state_dict(saved["optimizer"])
        run.scaler.load_state_dict(saved["scaler"])
        run.history = saved["history"]
        run.best = run.history[saved["best_epoch"] - 1]
        _write_results(run, logdir, saved)  # it may have ended before it could
    if device.rank() == 0 and not (logdir / checkpoint.BEST).exists():
        print(f"{logdir / checkpoint.BEST}: missing, was of epoch {run.best['epoch']}; only a new run makes it again")


def _refuse_results(logdir):
    """BadInput when the folder holds a run that cannot be continued, for example the first release's."""
    for name in (checkpoint.BEST, "stats.csv"):
        if (logdir / name).exists():
            raise BadInput(f"--logdir {logdir}: holds {name} of a run without checkpoint.pth; choose another folder")


def _refuse_difference(logdir, saved, wanted):
    names = [name for name in {**saved, **wanted} if saved.get(name) != wanted.get(name)]
    if names:
        differences = ", ".join(
            "other data" if name == "data" else f"{name} {saved.get(name)} (now {wanted.get(name)})" for name in names
        )
        raise BadInput(f"--logdir {logdir}: holds a run that differs in {differences}; choose another folder")


def _save(run, logdir, identity):
    """Write checkpoint.pth, then what follows from it; only the first process does."""
    content = {
        "state_dict": run.model.state_dict(),
        "config": run.model.config.to_dict(),
        "args": runlog.plain(run.args),
        "epoch": run.history[-1]["epoch"],
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "history": run.history,
        "best_epoch": run.best["epoch"],
        "identity": identity,
    }
    if device.rank() == 0:
        checkpoint.save(logdir / checkpoint.LATEST, content)
    _write_results(run, logdir, content)


def _write_results(run, logdir, content):
    """Write stats.csv and, when the content of checkpoint.pth is the best epoch's, best_checkpoint.pth."""
    if device.rank() > 0:
        return
    if run.history[-1] is run.best:
        kept = {name: content[name] for name in ("state_dict", "config", "args", "epoch")}
        checkpoint.save(logdir / checkpoint.BEST, kept)
    runlog.write_stats(logdir / "stats.csv", run.history)


def _announce(run, loaders):
    if device.rank() > 0:
        return
    args, effective = run.args, run.args.batch_size * run.accumulation
    note = "" if effective == PAPER_BATCH else f" (the paper: {PAPER_BATCH})"
    print(models.describe(run.model))
    print(f"batch {args.batch_size} x accumulation {run.accumulation} = {effective}{note}")
    factor = loaders.epoch_factor
    print(f"{loaders.batches.length:,} training images, {args.epochs} epochs x shrinkage {factor}, on {run.device}")
    if run.history:
        done = len(run.history) >= args.epochs * factor
        print(f"{args.logdir}: {'complete' if done else 'resuming'} after epoch {len(run.history)}", flush=True)


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
