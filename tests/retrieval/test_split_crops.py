import shutil

import numpy as np
import pandas as pd
import pytest

from common.errors import BadInput
from data.camelyon import dataset
from retrieval import audit, index, split_crops
from tests.retrieval.crops import LESIONS, PER_LESION, write

FRACTIONS = (0.7, 0.1, 0.2)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    return write(tmp_path_factory.mktemp("crops"))


def split(crops, out, by, *flags):
    """The table that the command writes, with slide, centre and lesion."""
    folders = ["--pos_path", str(crops.pos), "--neg_path", str(crops.neg)]
    split_crops.main([*folders, "--by", by, "--out", str(out), "--workers", "0", *flags])
    known = pd.concat([pd.read_csv(folder / "crops.csv") for folder in (crops.pos, crops.neg)]).drop(columns="split")
    return pd.read_csv(out).merge(known, on="file", validate="one_to_one")


@pytest.mark.parametrize(("by", "key"), [("centre", "centre"), ("slide", "slide"), ("lesion", ["slide", "lesion"])])
def test_what_belongs_together_stays_together_and_both_classes_come_everywhere(crops, tmp_path, by, key):
    table = split(crops, tmp_path / "splits.csv", by)
    assert len(table) == 5 * (LESIONS * PER_LESION + 8)
    assert (table.groupby(key, dropna=False)["split"].nunique() == 1).all()
    assert (table.groupby("split")["label"].nunique() == 2).all()
    assert set(table["split"]) == {"train", "val", "test"}


def test_at_random_each_lesion_is_in_several_splits_and_the_fractions_are_met(crops, tmp_path):
    table = split(crops, tmp_path / "a.csv", "random")
    assert (table[table.label == 1].groupby(["slide", "lesion"])["split"].nunique() > 1).mean() > 0.5
    for label in (0, 1):
        found = table[table.label == label]["split"].value_counts(normalize=True)
        assert found[["train", "val", "test"]].tolist() == pytest.approx(FRACTIONS, abs=0.03)


def test_a_table_of_something_else_is_not_replaced(crops, tmp_path):
    shutil.copy(crops.pos / "crops.csv", tmp_path)
    with pytest.raises(BadInput, match=r"crops\.csv: is there already and not a table of splits"):
        split(crops, tmp_path / "crops.csv", "random")
    assert (tmp_path / "crops.csv").read_bytes() == (crops.pos / "crops.csv").read_bytes()
    assert split(crops, tmp_path / "a.csv", "random").equals(split(crops, tmp_path / "a.csv", "random"))


def test_the_seed_decides(crops, tmp_path):
    first, again, other = (split(crops, tmp_path / f"{i}.csv", "random", "--seed", s) for i, s in enumerate("112"))
    assert first.equals(again) and not first.equals(other)


def test_clusters_keep_near_duplicates_of_a_lesion_together(tmp_path):
    crops = write(tmp_path, reach=0)  # copies
    table = split(crops, tmp_path / "splits.csv", "cluster")
    positives = table[table.label == 1]
    assert (positives.groupby(["slide", "lesion"])["split"].nunique() == 1).all()


def test_crops_of_unknown_origin_are_clustered(tmp_path):
    crops = write(tmp_path / "known", centres=range(2), reach=0)
    for folder in (crops.pos, crops.neg):
        other = tmp_path / "unknown" / folder.name
        for i, path in enumerate(sorted(folder.rglob("*.npy"))):
            if not path.stem.endswith("_seg"):
                target = other / f"a{i}{'_img' if path.stem.endswith('_img') else ''}.npy"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
                if target.stem.endswith("_img"):
                    shutil.copy(str(path).replace("_img", "_seg"), str(target).replace("_img", "_seg"))
    out = tmp_path / "splits.csv"
    folders = ["--pos_path", str(tmp_path / "unknown" / "pos"), "--neg_path", str(tmp_path / "unknown" / "neg")]
    split_crops.main([*folders, "--by", "cluster", "--out", str(out), "--workers", "0"])
    assert len(pd.read_csv(out)) == 2 * (LESIONS * PER_LESION + 8)


def test_two_tight_groups_near_each_other_are_one_cluster():
    """However many near-duplicates an image has, those of the other group are among its pairs."""
    near = np.random.default_rng(0).normal(scale=1e-3, size=(50, 64))
    near[:, 0] += 1
    near[25:, 1] += 0.1
    vectors = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)[:, None]
    pairs = split_crops.near_pairs(index.Vectors(np.arange(50), vectors, {}), threshold=0.3)
    assert len(pairs) == 50 * 49
    assert audit.components(50, pairs).max() == 0


def test_first_release_crops_are_split_by_their_names(crops, tmp_path):
    crops = write(tmp_path)
    for folder in (crops.pos, crops.neg):
        (folder / "crops.csv").unlink()
    folders = ["--pos_path", str(crops.pos), "--neg_path", str(crops.neg), "--out", str(tmp_path / "splits.csv")]
    split_crops.main([*folders, "--by", "lesion"])
    table = pd.read_csv(tmp_path / "splits.csv")
    lesions = table[table.label == 1]["file"].str.extract(r"(patient_\d+_node_\d+_\d+_\d+)")[0]
    assert (table[table.label == 1].groupby(lesions)["split"].nunique() == 1).all()
    (crops.neg / "mine.npy").write_bytes((crops.neg / table[table.label == 0]["file"].iloc[0]).read_bytes())
    with pytest.raises(BadInput, match=r"--by: mine.npy: its slide is not known"):
        split_crops.main([*folders, "--by", "slide"])
    with pytest.raises(BadInput, match=r"--by: mine.npy: its centre is not known"):
        split_crops.main([*folders, "--by", "centre"])


def test_lesions_of_two_slides_whose_names_run_into_their_numbers_stay_two():
    origin = pd.DataFrame({"slide": ["a1", "a", "a"], "lesion": [2.0, 12.0, 12.0], "centre": np.nan}, index=list("xyz"))
    assert split_crops.group(origin, np.ones(3), "lesion").tolist() == [0, 1, 1]
    with pytest.raises(BadInput, match="--by: x: its centre is not known"):
        split_crops.group(origin, np.ones(3), "centre")


def test_too_few_groups_are_named(tmp_path):
    crops = write(tmp_path, centres=[0, 3])
    with pytest.raises(BadInput, match="--by centre: 2 groups are too few: "):
        split(crops, tmp_path / "splits.csv", "centre")
    assert not (tmp_path / "splits.csv").exists()


def test_whatever_the_groups_no_split_lacks_a_class_that_can_have_one():
    rng = np.random.default_rng(0)
    for seed in range(50):
        n = int(rng.integers(3, 8))
        sizes = rng.integers(1, 200, (n, 2))
        groups = np.repeat(np.tile(np.arange(n), 2), sizes.T.ravel())
        labels = np.repeat([0, 1], sizes.sum(axis=0))
        chosen = split_crops.divide(groups, labels, FRACTIONS, seed)
        assert all(set(chosen[labels == c]) == {0, 1, 2} for c in (0, 1))
        assert all(len(set(chosen[groups == g])) == 1 for g in range(n))


@pytest.mark.parametrize("text", ["0.7,0.3", "0.5,0.5,0.5", "1,0,0", "a,b,c"])
def test_wrong_fractions(crops, tmp_path, capsys, text):
    with pytest.raises(SystemExit) as exit_info:
        split(crops, tmp_path / "splits.csv", "random", "--fractions", text)
    assert exit_info.value.code == 2 and "--fractions" in capsys.readouterr().err


def test_training_takes_the_splits(crops, tmp_path):
    table = split(crops, tmp_path / "splits.csv", "slide")
    flags = dataset_flags(crops, tmp_path / "splits.csv")
    splits = dataset.load_splits(flags, balanced=False)
    for name, data in splits.items():
        assert sorted(data.names) == sorted(table[table["split"] == name]["file"])
    default = dataset.load_splits(dataset_flags(crops, None), balanced=False)
    assert default["train"].fingerprint() != splits["train"].fingerprint()


def dataset_flags(crops, splits):
    from common import cli

    parser = cli.ArgumentParser()
    dataset.add_flags(parser)
    flags = ["--pos_path", str(crops.pos), "--neg_path", str(crops.neg)]
    args = parser.parse_args(flags + (["--splits", str(splits)] if splits else []))
    args.seed = 0
    return args


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.assign(split="dev"), "line 2: found .*,dev, expected label 0 or 1 and split train, val, test"),
        (lambda t: t.assign(label=2), "line 2: found .*expected label 0 or 1"),
        (lambda t: pd.concat([t, t[:1]]), r"line 102: .* is named twice$"),
        (lambda t: t.assign(file="no.npy"), "line 2: no.npy is no crop of --pos_path"),
        (lambda t: t.drop(columns="label"), "expected rows of file,label,split, found 100 of file,split"),
        (lambda t: t[:0], "expected rows of file,label,split, found 0 of"),
        (lambda t: t[t.split != "val"], "--splits .*, --pos_path: no crops for the val split"),
        (lambda t: t[(t.split != "test") | (t.label == 1)], "--neg_path: no crops for the test split"),
    ],
)
def test_a_wrong_table_is_refused_by_its_line(crops, tmp_path, change, said):
    split(crops, tmp_path / "splits.csv", "slide")
    path = tmp_path / "splits.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(BadInput, match=said):
        dataset.load_splits(dataset_flags(crops, path))
