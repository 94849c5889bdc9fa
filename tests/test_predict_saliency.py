import json
import shutil
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pandas as pd
import pytest
import torch

import predict_saliency
import train_camelyon
import train_mnist
from common.errors import BadInput
from common.scores import COLUMNS
from data.cluttered_mnist import generate_data
from models.needle import ModelConfig, build_model
from models.saliency import saliency_maps
from predict_saliency import describe_image
from tests.common.test_checkpoint import old_checkpoint
from tests.retrieval import crops


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small nMNIST of scikit-learn's digits and a run of one epoch on it."""
    folder = tmp_path_factory.mktemp("saliency")
    data, logdir = folder / "data", folder / "run"
    flags = "--canvas 64 --patch-size 64 --mnist digits --duplicates 1 --format none --workers 1"
    generate_data.main([*flags.split(), "--out", str(data)])
    flags = "--width -2 -e 1 -b 16 --num_examples 32 --kernel3 1_1_0_0 --workers 0 --device cpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.loaders.NEEDLES_TRAIN_SIZE", 32)
        train_mnist.main([*flags.split(), "--data_path", str(data), "--logdir", str(logdir)])
    return data, logdir


def explain(trained, *flags):
    data, logdir = trained
    arguments = [
        "--datatype",
        "mnist",
        "--data_path",
        data,
        "--logdir",
        logdir,
        "--workers",
        0,
        "--device",
        "cpu",
        *flags,
    ]
    predict_saliency.main(list(map(str, arguments)))
    name = f"saliency_{flags[flags.index('--split') + 1]}" if "--split" in flags else "saliency"
    return pd.read_csv(logdir / name / "pred.csv"), logdir / name


def test_folder_holds_maps_tables_and_pictures(trained):
    explain(trained, "--overlays", 5)  # more of them first: none may stay
    table, folder = explain(trained, "--overlays", 3)
    assert len(list(folder.glob("sal_*.npy"))) == len(table)
    n = len(table)
    assert list(table.columns) == ["img", "img_path", "label", "pred", "prob", "peak_y", "peak_x", "confidence", "hit"]
    assert table.img.tolist() == list(range(n))
    csv = pd.read_csv(trained[0] / "val.csv")
    assert table.img_path.tolist() == csv.img_path.tolist()
    assert table.label.tolist() == csv.label.tolist()
    for i in (0, n - 1):
        saliency, local = np.load(folder / f"sal_{i}.npy"), np.load(folder / f"pred_{i}.npy")
        assert (saliency.shape, saliency.dtype) == ((64, 64), np.float32)
        assert local.shape == (8, 8)
        assert 0 <= local.min() <= local.max() <= 1
        row = table.loc[i]
        assert saliency[row.peak_y, row.peak_x] == saliency.max() == np.float32(row.confidence)
    assert sorted(path.name for path in folder.glob("overlay_*")) == [f"overlay_{i}.png" for i in range(3)]
    assert imageio.imread(folder / "overlay_0.png").shape == (64, 64, 3)
    assert imageio.imread(folder / "contact_sheet.png").ndim == 3
    scores = json.loads((folder / "localization.json").read_text())
    assert scores["hits"] == table.hit.sum()
    assert 0 <= scores["average_precision"] <= 1


def test_an_interrupted_run_continues_and_leaves_what_was_there(trained, tmp_path, monkeypatch):
    _, folder = explain(trained, "-b", 8)
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    batches = []

    def interrupt(model, images):
        batches.append(images)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return saliency_maps(model, images)

    monkeypatch.setattr(predict_saliency, "saliency_maps", interrupt)
    with pytest.raises(KeyboardInterrupt):
        explain(trained, "-b", 8)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with (folder.parent / "saliency.part" / "rows.jsonl").open("a") as file:
        file.write('{"img": 16, "img_')  # as a kill leaves it
    explain(trained, "-b", 8)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    n = len(pd.read_csv(folder / "pred.csv"))
    assert len(batches) == 3 + -(-n // 8) - 2  # two batches were kept
    assert not (folder.parent / "saliency.part").exists()
    (folder / "notes.txt").unlink()


def test_scores_lie_where_every_method_writes_them(trained):
    table, folder = explain(trained)
    scores = pd.read_csv(folder.parent / "scores" / "val.csv")
    assert tuple(scores.columns) == COLUMNS
    for column in ("img", "img_path", "label", "peak_y", "peak_x", "confidence", "hit"):
        assert scores[column].tolist() == table[column].tolist()
    np.testing.assert_allclose(1 / (1 + np.exp(-scores.score)), table.prob)
    assert scores.o2i.dropna().tolist() == [28 * 28 / 64**2] * int(table.label.sum())
    by_size = json.loads((folder.parent / "scores" / "val.json").read_text())
    localisation = json.loads((folder / "localization.json").read_text())
    assert by_size["localization_ap"] == pytest.approx(localisation["average_precision"])
    (found,) = [each for each in by_size["ranges"] if each["positives"]]
    assert (found["o2i"], found["auc"]) == ("(10-50] %", by_size["auc"])


def test_maps_of_several_splits_lie_side_by_side(trained):
    splits = {"val": explain(trained), "test": explain(trained, "--split", "test")}
    for split, (table, folder) in splits.items():
        assert json.loads((folder / "localization.json").read_text())["split"] == split
        assert table.img_path.tolist() == pd.read_csv(trained[0] / f"{split}.csv").img_path.tolist()
        assert len(list(folder.glob("sal_*.npy"))) == len(table)
    assert len({folder for _, folder in splits.values()}) == 2


def test_maps_of_another_split_and_strangers_files_are_not_taken_away(trained, tmp_path):
    logdir = shutil.copytree(trained[1], tmp_path / "run", ignore=shutil.ignore_patterns("saliency*"))
    (tmp_path / "elsewhere").mkdir()
    (logdir / "saliency").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="saliency: is a link"):
        explain((trained[0], logdir))
    (logdir / "saliency").unlink()
    explain((trained[0], logdir), "--split", "test")
    (logdir / "saliency_test").rename(logdir / "saliency")  # as earlier versions left it
    with pytest.raises(BadInput, match="holds maps of the test split; rename it to saliency_test"):
        explain((trained[0], logdir))
    (logdir / "saliency").rename(logdir / "saliency_test")
    (logdir / "saliency.part").mkdir(exist_ok=True)
    (logdir / "saliency.part" / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"saliency\.part/thesis\.txt: not of this command"):
        explain((trained[0], logdir))
    shutil.rmtree(logdir / "saliency.part")
    for folder in ("saliency.part", "saliency"):  # where no book-keeping says that maps of these names are ours
        (logdir / folder).mkdir(exist_ok=True)
        (logdir / folder / "sal_9999.npy").write_text("mine")
        with pytest.raises(BadInput, match=r"sal_9999\.npy: not of this command"):
            explain((trained[0], logdir))
        assert (logdir / folder / "sal_9999.npy").read_text() == "mine"
        (logdir / folder / "sal_9999.npy").unlink()


@pytest.mark.parametrize("moved", [0, 1, 9])
def test_maps_that_a_kill_has_published_in_part_are_replaced(trained, tmp_path, monkeypatch, moved):
    logdir = shutil.copytree(trained[1], tmp_path / "run")
    whole = {path.name: path.read_bytes() for path in explain((trained[0], logdir))[1].iterdir()}
    moves, replace = [], Path.replace

    def move(path, target):
        if target.parent.name == "saliency":
            moves.append(target)
            if len(moves) > moved:
                raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", move)
    with pytest.raises(KeyboardInterrupt):
        explain((trained[0], logdir), "--overlays", 3)
    monkeypatch.undo()
    found = {path.name: path.read_bytes() for path in explain((trained[0], logdir))[1].iterdir()}
    assert found == whole


def test_a_runs_table_of_splits_is_used_and_a_changed_one_refused(tmp_path, capsys):
    """Else crops that the network was trained on were explained as validation crops."""
    written = crops.write(tmp_path)
    table, splits = crops.table_of_splits(written, ["train", "test", "val"]), tmp_path / "splits.csv"
    table.to_csv(splits, index=False)
    data = ["--pos_path", written.pos, "--neg_path", written.neg, "--workers", 0]
    where = [*data, "--logdir", tmp_path / "run", "--device", "cpu"]
    train_camelyon.main([*map(str, where), "--splits", str(splits), "--width", "-4", "-e", "1", "-b", "4"])
    explain_crops = [*map(str, where), "--datatype", "camelyon"]
    predict_saliency.main(explain_crops)
    found = pd.read_csv(tmp_path / "run" / "saliency" / "pred.csv")
    assert {Path(name).name for name in found.img_path} <= {
        Path(name).name for name in table.file[table.split == "val"]
    }
    table.replace({"split": {"train": "val", "val": "train"}}).to_csv(splits, index=False)
    with pytest.raises(BadInput, match=r"splits\.csv: has changed since the run was trained with it"):
        predict_saliency.main(explain_crops)
    predict_saliency.main([*explain_crops, "--splits", str(splits)])
    assert "splits.csv: not as the run was trained with" in capsys.readouterr().out


def test_an_image_on_which_numbers_overflow_is_named(trained, monkeypatch):
    def overflow(model, images):
        saliency, local, logits = saliency_maps(model, images)
        logits[1] = torch.nan
        return saliency, local, logits

    monkeypatch.setattr(predict_saliency, "saliency_maps", overflow)
    with pytest.raises(BadInput, match=r"val_1\.npz: the network's numbers overflow on this image"):
        explain(trained)


def test_hits_lie_inside_the_needles_box(trained):
    table, _ = explain(trained)
    csv = pd.read_csv(trained[0] / "val.csv")
    inside = table.peak_y.between(csv.needle_y, csv.needle_y + 27) & table.peak_x.between(
        csv.needle_x, csv.needle_x + 27
    )
    assert table.hit.tolist() == inside.astype(int).tolist()  # a negative's empty position is never inside


def test_the_network_comes_from_the_checkpoint_and_a_contradiction_is_an_error(trained):
    explain(trained, "--receptive_field", 9, "--width", -2)  # repeats what the checkpoint says
    with pytest.raises(BadInput, match=r"--kernel3 .* leave the flag out"):
        explain(trained, "--receptive_field", 33)
    with pytest.raises(BadInput, match=r"--data_scaling 0\.5"):
        explain(trained, "--data_scaling", 0.5)
    with pytest.raises(BadInput, match="--datatype camelyon"):
        explain(trained, "--datatype", "camelyon")


def test_a_needle_is_outlined_and_without_positions_ap_is_left_out(trained, tmp_path, capsys):
    data, _ = trained
    blind = tmp_path / "data"
    blind.mkdir()
    for path in data.iterdir():
        (blind / path.name).symlink_to(path)
    for name in ("val.csv", "manifest.json"):
        (blind / name).unlink()
    pd.read_csv(data / "val.csv")[["img_path", "label"]].to_csv(blind / "val.csv", index=False)
    table, folder = explain((blind, trained[1]))
    assert table.hit.isna().all()
    assert "average_precision" not in json.loads((folder / "localization.json").read_text())
    assert "localisation left out" in capsys.readouterr().out


def test_saliency_is_the_gradient_of_the_positive_logit():
    model = build_model(ModelConfig(3, width=-2)).double().eval()
    images = torch.rand(1, 3, 24, 24, dtype=torch.float64)
    saliency, _, logits = saliency_maps(model, images)
    y, x, step = 10, 13, 1e-6
    gradient = []
    for channel in range(3):
        moved = images.clone()
        moved[0, channel, y, x] += step
        gradient.append((model(moved)[0, 1] - logits[0, 1]).item() / step)
    assert saliency[0, y, x].item() == pytest.approx(np.sqrt(np.mean(np.square(gradient))), rel=1e-3)


class OneNeedle:
    """A data set of one positive with a needle at (5, 7), and a negative."""

    names, has_objects = ("a", "b"), True

    def object_mask(self, i):
        mask = np.zeros((64, 64), bool)
        mask[5:33, 7:35] = True
        return mask if i == 0 else None


@pytest.mark.parametrize(("peak", "hit"), [((5, 7), 1), ((32, 34), 1), ((33, 34), 0), ((4, 7), 0), ((32, 35), 0)])
def test_the_box_is_28_pixels_with_its_ends_inside(peak, hit):
    saliency = np.zeros((64, 64), np.float32)
    saliency[peak] = 1
    assert describe_image(OneNeedle(), 0, 1, 0.9, 2.2, saliency)["hit"] == hit
    assert describe_image(OneNeedle(), 1, 0, 0.1, -2.2, saliency)["hit"] == 0


def test_a_first_release_checkpoint_is_explained(trained, tmp_path):
    torch.save(
        old_checkpoint(build_model(ModelConfig(1, (1, 1, 0, 0), -2, "attention"))), tmp_path / "best_checkpoint.pth"
    )
    table, _ = explain((trained[0], tmp_path))
    assert len(table) > 0


def test_a_log_folder_without_checkpoint_is_named(trained, tmp_path):
    with pytest.raises(BadInput, match=r"best_checkpoint\.pth: No such file"):
        explain((trained[0], tmp_path))
