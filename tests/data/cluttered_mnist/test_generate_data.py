"""The generator commands: the same flags give the same bytes, whatever happens in between."""

import argparse
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import BadInput
from data import SPLITS
from data.cluttered_mnist import canvas_files, digits, folder, generate_data, generate_noise_data
from data.cluttered_mnist.dataset import load_splits
from data.cluttered_mnist.recipe import Recipe

COMMANDS = Path(__file__).parents[3] / "data/cluttered_mnist"
REFERENCE = json.loads((Path(__file__).parents[2] / "reference/nmnist.json").read_text())
SMALL = ["--mnist", "digits", "--canvas", "64", "--patch-size", "64", "--duplicates", "1", "--workers", "1"]


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def generate(out, *flags):
    generate_data.main([*SMALL, "--out", str(out), *flags])
    return contents(out)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished data set of 64 px canvases."""
    out = tmp_path_factory.mktemp("small")
    generate(out)
    return out


def check_reference(tmp_path, mnist_dir, setting, whole_splits):
    """Compare a generated data set with the first release's pixels."""
    flags = f"--canvas {setting['canvas']} --distortion-num {setting['distortion_num']} --duplicates 1 --format none"
    flags += f" --patch-size {REFERENCE['patch_size']} --mnist {mnist_dir} --out {tmp_path}"
    generate_data.main(flags.split())
    settings = json.loads((tmp_path / "args.json").read_text())
    sources = {split: Recipe(tmp_path, split, settings) for split in SPLITS}
    assert {split: len(source) for split, source in sources.items()} == REFERENCE["counts"]
    for split, i, label, sha256, total, cell, cells in setting["images"]:
        canvas, patch_map = sources[split].arrays(i)
        assert hashlib.sha256(canvas).hexdigest() == sha256 and canvas.sum() == total and label == 1 - i % 2
        assert (patch_map.argmax(), patch_map.sum(), list(patch_map.shape)) == (cell, cells, setting["patch_map_shape"])
    for split in whole_splits:
        digest = hashlib.sha256()
        for i in range(len(sources[split])):
            digest.update(sources[split].canvas(i))
        assert digest.hexdigest() == setting["whole_split_sha256"][split]


@pytest.mark.parametrize("setting", REFERENCE["settings"], ids=lambda s: f"canvas{s['canvas']}")
def test_canvases_equal_the_first_releases(tmp_path, mnist_dir, setting):
    check_reference(tmp_path, mnist_dir, setting, ["val", "test"])


@pytest.mark.slow
@pytest.mark.parametrize("setting", REFERENCE["settings"], ids=lambda s: f"canvas{s['canvas']}")
def test_every_training_canvas_equals_the_first_releases(tmp_path, mnist_dir, setting):
    check_reference(tmp_path, mnist_dir, setting, ["train"])


def test_command_of_the_readme_runs_by_path_from_any_folder(tmp_path):
    flags = "--digit-clutter --distortion-num 1 --patch-size 64 --type detection --canvas 64 --out set --mnist digits"
    command = [sys.executable, COMMANDS / "generate_data.py", *flags.split(), "--format", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert "train_mnist.py --data_path set" in done.stdout and (tmp_path / "set/test.csv").exists()


def test_worker_count_changes_no_byte(small, tmp_path):
    assert generate(tmp_path, "--workers", "3") == contents(small)


def test_killed_run_continues_to_the_same_bytes(small, tmp_path):
    command = [sys.executable, COMMANDS / "generate_data.py", *SMALL, "--workers", "2", "--out", tmp_path]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (tmp_path / "train_64.npz").exists():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.3)  # its workers end too
    (tmp_path / "train_3.npz").write_bytes((small / "train_3.npz").read_bytes()[:500])  # as a power cut leaves it
    (tmp_path / ".train_9.npz.part").write_bytes(b"half")
    (tmp_path / "train_9.npz").unlink(missing_ok=True)
    assert not (tmp_path / "test.csv").exists()
    assert generate(tmp_path) == contents(small)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_says_so_in_one_line(tmp_path, number, code):
    command = [sys.executable, COMMANDS / "generate_data.py", *SMALL, "--canvas", "256", "--out", tmp_path]
    obey = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=obey)
    while not (tmp_path / "train_1.npz").exists():
        time.sleep(0.001)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1].count("\n") == 1 and process.returncode == code


def test_finished_data_set_is_left_alone(small, capsys):
    before = {file: file.stat().st_mtime_ns for file in small.iterdir()}
    generate_data.main([*SMALL, "--out", str(small)])
    assert "nothing to do" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in small.iterdir()}


@pytest.mark.parametrize("name", ["train.csv", "val.csv", "test_3.npz", "recipe/val_pool.npy"])
@pytest.mark.parametrize("bytes_left", [None, 0, 40])
def test_lost_and_damaged_parts_are_made_again(small, tmp_path, name, bytes_left):
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    if bytes_left is None:
        (tmp_path / name).unlink()
    else:
        os.truncate(tmp_path / name, bytes_left)
    assert generate(tmp_path) == contents(small)


@pytest.mark.parametrize("kind", ["test", "detection"])
@pytest.mark.parametrize(("labels", "found"), [([1, 1, 1], "0 of the 3"), ([3, 3], "2 of the 2")])
def test_digits_without_needle_or_clutter_are_refused(tmp_path, monkeypatch, kind, labels, found):
    few = digits.Digits(np.zeros((len(labels), 28, 28), np.uint8), np.array(labels, np.uint8))
    monkeypatch.setattr(digits, "load", lambda _: dict.fromkeys(SPLITS, few))
    with pytest.raises(BadInput, match=f"--digit 3: {found} train digits"):
        generate_data.main([*SMALL, "--out", str(tmp_path), "--type", kind])


def test_a_grid_overrules_the_location(small, tmp_path, capsys):
    generate(tmp_path, "--distortion-location", "5")
    assert "--distortion-location: without effect" in capsys.readouterr().out
    assert all((tmp_path / path.name).read_bytes() == path.read_bytes() for path in small.glob("*.npz"))


def test_noise_that_was_lost_is_drawn_again(tmp_path, capsys):
    flags = f"--canvas 20 --num_train 2 --num_val 1 --num_test 1 --workers 1 --out {tmp_path}".split()
    generate_noise_data.main(flags)
    before = contents(tmp_path)
    (tmp_path / "train_2.npz").unlink()
    generate_noise_data.main(flags)
    assert "nothing to do" not in capsys.readouterr().out
    assert contents(tmp_path) == before
    generate_noise_data.main(flags)
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(("seed", "fits"), [(2**64 - 1, True), (2**64, False)])
def test_noise_of_every_seed_that_is_taken_can_be_read(tmp_path, seed, fits):
    flags = [*NOISE, "--format", "none", "--out", str(tmp_path), "--seed", str(seed)]
    if not fits:
        with pytest.raises(BadInput, match="--seed 18446744073709551616: expected less than"):
            generate_noise_data.main(flags)
        return
    generate_noise_data.main(flags)
    splits = load_splits(argparse.Namespace(data_path=tmp_path, source="auto", data_scaling=1))
    assert len(splits["train"]) == 4


def test_folder_of_other_settings_is_refused_by_flag(small):
    with pytest.raises(BadInput, match=r"--seed 1234 \(now 5\)") as error:
        generate_data.main([*SMALL, "--out", str(small), "--seed", "5", "--center-patch"])
    assert "--center-patch" in str(error.value) and "--canvas" not in str(error.value)
    with pytest.raises(BadInput, match="another kind"):
        generate_noise_data.main(["--out", str(small), "--format", "none"])


NOISE = ["--canvas", "20", "--num_train", "2", "--num_val", "1", "--num_test", "1", "--workers", "1"]


@pytest.mark.parametrize("name", ["train.csv", "train_0.npz", "test_999.npz", "manifest.json", "recipe/train_pool.npy"])
def test_files_of_unknown_origin_are_refused_before_anything_is_written(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    commands = [(generate_data.main, SMALL)] + [(generate_noise_data.main, NOISE)] * (not name.startswith("recipe"))
    for command, flags in commands:
        with pytest.raises(BadInput, match=f"--out {re.escape(str(tmp_path))}: holds {name}, but no args.json"):
            command([*flags, "--out", str(tmp_path)])
        assert contents(tmp_path) == {name: b"precious"}


def test_a_recipe_without_settings_is_written_anew(tmp_path):
    """As `rm DIR/*` leaves it; it is of other settings."""
    generate(tmp_path / "set", "--seed", "1", "--format", "none")
    for file in (tmp_path / "set").iterdir():
        if file.is_file():
            file.unlink()
    flags = ["--seed", "2", "--digit", "5", "--format", "none"]
    assert generate(tmp_path / "set", *flags) == generate(tmp_path / "fresh", *flags)


def test_a_manifest_of_other_settings_lends_no_files(small, tmp_path):
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "args.json").read_text()) | {"seed": 2}
    (tmp_path / "args.json").write_text(json.dumps(settings))
    before = contents(tmp_path)
    with pytest.raises(BadInput, match=r"manifest\.json: of other settings"):
        generate(tmp_path, "--seed", "2")
    assert contents(tmp_path) == before


def unlist(out, *names):
    content = json.loads((out / "manifest.json").read_text())
    for name in names:
        del content["crc32"][name]
    (out / "manifest.json").write_text(json.dumps(content))


def test_a_canvas_that_is_not_listed_is_taken_for_its_pixels_alone(small, tmp_path):
    """It may be of an interrupted run, packed by another zlib, or a stranger's."""
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    unlist(tmp_path, "train_0.npz", "val_1.npz")
    with np.load(small / "val_1.npz") as archive:
        np.savez_compressed(tmp_path / "val_1.npz", *archive.values())
    other = contents(tmp_path)["val_1.npz"]
    assert generate(tmp_path)["val_1.npz"] == other != contents(small)["val_1.npz"]
    unlist(tmp_path, "train_0.npz")
    shutil.copy(small / "train_2.npz", tmp_path / "train_0.npz")
    with pytest.raises(BadInput, match=r"train_0\.npz: was not written by this command"):
        generate(tmp_path)
    assert contents(tmp_path)["train_0.npz"] == contents(small)["train_2.npz"]


def test_a_table_changed_by_hand_is_kept_and_named(small, tmp_path, capsys):
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    unlist(tmp_path, "train.csv")
    mine = b"".join((small / "train.csv").read_bytes().splitlines(keepends=True)[:5])
    (tmp_path / "train.csv").write_bytes(mine)
    (tmp_path / "train_3.npz").unlink()
    for said in ("images of", "nothing to do"):
        after = generate(tmp_path)
        assert f"{tmp_path / 'train.csv'}: changed by hand" in (out := capsys.readouterr().out) and said in out
        assert after["train.csv"] == mine and after["train_3.npz"] == contents(small)["train_3.npz"]
    assert b"train.csv" not in after["manifest.json"]


@pytest.mark.parametrize("name", ["args.json", "manifest.json", "train.csv", "val_0.npz", "recipe/val_pool.npy"])
@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
def test_what_is_no_file_is_named_neither_waited_on_nor_removed(small, tmp_path, name, kind):
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    path = tmp_path / name
    path.unlink()
    {"pipe": os.mkfifo, "loop": lambda path: path.symlink_to(path), "folder": Path.mkdir}[kind](path)
    with pytest.raises(BadInput, match=re.escape(str(path))):
        generate(tmp_path)
    assert path.is_symlink() or not path.is_file()


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_recipe_is_not_written_where_a_link_leads(tmp_path, kind):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir(), elsewhere.mkdir()
    os.mkfifo(out / "recipe") if kind == "pipe" else (out / "recipe").symlink_to(elsewhere)
    with pytest.raises(BadInput, match=f"{out / 'recipe'}: is a .* where a folder is to be written"):
        generate(out)
    assert [path.name for path in out.iterdir()] == ["recipe"] and not list(elsewhere.iterdir())


def test_what_was_written_is_listed_while_the_rest_is_drawn(tmp_path, monkeypatch):
    """So that an interrupted command need not compose it again."""
    monkeypatch.setattr(folder, "LISTING_SECONDS", 0)
    monkeypatch.setattr(folder.os, "sync", lambda: 1 / 0)  # a split's last canvas is written
    with pytest.raises(ZeroDivisionError):
        generate(tmp_path)
    listed = json.loads((tmp_path / "manifest.json").read_text())["crc32"]
    assert {path.name for path in tmp_path.glob("*.npz")} <= listed.keys() and "train.csv" not in listed


@pytest.mark.parametrize(
    "flags",
    [
        "--canvas 20",
        "--patch-size 20",
        "--patch-size 50",
        "--distortion-location -5",
        "--distortion-scale 3",
        "--scale 0.001",
        "--scale 1e300",
        "--center-patch --patch-size 0",
        "--seed 4294967296",
        "--mnist /dev/null",
    ],
)
def test_impossible_flags_are_named(tmp_path, flags):
    with pytest.raises(BadInput, match=flags.split()[0]):
        generate_data.main([*SMALL, "--out", str(tmp_path), *flags.split()])
    assert not (tmp_path / "args.json").exists()


def test_bad_flag_ends_with_code_2_and_one_line(tmp_path):
    command = [sys.executable, COMMANDS / "generate_data.py", "--canvas", "20", "--out", tmp_path, "--mnist", "digits"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and "--canvas 20" in done.stderr


def test_too_small_a_disk_is_refused_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: folder.shutil._ntuple_diskusage(10**9, 10**9, 10**4))
    with pytest.raises(BadInput, match=r"1e-05 GB free"):
        generate_data.main([*SMALL, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_csv_holds_the_needles_position_on_positives_only(small):
    lines = (small / "val.csv").read_text().splitlines()
    needle = np.load(small / "recipe/val_needle.npy")
    assert lines[0] == "img_path,label,needle_y,needle_x"
    assert lines[1] == f"val_0.npz,1,{needle[0, 1]},{needle[0, 2]}" and lines[2] == "val_1.npz,0,,"
    assert len(lines) == 1 + len(needle)


def test_files_say_nothing_about_place_time_or_workers(small):
    text = " ".join((small / name).read_text() for name in ("args.json", "train.csv"))
    assert str(small) not in text and "workers" not in text and "time" not in text


def test_npz_is_what_numpy_would_write(small, tmp_path):
    with np.load(small / "train_0.npz") as archive:
        canvas, patch_map = archive["arr_0"], archive["arr_1"]
        assert archive.files == ["arr_0", "arr_1"] and archive.zip.testzip() is None
    assert canvas.dtype == np.uint8 and canvas.shape == (64, 64)
    assert patch_map.dtype == np.float64 and patch_map.tolist() == [[1]]
    noise = np.random.default_rng(0).standard_normal((7, 9), dtype=np.float32)
    canvas_files.save_npz(tmp_path / "noise.npz", (noise,))
    np.testing.assert_array_equal(canvas_files.load_npz(tmp_path / "noise.npz"), noise)


def test_without_a_grid_there_is_no_patch_map(tmp_path):
    generate(tmp_path, "--patch-size", "0", "--digit", "7", "--distortion-num", "0")
    with np.load(tmp_path / "train_0.npz") as archive:
        assert archive.files == ["arr_0"]


def test_passes_repeat_the_needles_at_other_places(small, tmp_path):
    generate(tmp_path, "--duplicates", "2", "--format", "none")
    once, twice = (np.load(out / "recipe/train_needle.npy") for out in (small, tmp_path))
    assert len(twice) == 2 * len(once) and not list(tmp_path.glob("*.npz"))
    np.testing.assert_array_equal(twice[: len(once)], once)
    np.testing.assert_array_equal(twice[len(once) :, 0], once[:, 0])
    assert (twice[len(once) :, 1:] != once[:, 1:]).any()


def test_type_test_writes_one_picture(tmp_path):
    generate_data.main([*SMALL, "--out", str(tmp_path), "--type", "test", "--distortion-scale", "0.5"])
    assert [file.name for file in tmp_path.iterdir()] == ["example.png"]


def test_noise_is_drawn_image_by_image(tmp_path):
    for workers in (1, 2):
        flags = (
            f"--canvas 33 --num_train 40 --num_val 2 --num_test 1 --workers {workers} --out {tmp_path / str(workers)}"
        )
        generate_noise_data.main(flags.split())
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    images = np.stack([np.load(tmp_path / f"1/train_{i}.npz")["arr_0"] for i in range(80)])
    assert images.dtype == np.float32 and abs(images.mean()) < 0.02 and abs(images.std() - 1) < 0.02
    assert len({image.tobytes() for image in images}) == 80
    assert (
        tmp_path / "1/val.csv"
    ).read_text() == "img_path,label\nval_0.npz,1\nval_1.npz,0\nval_2.npz,1\nval_3.npz,0\n"


def test_an_example_sheet_is_replaced_and_a_strangers_picture_is_not(tmp_path):
    flags = ["--type", "test", "--canvas", "40", "--mnist", "digits", "--out", str(tmp_path)]
    generate_data.main(flags)
    generate_data.main(flags)
    (tmp_path / "example.png").write_bytes(b"\x89PNG mine")
    with pytest.raises(BadInput, match=r"example\.png: was not written by this command"):
        generate_data.main(flags)
    assert (tmp_path / "example.png").read_bytes() == b"\x89PNG mine"
