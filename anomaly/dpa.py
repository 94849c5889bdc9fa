"""DPA (Shvetsova et al. 2021): an autoencoder of normal images, whose reconstructions of others differ in VGG's eyes.

The relative perceptual L1 (models/perceptual.py) is loss and anomaly score. The ablations are here too: pixel losses,
a share of pixel L1, and an adversarial term (WGAN-GP).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from anomaly import adversarial, growing, reconstruction
from anomaly.growing import Epoch
from anomaly.runs import arguments, check_same_network, open_run
from anomaly.settings import SETTINGS
from common import checkpoint, cli, processes
from common.errors import BadInput
from common.files import sha256_of
from common.optimizers import Resumable
from data.normals import NormalTiles
from models import autoencoder, perceptual, vgg
from models.autoencoder import Autoencoder, AutoencoderConfig
from models.perceptual import Perceptual, layer_text, layer_weights

PIXEL_LOSSES = {"l1": torch.abs, "l2": torch.square}
MOST_LOSS = 1e6  # above which training is given up
FIRST_RES, STAGE_ITERS = 16, (5000,)  # defaults of growing
COLUMNS = {
    "epoch": None,
    "stage": "stage/number",
    "resolution": "stage/resolution",
    "loss": "train_epoch/loss",
    "images_per_s": None,
    "seconds": None,
}


def add_flags(parser) -> None:
    """Declare network, growing, loss, schedule and the frozen VGG."""
    group = parser.add_argument_group("DPA")
    add = group.add_argument
    what = "take a configuration of Shvetsova 2021 as the defaults of the other flags"
    cli.neutral(add("--setting", choices=SETTINGS, help=what))
    add("--network", choices=autoencoder.CONVOLUTIONS, default="residual18", help="kind of encoder and decoder")
    add("--latent_res", type=cli.positive, default=8, help="px a side of the code; 1: a code without places")
    add("--latent_dim", type=cli.positive, default=4, help="channels of the code")
    add("--dims", type=cli.positives, default=(4,), help="channels by resolution from --tile down, or one for all")
    add("--iters", type=cli.positive, default=5000, help="optimiser steps, without --progressive")
    add("--progressive", action="store_true", help="grow from --initial_res to --tile")
    add("--initial_res", type=cli.positive, default=FIRST_RES, help="px a side at which growing begins")
    add(
        "--stage_iters",
        type=cli.positives,
        default=STAGE_ITERS,
        help="steps of stable, fade, stable ..., or one for all",
    )
    add("--layers", type=layer_texts, help="a --layer for each resolution, as r32,r32,r42")
    add("--downscale", choices=["area", "bilinear"], default="area", help="to lower resolutions; bilinear aliases")
    add("--loss", choices=["perceptual", *PIXEL_LOSSES], default="perceptual", help="perceptual or of pixels")
    add("--l1_weight", type=cli.nonnegative_float, default=0.0, help="of pixel L1 beside the perceptual loss")
    add("--adv_weight", type=cli.nonnegative_float, default=0.0, help="of an adversarial term")
    add("--n_dis", type=cli.positive, default=2, help="steps of the critic, with --adv_weight, before each step")
    add("--lr", type=cli.positive_float, default=1e-3, help="learning rate of Adam")
    add("--val_iter", type=cli.positive, default=1000, help="steps of an epoch, after which it validates and saves")
    add(
        "--patience",
        type=cli.natural,
        default=0,
        help="end after so many epochs of the last stage without a better; 0: never",
    )
    add("--min_delta", type=cli.nonnegative_float, default=0.0, help="by which an epoch must be better")
    add("--finetune_from", type=cli.path, help="best_checkpoint.pth of a run whose weights to start from")
    what = "memory for VGG's features of images that never change"
    cli.neutral(add("--cache_mb", type=cli.natural, default=1024, help=what))
    perceptual.add_flags(parser, "r42")


def layer_texts(text: str) -> tuple[str, ...]:
    """Parse r32,r32,r42 (an argparse type)."""
    return tuple(map(layer_text, text.split(",")))


class Detector(nn.Module):
    """Autoencoder and loss; images and reconstructions are (B, C, R, R) in [-1, 1].

    Attributes: layers, resolution -> layers of VGG with their weights, None with a pixel loss.
    """

    def __init__(self, args, in_channels: int):
        super().__init__()
        self.args = args
        self.autoencoder = Autoencoder(network_of(args, in_channels))
        self.epochs = growing.epochs(planned_stages(args), args.val_iter)
        self.layers, self.perceptual = None, None
        if args.loss == "perceptual":
            self.layers = layers_by_resolution(args)
            taps = {tap for weights in self.layers.values() for tap in weights}
            self.perceptual = Perceptual.from_args(args, taps)

    def describe(self) -> dict:
        """Plain values that must be equal for a run to be continued or its weights to be used."""
        return self.perceptual.facts if self.perceptual else {}

    def reference(self, x: Tensor):
        """What reconstructions of x are compared with, without a graph: fhat by layer, or x itself."""
        return x if self.perceptual is None else self.perceptual.reference(x)

    def distances(self, reference, y: Tensor) -> Tensor:
        """The loss's main part and anomaly score, (B,)."""
        if self.perceptual is None:
            return PIXEL_LOSSES[self.args.loss](reference - y).flatten(1).mean(1)
        return perceptual.distance(reference, self.perceptual(y), self.layers[y.shape[-1]])

    def maps(self, reference, y: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B,), and where they come from, (B, h, w)."""
        if self.perceptual is None:
            maps = PIXEL_LOSSES[self.args.loss](reference - y).mean(1)
            return maps.flatten(1).mean(1), maps
        made, weights = self.perceptual(y), self.layers[y.shape[-1]]
        return perceptual.distance(reference, made, weights), perceptual.distance_map(reference, made, weights)

    def losses(self, x: Tensor, y: Tensor, share: float = 1.0, reference=None) -> Tensor:
        """The loss of each image (B,), without the adversarial term.

        While a resolution fades in with this share, (1 - a) L(half x, half y) + a L(x, y).

        Args: reference: that of x, if it is known.
        """
        own = self.distances(self.reference(x) if reference is None else reference, y)
        if self.perceptual is not None and self.args.l1_weight:
            total = sum(self.layers[y.shape[-1]].values())
            pixels = (x - y).abs().flatten(1).mean(1)
            own = (self.args.l1_weight * pixels + total * own) / (self.args.l1_weight + total)
        if share == 1:
            return own
        return (1 - share) * self.losses(autoencoder.halve(x), autoencoder.halve(y)) + share * own

    def seen(self, tiles: Tensor, side: int, share: float) -> Tensor:
        """Tiles (B, C, t, t) in [0, 1] as the network sees them at a resolution of this share."""
        return growing.seen(2 * tiles - 1, side, share, self.args.downscale)


def network_of(args, in_channels: int) -> AutoencoderConfig:
    """The network that the flags ask for."""
    return AutoencoderConfig(
        in_channels=in_channels,
        max_res=args.tile,
        initial_res=args.initial_res if args.progressive else args.tile,
        latent_res=args.latent_res,
        latent_dim=args.latent_dim,
        dims=tuple(args.dims),
        kind=args.network,
    )


def planned_stages(args) -> list[growing.Stage]:
    """The stages that the flags ask for. BadInput when their numbers do not fit."""
    if not args.progressive:
        return growing.stages(args.tile, args.tile, (args.iters,))
    try:
        return growing.stages(args.initial_res, args.tile, tuple(args.stage_iters))
    except ValueError:
        n = 2 * len(autoencoder.resolutions(args.initial_res, args.tile)) - 1
        raise BadInput(f"--stage_iters: has {len(args.stage_iters)} numbers, expected 1 or {n}") from None


def layers_by_resolution(args) -> dict[int, dict[str, float]]:
    """Resolution -> layers with their weights. BadInput when --layers does not fit, or one lies too deep."""
    sides = autoencoder.resolutions(args.initial_res, args.tile) if args.progressive else [args.tile]
    texts = args.layers or (args.layer,) * len(sides)
    if len(texts) != len(sides):
        raise BadInput(f"--layers: has {len(texts)}, expected one for each of {', '.join(map(str, sides))} px")
    found = dict(zip(sides, map(layer_weights, texts), strict=True))
    names = vgg.layers(args.embedder)
    for side, weights in found.items():
        for tap in weights:
            if tap in names and side < vgg.least_side(args.embedder, tap):  # VGG names one that it lacks
                raise BadInput(f"--layers {tap}: lies too deep for images of {side} px")
    return found


def fit(normals: NormalTiles, val: NormalTiles | None, args, device: torch.device) -> None:
    """Train through all stages; the last epoch's weights are kept, with --patience those of the best validation."""
    check_flags(args, val)
    detector = Detector(args, normals.in_channels)
    config = detector.describe() | sources(args)
    learner = Learner(detector.to(device), args, device)
    if args.finetune_from:
        start_from(detector, args.finetune_from)
    columns = COLUMNS | ({"val_loss": "val/loss", "lowest": None} if val is not None else {})
    with open_run(
        args,
        normals,
        device,
        columns=columns,
        config=config,
        state=learner.state(),
        sums=learner.sums,
        best=("lowest", min) if args.patience else ("epoch", max),
        steps_per_epoch=args.val_iter,
        kept=("state_dict", "statistics") if detector.perceptual else ("state_dict",),
        scalars=lambda sums: {f"train/{name}": value for name, value in sums.items()},
        advice="lower --lr",
        limit=MOST_LOSS,
        place=lambda epoch, step: place(detector.epochs[epoch - 1], step),
    ) as run:
        describe(detector, normals)
        for number in run.epochs(len(detector.epochs)):
            if detector.perceptual and number == run.done == 0:
                reconstruction.measure(detector.perceptual, normals, args, device)
            epoch = detector.epochs[number]
            learner.begin(epoch, run.done, normals)
            start = epoch.before + epoch.first
            last = (epoch.before + epoch.last) * args.batch_size
            for tiles, images, _ in run.steps(normals.batches(args, device, start + run.done, last)):
                run.count(learner.step(tiles.to(device), images, epoch.share(run.done)))
            row = {"stage": epoch.stage_number + 1, "resolution": epoch.stage.resolution}
            row |= {"loss": run.sums["loss"] / run.done, "images_per_s": run.done * args.batch_size / run.seconds}
            if val is not None:
                row |= judged(validation_loss(learner, val, epoch), run, detector, epoch)
            draw_samples(learner, val or normals, epoch, run)
            run.end_epoch(row)
            say_epoch(run, epoch, len(detector.epochs))
            if args.patience and is_last(detector, epoch) and len(run.history) - run.best["epoch"] >= args.patience:
                run.finish()
    print(f"the detector of epoch {run.best['epoch']} of {len(run.history)} is in {args.logdir}")


def check_flags(args, val) -> None:
    """BadInput for flags that contradict each other, before anything is computed."""
    if args.precision == "fp16":
        raise BadInput("--precision fp16: DPA has no loss scaling; take bf16, tf32 or float32")
    if args.patience and val is None:
        raise BadInput("--patience: there are no normal validation images to judge by")
    if args.adv_weight and args.progressive and args.initial_res < 4:
        raise BadInput(f"--initial_res {args.initial_res}: the critic of --adv_weight needs 4 px or more")
    growing_flags = {"initial_res": FIRST_RES, "stage_iters": STAGE_ITERS}
    for name in (name for name, usual in growing_flags.items() if getattr(args, name) != usual):
        if not args.progressive:
            raise BadInput(f"--{name}: goes with --progressive")
    if args.l1_weight and args.loss != "perceptual":
        raise BadInput(f"--l1_weight: goes with --loss perceptual, found {args.loss}")


def sources(args) -> dict[str, str]:
    """Digests of the files that decide the weights, wherever they lie."""
    files = {"vgg_stats": args.vgg_stats, "finetune_from": args.finetune_from}
    return {f"{name}_sha256": sha256_of(path) for name, path in files.items() if path}


def start_from(detector: Detector, path: Path) -> None:
    """Load another run's weights. BadInput when they do not fit."""
    saved = checkpoint.load(path)
    if not isinstance(saved.get("state_dict"), dict):
        raise BadInput(f"--finetune_from {path}: expected the best_checkpoint.pth of a DPA run")
    checkpoint.load_weights(detector.autoencoder, saved["state_dict"], path)


class Learner:
    """All that a training step works on and changes. Steps are taken between `begin` and the end of an epoch."""

    def __init__(self, detector: Detector, args, device: torch.device):
        self.detector, self.args, self.device = detector, args, device
        self.optimizer = torch.optim.Adam(detector.autoencoder.parameters(), args.lr)
        self.sums, self.critic, self.cache, self.stage = ("loss",), None, None, None
        if args.adv_weight:
            self.sums = ("loss", "adversarial", "critic")
            self.critic = autoencoder.critic(detector.autoencoder.config).to(device)
            self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), args.lr)

    def state(self) -> dict:
        """What a checkpoint holds: not VGG."""
        state = {"state_dict": self.detector.autoencoder, "optimizer": Resumable(self.optimizer, may_be_empty=True)}
        if self.detector.perceptual:
            state["statistics"] = self.detector.perceptual.statistics
        if self.critic is not None:
            optimizer = Resumable(self.critic_optimizer, may_be_empty=True)
            state |= {"critic": self.critic, "critic_optimizer": optimizer}
        return state

    def begin(self, epoch: Epoch, done: int, normals: NormalTiles) -> None:
        """Each stage begins with a new Adam and, of images that never change, with VGG's features of all of them."""
        if epoch.first == 0 and done == 0:
            self.optimizer.state.clear()
            if self.critic is not None:
                self.critic_optimizer.state.clear()
        if self.stage != epoch.stage:
            self.stage, self.cache = epoch.stage, None
            steps_left = epoch.stage.steps - epoch.first - done
            if not epoch.stage.is_fade and steps_left * self.args.batch_size > 2 * normals.n_images:
                self.cache = References.of(self, normals)

    def step(self, tiles: Tensor, images: Tensor, share: float) -> Tensor:
        """Take one step of the autoencoder, after those of the critic.

        Args: tiles (B, C, t, t) in [0, 1]; images (B,), their images' numbers; share, of the present resolution.
        Returns: `sums` (n,) float64 on the device.
        """
        x = self.detector.seen(tiles, self.stage.resolution, share)
        reference = self.cache.get(images) if self.cache else None
        with processes.autocast(self.device, self.args.precision):
            y = self.detector.autoencoder(x, share)
            sums = []
            if self.critic is not None:
                sums = [self._teach_critic(x, y, share)]
                made = adversarial.generator_loss(lambda images: self.critic(images, share), y)
                sums.insert(0, made.detach())
            losses = self.detector.losses(x, y, share, reference).float()
        loss = losses.mean()
        total = loss + self.args.adv_weight * made if self.critic is not None else loss
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return torch.stack([loss.detach(), *sums]).double()

    def _teach_critic(self, x, y, share):
        """Take the critic's steps; returns the last one's loss."""
        for _ in range(self.args.n_dis):
            loss = adversarial.critic_loss(lambda images: self.critic(images, share), x, y)
            self.critic_optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.critic_optimizer.step()
        return loss.detach()


class References:
    """fhat of every normal image at one resolution, where all of them fit into --cache_mb."""

    def __init__(self, features: dict[str, Tensor]):
        self.features = features

    @classmethod
    @torch.no_grad()
    def of(cls, learner: Learner, normals: NormalTiles) -> "References | None":
        """None where images change, the loss is of pixels, or memory does not hold them."""
        detector, device, features = learner.detector, learner.device, {}
        if detector.perceptual is None or not normals.is_fixed:
            return None
        for tiles, images, _ in normals.batches(learner.args, device, 0, normals.n_images):
            x = detector.seen(tiles.to(device), learner.stage.resolution, share=1)
            with processes.autocast(device, learner.args.precision):  # as those that are not kept
                found = detector.reference(x)
            if not features:
                if sum(f[0].nbytes for f in found.values()) * normals.n_images > learner.args.cache_mb * 2**20:
                    return None
                features = {tap: f.new_empty(normals.n_images, *f.shape[1:]) for tap, f in found.items()}
            for tap, f in found.items():
                features[tap][images.to(device)] = f
        return cls(features)

    def get(self, images: Tensor) -> dict[str, Tensor]:
        """Layer -> fhat (B, C, h, w) of the images of these numbers."""
        return {tap: features[images.to(features.device)] for tap, features in self.features.items()}


@torch.no_grad()
def validation_loss(learner: Learner, val: NormalTiles, epoch: Epoch) -> float:
    """The mean loss of normal validation images."""
    detector, args, total = learner.detector, learner.args, 0.0
    share = epoch.share(epoch.last - epoch.first - 1)
    for tiles, _, _ in val.batches(args, learner.device, 0, val.n_images):
        x = detector.seen(tiles.to(learner.device), epoch.stage.resolution, share)
        with processes.autocast(learner.device, args.precision):
            total += detector.losses(x, detector.autoencoder(x, share), share).double().sum().item()
    return total / val.n_images


def judged(loss: float, run, detector: Detector, epoch: Epoch) -> dict[str, float]:
    """The validation loss, and the lowest of the last stage so far that was lower by more than --min_delta."""
    before = run.history[-1]["lowest"] if run.history else float("inf")
    is_better = is_last(detector, epoch) and loss < before - detector.args.min_delta
    return {"val_loss": loss, "lowest": loss if is_better else before}


def is_last(detector: Detector, epoch: Epoch) -> bool:
    """Whether the epoch belongs to the last stage."""
    return epoch.stage_number == detector.epochs[-1].stage_number


@torch.no_grad()
def draw_samples(learner: Learner, images: NormalTiles, epoch: Epoch, run) -> None:
    """Write images above their reconstructions to samples/, and to TensorBoard."""
    detector, share = learner.detector, epoch.share(epoch.last - epoch.first - 1)
    tiles = reconstruction.first_tiles(images, learner.device)
    x = detector.seen(tiles, epoch.stage.resolution, share)
    reconstruction.draw_samples(run, learner.args.logdir, x, detector.autoencoder(x, share))


def place(epoch: Epoch, step: int) -> str:
    """An iteration as errors name it, counted through all stages; step is counted from 1 within the epoch."""
    return f"iteration {epoch.before + epoch.first + step} ({epoch.stage} px)"


def describe(detector: Detector, normals: NormalTiles) -> None:
    """Print what is about to be trained."""
    encoder, decoder = (
        sum(p.numel() for p in part.parameters())
        for part in (detector.autoencoder.encoder, detector.autoencoder.decoder)
    )
    print(f"encoder of {encoder:,} parameters, decoder of {decoder:,}; {normals.n_images:,} normal training images")


def say_epoch(run, epoch: Epoch, n: int) -> None:
    """Print the epoch that has ended."""
    row = run.history[-1]
    val = f"  val {row['val_loss']:.4f}" if "val_loss" in row else ""
    print(
        f"epoch {row['epoch']}/{n}  {epoch.stage} px  loss {row['loss']:.4f}{val}  {row['images_per_s']:.0f} images/s  "
        f"{row['seconds']:.0f} s{'  best' if row is run.best else ''}",
        flush=True,
    )


def load(saved: dict, path: Path, device: torch.device) -> Detector:
    """As `anomaly` says. BadInput when the run has not yet come to its last stage."""
    args = arguments(saved)
    detector = Detector(args, saved["config"]["in_channels"])
    check_same_network(detector.describe(), saved["config"], path)
    if not is_last(detector, detector.epochs[saved["epoch"] - 1]):
        raise BadInput(f"{path}: still grows; let the training go on until the last stage")
    checkpoint.load_weights(detector.autoencoder, saved["state_dict"], path)
    if detector.perceptual:
        checkpoint.load_weights(detector.perceptual.statistics, saved["statistics"], path)
    return detector.to(device).eval().requires_grad_(False)


@torch.inference_mode()
def score(detector: Detector, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """L of each tile (B,), and its map (B, h, w) at the layer's resolution."""
    x = 2 * tiles - 1
    return detector.maps(detector.reference(x), detector.autoencoder(x))
