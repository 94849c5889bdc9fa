"""Features leave for DSMIL and come back."""

import numpy as np
import pandas as pd
import pytest

from common.errors import BadInput
from mil import bag_list, convert_dsmil, feature_files


@pytest.fixture
def bags(tmp_path):
    """A list of six bags, each a file of features (n, 3)."""
    rng, rows = np.random.default_rng(0), []
    for i in range(6):
        path = tmp_path / f"bag_{i}.npz"
        np.savez(path, features=rng.normal(size=(2 + i, 3)).astype(np.float32))
        rows.append((f"slides/bag_{i}", i % 2, "train", path))
    bag_list.write(tmp_path / "bags.csv", rows)
    return tmp_path / "bags.csv"


def test_features_go_to_dsmil_and_back(bags, tmp_path):
    out = tmp_path / "datasets" / "made"
    convert_dsmil.main(["export", "--bags", str(bags), "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == [
        "0_negative", "0_negative.csv", "1_positive", "1_positive.csv", "made.csv",
    ]  # fmt: skip
    table = pd.read_csv(out / "made.csv")
    assert table.iloc[0].tolist() == ["datasets/made/0_negative/slides_bag_0.csv", 0]
    assert (out / "0_negative" / "slides_bag_0.csv").read_text().splitlines()[1].count(".") == 3
    convert_dsmil.main(["import", "--dataset", str(out / "made.csv"), "--out", str(tmp_path / "back.csv")])
    rows = bag_list.read(tmp_path / "back.csv")
    assert {row.split for row in rows} == {"train", "val", "test"}
    before = {row.bag: feature_files.read(row.file, row.label).features for row in bag_list.read(bags)}
    for row in rows:
        found = feature_files.read(row.file, row.label).features
        np.testing.assert_allclose(found, before[f"slides/{row.bag.split('slides_')[1]}"], atol=1e-4)


def test_a_missing_file_of_features_is_named(tmp_path):
    (tmp_path / "datasets" / "made").mkdir(parents=True)
    path = tmp_path / "datasets" / "made" / "made.csv"
    path.write_text("0,label\ndatasets/made/a/b.csv,0\n")
    with pytest.raises(BadInput, match=r"line 2: found datasets/made/a/b.csv,0, expected a file below"):
        convert_dsmil.main(["import", "--dataset", str(path), "--out", str(tmp_path / "back.csv")])


def test_places_too_near_the_root_are_refused(bags, capsys):
    with pytest.raises(BadInput, match="--out /NAME: expected a folder datasets/NAME"):
        convert_dsmil.main(["export", "--bags", str(bags), "--out", "/NAME"])


def test_classes_are_in_the_alphabets_order(bags, tmp_path):
    flags = ["export", "--bags", str(bags), "--out", str(tmp_path / "out"), "--classes", "tumour", "normal"]
    with pytest.raises(BadInput, match="expected two names or more in the alphabet's order"):
        convert_dsmil.main(flags)
