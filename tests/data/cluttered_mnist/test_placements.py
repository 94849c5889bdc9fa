"""Where digits go: the first release's random stream, call by call, and what every placement obeys."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import BadInput
from data.cluttered_mnist.placements import Layout, default_clutter, draw_split

REFERENCE = json.loads((Path(__file__).parents[2] / "reference/nmnist.json").read_text())
POOLS = {"train": 49362, "val": 4507, "test": 8990}


def literal_draws(rng, layout, pool, images):
    """The stream as the specification words it, one number at a time."""
    for i in range(images):
        p = layout.patch_size
        if p:
            cells = layout.canvas // p
            row = column = cells // 2
            if not layout.center_patch:
                row = rng.choice(cells)
                column = rng.choice(cells)
            y = row * p + rng.choice(p - 28)
            x = column * p + rng.choice(p - 28)
        else:
            bound = layout.canvas - 28 if layout.location == -1 else min(layout.location, layout.canvas - 28)
            y = rng.choice(bound)
            x = rng.choice(bound)
        clutter = []
        for index in rng.choice(pool, layout.clutter + i % 2):
            clutter.append([index, None, None])
        for digit in clutter:
            digit[2] = rng.randint(layout.canvas - layout.clutter_side)
            digit[1] = rng.randint(layout.canvas - layout.clutter_side)
        yield y, x, np.array(clutter, np.int64).reshape(-1, 3)


@pytest.mark.parametrize("setting", REFERENCE["settings"], ids=lambda s: f"canvas{s['canvas']}")
def test_placements_equal_the_first_releases(setting):
    layout = Layout(setting["canvas"], setting["distortion_num"], REFERENCE["patch_size"])
    rng = np.random.RandomState(REFERENCE["seed"])
    for split, pool in POOLS.items():
        needle, clutter = hashlib.sha256(), hashlib.sha256()
        for y, x, rows in draw_split(rng, layout, pool, REFERENCE["counts"][split]):
            needle.update(np.array([y, x], "<i4"))
            clutter.update(rows.astype("<i4"))
        expected = setting["placements_sha256"][split]
        assert (needle.hexdigest(), clutter.hexdigest()) == (expected["needle"], expected["clutter"])


@pytest.mark.parametrize(
    "layout",
    [
        Layout(64, 2, 64),
        Layout(64, 0, 32),
        Layout(29, 3),
        Layout(100, 7),
        Layout(128, 5, location=40),
        Layout(128, 5, location=1000),
        Layout(320, 9, 64, center_patch=True),
        Layout(1024, 400, 64),
        Layout(96, 4, 48, clutter_side=56),
        Layout(6144, 50, 128),
    ],
    ids=str,
)
def test_stream_is_consumed_number_by_number_as_specified(layout):
    ours, literal = np.random.RandomState(7), np.random.RandomState(7)
    for pool, images in ((1117, 20), (160, 6)):  # two splits of one stream
        for drawn, expected in zip(
            draw_split(ours, layout, pool, images), literal_draws(literal, layout, pool, images), strict=True
        ):
            assert drawn[:2] == expected[:2]
            np.testing.assert_array_equal(drawn[2], expected[2])
    assert ours.randint(2**31) == literal.randint(2**31)


def test_needle_stays_in_one_cell_and_off_the_last_row_and_column():
    for y, x, clutter in draw_split(np.random.RandomState(0), Layout(128, 50, 32), 10, 400):
        assert y // 32 == (y + 28) // 32 and x // 32 == (x + 28) // 32
        assert clutter[:, 1:].min() >= 0 and clutter[:, 1:].max() + 28 < 128


def test_centred_needles_lie_in_the_middle_cell_and_cover_it():
    draws = draw_split(np.random.RandomState(0), Layout(192, 1, 64, center_patch=True), 10, 2000)
    positions = np.array([(y, x) for y, x, _ in draws])
    assert set(positions.flatten()) == set(range(64, 64 + 36))


def test_negatives_have_one_digit_of_clutter_more():
    sizes = [len(clutter) for _, _, clutter in draw_split(np.random.RandomState(0), Layout(64, 2), 10, 6)]
    assert sizes == [2, 3, 2, 3, 2, 3]


def test_default_clutter_keeps_the_papers_density():
    sides = (64, 128, 256, 512, 1024, 2048, 4096, 6144)
    assert [default_clutter(side) for side in sides] == [2, 6, 25, 100, 400, 1600, 6400, 14400]


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"canvas": 28}, "--canvas"),
        ({"patch_size": 28}, "--patch-size"),
        ({"patch_size": 60}, "--patch-size"),
        ({"patch_size": 256}, "--patch-size"),
        ({"location": 0}, "--distortion-location"),
        ({"location": -2}, "--distortion-location"),
        ({"clutter_side": 128}, "--distortion-scale"),
        ({"clutter_side": 0}, "--distortion-scale"),
    ],
    ids=str,
)
def test_impossible_layouts_name_the_flag(settings, flag):
    with pytest.raises(BadInput, match=flag):
        Layout(**{"canvas": 128, "clutter": 6} | settings)
