"""HNM-WSI's command line runs mil/finetune.py by its flags, defaults and folders."""

import argparse
import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mil import finetune, hnm_layout

ROOT = Path(__file__).parents[2]
NOTE = """--expname EXP --threshold 0.3 --gpuid 0 --augment_transform 0 --batch_size 512 --pretrain_weight W
    --model_save_root DIR --pseudo_label_path P --MIL_every_n_epochs 5 --epoch_to_extract_mil 199 --posi_batch_ratio 0.2
    --ro 0.2 --ro_neg 0.2 --rT 0.8 --warmup 5 --init_MIL_training yes --negfilter yes --neg_ratio 0.2 --root_dir R
    --labelroot L --comet_api_key K"""  # what users have in theirs
DEFAULTS = {  # of HNM-WSI
    "threshold": 0.3,
    "batch_size": 512,
    "epochs": 100,
    "lr": 0.01,
    "temperature": 0.07,
    "posi_batch_ratio": 0.5,
    "posi_query_ratio": 0.05,
    "warmup": 5,
    "ro": 0.2,
    "ro_neg": 0.2,
    "rT": 0.8,
    "negfilter": True,
    "neg_ratio": 0.2,
    "mask_uncertain_neg": True,
    "MIL_every_n_epochs": 1,
    "init_MIL_training": True,
    "update_pseudo_label": True,
    "use_ema": False,
    "num_epoch_mil": 350,
    "epoch_to_extract_mil": 349,
    "lr_mil": 2e-4,
    "weight_decay_mil": 1e-4,
    "ranking_loss": True,
    "rank_k": 10,
    "loss_weight_ranking": 0.1,
    "loss_weight_bag": 0.5,
    "loss_weight_ins": 0.5,
    "augment_transform": 0,
    "witness_rate": None,
    "validate_on_all_instance": True,
    "seed": 42,
}


@pytest.fixture
def slides(tmp_path):
    """Eight training slides and four to test, of tiles with a bright square where z is 1; below a folder of tumors."""
    rng, reference = np.random.default_rng(0), {}
    root = tmp_path / "tumor_and_normal"
    for i in range(12):
        label, name = i % 2, f"{('normal', 'tumor')[i % 2]}_{i:03}" if i < 8 else f"test_{i:03}"
        folder = root / ("training" if i < 8 else "testing") / name
        folder.mkdir(parents=True)
        reference |= {name: label} if i >= 8 else {}
        for x in range(4):
            pixels = rng.integers(0, 100, (40, 40, 3), np.uint8)
            z = int(label == 1 and x == 2)
            pixels[10:30, 10:30] = 250 if z else pixels[10:30, 10:30]
            Image.fromarray(pixels).save(folder / f"{x}_0_{z}.jpeg")
    (root / "labels" / "testing").mkdir(parents=True)
    hnm_layout.write_reference(root / "labels" / "testing" / "bag_reference.csv", reference)
    hnm_layout.write_list(
        root / "labels" / "train.txt", [f"training/{('normal', 'tumor')[i % 2]}_{i:03}" for i in range(6)]
    )
    hnm_layout.write_list(
        root / "labels" / "val.txt", [f"training/{('normal', 'tumor')[i % 2]}_{i:03}" for i in (6, 7)]
    )
    return root


def run(flags, monkeypatch):
    """The command as users type it, in its folder; returns the exit code."""
    with monkeypatch.context() as patch:
        patch.chdir(ROOT / "compat" / "hnm_wsi")
        patch.setattr(sys, "argv", ["run.py", *map(str, flags)])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path("run.py", run_name="__main__")
    return exit_info.value.code


def translated(flags, slides, tmp_path, monkeypatch):
    """The arguments that mil/finetune.py would have got, and its words."""
    seen = []
    monkeypatch.setattr(
        finetune, "main", lambda words: seen.append((finetune.parse_args(words), words, list(sys.argv)))
    )
    paths = ["--root_dir", slides, "--labelroot", slides / "labels", "--model_save_root", tmp_path]
    assert run([*paths, *flags], monkeypatch) == 0
    return seen[0]


def test_defaults_are_hnm_wsis(slides, tmp_path, monkeypatch):
    args, _, _ = translated(["--pretrain_weight", "random"], slides, tmp_path, monkeypatch)
    found = vars(args)
    assert {name: found[name] for name in DEFAULTS} == DEFAULTS
    assert (args.logdir, args.device, args.encoder_width) == (tmp_path / "supsimCLR", "auto", None)


def test_the_command_in_users_notes(slides, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMET_API_KEY", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    words = NOTE.replace(" W\n", f" {tmp_path / 'w.pth'}\n").replace(" DIR", f" {tmp_path}").split()
    words = [str(slides) if word == "R" else str(slides / "labels") if word == "L" else word for word in words]
    args, flags, argv = translated(words, slides, tmp_path, monkeypatch)
    assert (args.logdir, args.epoch_to_extract_mil, args.posi_batch_ratio) == (tmp_path / "EXP", 199, 0.2)
    package = find_spec("comet_ml")
    assert (args.tracker, os.environ["COMET_API_KEY"]) == ("comet" if package else "none", "K")
    assert "K" not in flags + argv
    said = [
        "--gpuid 0: no such GPU here; going on with --device auto",
        *([] if package else ["--comet_api_key: needs the package comet_ml; going on without"]),
    ]
    assert capsys.readouterr().err.splitlines() == said


def test_labels_come_from_lists_and_slides_not_from_folders_above(slides):
    rows = hnm_layout.bags_of(slides, slides / "labels", seed=0)
    assert [(bag, label, split) for bag, label, split, _ in rows][5:9] == [
        ("training/tumor_005", 1, "train"),
        ("training/normal_006", 0, "val"),
        ("training/tumor_007", 1, "val"),
        ("testing/test_008", 0, "test"),
    ]
    for name in ("train", "val"):
        (slides / "labels" / f"{name}.txt").unlink()
    splits = [split for *_, split, _ in hnm_layout.bags_of(slides, slides / "labels", seed=0)]
    assert splits.count("test") == 4


@pytest.mark.slow
def test_it_trains_and_is_resumed_by_the_same_command(slides, tmp_path, monkeypatch, capsys):
    flags = "--epochs 1 --batch_size 8 --posi_query_ratio 0.25 --num_epoch_mil 2 --epoch_to_extract_mil 1"
    flags += f" --threshold 0.05 --num_feats 64 --pretrain_weight random --workers 0 --root_dir {slides}"
    flags += f" --labelroot {slides / 'labels'} --model_save_root {tmp_path} --expname exp"
    assert run(flags.split(), monkeypatch) == 0
    scores = pd.read_csv(tmp_path / "exp" / "scores" / "test.csv")
    assert dict(zip(scores.img_path, scores.label, strict=True)) == {
        f"testing/test_{i:03}": i % 2 for i in range(8, 12)
    }
    capsys.readouterr()
    assert run(flags.split(), monkeypatch) == 0
    assert "complete after epoch 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "run.py: --pretrain_weight: missing, expected a file of weights, imagenet or random"),
        (["--pretrain_weight", "nowhere.pth"], "nowhere.pth: No such file or directory"),
        (["--pretrain_weight", "random", "--epoch_to_extract_mil", "350"], "must be below --num_epoch_mil 350"),
        (["--pretrain_weight", "random", "--labelroot", "nowhere"], "nowhere/testing/bag_reference.csv: No such file"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(slides, tmp_path, monkeypatch, capsys, more, said):
    paths = ["--root_dir", slides, "--labelroot", slides / "labels", "--model_save_root", tmp_path]
    assert run([*paths, *more], monkeypatch) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "--gpuid" not in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert "bag_reference" not in said or list(tmp_path.iterdir()) == [slides]  # no run folder without bags


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda labels: hnm_layout.write_list(labels / "val.txt", ["training/tumor_099"]),
            "but bag training/tumor_099 is",
        ),
        (
            lambda labels: hnm_layout.write_list(labels / "test.txt", ["testing/test_008", "training/tumor_001"]),
            "no label",
        ),
        (
            lambda labels: (labels / "train.txt").write_text("/training/tumor_001/\n" * 2),
            "names bag training/tumor_001 twice",
        ),
        (
            lambda labels: (labels / "testing" / "bag_reference.csv").write_text("test_008,2\n"),
            "line 1: found test_008,2",
        ),
    ],
)
def test_lists_that_do_not_fit_the_folders_are_refused(slides, change, said):
    change(slides / "labels")
    with pytest.raises(hnm_layout.BadInput, match=said):
        hnm_layout.bags_of(slides, slides / "labels", seed=0)


def test_ready_made_embeddings_are_joined_by_name(slides, tmp_path):
    rows = [finetune.tiles.bag_list.Row(*row) for row in hnm_layout.bags_of(slides, slides / "labels", 0)]
    tiles = finetune.tiles.FolderTiles([row for row in rows if row.split == "val"])
    content = {}
    for name in tiles.names:
        content[f"/{name}"] = np.empty(4, object)
        content[f"/{name}"][:] = [(f"{x}_0_0", np.full(3, x, np.float32)) for x in (3, 1, 0, 2)]
    path = tmp_path / "val_embeddings_epoch_0000.p"
    path.write_bytes(hnm_layout.pickles.write_bytes(content))
    bags = hnm_layout.read_embeddings(path, tiles)
    assert bags.features[1][:, 0].tolist() == [0, 1, 2, 3]
    del content[f"/{tiles.names[0]}"]
    path.write_bytes(hnm_layout.pickles.write_bytes(content))
    with pytest.raises(hnm_layout.BadInput, match="has no features of bag training/normal_006"):
        hnm_layout.read_embeddings(path, tiles)


def test_num_feats_is_the_encoders_width(slides, tmp_path, monkeypatch):
    args, _, _ = translated(["--pretrain_weight", "random", "--num_feats", "128"], slides, tmp_path, monkeypatch)
    assert isinstance(args, argparse.Namespace)
    assert args.encoder_width == 0.25
