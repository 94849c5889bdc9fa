import numpy as np
import pytest
import torch

from data import tiles


def test_the_last_tile_is_flush_with_the_edge_and_every_pixel_is_covered():
    assert tiles.starts(100, 32, 32) == [0, 32, 64, 68]
    assert tiles.starts(64, 32, 16) == [0, 16, 32]
    assert tiles.starts(31, 32, 16) == []


@pytest.mark.parametrize("stride", [16, 24])
def test_tiles_hold_the_pixels_at_their_corners(stride):
    image = torch.rand(3, 70, 90)
    corners = tiles.corners(70, 90, 24, stride)
    for tile, (y, x) in zip(tiles.cut(image, corners, 24), corners, strict=True):
        assert torch.equal(tile, image[:, y : y + 24, x : x + 24])


def test_tiles_of_a_grid_make_up_the_image():
    image = torch.rand(1, 64, 64)
    grid = tiles.cut(image, tiles.corners(64, 64, 16, 16), 16).view(4, 4, 16, 16)
    assert torch.equal(grid.transpose(1, 2).reshape(64, 64), image[0])


def test_a_tile_holds_the_object_from_its_share_on_and_the_fullest_always():
    mask = np.zeros((8, 8), bool)
    mask[2:4, 3:6] = True  # 2 px in the left tile, 4 in the right
    corners = tiles.corners(8, 8, 4, 4)
    np.testing.assert_array_equal(tiles.holds_object(mask, corners, 4), [True, True, False, False])
    np.testing.assert_array_equal(tiles.holds_object(mask, corners, 4, 0.2), [False, True, False, False])
    np.testing.assert_array_equal(tiles.holds_object(mask, corners, 4, 0.9), [False, True, False, False])
    assert not tiles.holds_object(np.zeros((8, 8), bool), corners, 4).any()
