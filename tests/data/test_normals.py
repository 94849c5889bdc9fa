import argparse

import numpy as np
import pytest
import torch

from common.errors import BadInput
from data.normals import NormalTiles
from data.transforms import Transform, Transformed
from tests.synthetic import Squares

CPU = torch.device("cpu")


def make(n=10, tile=16, **options):
    data = Squares(n, 0)
    data.names = [f"image_{i}" for i in range(n)]
    return NormalTiles(Transformed(data, Transform()), tile, seed=3, **options), data


def read(tiles, batch_size, workers, n, first=0):
    args = argparse.Namespace(batch_size=batch_size, workers=workers)
    return [torch.cat(parts) for parts in zip(*tiles.batches(args, CPU, first, n), strict=True)]


def test_every_pass_takes_each_normal_image_once_and_never_another():
    tiles, data = make(12)
    images = [tiles[n][1] for n in range(12)]
    assert sorted(images[:6]) == sorted(images[6:]) == list(range(6))
    assert images[:6] != images[6:]
    assert (data.labels[tiles.numbers] == 0).all()
    tile, image, _ = tiles[0]
    windows = data.images[tiles.numbers[image]].unfold(1, 16, 1).unfold(2, 16, 1)
    assert (windows == tile[:, None, None]).all(-1).all(-1).any()


def test_an_abnormal_image_among_the_normals_is_not_passed_on():
    tiles, data = make()
    data.labels = np.ones_like(data.labels)  # what the file says, after all
    with pytest.raises(AssertionError, match=r"image_\d is not normal"):
        for n in range(5):
            tiles[n]


@pytest.mark.parametrize(("batch_size", "workers"), [(3, 0), (4, 2)])
def test_the_sequence_depends_on_no_batch_size_and_no_process(batch_size, workers):
    tiles, _ = make(tile=16, flip=True)
    wanted = [tiles[n] for n in range(12)]
    found, images, _ = read(tiles, batch_size, workers, 12)
    torch.testing.assert_close(found, torch.stack([tile for tile, _, _ in wanted]))
    assert images.tolist() == [image for _, image, _ in wanted]
    torch.testing.assert_close(read(tiles, 4, 0, 12, first=2)[0], found[8:])


def test_versions_of_an_image_come_once_a_pass():
    tiles = make(8)[0].in_versions(3)
    assert sorted(tiles[n][1:] for n in range(12)) == [(i, v) for i in range(4) for v in range(3)]


def test_tiles_are_mirrored_in_both_directions():
    tiles, data = make(2, tile=24, flip=True)
    image, found = data.images[1], [tiles[n][0] for n in range(40)]
    for axes in ([], [1], [2], [1, 2]):
        assert any(torch.equal(tile, image.flip(axes)) for tile in found)


def test_an_image_that_is_a_tile_never_changes():
    assert make(tile=24)[0].is_fixed
    assert not make(tile=24, flip=True)[0].is_fixed and not make(tile=16)[0].is_fixed


def test_images_smaller_than_a_tile_and_splits_without_normals_are_refused():
    with pytest.raises(BadInput, match="--tile 25: image_1 has 24 x 24 px"):
        make(tile=25)
    data = Squares(1, 0)
    data.names = ["image_0"]
    with pytest.raises(BadInput, match="no normal image"):
        NormalTiles(Transformed(data, Transform()), 16, seed=0)
