"""train_mil.py, from images or features to scores, on data that trains in seconds."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from common import checkpoint, signals
from data.cluttered_mnist import generate_data
from mil import rounds
from tests.mil.made import digit_bags

ROOT = Path(__file__).parent.parent
QUICK = "--embedder pixels --dsmil_variant 2024 --workers 0 --num_epoch_mil 2 --lr_mil 1e-2"


def run(*flags):
    """The exit code of train_mil.py in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_mil.py", *map(str, flags)])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(ROOT / "train_mil.py"), run_name="__main__")
    return exit_info.value.code


def one_line(capsys):
    """What the command complained, which is one line, but for what it warned of."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "is not pretrained" not in line]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def nmnist(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "nmnist"
    flags = "--canvas 64 --patch-size 32 --distortion-num 1 --mnist digits --duplicates 1 --format none --workers 1"
    generate_data.main([*flags.split(), "--out", str(out)])
    return out


def on_images(nmnist, logdir, *flags):
    where = ["--datatype", "mnist", "--data_path", nmnist, "--tile", 32, "--num_examples", 60, "--logdir", logdir]
    return run(*where, *QUICK.split(), *flags)


@pytest.fixture(scope="module")
def trained(nmnist, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("run")
    assert on_images(nmnist, logdir, "--pseudo_labels", logdir / "train.p") == 0
    return logdir


def test_canvases_end_in_scores_of_bags_and_tiles(trained):
    tables = {split: pd.read_csv(trained / "scores" / f"{split}.csv") for split in ("train", "val", "test")}
    assert len(tables["train"]) == 60
    for split, table in tables.items():
        assert set(table.cell) == {32}
        assert table.hit.notna().all()
        instances = pd.read_csv(trained / "scores" / f"instances_{split}.csv")
        positives = instances.groupby("bag").truth.sum()
        assert positives[table.img_path].tolist() == table.label.tolist()  # the needle lies in one cell
        assert np.load(trained / "scores" / split / "map_0.npy").shape == (2, 2)
    assert (trained / "scores" / "test" / "contact_sheet.png").exists()


def test_the_test_threshold_is_the_validation_set_s(trained):
    found = json.loads((trained / "mil.json").read_text())
    assert found["test"]["threshold"] == found["val"]["threshold"]
    table = pd.read_csv(trained / "stats.csv")
    assert found["val"]["threshold"] == table.eval_threshold[found["best_epoch"] - 1]
    assert {"auc", "f1", "instance_auc", "instance_ap", "localization_ap", "localization_ap_chance"} <= set(
        found["test"]
    )


def test_given_again_it_does_nothing_new(nmnist, trained, capsys):
    kept = ["features/train.npy", "checkpoint.pth", "scores/test.csv", "scores/instances_train.csv", "train.p"]
    before = {name: (trained / name).read_bytes() for name in kept}
    times = (trained / "features" / "train.npy").stat().st_mtime_ns
    assert on_images(nmnist, trained, "--pseudo_labels", trained / "train.p") == 0
    assert "complete after epoch 2" in capsys.readouterr().out
    assert before == {name: (trained / name).read_bytes() for name in kept}
    assert (trained / "features" / "train.npy").stat().st_mtime_ns == times


def test_killed_in_training_it_goes_on_to_the_same_scores(nmnist, trained, tmp_path, monkeypatch):
    step, taken = rounds.step, []

    def interrupted(*args):
        taken.append(1)
        if len(taken) == 70:
            raise signals.Terminated
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "step", interrupted)
        patch.setattr("os._exit", sys.exit)
        assert on_images(nmnist, tmp_path, "--pseudo_labels", tmp_path / "train.p") == 143
    assert not (tmp_path / "scores").exists()
    assert on_images(nmnist, tmp_path, "--pseudo_labels", tmp_path / "train.p") == 0
    for name in ("scores/test.csv", "scores/instances_val.csv", "train.p"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_its_features_can_be_trained_on_again(nmnist, trained, tmp_path):
    flags = ["--datatype", "features", "--bags", trained / "features" / "bags.csv", "--logdir", tmp_path]
    assert run(*flags, *QUICK.split()) == 0
    a, b = (pd.read_csv(folder / "scores" / "test.csv") for folder in (tmp_path, trained))
    assert a.score.tolist() == b.score.tolist()
    assert a.hit.tolist() == b.hit.tolist()


def test_crops_are_bags_too(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("", "valid/", "test/"):
        for i in range(6):
            image, mask = rng.integers(0, 99, (64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
            (tmp_path / "pos" / part).mkdir(parents=True, exist_ok=True)
            (tmp_path / "neg" / part).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "neg" / part / f"patient_{i}.npy", image)
            image[32:60, 0:20], mask[32:60, 0:20] = 255, 255
            np.save(tmp_path / "pos" / part / f"patient_{i}_img.npy", image)
            np.save(tmp_path / "pos" / part / f"patient_{i}_seg.npy", mask)
    where = ["--pos_path", tmp_path / "pos", "--neg_path", tmp_path / "neg", "--logdir", tmp_path / "run"]
    assert run("--datatype", "camelyon", *where, "--tile", 32, *QUICK.split()) == 0
    instances = pd.read_csv(tmp_path / "run" / "scores" / "instances_test.csv")
    positive = instances[instances.truth == 1]
    assert set(zip(positive.y, positive.x, strict=True)) == {(32, 0)}
    assert len(positive) == 6


# --- features made elsewhere ---


def write_list(folder, splits, ending=".npz", **columns):
    """Features of digits, a file for each bag, and their list; returns the list's path."""
    rows = []
    for split, bags in splits.items():
        for name, label, features in zip(bags.names, bags.labels.tolist(), bags.features, strict=True):
            path = folder / f"{name}{ending}"
            np.savez(path, features=features) if ending == ".npz" else torch.save(torch.from_numpy(features), path)
            rows.append({"bag": name, "label": label, "split": split, "file": path.name, **columns})
    pd.DataFrame(rows).to_csv(folder / "bags.csv", index=False)
    return folder / "bags.csv"


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    return write_list(tmp_path_factory.mktemp("features"), digit_bags(16, 8, size=5), ".pt")


def on_features(bags, logdir, *flags):
    return run("--datatype", "features", "--bags", bags, "--logdir", logdir, *QUICK.split(), *flags)


def test_features_of_strangers_are_trained_on(listed, tmp_path):
    assert on_features(listed, tmp_path) == 0
    table = pd.read_csv(tmp_path / "scores" / "test.csv")
    assert len(table) == 8
    assert table.hit.isna().all()


def test_all_scores_are_of_the_best_epoch_whichever_is_extracted(listed, tmp_path):
    for extracted in range(2):
        logdir = tmp_path / str(extracted)
        assert on_features(listed, logdir, "--epoch_to_extract_mil", extracted) == 0
        found, table = json.loads((logdir / "mil.json").read_text()), pd.read_csv(logdir / "stats.csv")
        assert found["val"]["loss"] == pytest.approx(table.eval_loss[found["best_epoch"] - 1])


def test_folds_report_each_bag_once_chosen_by_others(listed, tmp_path, capsys):
    assert on_features(listed, tmp_path, "--folds", 3) == 0
    tables = [pd.read_csv(tmp_path / f"fold_{k}" / "scores" / "test.csv") for k in range(3)]
    names = [name for table in tables for name in table.img_path]
    assert len(names) == len(set(names)) == 32
    assert len(pd.read_csv(tmp_path / "folds.csv")) == 3
    assert "test auc over 3 folds" in capsys.readouterr().out


def test_a_standalone_test_is_voted_on(listed, tmp_path, capsys):
    assert on_features(listed, tmp_path, "--folds", 2, "--fold_scheme", "cv-standalone-test") == 0
    tables = [pd.read_csv(tmp_path / f"fold_{k}" / "scores" / "test.csv") for k in range(2)]
    assert tables[0].img_path.tolist() == tables[1].img_path.tolist()
    assert "test accuracy of the majority's vote" in capsys.readouterr().out


def change(bags, line, **values):
    table = pd.read_csv(bags)
    for name, value in values.items():
        table.loc[line, name] = value
    return table


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"file": "absent.npz"}, "bag train_0: "),
        ({"label": 7}, "expected a name, a label of 0 to 1"),
        ({"bag": "train_1"}, "bag train_1 is listed twice"),
        ({"split": "later"}, "a split of train, val, test or none"),
    ],
)
def test_a_list_with_a_wrong_line_is_refused_in_one(listed, tmp_path, capsys, values, said):
    path = listed.with_name(f"{tmp_path.name}.csv")
    change(listed, 0, **values).to_csv(path, index=False)
    assert on_features(path, tmp_path / "run") == 2
    assert said in one_line(capsys)


def test_a_split_of_one_class_is_refused(listed, tmp_path, capsys):
    table = pd.read_csv(listed)
    path = listed.with_name("one_class.csv")
    table[(table.split != "val") | (table.label == 0)].to_csv(path, index=False)
    assert on_features(path, tmp_path) == 2
    assert "split val has only label 0" in one_line(capsys)


def test_nan_in_a_bag_is_refused(tmp_path, capsys):
    splits = digit_bags(4, 4, size=3)
    splits["val"].features[2] = np.full((3, 64), np.nan, np.float32)
    assert on_features(write_list(tmp_path, splits), tmp_path / "run") == 2
    assert "val_2.npz: expected features that are finite" in one_line(capsys)


def test_a_bag_without_tiles_is_refused(tmp_path, capsys):
    splits = digit_bags(4, 4, size=3)
    splits["test"].features[0] = np.zeros((0, 64), np.float32)
    assert on_features(write_list(tmp_path, splits), tmp_path / "run") == 2
    assert "test_0.npz: has no tiles" in one_line(capsys)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--datatype", "features"], "--bags: missing"),
        (["--datatype", "mnist"], "--data_path: missing"),
        (["--datatype", "mnist", "--folds", "5"], "--folds 5: is for --datatype features"),
        (["--datatype", "features", "--bags", "b", "--folds", "5", "--pseudo_labels", "p"], "train without --folds"),
        (["--datatype", "mnist", "--epoch_to_extract_mil", "50"], "--epoch_to_extract_mil 50: counts from 0"),
        (["--datatype", "mnist", "--ranking_loss", "perhaps"], "expected yes or no"),
        (["--datatype", "slides"], "invalid choice"),
        (["--datatype", "mnist", "--fold_scheme", "cv-standalone-test"], "goes with --folds"),
        (["--datatype", "features", "--bags", "b", "--num_examples", "4"], "--num_examples 4: goes with images"),
        (["--datatype", "tiles", "--bags", "b", "--num_examples", "4"], "--num_examples 4: goes with images"),
        (["--datatype", "mnist", "--pseudo_labels", "/proc/x/p"], "/proc/x: cannot write to this folder"),
    ],
)
def test_wrong_flags(tmp_path, capsys, flags, said):
    assert run(*flags, "--logdir", tmp_path) == 2
    assert said in one_line(capsys)


def test_tiles_larger_than_the_image_or_too_small_for_the_network(nmnist, tmp_path, capsys):
    assert on_images(nmnist, tmp_path, "--tile", 65) == 2
    assert "--tile 65" in one_line(capsys)
    assert on_images(nmnist, tmp_path, "--tile", 16, "--embedder", "squeezenet", "--embedder_weights", "random") == 2
    assert "--tile_resize: the embedder needs images of 32 px or more, found 16" in one_line(capsys)


def test_a_folder_that_tiles_were_too_small_for_takes_larger_ones(nmnist, tmp_path, capsys):
    flags = ["--tile", 16, "--embedder", "squeezenet", "--embedder_weights", "random", "--num_epoch_mil", 1]
    assert on_images(nmnist, tmp_path, *flags) == 2
    assert on_images(nmnist, tmp_path, *flags, "--tile_resize", 33) == 0


def test_another_embedder_in_the_same_folder_is_refused(nmnist, trained, capsys):
    before = (trained / checkpoint.LATEST).read_bytes()
    assert on_images(nmnist, trained, "--embedder", "squeezenet", "--embedder_weights", "random") == 2
    assert "holds features that differ in embedder" in one_line(capsys)
    assert (trained / checkpoint.LATEST).read_bytes() == before
