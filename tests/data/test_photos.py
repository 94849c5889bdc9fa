import argparse
import pickle

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.io import savemat

from common.errors import BadInput
from data import photos
from data.photos import list_images, read_image

RGB = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.npy", "A.PNG"])
def test_a_picture_keeps_its_pixels(tmp_path, name):
    path = tmp_path / name
    np.save(path, RGB) if name.endswith("npy") else iio.imwrite(path, RGB, extension=path.suffix.lower())
    np.testing.assert_array_equal(read_image(path), RGB)


def test_grey_is_repeated_alpha_dropped_and_sixteen_bits_become_eight(tmp_path):
    grey, alpha = RGB[..., 0], np.dstack([RGB, RGB[..., :1]])
    iio.imwrite(tmp_path / "grey.png", grey)
    iio.imwrite(tmp_path / "alpha.png", alpha)
    iio.imwrite(tmp_path / "deep.tif", grey.astype(np.uint16) * 257)
    np.save(tmp_path / "unit.npy", grey / 255)
    for name in ("grey.png", "deep.tif", "unit.npy"):
        np.testing.assert_array_equal(read_image(tmp_path / name), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), RGB)


@pytest.mark.parametrize("ending", [".jpg", ".tif"])
def test_inks_are_shown_as_colours(tmp_path, ending):
    red = np.full((32, 32, 3), (200, 40, 30), np.uint8)
    Image.fromarray(red).convert("CMYK").save(tmp_path / f"a{ending}")
    assert np.abs(read_image(tmp_path / f"a{ending}").astype(int) - red).max() < 6


def test_a_palettes_colours_and_a_negatives_greys_are_those_that_show(tmp_path):
    Image.fromarray(RGB).quantize(8).save(tmp_path / "palette.tif")
    shown = np.asarray(Image.fromarray(RGB).quantize(8).convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "palette.tif"), shown)
    tifffile.imwrite(tmp_path / "negative.tif", 255 - RGB[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "negative.tif")[..., 1], RGB[..., 0])


def test_colours_in_planes_of_their_own_and_a_picture_of_another_ending_are_read(tmp_path):
    tifffile.imwrite(tmp_path / "planes.tif", np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate")
    iio.imwrite(tmp_path / "a.png", RGB)
    (tmp_path / "a.png").rename(tmp_path / "a.tif")
    for name in ("planes.tif", "a.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), RGB)


def test_a_picture_too_large_for_the_decoder_is_said_to_be(tmp_path, monkeypatch):
    iio.imwrite(tmp_path / "a.png", RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(BadInput, match=r"a\.png: not a readable picture: Image size \(120 pixels\) exceeds limit"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"BM" + bytes(60)])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.npy"])
def test_what_is_no_picture_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=name) as refused:
        read_image(tmp_path / name)
    assert "uri" not in str(refused.value)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 7), np.uint8), np.zeros((0, 4), np.uint8), np.full((4, 4), np.nan)])
def test_an_array_that_is_no_picture_is_named(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BadInput, match=r"a\.npy: expected"):
        read_image(tmp_path / "a.npy")


def test_pictures_in_linked_folders_are_found_and_a_link_back_ends(tmp_path):
    """Else an audit would call a split clean whose pictures it had not seen."""
    (tmp_path / "store" / "a").mkdir(parents=True)
    (tmp_path / "store" / "a" / "1.png").touch()
    (tmp_path / "mine").mkdir()
    for name, target in (("linked", tmp_path / "store"), ("back", tmp_path), ("3.png", tmp_path / "store/a/1.png")):
        (tmp_path / "mine" / name).symlink_to(target)
    (tmp_path / "store" / "b").symlink_to(tmp_path / "store" / "a")
    assert list_images(tmp_path / "mine") == [
        "3.png",
        *("back/store/a/1.png", "back/store/b/1.png"),
        *("linked/a/1.png", "linked/b/1.png"),
    ]


def test_pictures_are_found_below_a_folder_in_one_order(tmp_path):
    for name in ("b/2.png", "b/1.jpg", "a.TIF", ".hidden.png", ".ipynb_checkpoints/2.png", "note.txt", "c_seg.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == ["a.TIF", "b/1.jpg", "b/2.png"]
    with pytest.raises(BadInput, match="no pictures"):
        list_images(tmp_path, (".bmp",))
    with pytest.raises(BadInput, match="no such folder"):
        list_images(tmp_path / "none")


def flags(*words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--datatype")
    photos.add_flags(parser)
    return parser.parse_args([str(word) for word in words])


def write(folder, *names, shape=(12, 10, 3)):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        iio.imwrite(folder / name, np.full(shape, len(name), np.uint8))


def test_a_folder_says_which_photographs_are_normal(tmp_path, capsys):
    write(tmp_path, "train/normal/a.png", "train/normal/below/b.bmp", "test/normal/c.tif", "test/anomaly/d/e.png")
    write(tmp_path, "test/abnormal/f.png")
    args = flags("--photos", tmp_path)
    train, test = (photos.load_folder(args, split) for split in ("train", "test"))
    assert (train.names, train.labels.tolist()) == (["normal/a.png", "normal/below/b.bmp"], [0, 0])
    assert test.names == ["normal/c.tif", "abnormal/f.png", "anomaly/d/e.png"]
    assert test.labels.tolist() == [0, 1, 1]
    assert "taken as" in capsys.readouterr().out
    assert photos.load_folder(args, "val") is None
    image, label = test[1]
    assert image.shape == (3, 12, 10) and label == 1
    assert float(image.max()) == pytest.approx(len("test/abnormal/f.png") / 255)


@pytest.mark.parametrize("name", ["abnormal", "anomaly"])
def test_an_abnormal_photograph_among_those_to_train_on_is_refused(tmp_path, name):
    write(tmp_path, "train/normal/a.png", f"train/{name}/b.png")
    with pytest.raises(BadInput, match=rf"train/{name}/b\.png: abnormal, but training takes normal images only"):
        photos.load_folder(flags("--photos", tmp_path), "train")


def test_a_photograph_of_another_size_is_named(tmp_path):
    write(tmp_path, "train/normal/a.png", "train/normal/b.png", "train/normal/c.png")
    data = photos.load_folder(flags("--photos", tmp_path), "train")
    data.check_one_size()
    write(tmp_path, "train/normal/b.png", shape=(9, 10))
    with pytest.raises(BadInput, match=r"b\.png: has 9 x 10 px, 2 others 12 x 10; give --resize"):
        data.check_one_size()


def test_the_fingerprint_knows_names_and_bytes(tmp_path):
    write(tmp_path / "a", "train/normal/a.png")
    write(tmp_path / "b", "train/normal/a.png")
    a, b = (photos.load_folder(flags("--photos", tmp_path / name), "train") for name in "ab")
    assert a.fingerprint() == b.fingerprint()
    iio.imwrite(tmp_path / "b/train/normal/a.png", np.zeros((12, 10, 3), np.uint8))
    assert a.fingerprint() != b.fingerprint()


def test_lists_name_normal_and_abnormal_pictures(tmp_path):
    write(tmp_path, "a.png", "b.png", "c.jpg", "d.png")
    for name, lines in {"train": "a.png\n", "test": "b.png\n\nc.jpg\n", "abnormal": "d.png", "gone": "e.png"}.items():
        (tmp_path / name).write_text(lines)
    where = ["--datatype", "list", "--root", tmp_path, "--list", tmp_path / "train"]
    args = flags(*where, "--test_list", tmp_path / "test", "--abnormal_list", tmp_path / "abnormal")
    test = photos.load_lists(args, "test")
    assert (test.names, test.labels.tolist()) == (["b.png", "c.jpg", "d.png"], [0, 0, 1])
    assert photos.load_lists(args, "train").names == ["a.png"]
    assert photos.load_lists(args, "val") is None
    with pytest.raises(BadInput, match=r"e\.png: no such file"):
        photos.load_lists(flags(*where, "--test_list", tmp_path / "gone"), "test")
    for split, flag in (("train", "--list"), ("test", "--test_list")):
        both = flags("--root", tmp_path, flag, tmp_path / "abnormal", "--abnormal_list", tmp_path / "abnormal")
        with pytest.raises(BadInput, match=rf"{flag} .*: names d\.png, which --abnormal_list names too"):
            photos.load_lists(both, split)
    (tmp_path / "train").write_text("\n")
    with pytest.raises(BadInput, match=r"--list .*train: names no picture"):
        photos.load_lists(args, "train")


CLASSES = np.array([0, 1, 2, 0, 1, 3])


def write_cifar10(folder):
    """Files as torchvision reads them: six pictures a batch."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir()
    for b, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        pixels = np.full((6, 3072), 10 * b, np.uint8) + np.arange(6, dtype=np.uint8)[:, None]
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": CLASSES.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def write_svhn(folder):
    for part in ("train", "test"):
        pixels = np.arange(6, dtype=np.uint8) + np.zeros((32, 32, 3, 1), np.uint8)
        savemat(folder / f"{part}_32x32.mat", {"X": pixels, "y": np.where(CLASSES == 0, 10, CLASSES)[:, None]})


@pytest.fixture(params=["cifar10", "svhn"])
def arrays(request, tmp_path, monkeypatch):
    """Flags of a data set of torchvision's, and images of its training part."""
    {"cifar10": write_cifar10, "svhn": write_svhn}[request.param](tmp_path)
    for module in ("cifar", "svhn"):  # ours have other checksums
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)
    photos._torchvision.cache_clear()
    return ["--datatype", request.param, "--root", tmp_path], 30 if request.param == "cifar10" else 6


def test_one_class_is_normal_and_all_others_abnormal(arrays):
    where, n = arrays
    train, test = (photos.load_arrays(flags(*where, "--classes", 1), split) for split in ("train", "test"))
    assert len(train) == n // 3 and not train.labels.any()
    assert test.labels.tolist() == [1, 0, 1, 1, 0, 1]
    assert train[0][0].shape == (3, 32, 32) and float(train[0][0].mean()) == pytest.approx(1 / 255)
    assert photos.load_arrays(flags(*where), "val") is None
    assert photos.load_arrays(flags(*where), "train").names[:2] == ["train_0", "train_3"]
    with pytest.raises(BadInput, match=r"--classes \[9\]: no image of .* train part is of them"):
        photos.load_arrays(flags(*where, "--classes", 9), "train")


def test_numbers_choose_among_the_training_part(arrays, tmp_path):
    where, n = arrays
    for name, numbers in {"fold": [0], "val": [3], "abnormal": [1, 5], "beyond": [n], "floats": [0.5]}.items():
        np.save(tmp_path / f"{name}.npy", np.array(numbers))
    given = [*where, "--list", tmp_path / "fold.npy", "--val_list", tmp_path / "val.npy"]
    args = flags(*given, "--test_list", tmp_path / "val.npy", "--abnormal_list", tmp_path / "abnormal.npy")
    assert photos.load_arrays(args, "train").names == ["train_0"]
    assert photos.load_arrays(args, "val").names == ["train_3"]
    test = photos.load_arrays(args, "test")
    assert (test.names, test.labels.tolist()) == (["train_3", "train_1", "train_5"], [0, 1, 1])
    with pytest.raises(BadInput, match="not those of --classes"):
        photos.load_arrays(flags(*where, "--classes", 0, "--list", tmp_path / "abnormal.npy"), "train")
    with pytest.raises(BadInput, match="expected numbers from 0"):
        photos.load_arrays(flags(*where, "--list", tmp_path / "beyond.npy"), "train")
    with pytest.raises(BadInput, match="expected a list of whole numbers"):
        photos.load_arrays(flags(*where, "--list", tmp_path / "floats.npy"), "train")


def test_a_data_set_that_is_not_there_and_cannot_be_downloaded_is_named(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    photos._torchvision.cache_clear()
    with pytest.raises(BadInput, match="no cifar10 there, and no download: no network"):
        photos.load_arrays(flags("--datatype", "cifar10", "--root", tmp_path), "train")
