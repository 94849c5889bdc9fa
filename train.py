"""The classifier's training loop: fit(model, loaders, args, device), evaluate(model, loader, device)."""

import contextlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import cli, compilation, metrics, processes, runfolder
from common.errors import BadInput, WorkFailed
from common.graphs import CudaGraphs, Recorded
from common.moments import GradientVariance
from common.optimizers import Resumable, set_rate
from common.runfolder import RunFolder
from data.loaders import Loaders
from models import background, needle

MILESTONES = (80, 120, 160)  # epochs after which the learning rate falls tenfold
NEEDLES_BATCH = 32  # of Pawlowski 2019
SUMS = ("loss", "true positives", "false positives", "false negatives", "true negatives")
SPLIT_COLUMNS = ("loss", "acc", "prec", "recall", "auc", "ap")
TAGS = {"eval": "eval", "train": "train_eval", "test": "test"}  # split in stats.csv -> folder in TensorBoard
COLUMNS = {  # of stats.csv, with their tags
    "epoch": None,
    **{f"{split}_{name}": f"{tag}/{name}" for split, tag in TAGS.items() for name in SPLIT_COLUMNS},
    "train_running_acc": None,
    "lr": "stats/lr",
    "seconds": None,
    "images_per_s": None,
}
BEST = ("eval_acc", max)  # the epoch whose test scores count


def add_flags(parser) -> None:
    """Declare the flags of optimiser, schedule, seed and log folder."""
    group = parser.add_argument_group("training")
    add = group.add_argument
    cli.neutral(add("-e", "--epochs", type=cli.positive, default=200, help="epochs"))
    cli.neutral(
        add("--delayed_step", type=cli.natural, default=0, help="batches accumulated per optimiser step (0 = 1)")
    )
    add("--opt", choices=["rmsprop", "momentum", "adam"], default="rmsprop", help="optimiser")
    add("--lr", type=cli.positive_float, default=5e-5, help="learning rate, x0.1 after 80, 120, 160 epochs")
    add("--l2", type=cli.nonnegative_float, default=0.0, help="weight decay")
    add("--seed", type=cli.natural, default=42, help="seed of weights, draws, dropout and choice of crops")
    cli.neutral(add("--test_all", action="store_true", help="evaluate training and test data in every epoch"))
    cli.neutral(add("--grad_variance", action="store_true", help="log histograms of each epoch's gradient variance"))
    cli.neutral(
        add(
            "--background",
            choices=("auto", "rows", "dense"),
            default="auto",
            help="rows: compute black background once, exactly, with instance norm; auto: on a CPU, and on a GPU from "
            "256 px a side on (from 1024 in tf32)",
        )
    )
    cli.neutral(
        add(
            "--checkpoint_activations",
            action="store_true",
            help="keep few activations and compute the others twice: less than half the memory, a third more time",
        )
    )
    compilation.add_flag(group)
    cli.neutral(
        add(
            "--cuda_graph",
            choices=("auto", "off"),
            default="auto",
            help="auto: on one GPU, record the steps of the plain network and replay them; not with torchrun, nor with "
            "--checkpoint_activations",
        )
    )
    runfolder.add_flags(group)
    processes.add_flags(group)


@dataclass
class Learner:
    """All that a training step works on and changes.

    compiler: of parts of the model. recorder: of the functions `gradients` and `move`, the two halves of a step.
    """

    model: nn.Module
    network: nn.Module  # the model, its gradients shared by all processes
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    variance: GradientVariance | None
    device: torch.device
    precision: str
    compiler: compilation.Compiler | None = None
    recorder: CudaGraphs | None = None
    gradients: Callable | None = None
    move: Callable | None = None


def fit(model: nn.Module, loaders: Loaders, args, device: torch.device) -> dict:
    """Train on a device up to args.epochs epochs in args.logdir, continuing what is there.

    Returns: the stats.csv row of the best validation epoch. BadInput when the folder holds a run that differs in a
    flag that changes weights, or in its data.
    """
    learner = start(model, args, device)
    accumulation, epochs = max(1, args.delayed_step), args.epochs * loaders.epoch_factor
    with open_folder(learner, loaders, args) as run:
        describe(learner, loaders, args)
        for epoch in run.epochs(epochs):
            lr = set_learning_rate(learner.optimizer, args.lr, epoch, loaders.epoch_factor)
            if learner.variance and run.done == 0:
                learner.variance.load_state_dict(None)
            model.train()
            for batches in run.steps(loaders.steps(epoch, accumulation, run.done)):
                run.count(step(learner, batches))
                if learner.compiler:
                    learner.compiler.announce()
            row = {"lr": lr, "images_per_s": loaders.n_images / run.seconds, **running_scores(run.sums)}
            last = epoch + 1 == epochs
            row |= evaluate_splits(learner, loaders, run, everything=last or args.test_all)
            log_histograms(learner, run)
            run.end_epoch(row)
            say_epoch(run, epochs)
    report(run)
    processes.end_processes()
    return run.best


def open_folder(learner: Learner, loaders: Loaders, args) -> RunFolder:
    """The run's folder, to be continued by the same settings, effective batch and data."""
    settings = runfolder.settings_that_matter(args) | {"effective batch": effective_batch(args)}
    if args.norm == "bn":  # batch norm sees how images are split into batches
        settings["batch_size"] = args.batch_size
    optimizer = Resumable(learner.optimizer, may_be_empty=learner.scaler.is_enabled())
    state = {"state_dict": learner.model, "optimizer": optimizer, "scaler": learner.scaler}
    if learner.variance:
        state["variance"] = learner.variance
    network = learner.model.config.to_dict()
    exact = "" if args.precision == "float32" else " or take --precision float32"
    return RunFolder(
        args,
        settings | {"data": loaders.fingerprint},
        state,
        COLUMNS,
        SUMS,
        BEST,
        steps_per_epoch=len(loaders.steps(0, max(1, args.delayed_step), 0)),
        scalars=step_scalars,
        facts={"config": network, "args": runfolder.plain(args)},
        config=runfolder.describe_run(
            args,
            learner.device,
            model=network,
            data=loaders.fingerprint,
            epochs_in_all=args.epochs * loaders.epoch_factor,
        ),
        upgrade=upgrade,
        advice=f"lower --lr{exact}",
    )


def upgrade(saved: dict) -> None:
    """Checkpoints once held the gradient variance as a part of the epoch's progress."""
    if "variance" in saved.get("progress", {}):
        saved["variance"] = saved["progress"].pop("variance")


def start(model: nn.Module, args, device: torch.device) -> Learner:
    """The model on its device, ready to train, with optimiser and loss scaler."""
    if args.norm == "bn" and processes.world_size() > 1:
        raise BadInput(
            "--norm bn: batch norm needs whole batches, so one process; train instance norm, or without torchrun"
        )
    if args.norm == "bn" and args.checkpoint_activations:
        raise BadInput("--checkpoint_activations: batch norm would count each batch twice; leave one out")
    if args.checkpoint_activations and args.precision == "tf32" and device.type == "cpu":
        raise BadInput(
            "--checkpoint_activations: a CPU emulates --precision tf32 in the forward pass alone; leave one out"
        )
    model.to(device)
    model.cnn.recompute = args.checkpoint_activations
    model.background = background_of(args)
    compiler = compilation.Compiler() if compilation.wanted(args.compile, device) else None
    if compiler:
        model.compile_parts(compiler)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
    variance = GradientVariance(model) if args.grad_variance else None
    network = processes.share_gradients(model, device)
    recorder = CudaGraphs(device) if records(args, device) else None
    optimizer = make_optimizer(model, args, capturable=recorder is not None and not scaler.is_enabled())
    learner = Learner(model, network, optimizer, scaler, variance, device, args.precision, compiler)
    record(learner, recorder)
    return learner


def background_of(args) -> str:
    """--background, or dense where there are no rows: under autocast and with batch norm; it says so."""
    possible = processes.PRECISIONS[args.precision] is None and args.norm != "bn"
    if args.background == "rows" and not possible and processes.rank() == 0:
        print("--background rows: not with --norm bn, fp16 or bf16; going on dense", flush=True)
    return args.background if possible else "dense"


def records(args, device: torch.device) -> bool:
    """Whether steps are to be recorded as CUDA graphs."""
    if args.cuda_graph == "off" or device.type != "cuda" or args.checkpoint_activations:
        return False
    if processes.world_size() > 1 and processes.rank() == 0:
        print("--cuda_graph: not with torchrun, whose processes wait for each other; going on without", flush=True)
    return processes.world_size() == 1


def record(learner: Learner, recorder: CudaGraphs | None) -> None:
    """Have the two halves of the learner's steps recorded, if there is a recorder; a half stays plain that must wait.

    Rows wait for the number of active cells, fp16's loss scaler for whether gradients are finite.
    """

    def by_rows(_, batches, n_images):
        return background.applies(learner.model, batches[0][0].shape, learner.device)

    def rates():
        return [group["lr"] for group in learner.optimizer.param_groups]

    learner.recorder = recorder
    learner.gradients = Recorded(gradients, recorder, unless=by_rows)
    learner.move = Recorded(move, None if learner.scaler.is_enabled() else recorder, constants=rates)


def make_optimizer(model: nn.Module, args, capturable: bool = False) -> torch.optim.Optimizer:
    """RMSprop (Pawlowski 2019: eps 1e-5, smoothing 0.99, no momentum), SGD with momentum 0.9, or Adam.

    Args: capturable: whether a CUDA graph may record its steps, as it may SGD's anyway.
    """
    if capturable:  # the first steps warm up
        warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
    parameters, usual = model.parameters(), {"lr": args.lr, "weight_decay": args.l2}
    if args.opt == "momentum":
        return torch.optim.SGD(parameters, momentum=0.9, **usual)
    if args.opt == "rmsprop":
        return torch.optim.RMSprop(parameters, alpha=0.99, eps=1e-5, capturable=capturable, **usual)
    return torch.optim.Adam(parameters, capturable=capturable, **usual)


def set_learning_rate(optimizer, lr: float, epoch: int, epoch_factor: int = 1) -> float:
    """Set and return the rate of an epoch (from 0): times 0.1 after each milestone, which the factor stretches."""
    return set_rate(optimizer, lr * 0.1 ** sum(epoch >= milestone * epoch_factor for milestone in MILESTONES))


def step(learner: Learner, batches) -> Tensor:
    """Take one optimiser step over accumulated batches, weighted by their images.

    Args:
        batches: a data.loaders.Step.
    Returns: (5,) float64 on the device, as SUMS says, of this process's images.
    """
    sums = learner.gradients(learner, [*batches] if learner.recorder else batches, batches.n_images)
    if learner.variance:
        learner.scaler.unscale_(learner.optimizer)
        learner.variance.add()
    learner.move(learner)
    return sums


def gradients(learner: Learner, batches: Iterable, n_images: int) -> Tensor:
    """Add up the gradients of a step of n_images; arguments and result as those of step()."""
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=learner.device)
    for images, labels, share, is_last in batches:
        images = images.to(learner.device, non_blocking=True)  # (b, in, H, W)
        labels = labels.to(learner.device, non_blocking=True)[:share]  # further images fill the batch up
        with gradients_shared(learner.network, is_last):
            with processes.autocast(learner.device, learner.precision):
                logits = learner.network(images)[:share]  # (share, 2)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            with processes.peer_errors_as_one_line():  # the processes' mean is taken
                learner.scaler.scale(loss * (processes.world_size() / n_images)).backward()
        sums += torch.cat([loss.detach().double().view(1), confusion(logits.detach(), labels)])
    return sums


def move(learner: Learner) -> None:
    """Move the weights by the gradients, which are 0 then, or None where no recording needs their memory."""
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=learner.recorder is None)


def gradients_shared(network, now: bool):
    """Context of a backward pass: the processes add their gradients up with the last batch of a step."""
    return contextlib.nullcontext() if now or processes.world_size() == 1 else network.no_sync()


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """True positives, false positives, false negatives, true negatives (4,) without leaving the device."""
    predicted, actual = logits[:, 1] > logits[:, 0], labels == 1
    cells = (actual & predicted, ~actual & predicted, actual & ~predicted, ~actual & ~predicted)
    return torch.stack([cell.sum() for cell in cells]).double()


def step_scalars(sums: dict[str, float]) -> dict[str, float]:
    """TensorBoard's values of one step."""
    loss, *counts = sums.values()
    rates = metrics.rates(*counts)
    tp, _, fn, _ = counts
    return {
        "train/precision": rates["prec"],
        "train/recall": rates["recall"],
        "train/accuracy": rates["acc"],
        "train/loss": loss / sum(counts),
        "train/labels": (tp + fn) / sum(counts),  # share of positives
    }


def running_scores(sums: dict[str, float]) -> dict[str, float]:
    """The accuracy over an epoch's steps, each by the network as it was then."""
    _, *counts = sums.values()
    return {"train_running_acc": metrics.rates(*counts)["acc"]}


def evaluate_splits(learner: Learner, loaders: Loaders, run: RunFolder, everything: bool) -> dict[str, float]:
    """eval_* scores, and train_* and test_* in the best epoch so far or if everything is wanted."""
    scores = split_scores("eval", learner, loaders, run)
    if everything or run.is_best(scores):
        scores |= split_scores("train", learner, loaders, run) | split_scores("test", learner, loaders, run)
    return scores


def split_scores(split: str, learner: Learner, loaders: Loaders, run: RunFolder) -> dict[str, float]:
    """A split's scores, named as in stats.csv. WorkFailed when the network computes infinities."""
    loader = loaders.evaluation[split]
    batches = processes.progress_on_rank_0(loader, len(loader), f"evaluating {split}", "batch")
    try:
        scores = evaluate(learner.model, batches, learner.device, learner.precision)
    except OutputsNotFinite:
        raise run.not_finite(f"the network's outputs on {split} images are") from None
    return {f"{split}_{name}": value for name, value in scores.items()}


class OutputsNotFinite(WorkFailed):
    """A network computed infinities or NaN."""


def evaluate(model: nn.Module, loader: Iterable, device: torch.device, precision: str = "float32") -> dict[str, float]:
    """Loss (mean over images), acc, prec, recall, auc and ap of a split; builds no graph."""
    labels, logits = predict(model, loader, device, precision)
    losses = np.logaddexp(logits[:, 0], logits[:, 1]) - logits[np.arange(len(labels)), labels]
    if not np.isfinite(losses).all():
        raise OutputsNotFinite("the network's outputs are not finite")
    return {"loss": float(losses.mean()), **metrics.classification(labels, logits[:, 1] - logits[:, 0])}


@torch.inference_mode()
def predict(model: nn.Module, loader: Iterable, device: torch.device, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and float64 logits (N, 2) of all images, from all processes."""
    model.eval()
    labels, logits = [], []
    for images, targets in loader:
        with processes.autocast(device, precision):
            logits.append(model(images.to(device, non_blocking=True)).double())
        labels.append(targets)
    if not labels:  # fewer images than processes
        return processes.gather_arrays(np.zeros(0, np.int64)), processes.gather_arrays(np.zeros((0, 2)))
    return processes.gather_arrays(torch.cat(labels).numpy()), processes.gather_arrays(torch.cat(logits).cpu().numpy())


def log_histograms(learner: Learner, run: RunFolder) -> None:
    """Second moments of RMSprop and, where wanted, gradient variances, by part of the network."""
    state = learner.optimizer.state
    named = learner.model.named_parameters()
    moments = [(name, state[p]["square_avg"]) for name, p in named if "square_avg" in state[p]]
    run.histogram("rmsprop_second_moment", by_part(moments))
    run.histogram("gradient_variance", by_part(learner.variance.values() if learner.variance else []))


def by_part(named_tensors) -> dict[str, list[Tensor]]:
    """Tensors by the part of the network that their name begins with."""
    parts = {}
    for name, tensor in named_tensors:
        part = ".".join(name.split(".")[:2]) if name.startswith("cnn.layer") else name.split(".")[0]
        parts.setdefault(part, []).append(tensor)
    return parts


def effective_batch(args) -> int:
    """Images of an optimiser step."""
    return args.batch_size * max(1, args.delayed_step)


def describe(learner: Learner, loaders: Loaders, args) -> None:
    """Print what is about to be trained."""
    if processes.rank() > 0:
        return
    effective, factor = effective_batch(args), loaders.epoch_factor
    note = "" if effective == NEEDLES_BATCH else f" (Pawlowski 2019: {NEEDLES_BATCH})"
    print(needle.describe(learner.model))
    print(f"batch {args.batch_size} x accumulation {max(1, args.delayed_step)} = {effective}{note}")
    epochs = f"{args.epochs} epochs"
    if factor > 1:
        epochs += f" x shrinkage {factor} = {args.epochs * factor} epochs"
    print(f"{loaders.n_images:,} training images, {epochs}, on {learner.device}", flush=True)


def say_epoch(run: RunFolder, epochs: int) -> None:
    """Print the scores of the epoch that has ended."""
    if processes.rank() > 0:
        return
    row = run.history[-1]
    test = f"  test {row['test_acc']:.3f}" if "test_acc" in row else ""
    print(
        f"epoch {row['epoch']}/{epochs}  train {row['train_running_acc']:.3f} (running)  val {row['eval_acc']:.3f}"
        f"  AUC {row['eval_auc']:.3f}  loss {row['eval_loss']:.3f}{test}  lr {row['lr']:.1e}"
        f"  {row['images_per_s']:.0f} images/s  {row['seconds']:.0f} s{'  best' if row is run.best else ''}",
        flush=True,
    )


def report(run: RunFolder) -> None:
    """Print the best epoch's scores."""
    if processes.rank() > 0:
        return
    best = run.best
    print(
        f"best validation epoch {best['epoch']} of {len(run.history)}: validation accuracy {best['eval_acc']:.3f}, "
        f"test accuracy {best['test_acc']:.3f}, test AUC {best['test_auc']:.3f}; in {run.logdir}"
    )
