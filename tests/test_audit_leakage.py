"""The audit finds what was planted, no more than its false alarms elsewhere, and names wrong input in one line."""

import json
import shutil

import imageio.v3 as iio
import numpy as np
import pandas as pd
import pytest
import torch

import audit_leakage
from common.errors import BadInput
from data.cluttered_mnist import generate_data
from retrieval import index, split_crops
from tests.retrieval.crops import slide_texture, write


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Crops, and the tables that split them at random and by slide."""
    folder = tmp_path_factory.mktemp("crops")
    found = write(folder, reach=3)
    for by in ("random", "slide"):
        flags = ["--pos_path", found.pos, "--neg_path", found.neg, "--by", by, "--out", folder / f"{by}.csv"]
        split_crops.main([*map(str, flags), "--workers", "0"])
    found.random, found.slide = folder / "random.csv", folder / "slide.csv"
    found.flags = ["--pos_path", str(found.pos), "--neg_path", str(found.neg)]
    found.truth = ["--truth", str(found.pos / "crops.csv"), str(found.neg / "crops.csv")]
    return found


def run(out, *flags):
    """Exit code, summary.json and audit.csv of an audit."""
    code = audit_leakage.main([*map(str, flags), "--out", str(out), "--workers", "0", "--device", "cpu"])
    return code, json.loads((out / "summary.json").read_text()), pd.read_csv(out / "audit.csv")


def share(summary, split, of="near_duplicates", label=None):
    part = summary["splits"][split][of]
    return (part if label is None else part["by_class"][label])["share"]


def test_a_random_split_shows_its_leaks_and_a_split_by_slide_none(crops, tmp_path):
    _, leaky, table = run(tmp_path / "r", *crops.flags, "--splits", crops.random, *crops.truth, "--verify", "ncc")
    assert share(leaky, "test", label="1") == 1 and share(leaky, "val", label="1") == 1
    found = leaky["splits"]["test"]["truth"]
    assert found["images"]["with_duplicate"]["share"] > 0.7 and found["hardest_auc"] > 0.8
    assert found["random_auc"] > 0.95 and found["sensitivity_at_fpr_0.0001"] is None  # too few pairs
    assert share(leaky, "test", "copies", "1") == 1
    _, clean, _ = run(tmp_path / "s", *crops.flags, "--splits", crops.slide, *crops.truth)
    assert share(clean, "test") == share(clean, "val") == 0
    assert clean["splits"]["test"]["truth"]["duplicate_pairs"] == 0
    nearest = table[(table["label"] == 1)].groupby("query").first()
    assert (nearest["same_lesion"] == 1).mean() > 0.9 and (nearest["overlap"] > 0.7).mean() > 0.9
    assert (nearest["ncc"] > 0.99).all() and (nearest["match_split"] == "train").all()


def test_audit_csv_has_k_rows_for_each_query_and_what_is_known(crops, tmp_path):
    _, summary, table = run(tmp_path, *crops.flags, "--k", 3)
    columns = ["query", "split", "label", "match", "match_split", "distance", "ncc"]
    assert list(table) == [*columns, "same_slide", "same_lesion", "overlap"]
    assert (table.groupby("query").size() == 3).all()
    assert len(table) == 3 * sum(part["near_duplicates"]["images"] for part in summary["splits"].values())
    assert (table.groupby("query")["distance"].apply(lambda d: d.is_monotonic_increasing)).all()
    assert (table["same_slide"] == 0).all() and (table["overlap"] == 0).all()  # by centre
    assert table["ncc"].isna().all()
    assert iio.imread(tmp_path / "pairs.png").shape[2] >= 3


def test_given_again_it_writes_the_same_and_embeds_nothing(crops, tmp_path, monkeypatch):
    flags = [*crops.flags, "--splits", crops.random, "--k", 2]
    run(tmp_path, *flags)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(index, "_embed_batch", None)
    run(tmp_path, *flags)
    after = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    with pytest.raises(BadInput, match="index of other data than asked for"):
        run(tmp_path, *crops.flags)
    with pytest.raises(BadInput, match="index of other orientations than asked for"):
        run(tmp_path, *flags, "--orientations", 1)


def test_fail_on_leak_is_an_exit_code(crops, tmp_path, capsys):
    flags = [*crops.flags, "--splits", crops.random]
    assert run(tmp_path, *flags)[0] == 0
    assert run(tmp_path, *flags, "--fail_on_leak")[0] == 1
    assert "above --fail_on_leak 0.02" in capsys.readouterr().err
    assert run(tmp_path, *flags, "--fail_on_leak", 1)[0] == 0


def test_a_method_is_scored_with_and_without_near_duplicates(crops, tmp_path):
    """A method that is right on copies alone."""
    _, _, table = run(tmp_path / "audit", *crops.flags, "--splits", crops.random)
    test = table[table["split"] == "test"].groupby("query").first().reset_index()
    copies = test["distance"] < 0.3
    score = np.where(copies, test["label"], 1 - test["label"])
    scores = pd.DataFrame({"img_path": test["query"], "label": test["label"], "score": score})
    (tmp_path / "scores").mkdir()
    scores.to_csv(tmp_path / "scores" / "test.csv", index=False)
    (tmp_path / "scores" / "test.json").write_text('{"threshold": 0.5}')
    flags = [*crops.flags, "--splits", crops.random, "--threshold", 0.3]
    found = run(tmp_path / "audit", *flags, "--scores", tmp_path / "scores" / "test.csv")[1]["scores"]
    assert found["with_near_duplicate"]["accuracy"] == 1 and found["without"]["accuracy"] == 0
    assert found["all"]["images"] == len(test)
    scores.assign(img_path="other").to_csv(tmp_path / "scores" / "test.csv", index=False)
    with pytest.raises(BadInput, match="names none of the images"):  # before anything is embedded
        run(tmp_path / "new", *flags, "--scores", tmp_path / "scores" / "test.csv")
    assert not (tmp_path / "new").exists()


def test_scores_of_images_that_are_not_looked_up_are_counted(crops, tmp_path, capsys):
    names = [f"test/{i}.npy" for i in range(3)] + run(tmp_path, *crops.flags)[2].query("split == 'test'")[
        "query"
    ].unique().tolist()
    table = pd.DataFrame({"img_path": names, "label": 0, "score": 0.5})
    table.to_csv(tmp_path / "test.csv", index=False)
    found = run(tmp_path, *crops.flags, "--scores", tmp_path / "test.csv")[1]["scores"]
    assert found["all"]["images"] == len(names) - 3
    assert f"3 of {len(names)} rows name no image here" in capsys.readouterr().out


@pytest.fixture(scope="module")
def nmnist(tmp_path_factory):
    """Little clutter on canvases with room for it; each needle twice in training."""
    out = tmp_path_factory.mktemp("nmnist")
    flags = "--canvas 128 --distortion-num 1 --mnist digits --duplicates 2 --format none --workers 1"
    generate_data.main([*flags.split(), "--out", str(out)])
    return out


def test_across_splits_nmnist_has_no_more_than_false_alarms(nmnist, tmp_path):
    _, summary, table = run(tmp_path, "--data_path", nmnist)
    counts = [summary["splits"][split]["near_duplicates"] for split in ("val", "test")]
    assert sum(c["flagged"] for c in counts) / sum(c["images"] for c in counts) <= 0.03
    assert summary["threshold"]["false_alarm_rate"] <= 0.015
    assert table[["same_slide", "same_lesion", "overlap"]].isna().all(axis=None)


def test_within_training_the_needles_that_come_twice_are_found(nmnist, tmp_path):
    _, summary, table = run(tmp_path, "--data_path", nmnist, "--within", "train", "--objects")
    needles = np.load(nmnist / "recipe" / "train_needle.npy")[:, 0]
    number = {name: int(name.removesuffix(".npz").split("_")[1]) for name in table["query"]}
    nearest = table.groupby("query").first()
    same = needles[[number[name] for name in nearest.index]] == needles[[number[name] for name in nearest["match"]]]
    flagged = nearest["distance"] <= summary["threshold"]["distance"]
    assert len(nearest) == len(needles) // 2
    assert share(summary, "train") == flagged.mean() > 0.5
    assert same[flagged].mean() > 0.97
    assert same[nearest["distance"] < 1e-3].all() and (nearest["distance"] < 1e-3).mean() > 0.3
    assert summary["threshold"]["false_alarm_rate"] < 0.07  # two of 32


def pictures(folder, seeds, side=64):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        iio.imwrite(folder / f"{seed}.png", slide_texture(seed, side))
    return folder


@pytest.fixture
def folders(tmp_path):
    """Pictures; of the test ones two are copies of training pictures, one of them turned."""
    train, test = pictures(tmp_path / "a", range(30)), pictures(tmp_path / "b", range(100, 110))
    iio.imwrite(test / "copy.png", iio.imread(train / "3.png"))
    iio.imwrite(test / "turned.jpg", np.rot90(iio.imread(train / "7.png")))
    return f"train={train},test={test}"


def test_copies_in_plain_folders_are_found(folders, tmp_path):
    code, summary, table = run(tmp_path / "out", "--folders", folders, "--verify", "ncc")
    found = table[table["distance"] <= summary["threshold"]["distance"]].set_index("query")
    assert code == 0 and found["match"].to_dict() == {"copy.png": "3.png", "turned.jpg": "7.png"}
    assert (found["ncc"] > 0.95).all() and table["label"].isna().all()
    assert summary["splits"]["test"]["near_duplicates"]["by_class"] == {}


def test_near_duplicates_within_a_sub_folder_do_not_lower_the_threshold(tmp_path):
    """A folder per group of near-duplicates, as Koker 2020's; the test images are further ones of the groups."""
    for i in range(40):
        texture, group = slide_texture(i, 72), tmp_path / "train" / f"group_{i}"
        group.mkdir(parents=True)
        for j in range(3):
            iio.imwrite(group / f"{j}.png", texture[j : j + 64, j : j + 64])
        iio.imwrite(pictures(tmp_path / "test", []) / f"{i}.png", texture[2:66, 4:68])
    where = f"train={tmp_path / 'train'},test={tmp_path / 'test'}"
    _, summary, _ = run(tmp_path / "out", "--folders", where)
    assert summary["threshold"]["neighbour"] == "of another folder"
    assert share(summary, "test") > 0.9


def test_a_small_split_searched_in_itself_takes_its_threshold_of_a_larger_one(tmp_path):
    train, test = pictures(tmp_path / "a", [1, 2, 3]), pictures(tmp_path / "b", range(10, 30))
    iio.imwrite(train / "copy.png", iio.imread(train / "1.png"))
    _, summary, _ = run(tmp_path / "out", "--folders", f"train={train},test={test}", "--within", "train")
    assert summary["threshold"]["reference"] == 20 and share(summary, "train") == 0.5


def test_one_training_image_is_enough_for_a_threshold_of_ones_own(tmp_path):
    train, test = pictures(tmp_path / "a", [1]), pictures(tmp_path / "b", [1, 2])
    where = ["--folders", f"train={train},test={test}"]
    _, summary, _ = run(tmp_path / "out", *where, "--threshold", 0.1)
    assert share(summary, "test") == 0.5 and summary["threshold"]["false_alarm_rate"] is None
    assert "expected two images" in said_by(where, tmp_path / "auto")


def test_a_truth_of_one_class_leaves_the_other_its_own_tables(crops, tmp_path):
    thresholds, tables = [], [crops.pos / "crops.csv", crops.neg / "crops.csv"]
    for name, given in (("both", tables), ("one", tables[:1])):
        _, summary, table = run(tmp_path / name, *crops.flags, "--splits", crops.random, "--truth", *given)
        thresholds.append(summary["threshold"]["distance"])
        assert table["same_slide"].notna().all()
    assert thresholds[0] == thresholds[1]


def test_an_unreadable_picture_is_named_and_skipped(folders, tmp_path, capsys):
    (tmp_path / "b" / "105.png").write_text("damaged")
    (tmp_path / "a" / "3.png").write_text("damaged")
    code, summary, table = run(tmp_path / "out", "--folders", folders)
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 1 and len(said) == 2 and "3.png: not a readable picture" in said[0] and "105.png" in said[1]
    assert summary["splits"]["test"]["near_duplicates"]["images"] == 11
    assert not (table["match"] == "3.png").any() and not (table["query"] == "105.png").any()
    assert run(tmp_path / "out", "--folders", folders)[0] == 1


def test_identical_and_flat_images_give_no_nan(tmp_path):
    for name in ("a", "b"):
        folder = pictures(tmp_path / name, [1])
        for i in range(4):
            shutil.copy(folder / "1.png", folder / f"same_{i}.png")
            iio.imwrite(folder / f"flat_{i}.png", np.full((64, 64, 3), 40 * i, np.uint8))
    code, summary, table = run(
        tmp_path / "out", "--folders", f"train={tmp_path / 'a'},test={tmp_path / 'b'}", "--verify", "ncc"
    )
    assert code == 0 and share(summary, "test") == 1 and np.isfinite(table["distance"]).all()
    assert (table["ncc"].dropna() == 1).all()
    assert "NaN" not in json.dumps(summary)


def test_crops_in_plain_folders_are_held_against_a_table(crops, tmp_path):
    split = pd.read_csv(crops.random)
    for row in split[split.label == 1].itertuples():
        target = tmp_path / row.split / row.file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(crops.pos / row.file, target)
    names = ",".join(f"{name}={tmp_path / name}" for name in ("train", "val", "test"))
    flags = ["--folders", names, "--side", 48, "--truth", crops.pos / "crops.csv"]
    _, summary, table = run(tmp_path / "out", *flags)
    assert summary["splits"]["test"]["truth"]["duplicate_pairs"] > 10
    assert summary["splits"]["test"]["truth"]["hardest_auc"] > 0.9
    assert table["overlap"].max() > 0.7


def said_by(flags, out, capsys=None):
    with pytest.raises(BadInput) as error:
        run(out, *flags)
    return str(error.value)


def test_wrong_input_is_named(crops, folders, tmp_path):
    assert "expected one of --data_path, --folders, --pos_path and --neg_path; found none" in said_by([], tmp_path)
    both = ["--folders", folders, "--data_path", tmp_path]
    assert "found --data_path and --folders" in said_by(both, tmp_path)
    assert "--splits s.csv: goes with" in said_by(["--folders", folders, "--splits", "s.csv"], tmp_path)
    assert "--neg_path is needed" in said_by(crops.flags[:2], tmp_path)
    assert "--within dev: no split dev among train, test" in said_by(
        ["--folders", folders, "--within", "dev"], tmp_path
    )
    alone = folders.split(",")[0]
    assert "expected another split" in said_by(["--folders", alone], tmp_path)
    assert "no split train among val" in said_by(["--folders", alone.replace("train", "val")], tmp_path)
    assert "no such folder" in said_by(["--folders", f"{alone},test={tmp_path / 'none'}"], tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no pictures in it" in said_by(["--folders", f"{alone},test={tmp_path / 'empty'}"], tmp_path)
    assert "do not say where their objects are" in said_by(["--folders", folders, "--objects"], tmp_path)
    table = ["--truth", crops.pos / "crops.csv"]
    assert "names none of the train images, as 0.png" in said_by(["--folders", folders, *table], tmp_path)
    small = ["--folders", folders, "--side", "8", "--embedder", "vgg16", "--weights", "random"]
    assert "needs images of 16 px or more, found 8 x 8" in said_by(small, tmp_path)
    assert "--scores dev.csv: expected val.csv or test.csv" in said_by([*crops.flags, "--scores", "dev.csv"], tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--threshold", "3"], "expected auto or a distance from 0 to 2"),
        (["--fail_on_leak", "2"], "expected a share from 0 to 1"),
        (["--folders", "train"], "expected train=FOLDER,test=FOLDER"),
        (["--folders", "train=a,train=b"], "expected every split once"),
        (["--k", "0"], "a whole number of 1 or more"),
    ],
)
def test_wrong_flags(tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit) as exit_info:
        audit_leakage.main([*flags, "--out", str(tmp_path)])
    assert exit_info.value.code == 2 and said in capsys.readouterr().err


def test_a_network_of_the_weights_folder_tells_copies_from_look_alikes(folders, tmp_path):
    torch.manual_seed(0)
    flags = ["--folders", folders, "--embedder", "squeezenet", "--weights", "random", "--side", "64"]
    _, summary, table = run(tmp_path / "out", *flags)
    assert summary["embedder"]["weights"] == "random"
    nearest = table.groupby("query").first()
    assert nearest.loc["copy.png", "match"] == "3.png" and nearest.loc["copy.png", "distance"] < 1e-3
