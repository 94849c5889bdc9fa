"""A comparison says what each run's own scores say, and compares only what can be."""

import json

import numpy as np
import pandas as pd
import pytest

from common import scores
from common.errors import BadInput
from experiments import compare_runs


def write_run(run, seed=0, names=None, cell=1):
    """Scores of 12 small objects, 6 large ones and 10 images without."""
    rng = np.random.default_rng(seed)
    sizes = [0.05] * 12 + [0.2] * 6 + [None] * 10
    rows = [
        {"img": i, "img_path": f"{names or 'image'}_{i}.npy", "label": int(o2i is not None), "o2i": o2i}
        | {"score": float(rng.normal() + (o2i or 0) * 10), "peak_y": 1, "peak_x": 1, "cell": cell}
        | {"confidence": float(rng.random()), "hit": int(o2i is not None and i % 2)}
        for i, o2i in enumerate(sizes)
    ]
    run.mkdir()
    scores.write(run, "test", rows, 0.0)
    return run


def compare(*flags):
    compare_runs.main([*map(str, flags)])
    out = flags[flags.index("--out") + 1]
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    return pd.read_csv(out / "comparison.csv")


def test_a_comparison_holds_every_runs_own_scores(tmp_path):
    runs = [write_run(tmp_path / name, seed) for seed, name in enumerate("abc")]
    table = compare(runs[0], f"both={runs[1]}", f"both={runs[2]}", "--out", tmp_path / "out")
    assert table["name"].tolist() == ["a"] * 3 + ["both"] * 6
    for run, own in zip(runs, (table[table["run"] == str(run)] for run in runs), strict=True):
        found = json.loads((run / "scores" / "test.json").read_text())
        parts = {"all": found} | {part["o2i"]: part for part in found["ranges"]}
        assert own["o2i"].tolist() == ["all", "(10-50] %", "(1-10] %"]
        for name in ("positives", "auc", "ap", "localization_ap"):
            assert own[name].tolist() == pytest.approx([parts[o2i][name] for o2i in own["o2i"]])
        assert own["o2i_percent"].tolist() == pytest.approx([10, 20, 5])


def test_an_audit_adds_scores_without_near_duplicates(tmp_path):
    """Those of the best large object: the AUC that is left is of the others."""
    run, audit = write_run(tmp_path / "run"), tmp_path / "audit"
    audit.mkdir()
    rows = scores.read(run / "scores" / "test.csv")[0]
    copies = set(rows.loc[rows["o2i"] == 0.2].nlargest(1, "score")["img_path"])
    lines = [
        {"split": "test", "query": name, "label": 1, "distance": 0.1 + (name not in copies)} for name in rows.img_path
    ]
    pd.DataFrame(lines).to_csv(audit / "audit.csv", index=False)
    (audit / "summary.json").write_text('{"threshold": {"distance": 0.3}}')
    table = compare(run, "--audit", audit, "--out", tmp_path / "out").set_index("o2i")
    assert table["near_duplicates"].tolist() == pytest.approx([1 / 18, 1 / 6, 0])
    left = rows[(rows["o2i"] == 0.2) & ~rows["img_path"].isin(copies) | (rows["label"] == 0)]
    positives, negatives = (left.loc[left["label"] == label, "score"].to_numpy() for label in (1, 0))
    assert table["auc_without"]["(10-50] %"] == pytest.approx((positives[:, None] > negatives).mean())
    assert table["auc_without"]["(1-10] %"] == table["auc"]["(1-10] %"]


def test_runs_on_other_images_and_files_of_others_are_refused(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", names="other")
    with pytest.raises(BadInput, match=r"has 28 images, 0 of them among the 28 of .*equal --seed"):
        compare(a, b, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "comparison.csv").write_text("mine")
    with pytest.raises(BadInput, match=r"comparison\.csv: is there already and not a comparison"):
        compare(a, "--out", tmp_path)


def test_images_of_equal_names_are_the_same_only_with_equal_labels_and_sizes(tmp_path):
    """Canvases of every size have the same names."""
    runs = [write_run(tmp_path / name) for name in "abc"]
    for run, change in zip(
        runs[1:], ({"o2i": lambda t: t["o2i"] / 4}, {"label": lambda t: 1 - t["label"]}), strict=True
    ):
        path = run / "scores" / "test.csv"
        pd.read_csv(path).assign(**change).to_csv(path, index=False)
    with pytest.raises(BadInput, match=r"its objects take 2\.50% of an image on average, 10\.00% in"):
        compare(*runs[:2], "--out", tmp_path / "out")
    with pytest.raises(BadInput, match="has 28 images, 0 of them among the 28"):
        compare(*runs[::2], "--out", tmp_path / "out")


def test_names_are_given_or_of_folders(tmp_path):
    runs = [tmp_path / part / "run" for part in ("lr=0.1", "b")]
    for run in runs:
        run.parent.mkdir()
        write_run(run)
    with pytest.raises(BadInput, match="another run is called run too; give it a name, as NAME="):
        compare(*runs, "--out", tmp_path / "out")
    table = compare(f"x={runs[0]}", runs[1], "--out", tmp_path / "out")
    assert list(dict.fromkeys(table["name"])) == ["x", "run"]
    assert compare(runs[0], "--out", tmp_path / "out")["name"].unique().tolist() == ["run"]


def test_tables_of_others_need_names_labels_and_scores_alone(tmp_path):
    run = write_run(tmp_path / "run")
    path = run / "scores" / "test.csv"
    table = pd.read_csv(path)
    table[["img_path", "label", "score"]].to_csv(path, index=False)
    assert compare(run, "--out", tmp_path / "out")["o2i"].tolist() == ["all"]
    table.assign(cell="x").to_csv(path, index=False)
    with pytest.raises(BadInput, match=r"test\.csv: cell holds what is no number"):
        compare(run, "--out", tmp_path / "out")


def test_images_of_unknown_size_are_compared_as_a_whole(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    known = dict.fromkeys(scores.COLUMNS) | {"cell": 16, "confidence": 0.5}
    images = [known | {"img_path": str(i), "label": i % 2, "score": float(i)} for i in range(12)]
    scores.write(run, "images", images)
    table = compare(run, "--split", "images", "--out", tmp_path / "out")
    assert table["o2i"].tolist() == ["all"] and table["localization_ap"].isna().all()
