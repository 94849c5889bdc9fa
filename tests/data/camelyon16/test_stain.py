import os
from pathlib import Path

import numpy as np
import pytest

from data.camelyon16 import stain
from data.slides.pyramid import Slide

ATOMS = np.array([[0.60, 0.72, 0.35], [0.15, 0.95, 0.27]])
ATOMS /= np.linalg.norm(ATOMS, axis=1, keepdims=True)


def stained(atoms, seed=0, side=128):
    """A picture of nuclei and cytoplasm: most pixels have one of two stains, some both, a fifth is glass."""
    rng = np.random.default_rng(seed)
    amounts = rng.uniform(0.3, 1.5, (side, side, 2))
    kind = rng.integers(0, 10, (side, side))
    amounts[kind < 3, 0] = amounts[(kind >= 3) & (kind < 6), 1] = 0
    amounts[kind >= 8] = 0
    return (255 * np.exp(-amounts @ atoms)).round().astype(np.uint8)


def angle(a, b):
    return np.degrees(np.arccos(np.clip((a * b).sum(axis=-1), -1, 1)))


@pytest.mark.parametrize("seed", [0, 1])
def test_mixtures_minimise_the_lasso(seed):
    """Where an amount is positive the gradient is zero, elsewhere it leads below zero (Karush, Kuhn and Tucker)."""
    rng = np.random.default_rng(seed)
    density = rng.normal(0.5, 1, (5000, 3)).astype(np.float32)
    a = stain.mixtures(density, ATOMS, 0.1)
    gradient = (a @ ATOMS - density) @ ATOMS.T + 0.1
    assert {(bool(one), bool(two)) for one, two in a > 0} == {(x, y) for x in (False, True) for y in (False, True)}
    np.testing.assert_allclose(gradient[a > 0], 0, atol=1e-4)
    assert (gradient > -1e-4).all() and (a >= 0).all()


@pytest.mark.parametrize("swap", [False, True])
def test_two_planted_stains_are_recovered_haematoxylin_first(swap):
    found = stain.atoms_of(stained(ATOMS[::-1] if swap else ATOMS))
    assert (angle(found, ATOMS) < 2).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_the_target_maps_to_itself():
    image = stained(ATOMS)
    found = stain.normalised(image, stain.atoms_of(image))
    difference = np.abs(found.astype(int) - stain.brightened(image))
    assert difference.mean() < 3 and np.percentile(difference, 99) < 12


def test_a_picture_of_other_stains_gets_those_of_the_target():
    others = np.array([[0.70, 0.60, 0.39], [0.30, 0.90, 0.32]])
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    found = stain.normalised(stained(others), stain.atoms_of(stained(ATOMS)))
    expected = stain.brightened(stained(ATOMS))
    before = np.abs(stain.brightened(stained(others)).astype(int) - expected).mean()
    assert np.abs(found.astype(int) - expected).mean() < before / 3


def test_glass_has_no_stain():
    glass = np.random.default_rng(0).integers(238, 246, (64, 64, 3)).astype(np.uint8)
    assert stain.atoms_of(glass) is None and stain.normalised(glass, ATOMS) is None


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), (90, 40, 120), np.uint8)])
def test_a_picture_of_one_colour_is_no_obstacle(image):
    image[0, 0] = image[0, 1] = 255
    assert np.isfinite(stain.atoms_of(image)).all()
    assert stain.normalised(image, ATOMS).shape == image.shape


def test_dark_enough_is_what_labs_lightness_says():
    from skimage.color import rgb2lab

    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    lightness = rgb2lab(image)[..., 0] / 100
    sure = np.abs(lightness - 0.8) > 1e-3
    assert (stain.is_tissue(image) == (lightness < 0.8))[sure].all()


def test_a_real_region_keeps_its_look_in_its_own_stains():
    slide = Path(os.environ.get("CAMELYON_FIXTURES", "")) / "CMU-1-Small-Region.svs"
    if not slide.is_file():
        pytest.skip("needs CMU-1-Small-Region.svs in CAMELYON_FIXTURES")
    with Slide(slide, 0) as level:
        image = level.read(768, 768, 256, 256)[0]
    atoms = stain.atoms_of(image)
    assert atoms[0, 0] > atoms[1, 0] and angle(atoms[:1], atoms[1:])[0] > 15
    assert (atoms.argmax(axis=1) == [0, 1]).all()  # haematoxylin absorbs red, eosin green
    difference = np.abs(stain.normalised(image, atoms).astype(int) - stain.brightened(image))
    assert difference.mean() < 8
