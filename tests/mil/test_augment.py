"""Views of tiles depend on the generator alone, and change what they are meant to."""

import colorsys

import pytest
import torch
from torchvision.transforms.functional import adjust_hue, gaussian_blur

from mil import augment


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", augment.KINDS)
def test_the_same_generator_gives_the_same_views(kind):
    images = torch.rand(6, 3, 20, 20)
    first = augment.views(images, kind, seeded())
    torch.manual_seed(99)  # the global stream is not drawn from
    assert torch.equal(first, augment.views(images, kind, seeded()))
    assert not torch.equal(first, augment.views(images, kind, seeded(1)))
    assert first.shape == (2, 6, 3, 20, 20)
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first[0], first[1])


def test_kind_2_mirrors_half_of_the_images_and_leaves_the_others():
    images = torch.rand(400, 3, 4, 4)
    view = augment.views(images, augment.FLIP, seeded(), n=1)[0]
    mirrored = (view == images.flip(-1)).flatten(1).all(dim=1)
    assert ((view == images).flatten(1).all(dim=1) ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_a_crop_holds_no_pixel_that_the_image_lacks_and_shows_less_of_it():
    ramp = torch.linspace(0, 1, 32).expand(50, 3, 32, 32)
    view = augment.crop_and_flip(ramp, seeded(), crop=True)
    spans = view.amax(dim=(1, 2, 3)) - view.amin(dim=(1, 2, 3))
    assert spans.min() > 0.15  # sqrt(.08 * 3/4) = .24 of the width, less half a pixel on either side
    assert spans.max() <= 1
    assert spans.mean() < 0.85
    falling = view[:, 0, 0, 0] > view[:, 0, 0, -1]
    assert 10 < falling.sum() < 40  # mirrored ones


def test_hue_turns_as_on_the_colour_circle():
    images = torch.rand(3, 3, 5, 5)
    turned = augment.shift_hue(images, torch.tensor([0.1, -0.2, 0.0])[:, None, None, None])
    for i, turn in enumerate((0.1, -0.2, 0.0)):
        hue, saturation, value = colorsys.rgb_to_hsv(*images[i, :, 0, 0].tolist())
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        torch.testing.assert_close(turned[i, :, 0, 0], torch.tensor(expected))
        torch.testing.assert_close(turned[i], adjust_hue(images[i], turn))


def test_blur_is_torchvisions_with_a_width_per_image():
    images = torch.rand(20, 3, 24, 24)
    sigma = torch.rand(20, generator=(generator := seeded())) * 1.9 + 0.1
    chosen = torch.rand(20, generator=generator) < augment.BLUR_P
    blurred = augment.blur(images, seeded())
    assert 0 < chosen.sum() < 20
    for i in range(20):
        expected = gaussian_blur(images[i], [13, 13], [float(sigma[i])] * 2) if chosen[i] else images[i]
        torch.testing.assert_close(blurred[i], expected)


def test_grey_and_jitter_change_the_share_of_images_they_say():
    images = torch.rand(500, 3, 4, 4)
    grey = augment.grey(images, seeded())
    assert 70 < (grey[:, 0] == grey[:, 1]).flatten(1).all(dim=1).sum() < 130
    jittered = augment.jitter(images, seeded())
    assert 370 < (jittered != images).flatten(1).any(dim=1).sum() < 430
