"""A flipped byte, a truncation, a file swapped or missing is named in one line, never trained on."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import train_mnist
from common import manifest
from common.errors import BadInput
from common.manifest import Manifest
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset, generate_data
from tests.reliability.harness import contents

ROOT = Path(__file__).parents[2]
SMALL = "--mnist digits --canvas 64 --distortion-num 3 --patch-size 32 --duplicates 1 --workers 1"


def flip(content, rng):
    at = int(rng.integers(len(content)))
    return content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]


DAMAGES = {
    "flipped": flip,
    "truncated": lambda content, rng: content[: int(rng.integers(len(content)))],
    "extended": lambda content, rng: content + b"\0",
    "emptied": lambda content, rng: b"",
}


@pytest.fixture(scope="module")
def nmnist(tmp_path_factory):
    """A data set with files and recipe; read only."""
    out = tmp_path_factory.mktemp("nmnist")
    generate_data.main([*SMALL.split(), "--out", str(out)])
    return out


@pytest.fixture
def own(nmnist, tmp_path):
    """A copy to damage."""
    return shutil.copytree(nmnist, tmp_path / "data")


def read_all(path, source="recipe"):
    """Every image and label of a data set."""
    splits = dataset.load_splits(argparse.Namespace(data_path=path, data_scaling=1.0, source=source))
    return [item for data in splits.values() for item in data.__getitems__(range(len(data)))]


def damage_every_file(folder, names, read, seed):
    """Damage one file after another in every way; each time, reading must name it."""
    rng = np.random.default_rng(seed)
    for name in names:
        good = (folder / name).read_bytes()
        for damage in (*DAMAGES, "swapped", "missing"):
            if damage == "missing":
                (folder / name).unlink()
            elif damage == "swapped":
                others = (file.read_bytes() for file in sorted(folder.rglob(f"*{Path(name).suffix}")))
                (folder / name).write_bytes(next(content for content in others if content != good))
            else:
                (folder / name).write_bytes(DAMAGES[damage](good, rng))
            with pytest.raises(BadInput, match=re.escape(Path(name).name)) as error:
                read()
            assert "\n" not in str(error.value)
            (folder / name).write_bytes(good)


RECIPE = [
    f"recipe/{split}_{part}.npy" for split in ("train", "val") for part in ("pool", "clutter", "offsets", "needle")
]


def test_what_the_recipe_is_read_from(own):
    damage_every_file(own, [*RECIPE, "train.csv", "val.csv", "test.csv"], lambda: read_all(own), seed=1)


def test_canvases(own):
    names = ["train_0.npz", "train_9.npz", "val_3.npz", "test_1.npz"]
    damage_every_file(own, names, lambda: read_all(own, "files"), seed=2)


def test_verify_finds_damage_also_where_training_does_not_read(own):
    names = ["args.json", "train.csv", *RECIPE[:2], "train_0.npz", "test_7.npz", "val_0.npz"]
    damage_every_file(own, [*names, "recipe/test_pool.npy"], lambda: Manifest(own).verify(), seed=3)
    (own / "val_0.npz").unlink()
    with pytest.raises(BadInput, match=r"val_0.npz: No such file or directory \(1 of \d+ files are bad\)"):
        Manifest(own).verify()


@pytest.mark.parametrize("content", ["an unread canvas", "no manifest"])
def test_the_flag_verifies_before_it_trains(own, tmp_path, content):
    name = "train_0.npz" if content == "an unread canvas" else "manifest.json"
    (own / name).unlink()
    flags = ["--data_path", own, "--logdir", tmp_path / "run", "--source", "recipe", "--workers", "0", "--verify"]
    with pytest.raises(BadInput, match=r"train_0\.npz: No such file.*\(1 of 385|--verify: .* has no manifest\.json"):
        train_mnist.main(list(map(str, flags)))
    assert not (tmp_path / "run").exists()


def test_a_damaged_manifest_changes_no_image(own):
    """It is named, unless what is damaged is the name of a file, which is then read as it is."""
    rng, path = np.random.default_rng(4), own / "manifest.json"
    good, images = path.read_bytes(), read_all(own)
    noticed = 0
    for _ in range(30):
        path.write_bytes(flip(good, rng))
        try:
            torch.testing.assert_close(read_all(own), images, rtol=0, atol=0)
        except BadInput as error:
            noticed += "manifest.json" in str(error)
    assert noticed > 3  # else it is a canvas's line, which is not read here


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_name_the_file_too(own, workers):
    args = argparse.Namespace(data_path=own, data_scaling=1.0, source="files")
    data = dataset.load_splits(args)["val"]
    (own / "val_5.npz").write_bytes((own / "val_3.npz").read_bytes())
    with pytest.raises(BadInput, match=r"val_5\.npz: damaged or another file"):
        list(DataLoader(data, batch_size=4, num_workers=workers))


def test_the_command_that_wrote_a_file_writes_it_again(nmnist, own):
    for names in (("args.json", "val.csv", "train_4.npz", "recipe/val_pool.npy"), ("manifest.json",)):
        for name in names:
            (own / name).write_bytes(b"damaged")
        generate_data.main([*SMALL.split(), "--out", str(own)])
    assert contents(own) == contents(nmnist)


def test_data_sets_of_earlier_versions_get_their_checksums(nmnist, own):
    (own / "manifest.json").unlink()
    before = read_all(own)
    generate_data.main([*SMALL.split(), "--out", str(own)])
    assert contents(own) == contents(nmnist)
    torch.testing.assert_close(read_all(own), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"block": 5, "crc32": {}}', '{"block": 1048576, "crc32": {"a": "00000000"}}']
    + [f'{{"block": 1048576, "crc32": {{"{name}": ["00000000"]}}}}' for name in ("../a", "/etc/passwd", "a/../../b")],
)
def test_manifests_that_are_none_or_lead_outside_are_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(BadInput, match=r"manifest\.json: "):
        Manifest(tmp_path)


def test_only_the_blocks_that_are_read_are_checked(tmp_path):
    content = np.random.default_rng(0).bytes(3 * manifest.BLOCK + 5)
    (tmp_path / "a").write_bytes(content[: 2 * manifest.BLOCK] + b"other" + content[2 * manifest.BLOCK + 5 :])
    manifest.write(tmp_path, {"a": manifest.checksums(content)})
    sums = Manifest(tmp_path)
    sums.check("a", 0, 2 * manifest.BLOCK)
    sums.check("a", 3 * manifest.BLOCK, len(content))
    with pytest.raises(BadInput, match="a: damaged"):
        sums.check("a", 2 * manifest.BLOCK - 1, 2 * manifest.BLOCK + 1)


@pytest.fixture
def crops(tmp_path):
    """The arguments of a training run on crop folders with checksums."""
    rng = np.random.default_rng(0)
    for folder, endings in (("pos", ("_img", "_seg")), ("neg", ("",))):
        files = [
            f"{part}patient_000_node_{i}_3_1_0{e}.npy"
            for part in ("", "valid/", "test/")
            for i in "012"
            for e in endings
        ]
        for name in files:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, rng.integers(0, 255, (8, 8) if "_seg" in name else (8, 8, 3), dtype=np.uint8))
        rows = "\n".join(["file", *(name for name in files if "_seg" not in name), ""])
        (tmp_path / folder / "crops.csv").write_text(rows)
        sums = {name: manifest.file_checksums(tmp_path / folder / name) for name in [*files, "crops.csv"]}
        manifest.write(tmp_path / folder, sums)
    return argparse.Namespace(pos_path=tmp_path / "pos", neg_path=tmp_path / "neg", seed=1)


@pytest.mark.parametrize("folder", ["pos_path", "neg_path"])
def test_crops_masks_and_their_table(crops, folder):
    def read():
        for data in camelyon.load_splits(crops).values():
            for i in range(len(data)):
                data[i], data.object_mask(i)

    path = getattr(crops, folder)
    names = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*.npy"))]
    read()
    damage_every_file(path, names[:4], read, seed=5)
    (path / "crops.csv").write_text((path / "crops.csv").read_text().replace("node_1", "node_2"))
    with pytest.raises(BadInput, match=r"crops\.csv: damaged or another file"):
        read()


@pytest.mark.slow
def test_a_run_on_a_damaged_canvas_ends_in_one_line_and_at_once(own, tmp_path):
    """Its loader processes are still at work."""
    content = (own / "train_9.npz").read_bytes()
    (own / "train_9.npz").write_bytes(content[:60] + b"x" + content[61:])
    flags = ["--data_path", own, "--logdir", tmp_path / "run", "--source", "files", "--workers", "2", "--width", "-4"]
    command = [sys.executable, ROOT / "train_mnist.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    progress, line = r"(epoch 1: .* step.*\n)*", r"train_mnist\.py: .*train_9\.npz: damaged or another file, .*\n"
    assert re.fullmatch(progress + line, done.stderr)
