"""train_anomaly.py and score_anomaly.py as a user types them: run, run twice, stopped, elsewhere, on wrong input."""

import json

import imageio.v3 as iio
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision

import score_anomaly
import train_anomaly
from common import checkpoint, cli, scores
from common.errors import BadInput
from common.table import GrowingTable
from data.cluttered_mnist import generate_data
from models import embedders
from tests.retrieval import crops

SCORE = ["--workers", "0", "--device", "cpu"]
KNN = ["--method", "deep_knn", "--embedder", "pixels", "--tile", "16", "--k", "2", *SCORE]
DPA = ["--method", "dpa", "--loss", "l1", "--tile", "16", "--latent_res", "4", "--lr", "1e-2", *SCORE]
DIGITS = ["--mnist", "digits", "--canvas", "40", "--distortion-num", "1", "--duplicates", "1", "--workers", "1"]


def write_photos(folder, n=12, side=24):
    """Stripes with noise, and in abnormal pictures a white square in the lower right."""
    rng = np.random.default_rng(0)
    stripes = np.uint8(100) * (np.arange(side, dtype=np.uint8) // 4 % 2)[:, None, None]
    for i in range(3 * n):
        part = ("train/normal", "test/normal", "test/abnormal")[i % 3]
        pixels = stripes + rng.integers(0, 50, (side, side, 3), dtype=np.uint8)
        if part.endswith("abnormal"):
            pixels[-10:, -10:] = 255
        (folder / part).mkdir(parents=True, exist_ok=True)
        iio.imwrite(folder / part / f"{i:02}.png", pixels)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("run")
    train_anomaly.main([*KNN, "--photos", str(photos), "--logdir", str(logdir)])
    return logdir


def score(logdir, *flags):
    score_anomaly.main(["--logdir", str(logdir), *SCORE, *map(str, flags)])
    return pd.read_csv(logdir / "scores" / "test.csv")


def test_photographs_are_told_apart_from_any_folder(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = score(run, "--maps", "--overlays", 3)
    assert list(table.columns) == list(scores.COLUMNS)
    assert table.label.tolist() == [0] * 12 + [1] * 12
    assert table.hit.isna().all() and table.o2i.isna().all() and (table.cell == 8).all()
    assert json.loads((run / "scores" / "test.json").read_text())["auc"] == 1
    assert "AUC 1.000  AP 1.000" in capsys.readouterr().out
    assert (table.peak_y[12:] >= 16).all() and (table.peak_x[12:] >= 16).all()
    folder = run / "scores" / "test"
    assert np.load(folder / "map_3.npy").shape == (2, 2)
    names = {path.name for path in folder.iterdir()}
    assert {"overlay_2.png", "contact_sheet.png", "map_23.npy"} <= names and "overlay_3.png" not in names


def test_scored_twice_nothing_is_computed_anew(run, monkeypatch):
    first = score(run)
    monkeypatch.setattr(embedders.Embedder, "forward", lambda *_: pytest.fail("computed"))
    pd.testing.assert_frame_equal(score(run), first)


def test_stopped_scoring_goes_on_where_it_was(run, monkeypatch):
    whole = score(run, "--stride", 4)
    score(run)
    add = GrowingTable.add

    def stopping(table, row):
        add(table, row)
        if row["img"] == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(GrowingTable, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            score(run, "--stride", 4)
    rows = run / "scores" / "test" / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"img": 8, "sc')  # a line that was cut off
    counted = []
    monkeypatch.setattr(GrowingTable, "add", lambda table, row: counted.append(row["img"]) or add(table, row))
    pd.testing.assert_frame_equal(score(run, "--stride", 4), whole)
    assert counted == list(range(8, 24))


def test_pictures_without_labels_are_scored_without_auc(run, photos, capsys):
    score_anomaly.main(["--logdir", str(run), *SCORE, "--images", str(photos / "test")])
    table = pd.read_csv(run / "scores" / "images.csv")
    assert len(table) == 24 and table.label.isna().all() and table.score.notna().all()
    assert json.loads((run / "scores" / "images.json").read_text())["auc"] is None
    assert "no AUC" in capsys.readouterr().out


def test_other_photographs_are_scored_by_the_same_detector(run, tmp_path):
    write_photos(tmp_path, n=6, side=40)
    score_anomaly.main(["--logdir", str(run), *SCORE, "--photos", str(tmp_path), "--name", "others"])
    assert len(pd.read_csv(run / "scores" / "others.csv")) == 12


def test_a_file_of_weights_is_found_from_any_folder_and_named_where_it_moved(photos, tmp_path, monkeypatch, capsys):
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    for name in ("weights.pth", "others.pth"):
        torch.save(torchvision.models.squeezenet1_1().state_dict(), name)
    network = ["--embedder", "squeezenet", "--embedder_weights", "weights.pth", "--resize", "32", "--tile", "32"]
    train_anomaly.main([*KNN, *network, "--photos", str(photos), "--logdir", str(tmp_path / "run")])
    monkeypatch.chdir(tmp_path)
    found = score(tmp_path / "run")
    (tmp_path / "first" / "weights.pth").rename("moved.pth")
    command = ["--logdir", tmp_path / "run", *SCORE]
    assert "first/weights.pth: No such file" in refused(score_anomaly.main, capsys, *command)
    assert "--embedder_weights names their file" in refused(
        score_anomaly.main, capsys, *command, "--embedder_weights", "first/others.pth"
    )
    pd.testing.assert_frame_equal(score(tmp_path / "run", "--embedder_weights", "moved.pth"), found)


def test_digits_are_scored_with_the_place_of_the_needle(tmp_path, capsys):
    generate_data.main([*DIGITS, "--format", "none", "--out", str(tmp_path / "data")])
    where = ["--data_path", str(tmp_path / "data"), "--logdir", str(tmp_path / "run")]
    train_anomaly.main([*DPA, *where, "--resize", "25", "--iters", "30", "--val_iter", "15", "-b", "8"])
    table = score(tmp_path / "run", "--stride", 16)
    assert (table.cell == 1).all() and set(table.hit) <= {0, 1} and table.hit.sum() > 0
    assert (table.label == table.o2i.notna()).all() and set(table.o2i.dropna()) == {28**2 / 40**2}
    found = json.loads((tmp_path / "run" / "scores" / "test.json").read_text())
    assert found["localization_ap"] is not None and found["ranges"][1]["positives"] == (table.label == 1).sum()
    assert "localisation AP" in capsys.readouterr().out
    assert {"val_loss", "loss"} <= set(pd.read_csv(tmp_path / "run" / "stats.csv").columns)


def test_a_batch_is_no_larger_than_the_training_set(run, photos, tmp_path, capsys):
    train_anomaly.main([*KNN, "--photos", str(photos), "--logdir", str(tmp_path)])
    assert "-b 128: the training split has 12 normal images" in capsys.readouterr().out


def refused(main, capsys, *flags):
    """What a command says of wrong flags, which is one line, with exit code 2."""
    with pytest.raises(SystemExit) as exit_info:
        cli.run(lambda: main([*map(str, flags)]))
    assert exit_info.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tile", 32], "--tile 32: normal/00.png has 24 x 24 px, fewer"),
        (["--k", 99], "--k 99: there are 48 training tiles"),
        (["--crop", 30], "normal/00.png: has 24 x 24 px, fewer than --crop 30"),
        (["--iters", 5], "unrecognized arguments: --iters 5"),
        (["--photos", "gone"], "gone: no such folder"),
        (["--photos", __file__], "test_anomaly_commands.py: a file, expected a folder"),
        (["--embedder", "vgg16", "--embedder_weights", "gone.pth"], "gone.pth: No such file"),
    ],
)
def test_wrong_flags_of_training(photos, tmp_path, capsys, flags, said):
    assert said in refused(train_anomaly.main, capsys, *KNN, "--photos", photos, "--logdir", tmp_path, *flags)
    assert not (tmp_path / "checkpoint.pth").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--method deep_knn --tile 16 --layer p5", "--tile 16: vgg16 takes 32 px or more"),
        ("--method deep_knn --tile 8", "--tile 8: vgg16 takes 16 px or more"),
        ("--method deep_if --tile 16 --layers r12,p5", "--tile 16: vgg16 takes 32 px or more"),
        ("--method piad --tile 8 --layer r52 --latent_dim 4", "--layer r52: lies too deep for images of 8 px"),
    ],
)
def test_a_layer_too_deep_for_a_tile_is_named_before_training(photos, tmp_path, capsys, flags, said):
    where = ["--photos", photos, "--logdir", tmp_path / "run", "--vgg", "vgg16", "--vgg_weights", "random"]
    assert said in refused(train_anomaly.main, capsys, *flags.split(), *where, *SCORE)
    assert not (tmp_path / "run").exists()


def test_training_without_data_or_without_normal_images(tmp_path, capsys):
    assert "no data: give one of --data_path" in refused(train_anomaly.main, capsys, *KNN, "--logdir", tmp_path)
    (tmp_path / "photos").mkdir()
    flags = [*KNN, "--photos", tmp_path / "photos", "--logdir", tmp_path]
    said = refused(train_anomaly.main, capsys, *flags)
    assert f"no normal training images, expected them in {tmp_path / 'photos' / 'train' / 'normal'}" in said


def test_training_on_images_of_several_sizes(tmp_path, capsys):
    write_photos(tmp_path)
    iio.imwrite(tmp_path / "train/normal/00.png", np.zeros((20, 24, 3), np.uint8))
    flags = [*KNN, "--photos", tmp_path, "--logdir", tmp_path / "run"]
    assert "00.png: has 20 x 24 px, 11 others 24 x 24" in refused(train_anomaly.main, capsys, *flags)
    train_anomaly.main([*map(str, flags), "--resize", "24"])


def test_a_table_of_splits_that_has_changed_is_refused(tmp_path, capsys):
    """Else images that the detector was trained on were scored as test images."""
    written = crops.write(tmp_path)
    table, splits = crops.table_of_splits(written, ["train", "val", "test"]), tmp_path / "splits.csv"
    table.to_csv(splits, index=False)
    flags = ["--neg_path", written.neg, "--splits", splits, "--logdir", tmp_path / "run"]
    train_anomaly.main([*KNN, *map(str, flags)])
    assert len(score(tmp_path / "run", "--pos_path", written.pos)) > 0
    other = {"train": "test", "test": "train", "val": "val"}
    table.replace({"split": other}).to_csv(splits, index=False)
    where = ["--logdir", tmp_path / "run", *SCORE, "--pos_path", written.pos]
    assert "splits.csv: has changed since the run was trained" in refused(score_anomaly.main, capsys, *where)
    assert "splits_sha256" in refused(train_anomaly.main, capsys, *KNN, *flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tile", 32], "takes 16 px; leave the flag out"),
        (["--grey"], "takes 3 channels, the images have 1"),
        (["--split", "val"], "--datatype photos: no images of the val split"),
        (["--images", "gone"], "gone: no such folder"),
        (["--crop", 8], "has 8 x 8 px, fewer than a tile of 16"),
        (["--stride", 17], "--stride 17: expected 16 px, a tile's side, at most"),
    ],
)
def test_wrong_flags_of_scoring(run, capsys, flags, said):
    assert said in refused(score_anomaly.main, capsys, "--logdir", run, *SCORE, *flags)


def test_what_is_no_detector_is_named(tmp_path, capsys):
    assert "best_checkpoint.pth" in refused(score_anomaly.main, capsys, "--logdir", tmp_path)
    checkpoint.save(tmp_path / checkpoint.BEST, {"state_dict": {}, "config": {}})
    assert "expected a detector of train_anomaly.py" in refused(score_anomaly.main, capsys, "--logdir", tmp_path)


def test_files_that_are_not_of_scoring_stay(run):
    score(run)
    stranger = run / "scores" / "test" / "notes.txt"
    stranger.write_text("mine")
    with pytest.raises(BadInput, match=r"notes\.txt: not of this command"):
        score(run, "--stride", 5)
    stranger.unlink()


@pytest.mark.parametrize(
    ("method", "alias"), [("dpa", "--vgg_weights"), ("deep_knn", "--vgg_weights"), ("deep_if", "--inception_weights")]
)
def test_weights_have_one_meaning_under_all_their_names(tmp_path, method, alias):
    flags = ["--method", method, "--photos", str(tmp_path), "--logdir", str(tmp_path / "run"), "--vgg", "vgg16"]
    args = train_anomaly.parse_args([*flags, alias, "random"])
    assert (args.embedder, args.embedder_weights) == ("vgg16", "random")
