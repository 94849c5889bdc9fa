"""Train a network that finds near-duplicates, on pairs made on the fly: train_retrieval.py --train_path IMAGES ..."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common  # noqa: F401 (before torch)
from common import cli, processes, runfolder
from common.errors import BadInput
from common.optimizers import Resumable
from common.runfolder import RunFolder
from data import loaders, pairs
from models import near_duplicates
from retrieval import manipulate, protocol, triplet

SUMS = ("loss", "pairs", "reconstruction", "reconstructed")
COLUMNS = {  # of stats.csv, with their tags
    "epoch": None,
    "trained": None,  # epochs of training until then: the first row is the network as it starts
    "train_loss": "train/loss",
    "train_reconstruction": "train/reconstruction",
    "valid_loss": "valid/loss",
    "valid_hardest_auc": "valid/hardest_auc",
    "valid_random_auc": "valid/random_auc",
    "valid_recall@1": "valid/recall@1",
    "seconds": None,
}
BEST = ("valid_loss", min)
RATES = {"last": 1e-3, "none": 1e-3, "all": 1e-4}  # by --train_layers
AUTOENCODER_RATE, CLIP = 1e-4, 1.0  # and the largest norm of a gradient, one tensor at a time, of its head


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    pairs.add_flags(parser)
    add = parser.add_argument_group("network").add_argument
    add("--base", choices=near_duplicates.BASES, default="resnet50", help="trunk; Koker 2020 has all three")
    add(
        "--weights",
        metavar="imagenet|FILE|random",
        help="of the trunk, or a trained network to go on from (default: imagenet; random for the autoencoder)",
    )
    add(
        "--train_layers",
        choices=near_duplicates.LAYERS,
        default="last",
        help="of the trunk; last is what the published networks learned: layer4, conv5_2 to conv5_4",
    )
    cli.neutral(add("--chunks", type=cli.natural, default=0, help="runs of the trunk that save memory; 0 = none"))
    group = parser.add_argument_group("training")
    manipulate.add_flag(group)
    add = group.add_argument
    add("--loss", choices=triplet.LOSSES, default="hardest", help="hardest negative of the batch, or a random one")
    add("--bs", "--batch_size", "-b", dest="batch_size", type=cli.positive, default=64, help="pairs per batch")
    add(
        "--lr",
        "--learning_rate",
        dest="lr",
        type=cli.positive_float,
        help="default: 1e-3; 1e-4 for all layers or the autoencoder",
    )
    cli.neutral(add("--epochs", "-e", type=cli.positive, default=75, help="epochs of pairs, as in Koker 2020"))
    add("--reconstruction_epochs", type=cli.natural, default=15, help="of the autoencoder, before those of pairs")
    add("--seed", type=cli.natural, default=42, help="seed of weights, order and manipulations")
    cli.add_workers_flag(parser, 4, help="processes that make pairs, 0 = none")
    runfolder.add_flags(parser)
    processes.add_flags(parser)
    return _fill_in(parser.parse_args(argv))


def _fill_in(args):
    """The defaults that depend on other flags."""
    autoencoder = args.base == "autoencoder"
    if autoencoder and (args.chunks or args.train_layers != "last"):
        flag = f"--chunks {args.chunks}" if args.chunks else f"--train_layers {args.train_layers}"
        raise BadInput(f"{flag}: goes with resnet50 and vgg19; all of the autoencoder learns")
    if args.weights is None:
        args.weights = "random" if autoencoder else "imagenet"
    if args.lr is None:
        args.lr = AUTOENCODER_RATE if autoencoder else RATES[args.train_layers]
    if not autoencoder:
        args.reconstruction_epochs = 0
    return args


def main(argv=None):
    args = parse_args(argv)
    device = processes.select_alone("train_retrieval.py", args.device, args.precision, args.deterministic)
    make = manipulate.Manipulator(args.manipulations)
    splits = pairs.load_splits(args, make, args.loss == "triplet")
    processes.seed_everything(args.seed)  # before the weights are drawn
    network, weights = near_duplicates.start(args.base, args.weights)
    learner = (AutoencoderLearner if args.base == "autoencoder" else Learner)(network.to(device), args, device)
    fit(learner, splits, make.table, weights, args)


class Learner:
    """A trunk with its optimiser."""

    def __init__(self, network: nn.Module, args, device: torch.device):
        self.network, self.args, self.device = network, args, device
        network.chunks = args.chunks
        network.choose_layers(args.train_layers)
        self.optimizer = torch.optim.Adam(network.parameter_groups(args.lr))
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")

    def state(self) -> dict:
        """What a checkpoint holds."""
        optimizer = Resumable(self.optimizer, may_be_empty=True)
        return {"state_dict": self.network, "optimizer": optimizer, "scaler": self.scaler}

    def begin_epoch(self, trained: int) -> None:
        """Get ready for an epoch after so many."""
        self.network.train()

    def step(self, views: tuple[Tensor, ...]) -> Tensor:
        """Learn from a batch of views (B, 1, 128, 128); returns (4,) float64 as SUMS says."""
        losses = self.losses(views)
        self._learn(losses, self.optimizer)
        return self._sums(losses, of_pairs=True)

    def losses(self, views: tuple[Tensor, ...]) -> Tensor:
        """(B,) of pairs."""
        views = [view.to(self.device, non_blocking=True) for view in views]
        with processes.autocast(self.device, self.args.precision):
            vectors = self.network(torch.cat(views)).float().chunk(len(views))
        return triplet.LOSSES[self.args.loss](*vectors)

    def _learn(self, losses, optimizer, clip=None):
        """One step down the mean of the losses."""
        self.scaler.scale(losses.mean()).backward()
        if clip is not None:
            self.scaler.unscale_(optimizer)
            for parameter in optimizer.param_groups[0]["params"]:
                nn.utils.clip_grad_norm_(parameter, clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    @staticmethod
    def _sums(losses, of_pairs: bool):
        """(4,) as SUMS says: sum and number of the losses, of pairs or of reconstructions, and zeros for the other."""
        total = losses.detach().double().sum()
        own = torch.stack([total, torch.full_like(total, len(losses))])
        none = torch.zeros_like(own)
        return torch.cat([own, none] if of_pairs else [none, own])


class AutoencoderLearner(Learner):
    """The autoencoder: first all but its head learns, from reconstructions, then its head alone, from pairs."""

    def __init__(self, network: nn.Module, args, device: torch.device):
        self.network, self.args, self.device = network, args, device
        parts = [*network.encoder.parameters(), *network.decoders.parameters()]
        self.optimizer = torch.optim.Adam(parts, args.lr)
        self.head_optimizer = torch.optim.Adam(network.head.parameters(), args.lr)
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
        self.reconstructs = True

    def state(self) -> dict:
        return super().state() | {"head_optimizer": Resumable(self.head_optimizer, may_be_empty=True)}

    def begin_epoch(self, trained: int) -> None:
        self.reconstructs = trained < self.args.reconstruction_epochs
        self.network.choose_layers(head=not self.reconstructs)

    def step(self, views: tuple[Tensor, ...]) -> Tensor:
        if not self.reconstructs:
            losses = self.losses(views)
            self._learn(losses, self.head_optimizer, CLIP)
            return self._sums(losses, of_pairs=True)
        anchors, copies = (view.to(self.device, non_blocking=True) for view in views[:2])
        with processes.autocast(self.device, self.args.precision):
            reconstructions = self.network.reconstruct(anchors, copies)
        losses = sum(
            F.mse_loss(image.float(), view, reduction="none").flatten(1).mean(1)
            for image, view in zip(reconstructions, (anchors, copies), strict=True)
        )
        self._learn(losses, self.optimizer)
        return self._sums(losses, of_pairs=False)


def fit(learner: Learner, splits: dict, table: dict, weights: dict, args) -> None:
    """Train in args.logdir, continuing what is there. The first epoch takes no step and scores the network as it is.

    So a fine-tuned network is kept only where its validation loss is below that of the network it began from.
    """
    draw = loaders.shuffles(len(splits["train"]), args.seed)
    batches = NumberedBatches(draw, len(splits["train"]), args.batch_size)
    train_loader = loaders.batch_loader(splits["train"], args, learner.device, batches, n_loaders=2)
    valid_loader = loaders.ordered_loader(splits["val"], args, learner.device, n_loaders=2)
    epochs = 1 + args.reconstruction_epochs + args.epochs
    describe(learner, splits, args)
    with open_folder(learner, splits, len(batches), table, weights, args) as run:
        for epoch in run.epochs(epochs):
            batches.epoch, batches.first = epoch, run.done if epoch else len(batches)
            learner.begin_epoch(epoch - 1)
            for views in run.steps(Steps(train_loader, batches)):
                run.count(learner.step(views))
            row = {"trained": epoch, **running_scores(run.sums), **validate(learner, valid_loader, run)}
            run.end_epoch(row)
            say_epoch(run, epochs)
    report(run)


def open_folder(learner: Learner, splits: dict, steps: int, table: dict, weights: dict, args) -> RunFolder:
    """The run's folder, to be continued by the same settings, weights to begin from, manipulations and data."""
    data = f"{splits['train'].fingerprint()} {splits['val'].fingerprint()}"
    network = learner.network.config
    return RunFolder(
        args,
        runfolder.settings_that_matter(args) | weights | {"manipulations": str(table), "data": data},
        learner.state(),
        COLUMNS,
        SUMS,
        BEST,
        steps_per_epoch=steps,
        scalars=step_scalars,
        facts={"config": network, "args": runfolder.plain(args) | {"manipulations": table}},
        config=runfolder.describe_run(
            args, learner.device, model=network, data=data, manipulations=table, start=weights
        ),
        advice="lower --lr",
    )


class NumberedBatches(loaders.EpochBatches):
    """Batches of (epoch, number), from which the pairs are made."""

    def __iter__(self):
        for batch in super().__iter__():
            yield [(self.epoch, i) for i in batch]


class Steps:
    """The batches that are left of an epoch."""

    def __init__(self, loader, batches: NumberedBatches):
        self.loader, self.left = loader, len(batches) - batches.first

    def __len__(self) -> int:
        return self.left

    def __iter__(self):
        return iter(self.loader) if self.left else iter(())


def step_scalars(sums: dict[str, float]) -> dict[str, float]:
    """TensorBoard's values of one step."""
    return {f"step/{name}": value for name, value in means(sums).items() if value is not None}


def running_scores(sums: dict[str, float]) -> dict[str, float]:
    """Means over an epoch's pairs; NaN for what it did not learn from."""
    return {f"train_{name}": float("nan") if value is None else value for name, value in means(sums).items()}


def means(sums: dict[str, float]) -> dict[str, float | None]:
    """Loss of pairs and of reconstructions, each over the pairs that learned from it; None without."""
    counts = {"loss": sums["pairs"], "reconstruction": sums["reconstructed"]}
    return {name: sums[name] / n if n else None for name, n in counts.items()}


@torch.inference_mode()
def validate(learner: Learner, loader, run: RunFolder) -> dict[str, float]:
    """The validation pairs' scores. The loss depends on the batch, so that the pairs left over are not counted."""
    learner.network.eval()
    vectors = []
    for views in processes.progress_on_rank_0(loader, len(loader), "validating", "batch"):
        views = [view.to(learner.device, non_blocking=True) for view in views]
        with processes.autocast(learner.device, learner.args.precision):
            vectors.append(torch.stack([learner.network(view).float() for view in views], 1).cpu())
    vectors = torch.cat(vectors)  # (N, 2 or 3, D)
    if not vectors.isfinite().all():
        raise run.not_finite("the network's outputs on validation images are")
    size = min(learner.args.batch_size, len(vectors))
    batches = vectors[: counted(len(vectors), size)].split(size)
    losses = torch.cat([triplet.LOSSES[learner.args.loss](*batch.unbind(1)) for batch in batches])
    images = vectors[:, :2].reshape(-1, 1, vectors.shape[-1]).numpy()  # query, duplicate, query, ...
    numbers = np.arange(len(images)).reshape(-1, 2)
    scores = protocol.scores(protocol.compare(images, numbers, np.random.default_rng(learner.args.seed)))
    scores = {f"valid_{name}": scores[name] for name in ("hardest_auc", "random_auc", "recall@1")}
    return {"valid_loss": losses.double().mean().item(), **scores}


def counted(pairs: int, batch: int) -> int:
    """Of so many validation pairs, those in whole batches; all of them where they do not fill one."""
    return pairs // batch * batch or pairs


def describe(learner: Learner, splits: dict, args) -> None:
    """Print what is about to be trained."""
    parameters = sum(p.numel() for p in learner.network.parameters())
    how = "in two stages" if args.base == "autoencoder" else f"layers of the trunk: {args.train_layers}"
    n = len(splits["val"])
    print(f"network: {args.base}, {parameters:,} parameters, {how}; begins from {args.weights}; loss {args.loss}")
    print(
        f"{len(splits['train']):,} training images, {n:,} validation pairs of which "
        f"{counted(n, args.batch_size):,} count in the loss, on {learner.device}",
        flush=True,
    )


def say_epoch(run: RunFolder, epochs: int) -> None:
    """Print the scores of the epoch that has ended."""
    row = run.history[-1]
    learned = {"loss": row["train_loss"], "reconstruction": row["train_reconstruction"]}
    learned = [f"{name} {value:.4f}" for name, value in learned.items() if not math.isnan(value)]
    print(
        f"epoch {row['trained']}/{epochs - 1}  {learned[0] if learned else 'the start'}  valid {row['valid_loss']:.4f}"
        f"  AUC hardest {row['valid_hardest_auc']:.3f} random {row['valid_random_auc']:.3f}"
        f"  {row['seconds']:.0f} s{'  best' if row is run.best else ''}",
        flush=True,
    )


def report(run: RunFolder) -> None:
    """Print the best epoch's scores beside those of the start."""
    first, best = run.history[0], run.best
    if best is first:
        print(f"no epoch beats the start (validation loss {first['valid_loss']:.4f}), which is kept; in {run.logdir}")
        return
    print(
        f"best epoch {best['trained']} of {len(run.history) - 1}: validation loss {best['valid_loss']:.4f} (start "
        f"{first['valid_loss']:.4f}), AUC hardest {best['valid_hardest_auc']:.3f} ({first['valid_hardest_auc']:.3f}), "
        f"random {best['valid_random_auc']:.3f} ({first['valid_random_auc']:.3f}); in {run.logdir}"
    )


if __name__ == "__main__":
    cli.run(main)
