import numpy as np
import pytest
import torch
from skimage.exposure import equalize_hist

from common.errors import BadInput
from data.transforms import Transform, equalized


def test_an_image_is_cut_in_the_middle_unless_drawn():
    image = torch.arange(100.0).view(1, 10, 10) / 100
    torch.testing.assert_close(Transform(crop=4).image(image), image[:, 3:7, 3:7])
    rng = np.random.default_rng(0)
    corners = {float(Transform(crop=9).image(image, rng)[0, 0, 0]) for _ in range(40)}
    assert corners == {float(image[0, y, x]) for y in (0, 1) for x in (0, 1)}


def test_grey_crop_and_resize_follow_each_other():
    image = torch.rand(3, 20, 30)
    found = Transform(grey=True, crop=16, resize=8).image(image)
    grey = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    wanted = torch.nn.functional.interpolate(grey[None, :, 2:18, 7:23], (8, 8), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(found, wanted)


def test_every_channel_is_equalised():
    image = torch.rand(3, 16, 16) ** 3
    for channel, found in zip(image, equalized(image), strict=True):
        np.testing.assert_allclose(found.numpy(), equalize_hist(channel.numpy()), atol=1e-6)


def test_a_mask_goes_where_the_image_goes():
    mask = np.zeros((20, 20), bool)
    mask[4:12, 4:12] = True
    found = Transform(crop=16, resize=8).mask(mask)
    assert found.shape == (8, 8) and found.sum() == 16 and found[1:5, 1:5].all()


def test_a_mask_of_one_pixel_does_not_vanish_and_one_cut_away_does():
    mask = np.zeros((20, 20), bool)
    mask[10, 10] = True
    assert Transform(resize=5).mask(mask).sum() == 1
    mask[:] = False
    mask[0, 0] = True
    assert not Transform(crop=10).mask(mask).any()


def test_resizing_changes_no_share():
    """An object of 9 x 9 px, half of whose border pixels' area would count whole after resizing."""
    mask = np.zeros((20, 20), bool)
    mask[5:14, 5:14] = True
    assert Transform(resize=10).mask(mask).mean() > 81 / 400
    assert Transform(resize=10).share(mask) == 81 / 400
    assert Transform(crop=10, resize=5).share(mask) == 0.81


def test_an_image_smaller_than_a_crop_is_refused():
    with pytest.raises(BadInput, match="has 8 x 10 px, fewer than --crop 9"):
        Transform(crop=9).image(torch.rand(1, 8, 10))
