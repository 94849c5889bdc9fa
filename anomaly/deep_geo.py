"""deep_geo (Golan & El-Yaniv 2018): a network learns which of 72 transformations an image underwent.

On an abnormal image it is less sure. How sure it is on normal ones, a Dirichlet distribution per transformation says.
"""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly.runs import open_run
from common import checkpoint, cli, processes
from common.errors import BadInput
from common.optimizers import Resumable
from models.wide_resnet import WideResNet

N_TRANSFORMS = 72
LEAST = 1e-12  # below which a probability counts as this in the fit
GAMMA = 0.5772156649015329  # -psi(1)
WEIGHT_DECAY = 5e-4  # twice the coefficient 2.5e-4 of the squared weights in Keras' loss
SUMS = ("loss", "correct", "images")
COLUMNS = {
    "epoch": None,
    "train_loss": "train_epoch/loss",
    "train_acc": "train_epoch/acc",
    "val_loss": "eval/loss",
    "val_acc": "eval/acc",
    "seconds": None,
}


def add_flags(parser) -> None:
    """Declare epochs, rate, early stopping, shift and the size of the network."""
    group = parser.add_argument_group("deep_geo")
    cli.neutral(
        group.add_argument("-e", "--epochs", type=cli.positive, default=3, help="epochs, each of 72 versions an image")
    )
    group.add_argument("--lr", type=cli.positive_float, default=1e-3, help="learning rate of Adam")
    group.add_argument(
        "--patience",
        type=cli.natural,
        default=0,
        help="end after so many epochs without a lower validation loss and keep that of the lowest; 0: keep the last",
    )
    group.add_argument("--shift", type=cli.positive, help="px of a shift (default: 16 from --tile 64 on, else 8)")
    group.add_argument("--wrn_depth", type=cli.positive, help="layers, 6n + 4 (default: 16 from --tile 64 on, else 10)")
    group.add_argument("--wrn_widen", type=cli.positive, help="channels by 16 (default: 8 from --tile 64 on, else 4)")


def source_pixels(side: int, shift: int) -> Tensor:
    """For each transformation, the pixel of the image that every pixel of the result shows.

    The transformations are mirror left to right, shift in y, shift in x (0, -shift, +shift) and quarter turns, in this
    order and nested in it; number 0 changes nothing.

    Returns: (72, side * side) int64, flat positions.
    """
    pixels, tables = torch.arange(side * side).view(side, side), []
    for mirror, down, across, turns in itertools.product((0, 1), (0, -shift, shift), (0, -shift, shift), range(4)):
        moved = pixels.flip(1) if mirror else pixels
        moved = moved[_shifted(side, down)][:, _shifted(side, across)]
        tables.append(torch.rot90(moved, turns).flatten())
    return torch.stack(tables)


def _shifted(side, shift):
    """Positions i + shift for i in range(side), reflected at the edges, whose pixels come twice."""
    positions = (torch.arange(side) + shift) % (2 * side)
    return torch.where(positions < side, positions, 2 * side - 1 - positions)


def transformed(images: Tensor, transforms: Tensor, pixels: Tensor) -> Tensor:
    """Every image (B, C, S, S) under its own transformation (B,), by the table of `source_pixels`."""
    sources = pixels[transforms].unsqueeze(1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, sources).view_as(images)


def inverse_digamma(y: Tensor) -> Tensor:
    """x > 0 with psi(x) = y, by five Newton steps (Minka 2000, appendix C)."""
    x = torch.where(y >= -2.22, y.exp() + 0.5, -1 / (y + GAMMA))
    for _ in range(5):
        x = x - (torch.digamma(x) - y) / torch.polygamma(1, x)
    return x


def fit_dirichlet(mean: Tensor, mean_log: Tensor) -> Tensor:
    """Maximum-likelihood parameters of Dirichlet distributions, (T, k) each.

    The fixed point alpha = psi^-1(psi(sum alpha) + mean log p) of Minka 2000, from the start of Wicker et al. 2008,

        alpha = mean p (k - 1) (-psi(1)) / sum_j mean p_j (log mean p_j - mean log p_j).

    Args: mean, mean_log: (T, k) float64, averages of p and log p over the samples.
    """
    spread = (mean * (mean.log() - mean_log)).sum(1, keepdim=True).clamp_min(LEAST)  # 0 if all samples are equal
    alpha = mean * (mean.shape[1] - 1) * GAMMA / spread
    for _ in range(1000):
        before, alpha = alpha, inverse_digamma(torch.digamma(alpha.sum(1, keepdim=True)) + mean_log)
        if torch.allclose(alpha, before, rtol=1e-9, atol=1e-9):
            break
    return alpha


class DeepGeo(nn.Module):
    """The network with the Dirichlet parameters `alpha` (72, 72) of its outputs on normal images, 1 before a fit."""

    def __init__(self, in_channels: int, side: int, shift: int, depth: int, widen: int):
        super().__init__()
        self.network = WideResNet(in_channels, side, N_TRANSFORMS, depth, widen)
        self.register_buffer("pixels", source_pixels(side, shift), persistent=False)
        self.register_buffer("alpha", torch.ones(N_TRANSFORMS, N_TRANSFORMS, dtype=torch.float64))

    def forward(self, images: Tensor, transforms: Tensor) -> Tensor:
        """Logits (B, 72) of images (B, C, S, S) in [0, 1], each under its transformation (B,)."""
        return self.network(transformed(2 * images - 1, transforms, self.pixels))

    def log_probabilities(self, images: Tensor, transform: int) -> Tensor:
        """(B, 72) float64 of images that all undergo one transformation."""
        transforms = torch.full((len(images),), transform, device=images.device)
        return self(images, transforms).double().log_softmax(dim=1)

    def anomaly_scores(self, images: Tensor) -> Tensor:
        """(B,) float64, minus the mean over transformations t of sum_j (alpha_tj - 1) log(p_tj + 1e-6)."""
        total = 0
        for transform, alpha in enumerate(self.alpha):
            total = total - (self.log_probabilities(images, transform).exp() + 1e-6).log() @ (alpha - 1)
        return total / N_TRANSFORMS

    @torch.inference_mode()
    def fit_normality(self, batches) -> None:
        """Fit `alpha` to batches of normal images (B, C, S, S); holds sums only, whatever the number of images."""
        total, logs, n = torch.zeros_like(self.alpha), torch.zeros_like(self.alpha), 0
        for images in batches:
            for transform in range(N_TRANSFORMS):
                found = self.log_probabilities(images, transform).exp().clamp_min(LEAST)
                total[transform] += found.sum(0)
                logs[transform] += found.log().sum(0)
            n += len(images)
        self.alpha.copy_(fit_dirichlet(total / n, logs / n))


def fit(normals, val, args, device: torch.device) -> None:
    """Train on all versions of the normal tiles; every epoch ends with a fit of the Dirichlet distributions."""
    if args.patience and val is None:
        raise BadInput("--patience: there are no normal validation images; leave it out")
    network = network_of(args)
    model = DeepGeo(normals.in_channels, normals.tile, **network).to(device)
    optimizer = torch.optim.Adam(model.parameters(), args.lr, weight_decay=WEIGHT_DECAY)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
    state = {"model": model, "optimizer": Resumable(optimizer, scaler.is_enabled()), "scaler": scaler}
    versions = normals.in_versions(N_TRANSFORMS)
    n_steps = -(-len(versions) // args.batch_size)
    columns = {name: tag for name, tag in COLUMNS.items() if val is not None or not name.startswith("val")}
    with open_run(
        args,
        normals,
        device,
        columns=columns,
        config=network,
        state=state,
        sums=SUMS,
        best=("val_loss", min) if args.patience else ("epoch", max),
        steps_per_epoch=n_steps,
        kept=("model",),
        scalars=step_scalars,
        advice="lower --lr",
    ) as run:
        for epoch in run.epochs(args.epochs):
            model.train()
            first, last = epoch * n_steps + run.done, (epoch + 1) * n_steps
            for tiles, _, transforms in run.steps(versions.batches(args, device, first, last * args.batch_size)):
                run.count(step(model, optimizer, scaler, tiles.to(device), transforms.to(device), args.precision))
            row = means("train", run.sums)
            model.eval()
            if val is not None:
                row |= means("val", validate(model, val, args, device))
            batches = normals.batches(args, device, 0, normals.n_images)
            batches = processes.progress_on_rank_0(batches, len(batches), "fitting normality", "batch")
            model.fit_normality(tiles.to(device) for tiles, _, _ in batches)
            run.end_epoch(row)
            say_epoch(run, args.epochs)
            if args.patience and len(run.history) - run.best["epoch"] >= args.patience:
                run.finish()


def network_of(args) -> dict:
    """Shift, depth and width of the flags, or of Golan & El-Yaniv 2018 and the DPA repository for such tiles."""
    shift, depth, widen = (16, 16, 8) if args.tile >= 64 else (8, 10, 4)
    return {"shift": args.shift or shift, "depth": args.wrn_depth or depth, "widen": args.wrn_widen or widen}


def step(model: DeepGeo, optimizer, scaler, tiles: Tensor, transforms: Tensor, precision: str) -> Tensor:
    """One step on tiles (B, C, t, t), each under its transformation (B,); returns SUMS, (3,) float64."""
    with processes.autocast(tiles.device, precision):
        logits = model(tiles, transforms)  # (B, 72)
    loss = F.cross_entropy(logits.float(), transforms)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return sums_of(loss.detach(), logits.detach(), transforms)


def sums_of(loss: Tensor, logits: Tensor, transforms: Tensor) -> Tensor:
    """SUMS of a batch with this mean loss, without leaving the device."""
    n = len(transforms)
    correct = (logits.argmax(1) == transforms).sum()
    return torch.stack([loss.double() * n, correct.double(), torch.full_like(loss, n, dtype=torch.float64)])


@torch.inference_mode()
def validate(model: DeepGeo, val, args, device: torch.device) -> dict[str, float]:
    """SUMS of as many versions as there are validation tiles, drawn among all."""
    total = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    for tiles, _, transforms in val.in_versions(N_TRANSFORMS).batches(args, device, 0, val.n_images):
        transforms = transforms.to(device)
        logits = model(tiles.to(device), transforms)
        total += sums_of(F.cross_entropy(logits, transforms), logits, transforms)
    return dict(zip(SUMS, total.tolist(), strict=True))


def means(split: str, sums: dict[str, float]) -> dict[str, float]:
    """Loss and accuracy of a split from its sums, named as in stats.csv."""
    return {f"{split}_loss": sums["loss"] / sums["images"], f"{split}_acc": sums["correct"] / sums["images"]}


def step_scalars(sums: dict[str, float]) -> dict[str, float]:
    """TensorBoard's values of one step."""
    return {f"train/{name.removeprefix('train_')}": value for name, value in means("train", sums).items()}


def say_epoch(run, epochs: int) -> None:
    """Print the scores of the epoch that has ended."""
    row = run.history[-1]
    val = f"  val loss {row['val_loss']:.3f}, right {row['val_acc']:.3f}" if "val_loss" in row else ""
    print(
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.3f}, right {row['train_acc']:.3f} of {N_TRANSFORMS}"
        f" transformations{val}  {row['seconds']:.0f} s",
        flush=True,
    )


def load(saved: dict, path: Path, device: torch.device) -> DeepGeo:
    """The network with its Dirichlet parameters, from the content of best_checkpoint.pth."""
    config = saved["config"]
    model = DeepGeo(config["in_channels"], config["tile"], config["shift"], config["depth"], config["widen"])
    checkpoint.load_weights(model, saved["model"], path)
    return model.to(device).eval()


@torch.inference_mode()
def score(detector: DeepGeo, tiles: Tensor) -> tuple[Tensor, None]:
    """Minus the normality of Golan & El-Yaniv 2018, (B,)."""
    return detector.anomaly_scores(tiles).cpu(), None
