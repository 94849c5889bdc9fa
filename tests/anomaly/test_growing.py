import pytest
import torch

from anomaly import growing


def test_each_resolution_fades_in_and_is_then_stable():
    found = growing.stages(8, 32, (5,))
    assert list(map(str, found)) == ["stable 8", "fade 16", "stable 16", "fade 32", "stable 32"]
    assert list(map(str, growing.stages(64, 64, (7,)))) == ["stable 64"]
    with pytest.raises(ValueError):
        growing.stages(8, 32, (5, 5))


def test_epochs_take_each_step_of_each_stage_once():
    stages = growing.stages(8, 16, (5, 7, 4))
    epochs = growing.epochs(stages, 3)
    steps = [(e.stage, e.first + k) for e in epochs for k in range(e.last - e.first)]
    assert steps == [(stage, k) for stage in stages for k in range(stage.steps)]
    assert [e.before + e.first for e in epochs] == [0, 3, 5, 8, 11, 12, 15]


def test_the_share_of_a_fading_resolution_goes_from_one_nth_to_one():
    epochs = growing.epochs(growing.stages(8, 16, (4,)), 3)
    shares = [e.share(k) for e in epochs if e.stage.is_fade for k in range(e.last - e.first)]
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert epochs[0].share(0) == 1


def test_what_is_seen_goes_from_the_halved_image_to_the_whole():
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(growing.seen(images, 32, 1.0), images)
    torch.testing.assert_close(growing.seen(images, 16, 1.0), torch.nn.functional.avg_pool2d(images, 2))
    torch.testing.assert_close(
        growing.seen(images, 32, 0.0),
        torch.nn.functional.avg_pool2d(images, 2).repeat_interleave(2, 2).repeat_interleave(2, 3),
    )


def test_areas_see_every_pixel_and_bilinear_only_the_middle_ones():
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 0, 0] = 1
    assert growing.shrunk(image, 4).sum() == pytest.approx(1 / 16)
    assert growing.shrunk(image, 4, "bilinear").sum() == 0
