"""What the pages for newcomers say is so: a method added by its page, flags and functions that there are."""

import argparse
import ast
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from skimage.io import imread, imsave
from sklearn.metrics import roc_auc_score

import score_anomaly
import train_anomaly
from anomaly.methods import METHODS
from common.files import read_json
from data.camelyon import dataset as camelyon

ROOT = Path(__file__).parent.parent
ADDING, COMING, FORMATS = (ROOT / "docs" / f"{name}.md" for name in ("adding_a_method", "coming_from", "FORMATS"))


def test_the_method_on_the_page_is_added_by_its_module_and_one_entry_alone(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", ADDING.read_text(), re.S)[1]
    assert len(code.splitlines()) < 30
    (tmp_path / "intensity.py").write_text(code)
    spec = importlib.util.spec_from_file_location("anomaly.intensity", tmp_path / "intensity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, "intensity", module)

    rng = np.random.default_rng(0)
    for kind, split, n in (("normal", "train", 4), ("normal", "test", 8), ("abnormal", "test", 8)):
        folder = tmp_path / "photos" / split / kind
        folder.mkdir(parents=True)
        for i in range(n):
            picture = rng.integers(0, (140 if kind == "abnormal" else 128) + rng.integers(0, 20), (16, 16, 3))
            imsave(folder / f"{i}.png", picture.astype(np.uint8), check_contrast=False)
    run = ["--logdir", str(tmp_path / "run"), "--workers", "0"]
    train_anomaly.main(["--method", "intensity", "--photos", str(tmp_path / "photos"), "--tile", "16", *run])
    score_anomaly.main(run)

    folders = [tmp_path / "photos" / "test" / kind for kind in ("normal", "abnormal")]
    means = [[imread(path).mean() for path in sorted(folder.iterdir())] for folder in folders]
    direct = roc_auc_score(np.repeat([0, 1], 8), np.concatenate(means))
    found = read_json(tmp_path / "run" / "scores" / "test.json")["auc"]
    assert found == pytest.approx(direct, abs=1e-9) and 0.5 < direct < 1


def test_pictures_with_masks_become_crops_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mask = np.zeros((60, 80), np.uint8)
    mask[30:, :40] = 255
    imsave("photo.png", np.repeat(mask[..., None], 3, axis=2), check_contrast=False)
    imsave("mask.png", mask, check_contrast=False)
    exec(re.search(r"```python\n(.*?)```", FORMATS.read_text(), re.S)[1], {})
    (tmp_path / "own" / "neg" / "test").mkdir(parents=True)
    np.save(tmp_path / "own" / "neg" / "test" / "photo.npy", np.zeros((256, 256, 3), np.uint8))
    args = argparse.Namespace(pos_path=tmp_path / "own" / "pos", neg_path=tmp_path / "own" / "neg", seed=0, splits=None)
    data = camelyon.load_splits(args, ["test"])["test"]
    (i,) = np.flatnonzero(data.labels == 1)
    assert np.mean((data[i][0][0].numpy() > 0.5) == data.object_mask(i)) > 0.999  # but for the corner's rounding
    assert data.o2i(i) == pytest.approx(0.25, abs=0.01)


def rows(page, heading):
    """The cells of the table below a heading."""
    section = page.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]


def test_every_function_that_the_page_names_stands_in_its_file():
    table = rows(ADDING.read_text(), "## Where is the loss of ...")
    assert len(table) > 5
    for loss, names, file in table:
        tree = ast.parse((ROOT / file.strip("`")).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        methods = {f"{node.name}.{part.name}" for node in classes for part in node.body if hasattr(part, "name")}
        assert set(re.findall(r"`([\w.]+)`", names)) <= functions | methods, loss


def test_every_file_and_name_that_the_page_mentions_is_there():
    for path in re.findall(r"`((?:\w+/)*\w+\.py)`", ADDING.read_text()):
        assert (ROOT / path).exists() or path == "anomaly/intensity.py", path
    for name, path in re.findall(r"`(\w+)` of\s`([\w/]+\.py)`", ADDING.read_text()):
        assert re.search(rf"^(def )?{name}\b", (ROOT / path).read_text(), re.M), (name, path)


HEADINGS = re.findall(r"^### `(.*)`$", COMING.read_text(), re.M)


def flags_of(command, monkeypatch, capsys):
    """The flags that a command's --help names."""
    path, *words = command.split()
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    spec = importlib.util.spec_from_file_location("command", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit):
        getattr(module, "main" if words == ["anomaly"] else "parse_args")([*words, "--help"])
    return set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", capsys.readouterr().out))


def named(cells):
    return {flag for cell in cells for flag in re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", cell)}


@pytest.mark.parametrize("command", HEADINGS)
def test_every_flag_called_ours_is_a_flag_of_the_command(command, monkeypatch, capsys):
    table = rows(COMING.read_text(), f"### `{command}`")
    assert table and named(ours for _, ours, _ in table) <= flags_of(command, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("translator", "commands"),
    [
        ("compat/hnm_wsi/run.py", ["mil/finetune.py"]),
        ("compat/binder/src/main.py", ["train_retrieval.py", "retrieval/evaluate_pairs.py"]),
        ("compat/binder/src/train.py", ["train_retrieval.py"]),
        ("compat/binder/src/retrieve.py", ["retrieval/retrieve.py"]),
    ],
)
def test_every_flag_that_is_translated_is_called_theirs(translator, commands, monkeypatch, capsys):
    theirs = named(theirs for command in commands for theirs, *_ in rows(COMING.read_text(), f"### `{command}`"))
    ours_too = {"-h", "--help", "--logdir"}  # of compat/binder/src/train.py, which had no run folder
    declared = {flag for flag in flags_of(translator, monkeypatch, capsys) if flag.startswith("--")}
    assert declared - ours_too <= theirs


@pytest.mark.parametrize("path", sorted((ROOT / "compat/dpa/configs").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_dpas_examples_is_called_theirs(path):
    methods = [f"### `train_anomaly.py --method {name}`" for name in dict.fromkeys(("dpa", path.parent.name))]
    tables = [rows(COMING.read_text(), heading) for heading in [*methods, "### `score_anomaly.py`"]]
    assert set(yaml.safe_load(path.read_text())) <= {
        key for table in tables for theirs, *_ in table for key in re.findall(r"`(\w+)`", theirs)
    }
