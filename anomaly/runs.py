"""The run folder of any detector's training, and what it takes to make the detector again."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from common import checkpoint, processes, runfolder
from common.errors import BadInput
from common.files import sha256_of
from common.runfolder import RunFolder
from data.normals import NormalTiles


def open_run(
    args,
    normals: NormalTiles,
    device: torch.device,
    *,
    columns: dict,
    config: dict | None = None,
    state: dict | None = None,
    sums: tuple[str, ...] = (),
    best: tuple = ("epoch", max),
    steps_per_epoch: int = 1,
    kept: tuple[str, ...] = (),
    **options,
) -> RunFolder:
    """The folder of a training on these normals, to be continued by the same flags, data and frozen networks.

    Args:
        config: plain values that `load` needs to make the detector again, and that must be equal to go on.
        columns, state, sums, best, steps_per_epoch, options: as RunFolder takes them.
        kept: names of the state that scoring needs; default all.
    """
    state = state or {}
    config = {"method": args.method, "tile": normals.tile, "in_channels": normals.in_channels} | (config or {})
    if getattr(args, "splits", None):  # which other crops are tested on, too
        config["splits_sha256"] = sha256_of(args.splits)
    fingerprint = normals.fingerprint()
    return RunFolder(
        args,
        runfolder.settings_that_matter(args) | config | {"batch_size": args.batch_size, "data": fingerprint},
        state,
        columns,
        sums,
        best,
        steps_per_epoch,
        kept=kept or tuple(state),
        facts={"config": config, "args": runfolder.plain(args)},
        config=runfolder.describe_run(args, device, model=config, data=fingerprint),
        **options,
    )


def embed_tiles(run: RunFolder, normals: NormalTiles, embed: Callable, features: Tensor, args, device) -> None:
    """Write the features of the first tiles into `features` (n, dim), batch by batch, as steps of the run's epoch.

    Args: embed: tiles (B, C, t, t) on the device -> (B, dim).
    """
    for tiles, _, _ in run.steps(normals.batches(args, device, run.done, len(features))):
        first = run.done * args.batch_size
        with torch.inference_mode(), processes.autocast(device, args.precision):
            features[first : first + len(tiles)] = embed(tiles.to(device))
        run.count(torch.tensor([len(tiles)], dtype=torch.float64))


def read_run(logdir: Path) -> tuple[dict, Path]:
    """Content and path of a run's best_checkpoint.pth. BadInput when there is none, or it is another system's."""
    path = logdir / checkpoint.BEST
    saved = checkpoint.load(path)
    config = saved.get("config")
    if not isinstance(config, dict) or "method" not in config or not isinstance(saved.get("args"), dict):
        raise BadInput(f"{path}: expected a detector of train_anomaly.py, found another checkpoint")
    return saved, path


def arguments(saved: dict) -> argparse.Namespace:
    """The flags that the run was trained with."""
    return argparse.Namespace(**saved["args"])


def check_same_network(found: dict, config: dict, path: Path) -> None:
    """BadInput when a frozen network, as its describe() says, is not the one that the detector was trained with."""
    for name, value in found.items():
        renamed = name == "weights" and found.get("weights_sha256")  # a file is told by its digest
        if config.get(name) != value and not renamed:
            advice = "--embedder_weights names their file"
            raise BadInput(f"{path}: trained with {name} {config.get(name)}, found {value}; {advice}")
