"""Pairs made to order: what each manipulation does, and which tables are refused."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from common.errors import BadInput
from retrieval import manipulate
from retrieval.manipulate import Manipulator

FOLDER = Path(manipulate.__file__).parent
NEUTRAL = {
    "p_horizontal_flip": 0,
    "p_vertical_flip": 0,
    "p_invert": 0,
    "p_jpeg": 0,
    "p_noise": 0,
    "p_blur": 0,
    "gamma_range": [1, 1],
    "brightness_range": [1, 1],
    "contrast_range": [1, 1],
    "perspective_range": [0, 0],
    "affine": {"scale_range": [1, 1], "rotation_range": [0, 0], "translation_range": [0, 0]},
}


def image(side=256, seed=0):
    """Smooth colours, so that a pixel tells where it came from."""
    small = np.random.default_rng(seed).integers(40, 200, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def pair(changes=None, seed=0, picture=None):
    picture = image() if picture is None else picture
    return Manipulator(NEUTRAL | (changes or {}))(picture, np.random.default_rng(seed))


def centre(picture, y=0, x=0):
    start = (picture.shape[0] - 128) // 2
    return picture[start + y : start + y + 128, start + x : start + x + 128]


def test_neutral_manipulations_return_the_anchor():
    anchor, copy = pair()
    assert anchor.shape == (128, 128, 3)
    np.testing.assert_array_equal(anchor, centre(image()))
    np.testing.assert_array_equal(copy, anchor)


def test_a_pure_flip_is_numpys():
    anchor, copy = pair({"p_horizontal_flip": 1})
    np.testing.assert_array_equal(copy, anchor[:, ::-1])
    np.testing.assert_array_equal(pair({"p_vertical_flip": 1})[1], anchor[::-1])


def test_inversion_and_gamma_are_those_of_arithmetic():
    anchor, copy = pair({"p_invert": 1})
    np.testing.assert_array_equal(copy, 255 - anchor)
    _, copy = pair({"gamma_range": [0.5, 0.5]})
    np.testing.assert_array_equal(copy, (255 * (anchor / 255) ** 0.5).round().astype(np.uint8))


def test_a_shift_moves_the_picture_to_the_right_and_down():
    affine = NEUTRAL["affine"] | {"translation_range": [7, 7]}
    _, copy = pair({"affine": affine})
    np.testing.assert_array_equal(copy, centre(image(), -7, -7))


def test_a_scale_of_two_doubles_lengths_about_the_centre():
    _, copy = pair({"affine": NEUTRAL["affine"] | {"scale_range": [2, 2]}})
    small = centre(image())[32:96, 32:96].astype(int)
    assert abs(copy[::2, ::2].astype(int) - small).max() <= 12  # smooth, off by a pixel at most


def test_corners_that_move_alike_shift_the_picture():
    picture = Image.fromarray(image())
    moved = np.asarray(manipulate.move_corners(picture, np.full((4, 2), 5)))
    np.testing.assert_array_equal(moved[5:, 5:], image()[:-5, :-5])


def test_the_table_of_the_source_is_the_default():
    table = Manipulator().table
    assert table == yaml.safe_load((FOLDER / "manipulations.yml").read_text())
    assert table["perspective_range"] == [-20, 20]
    assert "p_noise" not in table
    assert Manipulator(FOLDER / "with_noise.yml").table == table | {"p_noise": 0.1}


def test_the_generator_alone_decides_the_copy():
    make = Manipulator(FOLDER / "with_noise.yml")
    first, again, other = (make(image(), np.random.default_rng(seed))[1] for seed in (1, 1, 2))
    assert first.shape == (128, 128)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("key", ["p_blur", "p_jpeg", "p_noise", "p_global_hist", "p_local_hist"])
def test_each_chance_changes_the_copy_alone(key):
    anchor, copy = pair({key: 1})
    np.testing.assert_array_equal(anchor, centre(image()))
    assert (copy != anchor).any()


def test_a_quarter_turn_of_hue_turns_red_into_chartreuse():
    red = np.full((128, 128, 3), (255, 0, 0), np.uint8)
    _, copy = pair({"hue_range": [0.25, 0.25]}, picture=red)
    assert copy[0, 0].tolist() == [126, 255, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p_horizontal_flip: 0.5\np_vertical_flip: 0.5", "needs p_invert"),
        ("p_horizontl_flip: 0.5", "unknown key 'p_horizontl_flip'"),
        ("p_horizontal_flip: 2\np_vertical_flip: 0\np_invert: 0", "p_horizontal_flip is 2, expected a chance"),
        ("p_horizontal_flip: yes\np_vertical_flip: 0\np_invert: 0", "p_horizontal_flip is True"),
        ("p_horizontal_flip: 0\np_vertical_flip: 0\np_invert: 0\ngamma_range: [2, 1]", "gamma_range is"),
        ("p_horizontal_flip: 0\np_vertical_flip: 0\np_invert: 0\ngamma_range: 1", "two ascending numbers"),
        ("p_horizontal_flip: 0\np_vertical_flip: 0\np_invert: 0\naffine: {scale_range: [1, 1]}", "affine needs"),
        ("p_horizontal_flip: 0\np_vertical_flip: 0\np_invert: 0\ngrayscale: 2", "expected 1 or 3 channels"),
        ("- a\n- b", "found a list"),
        ("a: [", "not YAML"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
        ("? [a]\n: 1", "not YAML"),
        ("1: 2", "unknown key 1"),
    ],
)
def test_a_wrong_table_is_named_with_its_key(tmp_path, text, said):
    path = tmp_path / "table.yml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"table\.yml") as error:
        Manipulator(path)
    assert said in str(error.value)


def test_names_of_old_files_and_either_ending_are_understood(tmp_path, capsys):
    (tmp_path / "old.yml").write_text(
        "horizontal_flip_p: 1\np_vertical_flip: 0\np_invert: 0\njpeg_p: 1\np_noise_p: 1\n"
    )
    table = Manipulator(str(tmp_path / "old.yaml")).table
    assert table == {"p_horizontal_flip": 1, "p_vertical_flip": 0, "p_invert": 0, "p_jpeg": 1, "p_noise": 1}
    assert "jpeg_p is called p_jpeg today" in capsys.readouterr().err


def test_an_image_smaller_than_the_pair_is_refused():
    with pytest.raises(BadInput, match="100 x 100 px, expected 128 px"):
        pair(picture=image(100))
