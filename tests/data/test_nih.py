import itertools

import imageio.v3 as imageio
import numpy as np
import pytest

from common.errors import BadInput, WorkFailed
from data import nih

HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,x,y\n"


def test_pictures_become_grey_and_small_by_bilinear_means(tmp_path):
    ramp = np.linspace(0, 255, 128).round().astype(np.uint8)[None].repeat(128, 0)
    (tmp_path / "in" / "images_001").mkdir(parents=True)
    imageio.imwrite(tmp_path / "in" / "images_001" / "a.png", ramp)
    imageio.imwrite(tmp_path / "in" / "b.png", np.dstack([ramp, ramp, ramp, ramp]))
    nih.main(["resize", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--size", "32", "--workers", "1"])
    for name in ("a.png", "b.png"):
        small = imageio.imread(tmp_path / "out" / name)
        assert small.shape == (32, 32) and small.dtype == np.uint8
        means = ramp.reshape(32, 4, 32, 4).mean(axis=(1, 3))
        assert np.abs(small[2:-2, 2:-2] - means[2:-2, 2:-2]).max() < 1.5


def test_what_is_there_is_kept_and_a_damaged_picture_is_named(tmp_path, capsys):
    (tmp_path / "in").mkdir(), (tmp_path / "out").mkdir()
    imageio.imwrite(tmp_path / "in" / "a.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "in" / "b.png").write_bytes(b"damaged")
    (tmp_path / "out" / "a.png").write_text("mine")
    command = ["resize", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--workers", "1"]
    with pytest.raises(WorkFailed, match=r"b\.png: not a readable picture.*\(1 of 2 pictures\)"):
        nih.main(command)
    assert (tmp_path / "out" / "a.png").read_text() == "mine"
    imageio.imwrite(tmp_path / "in" / "b.png", np.zeros((8, 8), np.uint8))
    nih.main(command)
    assert imageio.imread(tmp_path / "out" / "b.png").shape == (300, 300)
    assert "1 pictures resized, 1 there already" in capsys.readouterr().out


def test_two_pictures_of_a_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        imageio.imwrite(tmp_path / folder / "x.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(BadInput, match="holds more than one x"):
        nih.main(["resize", "-i", str(tmp_path), "-o", str(tmp_path / "out")])


@pytest.fixture
def flags(tmp_path):
    """40 patients with five images each: views in turn, every second patient healthy in most; the last ten for test."""
    rows, names = [], {"train": [], "test": []}
    for patient in range(40):
        for i in range(5):
            name, view = f"{patient:08}_{i:03}.png", ("PA", "AP")[i % 2]
            findings = "No Finding" if patient % 2 else ("Effusion", "Mass", "Effusion|Mass")[(patient // 2 + i) % 3]
            rows.append(f"{name},{findings},{i},{patient},50,M,{view},1,1\n")
            names["test" if patient >= 30 else "train"].append(name)
    (tmp_path / "entries.csv").write_text(HEADER + "".join(rows))
    for split, own in names.items():
        (tmp_path / split).write_text("\n".join(own))
    paths = {"data_entry": "entries.csv", "train_val_list": "train", "test_list": "test"}
    return [word for name, path in paths.items() for word in (f"--path_to_{name}", str(tmp_path / path))]


def read(path):
    return path.read_text().splitlines()


def test_lists_and_folds_are_written_for_each_view(flags, tmp_path):
    out = tmp_path / "out"
    nih.main(["folds", *flags, "-o", str(out)])
    entries = nih.read_entries(tmp_path / "entries.csv")
    for view in nih.VIEWS:
        for kind in ("normal", "anomaly"):
            for split in ("train", "test"):
                listed = entries.loc[read(out / view / kind / split)]
                assert len(listed) and (listed["view"] == view).all()
                assert ((listed["findings"] == "No Finding") == (kind == "normal")).all()
                assert (listed["patient"].astype(int) >= 30).all() == (split == "test")
        tested = []
        for k in range(3):
            folder = out / view / f"fold_{k}"
            fold = {part: read(folder / part) for part in ("normal/train", "normal/val", "normal/test")}
            patients = [set(entries.loc[names]["patient"]) for names in fold.values()]
            assert all(patients) and len(set.union(*patients)) == sum(map(len, patients))
            assert sorted(itertools.chain(*fold.values())) == read(out / view / "normal" / "train")
            tested += fold["normal/test"]
            anomalies = entries.loc[read(folder / "anomaly" / "test")]
            assert len(set(anomalies["findings"])) == 1 and "|" not in anomalies["findings"].iloc[0]
        assert sorted(tested) == read(out / view / "normal" / "train")


def test_wrong_lists_are_named(flags, tmp_path):
    (tmp_path / "test").write_text("other.png\n")
    with pytest.raises(BadInput, match=r"--path_to_test_list .*test: other\.png is not in .*entries\.csv"):
        nih.main(["folds", *flags, "-o", str(tmp_path / "out")])
    (tmp_path / "entries.csv").write_text("Image Index,Finding Labels\na,b\n")
    with pytest.raises(BadInput, match=r"--path_to_data_entry .* has no column 'Patient ID'"):
        nih.main(["folds", *flags, "-o", str(tmp_path / "out")])
