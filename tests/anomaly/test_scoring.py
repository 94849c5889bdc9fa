import numpy as np
import pytest
import torch

from anomaly.scoring import AGGREGATES, ScoredImage, score_images
from common.errors import BadInput, WorkFailed


def brightness(tiles):
    """A detector whose score is the mean and whose map the halved tile."""
    return tiles.mean((1, 2, 3)), torch.nn.functional.avg_pool2d(tiles.mean(1), 2)


def without_map(tiles):
    return brightness(tiles)[0], None


def images(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(3, *shape, generator=generator), f"{i}.png") for i, shape in enumerate(shapes)]


def test_scores_are_those_of_tiles_one_by_one_whatever_the_batch():
    data = images((16, 16), (40, 27), (16, 30), (64, 64))
    for batch_size in (1, 3, 64):
        for (image, name), found in zip(data, score_images(data, 16, 8, batch_size, brightness), strict=True):
            assert found.name == name
            wanted = [image[:, y : y + 16, x : x + 16].mean().item() for y, x in found.corners]
            np.testing.assert_allclose(found.scores, wanted, rtol=1e-5)
            assert found.corners.max(0).tolist() == [image.shape[1] - 16, image.shape[2] - 16]


def test_batches_are_full_over_images():
    sizes = []
    list(score_images(images(*[(16, 16)] * 10), 16, 8, 4, lambda tiles: sizes.append(len(tiles)) or brightness(tiles)))
    assert sizes == [4, 4, 2]


def test_a_map_is_the_mean_over_the_tiles_on_a_pixel():
    (found,) = score_images([(torch.ones(1, 40, 27), "a")], 16, 8, 5, brightness)
    np.testing.assert_allclose(found.map(), np.ones((40, 27)), rtol=1e-6)
    image = torch.zeros(1, 32, 32)
    image[0, 20:, 4:] = 1
    (found,) = score_images([(image, "a")], 16, 8, 5, brightness)
    np.testing.assert_allclose(found.map()[24:, 8:], 1, atol=1e-6)
    np.testing.assert_allclose(found.map()[:15], 0, atol=1e-6)


def test_a_score_without_map_fills_what_is_nearest_to_its_tile():
    image = torch.zeros(1, 32, 32)
    image[0, 16:, 16:] = 1
    (found,) = score_images([(image, "a")], 16, 16, 5, without_map)
    assert found.map().tolist() == [[0, 0], [0, 1]]
    np.testing.assert_array_equal(found.pixels(), image[0].numpy())
    mask = image[0].numpy() > 0
    detection = found.detection(mask, 1, True)
    assert detection == {"o2i": 0.25, "peak_y": 24, "peak_x": 24, "cell": 16, "confidence": 1.0, "hit": 1}
    assert found.detection(~mask, 1, True)["hit"] == 0
    assert found.detection(None, 0, True)["hit"] == 0
    assert found.detection(None, None, False)["hit"] is None


def test_where_tiles_overlap_the_cell_lies_in_the_tiles_middle():
    image, mask = torch.zeros(1, 32, 32), np.zeros((32, 32), bool)
    image[0, 8:24, 8:24] = 1  # a tile
    mask[12, 19] = True
    (found,) = score_images([(image, "a")], 16, 8, 5, without_map)
    detection = found.detection(mask, 1, True)
    assert [detection[name] for name in ("peak_y", "peak_x", "cell", "hit")] == [16, 16, 8, 1]
    assert found.detection(np.roll(mask, 1, axis=1), 1, True)["hit"] == 0  # on the tile, beside its cell


def test_memory_does_not_grow_with_the_number_of_tiles():
    """One image and one batch at a time are in memory, and no image before it is needed."""
    alive = []

    def stream():
        for i in range(50):
            alive.append(i)
            yield torch.rand(1, 16, 16), str(i)

    found = score_images(stream(), 16, 8, 4, brightness)
    next(found)
    assert len(alive) == 4


def test_aggregates_of_tiles():
    values = np.arange(1000.0)
    assert AGGREGATES["max"](values) == 999
    assert AGGREGATES["mean"](values) == 499.5
    assert AGGREGATES["top1pct"](values) == np.arange(990, 1000).mean()
    assert AGGREGATES["top1pct"](values[:3]) == 2


def test_images_that_hold_no_tile_and_scores_that_are_none_are_named():
    with pytest.raises(BadInput, match=r"0\.png: has 16 x 12 px, fewer than a tile of 16"):
        ScoredImage(*images((16, 12))[0], 16, 8)
    with pytest.raises(WorkFailed, match=r"0\.png: the detector's score is not finite"):
        list(score_images(images((16, 16)), 16, 8, 4, lambda tiles: (torch.tensor([float("nan")]), None)))
