"""Reading nMNIST: files and recipe agree to the bit, data sets of the first release read alike."""

import argparse
import json
import os
import pickle
import re
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

from common.errors import BadInput
from common.files import npy_bytes
from data import SPLITS
from data.cluttered_mnist import dataset, generate_data, generate_noise_data
from data.cluttered_mnist.canvas_files import canvas_shape, load_npz
from data.cluttered_mnist.folder import canvas_name

SMALL = "--mnist digits --canvas 96 --patch-size 48 --distortion-num 3 --duplicates 1 --workers 1"


def load(path, scaling=1.0, source="auto"):
    return dataset.load_splits(argparse.Namespace(data_path=path, data_scaling=scaling, source=source))


@pytest.fixture(scope="module")
def nmnist(tmp_path_factory):
    """A data set with files and recipe."""
    out = tmp_path_factory.mktemp("nmnist")
    generate_data.main([*SMALL.split(), "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A noise data set with files."""
    out = tmp_path_factory.mktemp("noise")
    flags = f"--canvas 20 --num_train 3 --num_val 2 --num_test 1 --workers 1 --out {out}"
    generate_noise_data.main(flags.split())
    return out


@pytest.fixture
def first_release(nmnist, tmp_path):
    """The same images as the first release stored them: float64, a pickled None, paths of another machine."""
    for split in SPLITS:
        lines = [",img_path,label"]
        for i in range(6):
            canvas = np.load(nmnist / canvas_name(split, i))["arr_0"] / 255
            np.savez_compressed(tmp_path / canvas_name(split, i), canvas, None)
            lines.append(f"{i},/cluster/data/mnist/{canvas_name(split, i)},{1 - i % 2}")
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_batches_are_composed_on_the_device_alone(nmnist):
    """It is "meta", which refuses to mix with the CPU."""
    meta, data = torch.device("meta"), load(nmnist)["val"]
    [(images, labels)] = data.batches_on(meta, [[0, 1, 3]])
    assert (images.device, images.shape) == (meta, (3, 1, 96, 96))
    assert labels.tolist() == data.labels[[0, 1, 3]].tolist()


def test_a_device_composes_batches_to_the_same_bits(nmnist):
    """Here the device is the CPU; an odd batch size makes the last batch short."""
    data = load(nmnist)["val"]
    loader = data.batches_on(torch.device("cpu"), BatchSampler(range(len(data)), 5, drop_last=False))
    batches = list(loader)
    assert len(loader) == len(batches) == -(-len(data) // 5)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = [data[i] for i in range(len(data))]
    torch.testing.assert_close(images, torch.stack([image for image, _ in expected]), rtol=0, atol=0)
    assert labels.tolist() == [label for _, label in expected]


def test_only_a_recipe_of_the_canvases_size_is_composed_on_a_device(nmnist, noise):
    device = torch.device("cpu")
    assert load(nmnist, source="files")["val"].batches_on(device, []) is None
    assert load(nmnist, scaling=0.5)["val"].batches_on(device, []) is None
    assert load(noise)["val"].batches_on(device, []) is None


@pytest.mark.parametrize("column", [0, 1])
def test_a_device_does_not_compose_what_does_not_fit(nmnist, tmp_path, column):
    shutil.copytree(nmnist, tmp_path / "data", ignore=shutil.ignore_patterns("manifest.json"))
    path = tmp_path / "data" / "recipe" / "val_clutter.npy"
    clutter = np.load(path)
    clutter[5, column] = 60000  # the second image's, the first has 3
    np.save(path, clutter)
    batches = load(tmp_path / "data")["val"].batches_on(torch.device("cpu"), [[0, 1]])
    with pytest.raises(BadInput, match="val image 1 does not fit the pool or the canvas"):
        next(iter(batches))


@pytest.mark.parametrize("scaling", [1.0, 0.5])
def test_files_and_recipe_agree_to_the_bit(nmnist, scaling):
    files, recipe = load(nmnist, scaling, "files")["val"], load(nmnist, scaling, "recipe")["val"]
    for i in range(len(files)):
        torch.testing.assert_close(files[i], recipe[i], rtol=0, atol=0)
    assert files.fingerprint() == recipe.fingerprint()


def test_scaled_canvases_and_clutter_agree_too(tmp_path):
    generate_data.main([*SMALL.split(), "--out", str(tmp_path), "--scale", "0.75", "--distortion-scale", "1.3"])
    files, recipe = load(tmp_path, source="files")["val"], load(tmp_path, source="recipe")["val"]
    assert files[0][0].shape == (1, 72, 72)
    for i in range(len(files)):
        torch.testing.assert_close(files[i], recipe[i], rtol=0, atol=0)


def test_items_are_float32_in_the_unit_range_with_alternating_labels(nmnist):
    data = load(nmnist)["test"]
    image, label = data[0]
    assert image.shape == (1, 96, 96) and image.dtype == torch.float32 and isinstance(label, int)
    assert image.min() == 0 and 0.9 < image.max() <= 1
    assert data.labels.tolist() == [1, 0] * (len(data) // 2) and data.labels.dtype == np.int64
    assert data.names[:2] == ["test_0.npz", "test_1.npz"]


@pytest.mark.parametrize("scaling", [1.0, 1.5])
def test_batches_equal_single_items(nmnist, scaling):
    data = load(nmnist, scaling)["train"]
    for item, (image, label) in zip([7, 0, 31], data.__getitems__([7, 0, 31]), strict=True):
        torch.testing.assert_close((image, label), data[item], rtol=0, atol=0)


@pytest.mark.parametrize(("scale", "scaling"), [(1, 1.0), (0.5, 1.0), (1, 2.0), (2, 0.75)])
def test_needle_box_encloses_the_needle(tmp_path, scale, scaling):
    flags = f"--distortion-num 0 --scale {scale} --format none --out {tmp_path}"
    generate_data.main([*SMALL.split(), *flags.split()])
    data = load(tmp_path, scaling)["val"]
    assert data.has_objects
    for i in range(0, len(data), 2):
        y0, x0, y1, x1 = (round(edge) for edge in data.needle_box(i))
        image = data[i][0][0].clone()
        inside = image[y0:y1, x0:x1].sum()
        assert inside > 0.9 * image.sum() and y1 - y0 == round(28 * scale * scaling)
        assert data.needle_box(i + 1) is None


def test_first_release_data_sets_read_alike(nmnist, first_release):
    old, new = load(first_release), load(nmnist)
    for split in SPLITS:
        assert len(old[split]) == 6 and not old[split].has_objects and old[split].needle_box(0) is None
        for i in range(6):
            torch.testing.assert_close(old[split][i], new[split][i], rtol=0, atol=0)


def test_first_release_data_sets_are_zoomed_at_reading_too(nmnist, first_release):
    torch.testing.assert_close(load(first_release, 0.5)["val"][1], load(nmnist, 0.5)["val"][1])


def test_absolute_paths_are_followed_where_the_folder_lacks_the_file(first_release, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (first_release / "val_0.npz").rename(elsewhere / "val_0.npz")
    table = (first_release / "val.csv").read_text().replace("/cluster/data/mnist/val_0", f"{elsewhere}/val_0")
    (first_release / "val.csv").write_text(table)
    assert load(first_release)["val"][0][0].max() > 0.9


def test_canvases_in_sub_folders_are_not_those_of_the_same_name_beside_the_csv(first_release):
    for split in SPLITS:
        (first_release / split).mkdir()
        for i in range(6):
            (first_release / canvas_name(split, i)).rename(first_release / split / f"{i}.npz")
        table = (first_release / f"{split}.csv").read_text().replace(f"/cluster/data/mnist/{split}_", f"{split}/")
        (first_release / f"{split}.csv").write_text(table)
    before = load(first_release)["val"][0][0]
    shutil.copy(first_release / "train" / "3.npz", first_release / "0.npz")
    assert torch.equal(load(first_release)["val"][0][0], before)


def test_recipe_serves_a_csv_with_chosen_rows(nmnist, recipe_only):
    lines = (recipe_only / "train.csv").read_text().splitlines()
    (recipe_only / "train.csv").write_text("\n".join([lines[0], lines[6], lines[3]]) + "\n")
    data, whole = load(recipe_only)["train"], load(nmnist)["train"]
    torch.testing.assert_close([data[0], data[1]], [whole[5], whole[2]], rtol=0, atol=0)


def test_noise_is_read_unscaled_from_files_and_seed_alike(noise):
    files, drawn = load(noise, source="files")["train"], load(noise)["train"]
    assert files.fingerprint() == drawn.fingerprint() and not drawn.has_objects
    for i in range(len(files)):
        torch.testing.assert_close(files[i], drawn[i], rtol=0, atol=0)
    assert drawn[0][0].dtype == torch.float32 and drawn[0][0].min() < -2
    assert load(noise, 2.0)["train"][0][0].min() < -2


def test_fingerprint_follows_the_data_and_not_the_place(nmnist, noise, first_release, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    generate_data.main([*SMALL.split(), "--out", str(copy), "--format", "none"])
    other = tmp_path_factory.mktemp("other")
    generate_data.main([*SMALL.split(), "--out", str(other), "--format", "none", "--seed", "5"])
    assert load(copy)["val"].fingerprint() == load(nmnist)["val"].fingerprint()
    sets = [load(path)[split].fingerprint() for path in (nmnist, noise, first_release, other) for split in SPLITS]
    assert len(set(sets)) == len(sets)


def test_data_sets_are_cheap_to_send_to_workers(nmnist):
    data = load(nmnist)["train"]
    data[0]  # opens the recipe
    assert len(pickle.dumps(data.source)) < 1000
    torch.testing.assert_close(pickle.loads(pickle.dumps(data))[3], data[3], rtol=0, atol=0)


def edit(path, name, change):
    content = (path / name).read_bytes()
    (path / name).write_bytes(change(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "train.csv").unlink(), "no train.csv: expected a folder written by generate_data.py"),
        (lambda path: edit(path, "val.csv", lambda text: text.replace(b"label", b"class")), "val.csv.*img_path,label"),
        (lambda path: edit(path, "val.csv", lambda text: text[:15]), "val.csv.*rows"),
        (lambda path: edit(path, "val.csv", lambda text: b""), "val.csv"),
        (lambda path: edit(path, "val.csv", lambda text: b'a\n"\xff\xfe,\n'), "val.csv"),
        (lambda path: edit(path, "test.csv", lambda text: text.replace(b",1", b",2")), "test.csv, line 2.*0 or 1"),
        (lambda path: edit(path, "test.csv", lambda text: text.replace(b",0", b",")), "test.csv, line 3.*0 or 1"),
        (lambda path: edit(path, "test.csv", lambda text: text.replace(b"t_3", b"t_2")), "line 5.*every file once"),
        (lambda path: (path / "test_4.npz").unlink(), r"test_4.npz: no such file \(1 of 6"),
        (lambda path: edit(path, "val_0.npz", lambda data: data[:100]), "val_0.npz: damaged"),
    ],
)
def test_folders_that_are_no_data_set_are_refused(first_release, damage, message):
    damage(first_release)
    with pytest.raises(BadInput, match=message):
        load(first_release)


def test_missing_folder_unfinished_set_and_absent_recipe_are_refused(nmnist, first_release, tmp_path_factory):
    with pytest.raises(BadInput, match="--data_path"):
        load(None)
    with pytest.raises(BadInput, match="expected a folder written by"):
        load(nmnist / "absent")
    with pytest.raises(BadInput, match="--source recipe"):
        load(first_release, source="recipe")
    unfinished = tmp_path_factory.mktemp("unfinished")
    (unfinished / "args.json").write_text((nmnist / "args.json").read_text())
    with pytest.raises(BadInput, match="unfinished"):
        load(unfinished)


def broken_files(kind, path):
    good = np.load(path)["arr_0"]
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "flipped":
        path.write_bytes(path.read_bytes().replace(path.read_bytes()[200:204], b"\0\0\0\0"))
    elif kind == "pickled":
        np.savez(path, np.array([None]))
    elif kind == "nameless":
        np.savez(path, image=good)
    elif kind == "colour":
        np.savez(path, np.stack([good] * 3))
    elif kind == "smaller":
        np.savez(path, good[:50, :50])


@pytest.mark.parametrize("kind", ["truncated", "flipped", "pickled", "nameless", "colour", "smaller"])
def test_damaged_canvas_is_named(first_release, kind):
    data = load(first_release)["val"]
    broken_files(kind, first_release / "val_2.npz")
    with pytest.raises(BadInput, match=re.escape(str(first_release / "val_2.npz"))):
        data[2]


@pytest.mark.parametrize("pixel", [np.nan, np.inf, 1e300])
def test_a_pixel_that_is_no_number_is_blamed_on_its_file(first_release, pixel):
    canvas = np.load(first_release / "val_2.npz")["arr_0"]
    canvas[3, 4] = pixel
    np.savez(first_release / "val_2.npz", canvas)
    data = load(first_release)["val"]
    assert torch.isfinite(data[1][0]).all()
    with pytest.raises(BadInput, match=r"val_2\.npz: a pixel is infinite or not a number"):
        data[2]


@pytest.mark.parametrize("odd", [0, 1, 5])
def test_the_canvas_that_differs_from_most_is_named_wherever_it_stands(first_release, odd):
    broken_files("smaller", first_release / canvas_name("val", odd))
    with pytest.raises(BadInput, match=rf"val_{odd}\.npz: shape \(50, 50\), most canvases have \(96, 96\)"):
        data = load(first_release)["val"]
        [data[i] for i in range(6)]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "f2", ">f4", "f8"])
def test_canvases_read_as_numpy_reads_them(tmp_path, order, dtype):
    canvas = np.arange(12 * 7).reshape(12, 7).astype(dtype, order=order)
    np.savez_compressed(tmp_path / "a.npz", canvas, None)
    found = load_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(found, canvas)
    assert found.dtype == {"u1": "uint8", "f8": "float64"}.get(dtype, "float32") and found.dtype.isnative
    assert found.flags.writeable and canvas_shape(tmp_path / "a.npz") == (12, 7)


@pytest.mark.parametrize("dtype", ["u2", "u8", "i4", "?", "c8", np.longdouble])
def test_canvases_of_numbers_without_a_known_range_are_refused(tmp_path, dtype):
    np.savez_compressed(tmp_path / "a.npz", np.zeros((12, 7), dtype))
    for read in (load_npz, canvas_shape):
        with pytest.raises(
            BadInput, match=r"a\.npz: \w+ array of shape .* expected a canvas \(H, W\) of uint8 or floats"
        ):
            read(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["header", "directory", "lzma"])
def test_canvases_that_ask_for_much_memory_are_refused_without_it(tmp_path, kind):
    path = tmp_path / "a.npz"
    method = zipfile.ZIP_LZMA if kind == "lzma" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", method) as archive:
        start = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**28) if kind == "header" else npy_bytes(np.ones((9, 9)))
        archive.writestr("arr_0.npy", bytes(start) + bytes(2**28 if kind == "header" else 0))
        for i in range(10**4 if kind == "directory" else 0):
            archive.writestr(str(i), b"")
    tracemalloc.start()
    with pytest.raises(BadInput, match=r"a\.npz: damaged"):
        load_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 2**19
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["args.json", "manifest.json", "val.csv", "val_0.npz", "recipe/val_pool.npy"])
@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
def test_what_is_no_file_is_named_and_not_waited_on(nmnist, tmp_path, name, kind):
    shutil.copytree(nmnist, tmp_path, dirs_exist_ok=True)
    path = tmp_path / name
    path.unlink()
    {"pipe": os.mkfifo, "loop": lambda path: path.symlink_to(path), "folder": Path.mkdir}[kind](path)
    with pytest.raises(BadInput, match=re.escape(str(path))):
        load(tmp_path, source="files" if name.endswith("npz") else "auto")


def test_a_table_of_a_million_columns_is_refused_by_name(first_release):
    (first_release / "val.csv").write_text("img_path,label" + ",x" * 10**6 + "\n")
    with pytest.raises(BadInput, match=r"val\.csv: has 1,000,002 columns"):
        load(first_release)


def test_damaged_canvas_is_named_in_one_line_from_a_loader_process(first_release):
    data = load(first_release)["val"]
    broken_files("truncated", first_release / "val_2.npz")
    with pytest.raises(BadInput) as error:
        list(DataLoader(data, batch_size=2, num_workers=1))
    assert str(error.value).startswith(f"{first_release / 'val_2.npz'}: damaged") and "\n" not in str(error.value)


@pytest.fixture
def recipe_only(tmp_path):
    """As earlier versions wrote it, without checksums; so that a file may be changed."""
    generate_data.main([*SMALL.split(), "--out", str(tmp_path), "--format", "none"])
    (tmp_path / "manifest.json").unlink()
    return tmp_path


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: b"PK\3\4" + data[4:], lambda data: b""])
def test_damaged_recipe_is_named(recipe_only, damage):
    edit(recipe_only / "recipe", "val_clutter.npy", damage)
    with pytest.raises(BadInput, match="val_clutter"):
        load(recipe_only)


def test_files_are_read_without_the_recipe(nmnist, tmp_path):
    shutil.copytree(nmnist, tmp_path, dirs_exist_ok=True)
    (tmp_path / "recipe" / "val_pool.npy").unlink()
    image, _ = load(tmp_path, source="files")["val"][0]
    assert (image == load(nmnist)["val"][0][0]).all()


@pytest.mark.parametrize("part", ["clutter", "offsets", "needle", "pool"])
def test_recipe_of_parts_that_do_not_belong_together_is_refused(recipe_only, part):
    folder = recipe_only / "recipe"
    edit(folder, f"train_{part}.npy", lambda _: (folder / f"test_{part}.npy").read_bytes())
    with pytest.raises(BadInput, match=r"recipe: (the files of train do not belong|train image \d+ does not fit)"):
        data = load(recipe_only)["train"]
        [data[i] for i in range(len(data))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"canvas": "64"}, "args.json: canvas is '64', expected a number of 29 or more"),
        ({"scale": "a"}, "args.json: scale is 'a'"),
        ({"canvas": None}, "args.json: canvas is None"),
        ({"generator": "noise"}, "args.json: num_train is None"),
        ({"canvas": 40}, "image .* does not fit"),
    ],
)
def test_damaged_settings_are_named(recipe_only, change, message):
    settings = json.loads((recipe_only / "args.json").read_text()) | change
    (recipe_only / "args.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match=message):
        data = load(recipe_only)["train"]
        [data[i] for i in range(len(data))]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("oops", "21"), "numbers needle_y,needle_x"),
        (("", "21"), "numbers"),
        (("", ""), "every"),
        (("-5", "21"), "a needle on the canvas of 96 x 96 px"),
        (("21", "96"), "a needle on the canvas"),
    ],
)
def test_damaged_needle_positions_are_named(recipe_only, cells, message):
    lines = (recipe_only / "val.csv").read_text().splitlines()
    lines[3] = ",".join([*lines[3].split(",")[:2], *cells])
    (recipe_only / "val.csv").write_text("\n".join(lines))
    with pytest.raises(BadInput, match=f"val.csv, line 4: found val_2.npz,1.*{message}"):
        load(recipe_only)
