import numpy as np
import pytest

from data.camelyon16 import tissue

NONE = np.zeros((60, 60), bool)


def picture(inside, dark=120, bright=240):
    """A coarse picture, dark where inside, with some noise."""
    noise = np.random.default_rng(0).integers(-4, 5, (*inside.shape, 1))
    return (np.where(inside[..., None], dark, bright) + noise).repeat(3, 2).astype(np.uint8)


def square(top, left, height, width, shape=(60, 60)):
    inside = np.zeros(shape, bool)
    inside[top : top + height, left : left + width] = True
    return inside


def test_tissue_is_what_is_dark_and_no_speck():
    inside = square(10, 12, 20, 30)
    specked = inside | square(50, 50, 2, 2)
    assert (tissue.tissue_mask(picture(specked), NONE, 0) == inside).all()


def test_unscanned_pixels_are_no_tissue_and_do_not_move_the_threshold():
    inside, corner = square(10, 12, 20, 30), square(45, 45, 15, 15)
    image = picture(inside)
    image[corner] = 0
    assert (tissue.tissue_mask(image, corner, 0) == inside).all()


@pytest.mark.parametrize("unscanned", [NONE, ~NONE])
def test_a_slide_of_one_colour_or_unscanned_holds_no_tissue(unscanned):
    assert not tissue.tissue_mask(np.full((60, 60, 3), 240, np.uint8), unscanned, "auto").any()


@pytest.mark.parametrize(
    ("shape", "border", "kept"),
    [
        ((864, 382), "auto", (100, 764, 50, 382)),  # a tall slide: the right side stays
        ((701, 90), "auto", (100, 601, 50, 90)),
        ((700, 382), "auto", (30, 670, 30, 352)),
        ((300, 361), "auto", (30, 270, 30, 331)),
        ((360, 360), "auto", (0, 360, 0, 360)),  # 120 cells
        ((24, 24), "auto", (0, 24, 0, 24)),
        ((24, 30), 5, (5, 19, 5, 25)),
        ((24, 30), 40, (0, 0, 0, 0)),
    ],
)
def test_the_border_is_that_of_the_scanner(shape, border, kept):
    top, bottom, left, right = kept
    found = tissue.without_border(np.ones(shape, bool), border)
    assert (found == square(top, left, bottom - top, right - left, shape)).all()


def test_cells_are_full_and_lie_on_a_grid():
    mask = square(3, 6, 6, 7) & ~square(8, 6, 1, 1)
    assert tissue.full_cells(mask).tolist() == [[1, 2], [1, 3], [2, 3]]
    assert tissue.full_cells(np.ones((8, 5), bool)).tolist() == [[0, 0], [1, 0]]  # what is left over makes no cell
    assert tissue.full_cells(np.ones((2, 9), bool)).shape == (0, 2)
