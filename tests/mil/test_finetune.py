"""The loop's order of steps, its bad input, and that a run killed anywhere ends as if it had not been."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from common import checkpoint
from common.errors import BadInput
from common.files import read_json
from mil import finetune, mining, pickles, pseudo_labels, rounds, tile_rounds
from mil.self_paced import Pace
from models import encoder as encoders
from tests.mil import folders
from tests.mil.kills import Killed, kill_at

ROOT = Path(__file__).parents[2]
FAST = "--encoder_width 0.125 --encoder_weights random -b 8 --posi_query_ratio 0.25 --workers 0 --tile_batch 16"
KEY = "a-key-of-a-tracker"
SHORT = "-e 3 --warmup 1 --MIL_every_n_epochs 1 --num_epoch_mil 3 --threshold 0.05"


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    return folders.write(tmp_path_factory.mktemp("bags"))


def flags(bags, logdir, *more):
    return [*f"--datatype tiles --bags {bags} --logdir {logdir} {FAST} {SHORT} --device cpu".split(), *map(str, more)]


@pytest.fixture(scope="module")
def whole(bags, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMET_API_KEY", KEY)
        finetune.main(flags(bags, logdir))
    return logdir


def results(logdir):
    """All that must not depend on when a run was killed."""
    table = pd.read_csv(logdir / "stats.csv").drop(columns=["seconds", "tiles_per_s"])
    content = checkpoint.load(logdir / checkpoint.LATEST)
    pace = {split: values.tolist() for split, values in content["pace"]["scores"].items()}
    files = [logdir / "scores" / name for name in ("test.csv", "val.csv", "instances_test.csv")]
    return table.to_csv(), pace, [path.read_text() for path in files], (logdir / "mil.json").read_text()


def test_a_run_leaves_what_hnm_wsi_leaves_and_the_table_of_every_method(whole):
    for e in range(3):
        content = checkpoint.load(whole / f"epoch{e}model.pth")
        assert {"net", "optimizer"} < content.keys()
        assert (whole / f"epoch{e}").is_dir() == (e >= 1)
    assert encoders.load(whole / "model.pth").config.width == 0.125
    labels = pseudo_labels.read(whole / "epoch1" / "ins_pseudo_label_train.p")
    assert len(labels) == folders.COUNTS["train"] + folders.COUNTS["val"]
    assert len(pseudo_labels.read(whole / "ins_pseudo_label_test.p")) == folders.COUNTS["test"]
    assert len(pd.read_csv(whole / "scores" / "test.csv")) == folders.COUNTS["test"]
    assert not list(whole.glob("epoch*/features/*[lnt].npy"))  # which fill a disk


def test_the_report_is_by_the_best_epoch_of_the_best_round(whole):
    found = read_json(whole / "mil.json")
    table = pd.read_csv(whole / tile_rounds.round_name(found["round"]["epoch"]) / "stats.csv")
    assert found["val"]["loss"] == pytest.approx(table.eval_loss[table.eval_auc.idxmax()], rel=1e-4)


def test_given_again_a_finished_run_does_nothing(whole, bags, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    finetune.main(flags(bags, whole))
    assert "complete after epoch 3" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def write_ready_made(bags, logdir, names=("train", "val", "test")):
    """HNM-WSI's files of features, five numbers a tile that say whether it holds an object."""
    found = finetune.tiles.load(finetune.parse_args(flags(bags, logdir)))
    (logdir / "epoch_init").mkdir()
    for name in names:
        content = {}
        for bag, corners, truth in zip(found[name].names, found[name].corners, found[name].truth, strict=True):
            rows = [(f"{x}_{y}_0", np.full(5, 2.0 * (z == 1) - 1)) for (y, x), z in zip(corners, truth, strict=True)]
            content[f"/{bag}"] = np.empty(len(rows), object)
            content[f"/{bag}"][:] = rows
        path = logdir / "epoch_init" / f"{name}_embeddings_epoch_0000.p"
        path.write_bytes(pickles.write_bytes(content))


def test_the_report_sees_the_ready_made_features_of_the_round_that_did_best(bags, tmp_path):
    write_ready_made(bags, tmp_path)
    finetune.main(flags(bags, tmp_path, "-e", 1, "--lr_mil", 0.01, "--num_epoch_mil", 20))
    found = read_json(tmp_path / "mil.json")
    assert found["round"]["epoch"] == finetune.INIT
    assert (found["val"]["auc"], found["test"]["auc"]) == (1, 1)


def test_ready_made_features_of_some_splits_are_refused(bags, tmp_path):
    write_ready_made(bags, tmp_path, names=("train", "val"))
    with pytest.raises(BadInput, match=r"test_embeddings_epoch_0000.p: no such file, .*expected all or none"):
        finetune.main(flags(bags, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (finetune, "contrast", 4),  # within an epoch
        (rounds, "step", 5),  # in the round before the first epoch
        (rounds, "step", 25),  # in a round within the run
        (tile_rounds, "_write_pickle", 2),  # behind it
        (finetune, "view_loss", 8),
        (finetune, "save_encoder", 4),
        (tile_rounds.report, "write", 2),  # in the report of the test bags
    ],
)
def test_a_run_killed_anywhere_ends_with_the_same_scores(whole, bags, tmp_path, monkeypatch, owner, name, call):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, owner, name, call)
        finetune.main(flags(bags, tmp_path))
    finetune.main(flags(bags, tmp_path))
    assert results(tmp_path) == results(whole)


@pytest.mark.slow
def test_a_process_killed_in_a_mil_round_ends_with_the_same_scores(whole, bags, tmp_path):
    command = [sys.executable, str(ROOT / "mil" / "finetune.py"), *flags(bags, tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "epoch1" / "stats.csv").exists() and process.poll() is None:
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    assert results(tmp_path) == results(whole)


def test_the_steps_of_an_epochs_end_come_in_their_order(bags, tmp_path, monkeypatch):
    """Save, grow, MIL round and update, validation loss; an epoch later draws by what has changed."""
    log = []

    def noted(owner, name, say):
        function = getattr(owner, name)

        def wrapper(*args, **kwargs):
            result = function(*args, **kwargs)
            log.append(say(args, result))
            return result

        monkeypatch.setattr(owner, name, wrapper)

    noted(finetune, "save_encoder", lambda args, _: f"save {args[0].name}")
    noted(Pace, "grown", lambda args, result: f"r {result.share:g}")
    noted(tile_rounds, "train_round", lambda args, _: f"round {args[0]}")
    noted(finetune, "validate", lambda args, _: f"validate {args[3]}")
    noted(Pace, "selection", lambda args, _: f"select {args[3]} by r {args[0].share:g}")
    noted(tile_rounds, "drop_features", lambda *_: "end")
    finetune.main(flags(bags, tmp_path, "-e", 4, "--MIL_every_n_epochs", 2))
    ends = " ".join(log).replace(" save model.pth", "").split(" end")
    assert ends == [
        "save encoder_init.pth round -1 select 0 by r 0.2 save epoch0model.pth r 0.2 validate 0",
        " select 1 by r 0.2 save epoch1model.pth r 0.2 validate 1",
        " select 2 by r 0.2 save epoch2model.pth r 0.4 round 2 validate 2",
        " select 3 by r 0.4 save epoch3model.pth r 0.6 round 3 validate 3",
        "",
    ]


def test_scores_are_replaced_only_when_validation_does_not_fall():
    args = finetune.parse_args(flags("b", "l"))
    pace = Pace({"train": np.zeros(2)}, 0.2, 0.2)
    first = pace.after_round({"val_f1": 0.5}, {"train": np.ones(2)}, args)
    assert (first.scores["train"].tolist(), first.updated, first.best_f1) == ([1, 1], True, 0.5)
    worse = first.after_round({"val_f1": 0.4}, {"train": np.zeros(2)}, args)
    assert (worse.scores["train"].tolist(), worse.best_f1, len(worse.rounds)) == ([1, 1], 0.5, 2)
    as_good = worse.after_round({"val_f1": 0.5}, {"train": np.zeros(2)}, args)
    assert as_good.scores["train"].tolist() == [0, 0]
    args.use_ema = True
    blended = first.after_round({"val_f1": 0.9}, {"train": np.zeros(2)}, args)
    assert blended.scores["train"].tolist() == pytest.approx([0.3, 0.3])
    assert first.scores["train"].tolist() == [1, 1]  # not changed in place
    args.update_pseudo_label = False
    assert not pace.after_round({"val_f1": 0.9}, {"train": np.ones(2)}, args).updated


def test_scores_of_which_none_passes_the_threshold_are_not_taken(bags, tmp_path, monkeypatch, capsys):
    """Else the next epoch had no positives, and the run would end for good."""
    args = finetune.parse_args(flags(bags, tmp_path, "--threshold", 0.5))
    splits = finetune.tiles.load(args)
    old, low = ({name: np.full(len(splits[name]), p) for name in ("train", "val")} for p in (0.9, 0.1))
    monkeypatch.setattr(tile_rounds, "train_round", lambda *_: (dict.fromkeys(finetune.ROUND, 0.5), low))
    monkeypatch.setattr(finetune, "save_encoder", lambda *_: None)
    learner = SimpleNamespace(encoder=None, optimizer=None, args=args, device=torch.device("cpu"))
    pace, _ = finetune.end_of_epoch(learner, Pace(old, 0.2, 0.2), splits, 1)
    assert pace.scores is old and not pace.updated and len(pace.rounds) == 1
    assert "--threshold 0.5: no tile of a positive bag passes it in this round" in capsys.readouterr().out


@pytest.mark.parametrize("mask", ["yes", "no"])
def test_negatives_attract_each_other_and_after_the_warm_up_positives_too(mask, tmp_path, monkeypatch):
    """By HNM-WSI: mode 2 of N_clean beside P_full, then mode 1 of N beside P; uncertain tiles are masked."""
    args = finetune.parse_args(flags("b", tmp_path, "--mask_uncertain_neg", mask))
    sizes, seen = finetune.batch_sizes(args), []

    def supcon(z, labels, mode, uncertain, *_):
        seen.append((mode, labels.tolist(), None if uncertain is None else uncertain.tolist()))
        return z.sum()

    monkeypatch.setattr(finetune.contrastive, "supcon", supcon)
    encoder, cpu = encoders.build(args)[0], torch.device("cpu")
    optimizer = torch.optim.SGD(encoder.parameters(), 0.0)
    learner = finetune.Learner(encoder, optimizer, torch.amp.GradScaler("cpu", enabled=False), cpu, args)
    bag_labels = torch.tensor([k % 2 for k in range(sum(sizes))])
    half, truth = sum(sizes[:2]), [[0] * n + [1] * m for n, m in (sizes[:2], sizes[2:])]
    bags_of = [bag_labels[:half].tolist(), bag_labels[half:].tolist()]
    uncertain = [
        [bag == 1 and label == 0 for bag, label in zip(*pair, strict=True)] for pair in zip(bags_of, truth, strict=True)
    ]
    expected = [(mode, truth[k], uncertain[k] if mask == "yes" else None) for k, mode in enumerate((2, 1))]
    for positives_too in (False, True):
        seen.clear()
        tiles = torch.rand(sum(sizes) if positives_too else half, 3, 33, 33)
        finetune.step(learner, tiles, bag_labels, positives_too)
        assert seen == expected[: 1 + positives_too]


def test_after_an_update_n_holds_uncertain_negatives_and_n_clean_does_not(bags):
    args = finetune.parse_args(flags(bags, "l", "--threshold", 0.5))
    data = finetune.tiles.load(args)["train"]
    scores = {"train": np.linspace(0, 1, len(data))}
    for updated in (False, True):
        chosen = Pace(scores, 0.2, 0.2, updated).selection(data, ("train",), 0, args)
        assert data.positive[chosen.n].any() == updated
        assert not data.positive[chosen.n_clean].any()
    args.mask_uncertain_neg = False
    chosen = Pace(scores, 0.2, 0.2).selection(data, ("train",), 0, args)
    assert data.positive[chosen.n_clean].any()


def test_batches_have_hnm_wsis_sizes():
    args = finetune.parse_args([*flags("b", "l"), "-b", "512", "--posi_query_ratio", "0.05"])
    assert finetune.batch_sizes(args) == [409, 102, 486, 25]


def test_an_epoch_walks_the_hard_negatives_once(bags):
    args = finetune.parse_args(flags(bags, "l"))
    chosen = mining.Selection(np.arange(3), np.array([5]), np.arange(20, 40), np.arange(100, 121))
    batches = np.array(finetune.epoch_batches(chosen, 0, args))
    assert batches.shape == (21 // 6, 6 + 1)
    assert len(set(batches[:, :6].flatten())) == 18
    assert (batches[:, 6] == batches[0, 6]).all() or batches[:, 6].max() < 3
    later = np.array(finetune.epoch_batches(chosen, 1, args))
    assert later.shape == (3, 6 + 1 + 6 + 2)
    assert set(later[:, 7:13].flatten()) <= set(range(20, 40))


def test_the_encoder_does_not_see_validation_bags_unless_asked_to(bags, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(finetune, "fit", lambda encoder, splits, args, *_: seen.append((splits, args)))
    monkeypatch.setattr(tile_rounds, "report_best", lambda *_: None)
    finetune.main(flags(bags, tmp_path))
    assert finetune.ENCODER_BAGS[seen[0][1].encoder_bags] == ("train",)


@pytest.mark.parametrize("splits", [("train",), ("train", "val")])
def test_the_encoder_draws_from_the_bags_it_is_given(splits, bags, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(loaded, *_):
        names = {name for split in splits for name in everything[split].names}
        assert set(loaded.names) == names
        raise Stopped

    chosen = next(name for name, each in finetune.ENCODER_BAGS.items() if each == splits)
    args = finetune.parse_args(flags(bags, tmp_path, "--encoder_bags", chosen))
    everything = finetune.tiles.load(args)
    monkeypatch.setattr(finetune.loaders, "batch_loader", stop)
    monkeypatch.setattr(finetune, "first_pace", lambda *_: None)
    with pytest.raises(Stopped):
        finetune.fit(encoders.build(args)[0], everything, args, torch.device("cpu"), None)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--epoch_to_extract_mil", "3"], "--epoch_to_extract_mil 3: .* below --num_epoch_mil 3"),
        (["--posi_query_ratio", "0.05"], "--posi_query_ratio 0.05: leave no place for positives in a batch"),
        (["--init_MIL_training", "no"], "--init_MIL_training no: leaves no scores"),
        (["--threshold", "1"], "--threshold 1: no tile of a positive bag scores above it, the highest has 0."),
        (["--encoder_weights", "nowhere.pth"], r"nowhere\.pth: No such file"),
        (["--tile_resize", "32"], "--tile_resize: the embedder needs images of 33 px or more, found 32"),
        (["--tracker", "comet"], "--tracker comet: needs the package comet_ml"),
    ],
)
def test_wrong_input_is_one_line(bags, tmp_path, more, said):
    with pytest.raises(BadInput, match=said):
        finetune.main(flags(bags, tmp_path, *more))


def test_initial_scores_of_files_must_fit_the_bags(bags, tmp_path, whole):
    path = whole / "epoch1" / "ins_pseudo_label_train.p"
    finetune.main(flags(bags, tmp_path / "run", "-e", 1, "--init_MIL_training", "no", "--pseudo_label_path", path))
    content = pseudo_labels.read(path)
    rows = [f"{bag},{y},{x},{score}" for bag, tiles in content.items() for (y, x), score in tiles.items()]
    lacking = tmp_path / "scores.csv"
    lacking.write_text("\n".join(["bag,y,x,score", *(row for row in rows if not row.startswith("train_3,"))]))
    with pytest.raises(BadInput, match="has no scores of bag train_3"):
        finetune.main(flags(bags, tmp_path / "b", "--init_MIL_training", "no", "--pseudo_label_path", lacking))


def test_other_flags_are_refused_in_the_same_folder(whole, bags):
    with pytest.raises(BadInput, match=r"differs in temperature 0.07 \(now 0.5\)"):
        finetune.main(flags(bags, whole, "--temperature", 0.5))


def test_a_key_is_written_nowhere(whole):
    for path in whole.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_encoder_learns_to_tell_the_tiles_apart(bags, norm):
    """On tiles of known truth the loss in which negatives attract falls."""
    args = finetune.parse_args(flags(bags, "l", "--norm", norm, "--augment_transform", 2, "--lr", 0.05))
    torch.manual_seed(0)
    encoder, _ = encoders.build(args)
    learner = finetune.Learner(
        encoder,
        torch.optim.SGD(encoder.parameters(), args.lr),
        torch.amp.GradScaler(enabled=False),
        torch.device("cpu"),
        args,
    )
    data = finetune.tiles.load(args)["train"]
    truth = data.flat_truth == 1
    order = [*np.flatnonzero(~data.positive)[:12], *np.flatnonzero(truth)]
    pictures = torch.stack([data[t][0] for t in order])
    labels, generator = torch.from_numpy(data.labels[data.bag_of[order]]), torch.Generator().manual_seed(0)
    losses = [float(finetune.contrast(learner, pictures, labels, 12, 2, generator)[0]) for _ in range(12)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1
