import pytest
import torch

from common.errors import BadInput
from models import autoencoder
from models.autoencoder import Autoencoder, AutoencoderConfig, double, halve

GROWING = AutoencoderConfig(3, 32, 8, 1, 8, (4, 6, 8, 8))


def n_parameters(part):
    return sum(p.numel() for p in part.parameters())


@pytest.mark.parametrize(
    ("config", "encoder", "decoder"),
    [
        (AutoencoderConfig(3, 64, 64, 8, 4, (4,)), 2776, 2183),  # CAMELYON16
        (AutoencoderConfig(3, 32, 32, 1, 32, (32,)), 165280, 128259),  # CIFAR10, class 0
    ],
)
def test_networks_have_as_many_parameters_as_the_originals(config, encoder, decoder):
    model = Autoencoder(config)
    assert (n_parameters(model.encoder), n_parameters(model.decoder)) == (encoder, decoder)
    images = torch.rand(2, 3, config.max_res, config.max_res)
    assert model.encoder(images).shape == (2, config.latent_dim, config.latent_res, config.latent_res)
    assert model(images).shape == images.shape


@pytest.mark.parametrize("kind", ["residual9", "residual18"])
@pytest.mark.parametrize("latent", [(1, 8), (4, 8)])
def test_a_resolution_without_share_is_the_stage_before_and_with_all_of_it_the_next(kind, latent):
    config = AutoencoderConfig(3, 32, 8, *latent, GROWING.dims, kind)
    model, images = Autoencoder(config).double(), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model.encoder(images, 0.0), model.encoder(halve(images)))
    torch.testing.assert_close(model(images, 0.0), double(model(halve(images))))
    torch.testing.assert_close(model(images, 1 - 1e-12), model(images))
    half = model.encoder(images, 0.5)
    assert not torch.allclose(half, model.encoder(images)) and not torch.allclose(half, model.encoder(images, 0.0))


def test_a_lower_resolution_does_without_what_the_higher_adds():
    model = Autoencoder(GROWING)
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    used = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any(".16." in name or ".32." in name for name in used)
    assert any(".8." in name for name in used)


def test_convolutions_keep_the_variance_of_gradients():
    module = autoencoder.convolution(64, 128)
    assert module.weight.std().item() == pytest.approx((2 / (1 + 0.2**2) / (128 * 9)) ** 0.5, rel=0.02)


def test_a_critic_gives_one_number_for_images_of_every_resolution():
    for config in (GROWING, AutoencoderConfig(1, 64, 16, 16, 8, (8,)), AutoencoderConfig(1, 64, 64, 16, 8, (4, 8, 8))):
        network = autoencoder.critic(config)
        for side in autoencoder.resolutions(config.initial_res, config.max_res):
            assert network(torch.rand(2, config.in_channels, side, side)).shape == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_res": 48}, "--tile 48: expected 4 times a power of 2"),
        ({"initial_res": 64}, "--initial_res 64: expected at most --tile 32"),
        ({"initial_res": 6}, "--initial_res 6"),
        ({"dims": (4, 4, 4)}, "--dims: has 3 numbers, expected 1, or 4 for 32 to 4 px"),
        ({"latent_res": 4, "latent_dim": 5}, "--latent_dim 5"),
        ({"latent_res": 3}, "--tile 32: expected 3 times a power of 2"),
        ({"kind": "residual7"}, "--network residual7"),
    ],
)
def test_dimensions_that_do_not_fit_are_named_before_anything_is_built(changes, said):
    with pytest.raises(BadInput, match=said):
        Autoencoder(AutoencoderConfig(**{**GROWING.to_dict(), "dims": GROWING.dims, **changes}))


def test_a_config_survives_a_checkpoint():
    assert AutoencoderConfig.from_dict(GROWING.to_dict()) == GROWING
