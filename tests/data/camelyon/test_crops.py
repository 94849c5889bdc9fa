import numpy as np
import pytest
from scipy import ndimage

from data.camelyon import crops
from data.slides import lesion_mask
from tests.data.slides.oracle import valid_corners

SIZE, SHAPE = 16, (40, 50)


def test_window_sums_count_every_window():
    flags = np.random.default_rng(0).random(SHAPE) < 0.3
    sums = crops.window_sums(flags, SIZE)
    assert sums.shape == (SHAPE[0] - SIZE + 1, SHAPE[1] - SIZE + 1)
    for y, x in [(0, 0), (3, 7), (24, 34)]:
        assert sums[y, x] == flags[y : y + SIZE, x : x + SIZE].sum()


def test_valid_positions_are_exactly_those_of_the_definition():
    rng = np.random.default_rng(1)
    pixels = ndimage.binary_dilation(rng.random(SHAPE) < 0.01, iterations=2)
    mask = lesion_mask.LesionMask(SHAPE, lesion_mask.array_runs(pixels, 0, 0))
    labels, _ = ndimage.label(pixels, np.ones((3, 3)))
    none = np.zeros(SHAPE, bool)
    for lesion in mask.lesions():
        label = labels[lesion.top, lesion.left : lesion.right].max()
        for low, high in [(0.05, 0.1), (0.1, 0.2), (0.2, 1)]:
            expected = valid_corners(pixels, none, labels == label, SIZE, low, high)
            box = crops.placements(lesion, SIZE, SHAPE)
            found = box
            if isinstance(box, crops.Box):
                inside = mask.window(box.top, box.left, box.height + SIZE - 1, box.width + SIZE - 1)
                found = crops.in_range(crops.window_sums(inside, SIZE), SIZE, low, high)
            if expected:
                assert [(y + box.top, x + box.left) for y, x in np.argwhere(found)] == expected
            else:
                assert isinstance(found, str)


def test_reasons_for_a_lesion_without_positions():
    lesion = lesion_mask.Lesion(1, 0, 20, 0, 5, 100)
    assert crops.placements(lesion, SIZE, SHAPE) == crops.TOO_LARGE
    lesion = lesion_mask.Lesion(1, 0, 5, 0, 5, 25)
    assert crops.placements(lesion, SIZE, (40, 12)) == crops.LEVEL_TOO_SMALL
    counts = np.array([[25, 26]])
    assert crops.in_range(counts, SIZE, 0.5, 1) == crops.TOO_SMALL
    assert crops.in_range(counts, SIZE, 0.01, 0.05) == crops.TOO_LARGE
    assert crops.in_range(np.array([[1, 100]]), SIZE, 0.1, 0.2) == crops.NONE_BETWEEN
    assert crops.in_range(np.array([[64, 128]]), SIZE, 0.25, 0.5) == crops.NONE_BETWEEN  # strictly between


def test_the_size_that_fits_most_lesions_is_found():
    rng = np.random.default_rng(4)
    for low, high in [(0.1, 0.5), (0.01, 0.1), (0, 0.3), (0.5, 1)]:
        sides = rng.integers(1, 60, 40)
        areas = np.ceil(sides**2 * rng.uniform(0.2, 1, 40))

        def fitting(size, areas=areas, sides=sides, low=low, high=high):
            share = areas / size**2
            return ((sides <= size) & (share > low) & (share < high)).sum()

        size, n = crops.size_that_fits(areas, sides, low, high)
        assert n == fitting(size) == max(map(fitting, range(1, 300)))
    assert crops.size_that_fits(np.array([1]), np.array([30]), 0.1, 0.5) == (0, 0)


def test_positions_repeat_only_when_there_are_too_few():
    valid = np.zeros((4, 5), bool)
    valid[1, 1:4] = True
    rng = np.random.default_rng(2)
    positions, repeated = crops.draw_positions(valid, 3, rng)
    assert sorted(map(tuple, positions)) == [(1, 1), (1, 2), (1, 3)]
    assert repeated == 0
    positions, repeated = crops.draw_positions(valid, 11, rng)
    assert repeated == 8
    assert sorted(np.bincount(positions[:, 1])[1:]) == [3, 4, 4]


def test_draws_are_uniform():
    valid = np.random.default_rng(3).random((6, 6)) < 0.5
    counts = np.zeros(valid.shape)
    for lesion in range(4000):
        for y, x in crops.draw_positions(valid, 3, crops.generator(42, "patient_004_node_4", lesion))[0]:
            counts[y, x] += 1
    assert (counts[~valid] == 0).all()
    expected = counts.sum() / valid.sum()
    assert np.abs(counts[valid] - expected).max() < 5 * np.sqrt(expected)


def test_streams_differ_by_seed_slide_and_lesion():
    draws = {crops.generator(*key).integers(2**60) for key in [(1, "a", 1), (2, "a", 1), (1, "b", 1), (1, "a", 2)]}
    assert len(draws) == 4
    assert crops.generator(1, "a", 1).integers(2**60) in draws


@pytest.mark.parametrize(("green", "reason"), [(200, None), (201, crops.BACKGROUND)])
def test_mean_green_of_a_negative_is_at_most_200(green, reason):
    image = np.full((SIZE, SIZE, 3), green, np.uint8)
    assert crops.reason_against(image, np.zeros((SIZE, SIZE), bool)) == reason
    assert crops.reason_against(image, np.eye(SIZE, dtype=bool)) == crops.UNSCANNED
