"""Which crops of a slide are duplicates by where they lie, and that none is its own."""

from types import SimpleNamespace

import numpy as np
import pytest

from retrieval import matches
from retrieval.index import Vectors

VECTORS = Vectors(np.arange(3), np.eye(3, dtype=np.float32)[:, None], {})  # each at a distance of sqrt(2) from others


def crops(*corners, slides=(0, 0, 0)):
    """Three crops of 12 px."""
    data = SimpleNamespace(names=list("abc"), labels=np.zeros(3, int))
    where = np.array(slides), np.full(3, np.nan), np.array(corners, float), np.full(3, 12.0)
    return matches.Images("train", data, np.arange(3), None, *where)


def test_crops_are_duplicates_from_a_quarter_of_their_union_on():
    """The second overlaps the first by 60 of 228 px, the third by 48 of 240."""
    found = matches.known_duplicates(crops((0, 0), (0, 7), (0, -8)), VECTORS, VECTORS)
    assert found.tolist() == pytest.approx([2**0.5] * 2)


def test_within_a_split_no_image_is_its_own_duplicate():
    images, one = crops((0, 0), (0, 7), (0, 90)), np.ones((3, 1))
    found = matches.Matches(images, images, one, one.astype(int), one.astype(int), np.ones(3, bool))
    truth = matches.hold_against_truth(found, VECTORS, VECTORS, 0.5, 9, np.random.default_rng(0))
    assert (truth["duplicate_pairs"], truth["images"]["with_duplicate"]["images"]) == (2, 2)


def test_overlap_with_a_crop_of_no_known_slide_is_not_known():
    images, i = crops((0, 0), (0, 0), (0, 0), slides=(0, 1, -1)), np.arange(3)
    found = matches.overlap(images, i[:, None], images, i[None])
    np.testing.assert_array_equal(found, [[1, 0, np.nan], [0, 1, np.nan], [np.nan] * 3])
