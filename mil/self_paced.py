"""Where self-paced training stands: the instance scores, how much of them is trusted, and the MIL rounds so far."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from common import cli
from mil import mining
from mil.mining import Rule, Selection
from mil.tiles import TileBags

INIT = -1  # the epoch of the round before all epochs


def add_flags(parser) -> None:
    """Declare which tiles are selected, how that grows, and when scores are replaced."""
    group = parser.add_argument_group("selection of tiles")
    add = group.add_argument
    add("--threshold", type=cli.share, default=0.3, help="score above which a tile of a positive bag is positive")
    add("--warmup", type=cli.natural, default=5, help="epochs before positives attract each other and shares grow")
    add("--ro", type=cli.share, default=0.2, help="share of the positive tiles that is trusted at first")
    add("--ro_neg", type=cli.share, default=0.2, help="share of the uncertain negatives that is trusted at first")
    add("--rT", type=cli.share, default=0.8, help="both shares after the last epoch")
    cli.add_yes_no(group, "--negfilter", True, "keep only the hardest share of the negative bags' tiles")
    add("--neg_ratio", type=cli.share, default=0.2, help="that share")
    add(
        "--negatives",
        choices=("hardest", "random"),
        default="hardest",
        help="random: as many at random, drawn anew each epoch, to compare with",
    )
    cli.add_yes_no(group, "--mask_uncertain_neg", True, "leave low-scoring tiles of positive bags out")
    add("--quantile", choices=mining.QUANTILES, default="global", help="shares of all tiles, or of each bag's")
    cli.add_yes_no(group, "--update_pseudo_label", True, "replace scores after a MIL round that is as good as the best")
    cli.add_yes_no(group, "--use_ema", False, "0.3 x old + 0.7 x new scores instead")


@dataclass(frozen=True)
class Pace:
    """How far the training has come; each change makes a new one.

    scores: split -> (T,) float64, a probability per tile. share, negative_share: r and r_neg, of `mining.select`.
    updated: whether scores have been replaced since the start, so that N holds uncertain negatives. best_f1: the
    highest validation F1 of all rounds. rounds: a dict of numbers for each, in order.
    """

    scores: dict[str, np.ndarray]
    share: float
    negative_share: float
    updated: bool = False
    best_f1: float = 0.0
    rounds: tuple[dict, ...] = ()

    def grown(self, epoch: int, args) -> "Pace":
        """After an epoch, from 0: larger shares once the warm-up is over."""
        if epoch < args.warmup:
            return self
        shares = [mining.share_at(epoch, args.epochs, args.warmup, first, args.rT) for first in (args.ro, args.ro_neg)]
        return replace(self, share=shares[0], negative_share=shares[1])

    def after_round(self, found: dict, scores: dict[str, np.ndarray], args) -> "Pace":
        """After a MIL round: its scores, if it is as good on validation bags as all before it, and if wanted."""
        best = max(self.best_f1, found["val_f1"])
        pace = replace(self, best_f1=best, rounds=(*self.rounds, found))
        if not args.update_pseudo_label or found["val_f1"] < best:
            return pace
        if args.use_ema:
            scores = {split: mining.blended(old, scores[split]) for split, old in self.scores.items()}
        return replace(pace, scores=scores, updated=True)

    def selection(self, data: TileBags, splits: tuple[str, ...], epoch: int, args) -> Selection:
        """The tiles that an epoch draws from, of the splits' bags one after the other."""
        hardest = args.neg_ratio if args.negfilter else None
        rule = Rule(args.threshold, args.quantile, hardest, args.negatives == "random")
        uncertain = ("n",) if self.updated else ()
        if not args.mask_uncertain_neg:
            uncertain = ("n", "n_clean")
        scores, seed = np.concatenate([self.scores[split] for split in splits]), (args.seed, epoch)
        shares = self.share, self.negative_share
        return mining.select(scores, data.bag_of, data.positive, rule, *shares, uncertain, seed)

    def best_round(self) -> dict:
        """The round of the highest validation AUC, the first of several."""
        return max(self.rounds, key=lambda found: found["val_auc"])


class Holder:
    """Keeps the pace of a run, as a part of its checkpoint."""

    def __init__(self, pace: Pace):
        self.pace = pace

    def state_dict(self) -> dict:
        scores = {split: torch.from_numpy(values.copy()) for split, values in self.pace.scores.items()}
        return {**vars(self.pace), "scores": scores, "rounds": list(self.pace.rounds)}

    def load_state_dict(self, saved: dict) -> None:
        """ValueError where the scores are of other tiles."""
        scores = {split: saved["scores"][split].numpy() for split in self.pace.scores}
        if any(scores[split].shape != values.shape for split, values in self.pace.scores.items()):
            raise ValueError("scores of other tiles")
        self.pace = Pace(**{**saved, "scores": scores, "rounds": tuple(saved["rounds"])})
