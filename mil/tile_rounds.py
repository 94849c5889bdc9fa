"""MIL rounds within fine-tuning: features by an epoch's encoder, a bag classifier on them, the scores of its tiles.

Each is a run folder of its own, LOGDIR/epoch_init or LOGDIR/epoch{e}; the best of them scores the test bags.
"""

import argparse
from pathlib import Path

import numpy as np

from common import checkpoint
from common.errors import BadInput
from common.files import make_subfolder, read_json, write_json
from data import SPLITS
from mil import bags, features, hnm_layout, pseudo_labels, report, rounds
from mil.bags import Bags
from mil.self_paced import INIT, Pace
from mil.tiles import Joined, TileBags
from models import dsmil, embedders

INITIAL = "encoder_init.pth"
SCORED = ("train", "val")  # splits whose tiles have pseudo labels


def is_round(epoch: int, args) -> bool:
    """Whether a MIL round ends an epoch, from 0; one ends the last, which no other would report."""
    return epoch == args.epochs - 1 or (epoch >= 1 and epoch % args.MIL_every_n_epochs == 0)


def round_name(epoch: int) -> str:
    """The folder of a MIL round."""
    return "epoch_init" if epoch == INIT else f"epoch{epoch}"


def encoder_path(epoch: int, args) -> Path:
    """The encoder whose features a MIL round has."""
    return args.logdir / (INITIAL if epoch == INIT else f"epoch{epoch}model.pth")


def train_round(epoch: int, splits, args, device) -> tuple[dict, dict[str, np.ndarray]]:
    """Features of train and val with an epoch's encoder, a bag classifier on them, the scores of their tiles.

    Returns: numbers of the round, and split -> (T,) float64 probabilities. A round that was killed goes on.
    """
    folder = make_subfolder(args.logdir, round_name(epoch))
    found = _embed({name: splits[name] for name in SCORED}, epoch, folder / "features", args, device)
    for name in SCORED:
        bags.check(found[name], name)
    result = rounds.train(found, args, folder, device)
    scores = {
        name: report.probabilities(np.concatenate(_predicted(result.extracted, found[name], device))) for name in SCORED
    }
    _write_pickle(
        folder / "ins_pseudo_label_train.p", [splits[name] for name in SCORED], [scores[name] for name in SCORED]
    )
    numbers = {"epoch": epoch, "val_auc": result.best["eval_auc"], "val_f1": result.f1, "threshold": result.threshold}
    return numbers | {"val_instance_auc": result.best.get("eval_instance_auc", float("nan"))}, scores


def _embed(splits, epoch: int, folder: Path, args, device) -> dict[str, Bags]:
    """The bags with features of an epoch's encoder; before all epochs, with HNM-WSI's files of them where they lie."""
    ready = _ready_made(args) if epoch == INIT else {}
    if ready:
        return {name: hnm_layout.read_embeddings(ready[name], split) for name, split in splits.items()}
    chosen = argparse.Namespace(embedder="encoder", embedder_weights=str(encoder_path(epoch, args)), weights_input=None)
    return features.extract_splits(splits, embedders.build(chosen), folder, args, device)


def _ready_made(args) -> dict[str, Path]:
    """HNM-WSI's files of features in the folder of the round before all epochs: of every split, or none.

    BadInput where some are missing: a round and its report must see the same features.
    """
    folder = args.logdir / round_name(INIT)
    paths = {name: folder / f"{name}_embeddings_epoch_0000.p" for name in SPLITS}
    missing = [path for path in paths.values() if not path.exists()]
    if missing and len(missing) < len(paths):
        raise BadInput(f"{missing[0]}: no such file, but other splits have theirs: expected all or none")
    return {} if missing else paths


def _predicted(model, found: Bags, device) -> list[np.ndarray]:
    """Instance logits (n,) of every bag."""
    return rounds.predict(model, found, device).instances


def _write_pickle(path: Path, splits: list[TileBags], scores: list[np.ndarray]) -> None:
    """Write the scores (T,) of splits in HNM-WSI's form."""
    joined = Joined(splits)
    by_bag = np.split(np.concatenate(scores), joined.ends[:-1])
    pseudo_labels.write_pickle(path, joined.names, joined.corners, joined.truth, by_bag)


def drop_features(pace: Pace, args) -> None:
    """Remove the features of rounds whose scores are saved; on a large data set they fill a disk."""
    if args.keep_features:
        return
    for found in pace.rounds:
        folder = args.logdir / round_name(found["epoch"]) / "features"
        for split in SCORED:
            (folder / f"{split}.npy").unlink(missing_ok=True)


def report_best(pace: Pace, splits, args, device) -> None:
    """Score the test bags, once, by the round that did best on validation bags."""
    path = args.logdir / "mil.json"
    if not path.exists():
        best = pace.best_round()
        folder = args.logdir / round_name(best["epoch"])
        names = ("val", "test")
        found = _embed({name: splits[name] for name in names}, best["epoch"], args.logdir / "features", args, device)
        model, extracted = (_load_round(folder / name, device) for name in (checkpoint.BEST, rounds.EXTRACT))
        summary = {}
        for name in names:
            images = None if args.datatype == "tiles" else splits[name]
            scores = rounds.predict(model, found[name], device)
            summary[name] = report.write(args.logdir, name, found[name], scores, best["threshold"], images)
        scores = report.probabilities(np.concatenate(_predicted(extracted, found["test"], device)))
        _write_pickle(args.logdir / "ins_pseudo_label_test.p", [splits["test"]], [scores])
        write_json(path, {"round": best, "rounds": list(pace.rounds), **summary})
    _say(read_json(path), args.logdir)


def _load_round(path: Path, device):
    """The bag classifier in a round's checkpoint."""
    content = checkpoint.load(path)
    with checkpoint.errors_name(path):
        model = dsmil.build(content["config"])
        checkpoint.load_weights(model, content["state_dict"], path)
    return model.to(device).eval()


def _say(found: dict, logdir: Path) -> None:
    """Print the test scores of the best round."""
    test, epoch = found["test"], found["round"]["epoch"]
    name = "before the first epoch" if epoch == INIT else f"after epoch {epoch + 1}"
    print(f"best MIL round on validation bags: {name}, AUC {found['round']['val_auc']:.3f}")
    print(f"test AUC {test['auc']:.3f}, accuracy {test['acc']:.3f}, F1 {test['f1']:.3f} at the validation threshold")
    if test.get("instance_auc") is not None:
        print(f"instances: test AUC {test['instance_auc']:.3f}, average precision {test['instance_ap']:.3f}")
    print(f"scores and maps in {logdir / 'scores'}, encoders and rounds in {logdir}")
