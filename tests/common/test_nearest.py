import numpy as np
import pytest
import torch

from common import nearest


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(nearest, "BLOCK", 7)


def brute(queries, gallery, k, own=None, others=None):
    distances = np.sqrt(((queries[:, None].astype(float) - gallery[None]) ** 2).sum(-1))
    if own is not None:
        distances[own[:, None] == others] = np.inf
    order = np.argsort(distances, axis=1)[:, :k]
    return np.take_along_axis(distances, order, 1), order


@pytest.mark.parametrize("grouped", [False, True])
def test_blocks_find_what_all_differences_find(small_blocks, grouped):
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(30, 16)).astype("f"), rng.normal(size=(500, 16)).astype("f")
    groups = (rng.integers(0, 4, 30), rng.integers(0, 4, 500)) if grouped else ()
    distances, indices = nearest.k_nearest(queries, gallery, 5, *groups)
    expected, order = brute(queries, gallery, 5, *groups)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    np.testing.assert_array_equal(indices, order)


def test_autocast_does_not_make_the_search_coarse(small_blocks):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 64)).astype("f")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with torch.autocast("cpu", torch.bfloat16):
        _, indices = nearest.k_nearest(vectors[:30], vectors, 5)
    np.testing.assert_array_equal(indices, brute(vectors[:30], vectors, 5)[1])


def test_a_copy_lies_at_distance_zero_far_from_the_origin():
    gallery = np.random.default_rng(1).normal(1000, 1, size=(50, 64)).astype("f")
    distances, indices = nearest.k_nearest(gallery, gallery, 1)
    assert (distances == 0).all()
    np.testing.assert_array_equal(indices[:, 0], np.arange(50))


def test_the_own_group_is_left_out_and_what_is_missing_is_filled_up(small_blocks):
    points, groups = np.arange(6, dtype="f")[:, None], np.array([0, 0, 1, 1, 2, 2])
    distances, indices = nearest.k_nearest(points, points, 5, groups, groups)
    np.testing.assert_array_equal(indices[0], [2, 3, 4, 5, -1])
    np.testing.assert_array_equal(distances[0], [2, 3, 4, 5, np.inf])


def test_an_empty_gallery_has_no_neighbours():
    distances, indices = nearest.k_nearest(np.zeros((3, 2), "f"), np.zeros((0, 2), "f"), 2)
    assert np.isinf(distances).all() and (indices == -1).all()
