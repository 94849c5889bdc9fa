"""The commands of BINDER's README, from compat/binder: translations into ours."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import train_retrieval
from common.errors import BadInput
from common.files import sha256_of
from compat.binder.src import main, retrieve, test, train, translate
from compat.binder.src.manipulate import Manipulator
from models import near_duplicates
from retrieval.manipulate import DEFAULT
from tests.retrieval.images import shrink_networks, tissue, write_groups, write_images

BINDER = Path(main.__file__).parents[1]
WEIGHTS = "pretrain_resnet_bs256.pth"
test.__test__ = False


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with small networks, images and groups; it is where we are."""
    shrink_networks(monkeypatch)
    write_images(tmp_path / "train", 4, ending=".tif")
    write_groups(tmp_path / "test", 4, ending=".tif")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_network(path, prefix="", seed=0, **more):
    torch.manual_seed(seed)
    state = {prefix + name: value for name, value in near_duplicates.TrunkNetwork("resnet50").state_dict().items()}
    torch.save({"state_dict": state, **more} if prefix else state, path)


def test_the_readmes_test_command_runs(workplace, capsys):
    save_network(WEIGHTS)
    flags = ["--base=resnet50", "--loss=hardest", "--chunks=8", "--bs=256", "--filetype=.tif", "--device=cuda:0"]
    saved = ["--save_roc=roc.npy", "--save_farthest_dup=far.png", "--save_closest_diff=close.png", "--n=2"]
    assert main.main(["test", *flags, f"--weights_path={WEIGHTS}", "--test_path=test/", *saved]) == 0
    said = capsys.readouterr()
    assert "AUC hardest" in said.out
    assert ("--device cuda:0: no such GPU here; going on with auto" in said.err) == (not torch.cuda.is_available())
    assert np.load("roc.npy").shape[0] == 2
    assert Image.open("far.png").size == Image.open("close.png").size


def test_another_base_than_the_files_is_an_error(workplace):
    save_network(WEIGHTS)
    with pytest.raises(BadInput, match=f"--base vgg19: {WEIGHTS} holds a network of resnet50"):
        main.main(["test", "--base=vgg19", f"--weights_path={WEIGHTS}", "--test_path=test/"])


def test_training_writes_its_best_network_and_resumes_from_it(workplace, capsys):
    command = "train --loss hardest --bs 2 --lr 1e-3 --device cpu --train_path train --valid_path test --chunks 8"
    main.main([*command.split(), "--weights_path", WEIGHTS, "--weights", "random"])
    first = near_duplicates.load_network(WEIGHTS)
    for _ in range(2):  # each from what the last one wrote
        before = sha256_of(WEIGHTS)
        main.main([*command.split(), "--weights_path", WEIGHTS, "--resume"])
        assert f"begins from {WEIGHTS}" in capsys.readouterr().out
        assert near_duplicates.load_network(WEIGHTS).config == first.config and sha256_of(WEIGHTS) != before


def test_training_that_is_interrupted_leaves_the_best_network_so_far(workplace, monkeypatch):
    validate, rows = train_retrieval.validate, []

    def stop(*args):
        rows.append(args)
        if len(rows) == 3:
            raise KeyboardInterrupt
        return validate(*args)

    monkeypatch.setattr(train_retrieval, "validate", stop)
    command = "train --bs 2 --device cpu --train_path train --valid_path test --epochs 9 --weights random"
    with pytest.raises(KeyboardInterrupt):
        main.main([*command.split(), "--weights_path", WEIGHTS])
    assert near_duplicates.load_network(WEIGHTS).config["base"] == "resnet50"


@pytest.mark.parametrize("missing", ["--train_path", "--valid_path"])
def test_training_needs_its_folders(missing, workplace):
    flags = {"--train_path": "train", "--valid_path": "test", "--weights_path": WEIGHTS}
    words = [word for flag, value in flags.items() if flag != missing for word in (flag, value)]
    with pytest.raises(BadInput, match=f"{missing}: needed to train"):
        main.main(["train", *words])


def test_the_last_versions_commands_run(workplace, monkeypatch):
    save_network("last.ckpt", "model.", epoch=3)
    flags = ["--batch_size", "2", "--epochs", "1", "--filetype", ".tif", "--chunks", "0", "--learning_rate", "1e-3"]
    train.main(["train", "test", *flags, "--resume", "last.ckpt", "--logdir", "run"])
    assert len(pd.read_csv("run/stats.csv")) == 2
    assert test.main(["test", "last.ckpt", "--random", "--save_roc", "roc.npy"]) == 0
    assert retrieve.main(["train", "last.ckpt", "--k", "2", "--o", "found.csv"]) == 0
    table = pd.read_csv("found.csv", index_col=0)
    assert list(table.columns) == ["img", "match_0", "match_1", "dist_0", "dist_1"]
    assert (table.img != table.match_0).all()


@pytest.mark.parametrize("network", ["resnet", "vgg"])
def test_the_four_scripts_train_as_published(network, tmp_path):
    """A stand-in for python says what it was called with."""
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / f"pretrain_{network}_bs256.pth").write_bytes(b"weights")
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TRAIN_PATH": "some where", "VALID_PATH": "v"}
    for stage, ending in (("pretrain", ".jpg"), ("finetune", ".tif")):
        script = BINDER / "scripts" / f"{stage}_{network}_bs256.sh"
        done = subprocess.run([script, "--epochs", "3"], cwd=tmp_path, env=env, capture_output=True, text=True)
        called = done.stdout.splitlines()
        assert Path(called[0]).resolve() == Path(main.__file__).resolve()
        args = main.parse_args(called[1:])
        assert (args.action, args.base) == ("train", {"resnet": "resnet50", "vgg": "vgg19"}[network])
        assert (args.loss, args.chunks, args.bs, args.lr, args.epochs) == ("hardest", 8, 256, 0.1, 3)
        assert (args.filetype, args.train_path, args.valid_path) == (ending, "some where", "v")
        assert (args.resume, args.synth_valid) == (stage == "finetune", stage == "pretrain")
        assert args.weights_path == Path(f"{stage}_{network}_bs256.pth")
    assert (tmp_path / f"finetune_{network}_bs256.pth").read_bytes() == b"weights"
    del env["TRAIN_PATH"]
    done = subprocess.run([script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "TRAIN_PATH: folder of training images" in done.stderr


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16", "1"])
def test_the_manipulator_takes_any_image(mode):
    image = Image.fromarray(tissue(0, 0, 256))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    anchor, same = Manipulator("manipulations.yaml", seed=0)(image if mode == "I;16" else image.convert(mode))
    assert (anchor.size, same.size, anchor.mode) == ((128, 128), (128, 128), "L")
    if mode in ("L", "RGBA", "I;16"):
        assert abs(np.asarray(anchor).astype(int) - tissue(64, 64) @ [0.299, 0.587, 0.114]).max() < 2


def test_the_readmes_import_works_from_its_folder():
    lines = [
        "from PIL import Image",
        "from src.manipulate import Manipulator",
        'manipulator = Manipulator("manipulations.yaml")',
        'anchor, same = manipulator(Image.new("RGB", (256, 256)))',
        "print(anchor.size)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=BINDER, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(128, 128)\n", "")


@pytest.mark.slow
def test_a_command_runs_from_its_folder_and_answers_in_one_line(tmp_path):
    command = [sys.executable, "src/main.py", "test", "--weights_path", str(tmp_path / "none.pth"), "--test_path", "x"]
    done = subprocess.run(command, cwd=BINDER, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"main.py: {tmp_path / 'none.pth'}: No such file or directory"


def test_tables_are_found_by_their_old_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert translate.table("manipulations/a.yml") == translate.table("manipulations.yaml") == str(DEFAULT)
    assert translate.table("with_noise.yml") == str(DEFAULT.with_name("with_noise.yml"))
    assert translate.table("mine.yml") == "mine.yml"
    Path("with_noise.yml").write_text("")
    assert translate.table("with_noise.yml") == "with_noise.yml"


@pytest.mark.parametrize("name", ["cpu", "auto", "cuda:99", "cuda"])
def test_a_gpu_that_is_not_there_is_auto(name, capsys):
    there = name == "cuda" and torch.cuda.is_available()
    assert translate.device(name) == (name if there or name in ("cpu", "auto") else "auto")
    assert ("going on with auto" in capsys.readouterr().err) == (name.startswith("cuda") and not there)
