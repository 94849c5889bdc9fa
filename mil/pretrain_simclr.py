"""Pretrain an encoder on tiles without labels: each view of a tile finds the other one (SimCLR, as DSMIL does).

mil/pretrain_simclr.py --datatype tiles --bags tiles/bags.csv --logdir runs/simclr

LOGDIR/model.pth is the encoder of the least validation loss, for finetune.py --encoder_weights and
extract_features.py --embedder encoder --embedder_checkpoint. Source: Chen 2020; DSMIL (2011.08939) takes batches of 512
or more, 100 epochs and a rate of 1e-5.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401, I001 (before torch)
import numpy as np
import torch
from torch import Tensor

from common import checkpoint, cli, processes, runfolder
from common.errors import BadInput
from common.optimizers import Resumable, set_rate
from common.runfolder import RunFolder
from data import SPLITS, loaders
from mil import augment, features, tiles
from mil.contrastive import cosine_rate, nt_xent
from mil.tiles import Draws, Joined, TileBags
from models import encoder as encoders
from models.encoder import TileEncoder

SUMS = ("loss", "tiles")
COLUMNS = {"epoch": None, "train_loss": "train/loss", "val_loss": "eval/loss", "lr": "stats/lr", "tiles_per_s": None}
COLUMNS |= {"seconds": None}
BEST = ("val_loss", min)


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    tiles.add_flags(parser)
    encoders.add_flags(parser, default="random")
    group = parser.add_argument_group("SimCLR")
    add = group.add_argument
    add("--tiles_of", nargs="+", choices=SPLITS, default=["train"], help="splits whose tiles are looked at")
    add("-e", "--epochs", type=cli.positive, default=20, help="epochs")
    add("-b", "--batch_size", type=cli.positive, default=128, help="tiles per step, in two views each")
    add("--lr", type=cli.positive_float, default=3e-4, help="rate of Adam, along a cosine after 10 epochs")
    add("--weight_decay", type=cli.nonnegative_float, default=1e-5, help="weight decay")
    add("--temperature", type=cli.positive_float, default=0.5, help="of the contrastive loss")
    add("--val_share", type=cli.share, default=0.1, help="share of the tiles that validate")
    augment.add_flag(group)
    features.add_resize_flag(group)
    loaders.add_reading_flags(parser)
    parser.add_argument(
        "--seed", type=cli.natural, default=42, help="seed of weights, draws, views and choice of crops"
    )
    runfolder.add_flags(parser)
    processes.add_flags(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select_alone("mil/pretrain_simclr.py", args.device, args.precision, args.deterministic)
    if args.batch_size < 2:
        raise BadInput(f"-b {args.batch_size}: expected 2 tiles or more, which are told from each other")
    splits = tiles.load(args, args.tiles_of)
    loaders.verify(args, *filter(None, (args.data_path, args.pos_path, args.neg_path)))
    data = Joined(list(splits.values()))
    processes.seed_everything(args.seed)  # before the weights are drawn
    encoder, loaded = encoders.build(args)
    print(loaded, flush=True)
    args.encoder_weights = loaded.sha256 or loaded.source  # wherever the file lies
    fit(encoder.to(device), data, args, device)


def split_tiles(n: int, args) -> tuple[np.ndarray, np.ndarray]:
    """Tiles that train and tiles that validate. BadInput when either would be less than a pair."""
    order = np.random.default_rng(args.seed).permutation(n)
    n_val = round(args.val_share * n)
    if n_val < 2 or n - n_val < 2:
        raise BadInput(f"--val_share {args.val_share:g}: leaves {n_val} of {n} tiles to validate, expected 2 or more")
    return order[n_val:], order[:n_val]


def batches(order: np.ndarray, size: int) -> list[list[int]]:
    """Batches of a set in its order; what is left is a batch of its own unless it is a single tile."""
    found = [order[start : start + size].tolist() for start in range(0, len(order), size)]
    return found if len(found[-1]) > 1 else found[:-1]


def fit(encoder: TileEncoder, data: TileBags, args, device) -> None:
    """Train in args.logdir, continuing what is there."""
    train, val = split_tiles(len(data), args)
    optimizer = torch.optim.Adam(encoder.parameters(), args.lr, weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
    draws, val_draws = Draws(), Draws(batches(val, args.batch_size))
    loader, checked = (loaders.batch_loader(data, args, device, each, n_loaders=2) for each in (draws, val_draws))
    with open_folder(encoder, optimizer, scaler, data, len(batches(train, args.batch_size)), args, device) as run:
        for epoch in run.epochs(args.epochs):
            lr = set_rate(optimizer, cosine_rate(args.lr, epoch, args.epochs))
            order = np.random.default_rng((args.seed, epoch)).permutation(train)
            draws.batches = batches(order, args.batch_size)[run.done :]
            encoder.train()
            for pictures, _ in run.steps(loader):
                run.count(step(encoder, optimizer, scaler, pictures, args, device))
            row = {"lr": lr, "train_loss": run.sums["loss"] / run.sums["tiles"]}
            row["tiles_per_s"] = run.sums["tiles"] / run.seconds
            row["val_loss"] = validate(encoder, checked, args, device)
            if run.is_best(row):
                content = {"state_dict": encoder.state_dict(), "config": encoder.config.to_dict()}
                checkpoint.save(args.logdir / "model.pth", content)
            run.end_epoch(row)
            print(f"epoch {epoch + 1}/{args.epochs}: loss {row['train_loss']:.3f}, validation {row['val_loss']:.3f}")
    print(f"encoder of the least validation loss, {run.best['val_loss']:.3f}, in {args.logdir / 'model.pth'}")


def open_folder(encoder, optimizer, scaler, data: TileBags, steps: int, args, device) -> RunFolder:
    """The run's folder, to be continued by the same settings and tiles."""
    config, fingerprint = encoder.config.to_dict(), data.fingerprint()
    return RunFolder(
        args,
        runfolder.settings_that_matter(args) | {"data": fingerprint},
        {"state_dict": encoder, "optimizer": Resumable(optimizer, may_be_empty=scaler.is_enabled()), "scaler": scaler},
        COLUMNS,
        SUMS,
        BEST,
        steps,
        scalars=lambda sums: {"train/step_loss": sums["loss"] / sums["tiles"]},
        facts={"config": config},
        config=runfolder.describe_run(args, device, model=config, data=fingerprint),
        advice="lower --lr",
    )


def step(encoder: TileEncoder, optimizer, scaler, pictures: Tensor, args, device) -> Tensor:
    """One step on two views of tiles (B, C, s, s); returns SUMS, (2,) float64 on the device."""
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))  # of the run's step
    loss = view_loss(encoder, pictures, generator, args, device)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    n = torch.full((), len(pictures), dtype=torch.float64, device=device)
    return torch.stack([loss.detach().double() * n, n])


def view_loss(encoder: TileEncoder, pictures: Tensor, generator, args, device) -> Tensor:
    """NT-Xent of two views of tiles."""
    pictures = features.resize(pictures.to(device, non_blocking=True), args.tile_resize)
    views = augment.views(pictures, args.augment_transform, generator)  # (2, B, 3, s, s)
    with processes.autocast(device, args.precision):
        z = encoder.project(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    return nt_xent(*z, args.temperature)


@torch.inference_mode()
def validate(encoder: TileEncoder, loader, args, device) -> float:
    """The mean loss over validation tiles, always of the same views."""
    encoder.eval()
    total = n = 0
    for k, (pictures, _) in enumerate(loader):
        loss = view_loss(encoder, pictures, torch.Generator().manual_seed(k), args, device)
        total, n = total + float(loss) * len(pictures), n + len(pictures)
    return total / n


if __name__ == "__main__":
    cli.run(main)
