"""Residual encoder and decoder of DPA and PIAD, which may grow from one resolution to the next.

Source: Shvetsova et al. 2021 (DPA), after Karras et al. 2018 (growing). Images are (B, C, R, R) in [-1, 1].
"""

from dataclasses import asdict, dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import BadInput

SLOPE = 0.2
CONVOLUTIONS = {"residual9": 1, "residual18": 2}  # blocks beside the image, and as many less one after a change of size


@dataclass(frozen=True)
class AutoencoderConfig:
    """What decides encoder and decoder.

    Attributes: in_channels, of the image; max_res and initial_res, the sides that are grown between; latent_res and
        latent_dim, of the code (B, latent_dim, latent_res, latent_res); dims, channels by resolution from max_res
        down, or one for all; kind, residual9 or residual18.
    """

    in_channels: int
    max_res: int
    initial_res: int
    latent_res: int
    latent_dim: int
    dims: tuple[int, ...]
    kind: str = "residual18"

    def to_dict(self) -> dict:
        return asdict(self) | {"dims": list(self.dims)}

    @classmethod
    def from_dict(cls, values: dict) -> "AutoencoderConfig":
        return cls(**{**values, "dims": tuple(values["dims"])})

    @property
    def least_res(self) -> int:
        """r0, the side at which the code is read off: 4 for a code without places."""
        return 4 if self.latent_res == 1 else self.latent_res

    def channels(self) -> dict[int, int]:
        """Resolution -> channels, from max_res down to r0."""
        sides = resolutions(self.least_res, self.max_res)[::-1]
        return dict(zip(sides, self.dims if len(self.dims) > 1 else self.dims * len(sides), strict=True))

    def check(self) -> None:
        """BadInput names the flag that does not fit."""
        if self.kind not in CONVOLUTIONS:
            raise BadInput(f"--network {self.kind}: expected one of {', '.join(CONVOLUTIONS)}")
        for flag, side in {"tile": self.max_res, "initial_res": self.initial_res}.items():
            if side < self.least_res or self.least_res * 2 ** (side // self.least_res).bit_length() != 2 * side:
                raise BadInput(f"--{flag} {side}: expected {self.least_res} times a power of 2 (--latent_res)")
        if self.initial_res > self.max_res:
            raise BadInput(f"--initial_res {self.initial_res}: expected at most --tile {self.max_res}")
        sides = resolutions(self.least_res, self.max_res)
        if len(self.dims) not in (1, len(sides)):
            raise BadInput(
                f"--dims: has {len(self.dims)} numbers, expected 1, or {len(sides)} for {self.max_res} to "
                f"{self.least_res} px"
            )
        if self.latent_res > 1 and self.latent_dim != self.dims[-1]:
            raise BadInput(
                f"--latent_dim {self.latent_dim}: with --latent_res {self.latent_res} the decoder begins with as many "
                f"channels as --dims ends with, {self.dims[-1]}"
            )


def resolutions(low: int, high: int) -> list[int]:
    """The sides from low to high, each twice the one before."""
    return [low * 2**k for k in range((high // low).bit_length())]


def convolution(before: int, after: int, size: int = 3, padding: int = 1) -> nn.Conv2d:
    """With bias, Kaiming normal by fan_out for leaky ReLUs of slope 0.2."""
    module = nn.Conv2d(before, after, size, padding=padding)
    nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_out")
    return module


def halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Block(nn.Module):
    """x + conv(lrelu(conv(lrelu x))); `resample` is applied to the skip and after the branch's first activation."""

    def __init__(self, before: int, after: int, resample=None):
        super().__init__()
        self.resample = resample
        self.conv1, self.conv2 = convolution(before, after), convolution(after, after)
        self.skip = convolution(before, after, 1, padding=0) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branch = F.leaky_relu(x, SLOPE)
        if self.resample:
            x, branch = self.resample(x), self.resample(branch)
        branch = self.conv2(F.leaky_relu(self.conv1(branch), SLOPE))
        return self.skip(x) + branch


def blocks(channels: int, n: int) -> list[Block]:
    """n blocks that change neither size nor channels."""
    return [Block(channels, channels) for _ in range(n)]


def activated(module: nn.Module) -> nn.Sequential:
    """A convolution of the leaky ReLU."""
    return nn.Sequential(nn.LeakyReLU(SLOPE), module)


class Encoder(nn.Module):
    """Images (B, C, R, R), R from initial_res to max_res -> codes (B, latent_dim, latent_res, latent_res)."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        n, width, code = CONVOLUTIONS[config.kind], config.channels(), config.latent_dim
        self.from_image, self.down = nn.ModuleDict(), nn.ModuleDict()
        for side in resolutions(config.initial_res, config.max_res):
            first = convolution(config.in_channels, width[side])
            self.from_image[str(side)] = nn.Sequential(first, *blocks(width[side], n))
        for side in resolutions(config.least_res, config.max_res)[1:]:
            first = Block(width[side], width[side // 2], halve)
            self.down[str(side)] = nn.Sequential(first, *blocks(width[side // 2], n - 1))
        last = width[config.least_res]
        self.to_code = activated(convolution(last, code, 4, padding=0)) if config.latent_res == 1 else Block(last, code)

    def forward(self, images: Tensor, blend: float = 1.0) -> Tensor:
        """The codes; while a resolution fades in, `blend` is its share, and the rest comes through the one below."""
        side = images.shape[-1]
        x = self.from_image[str(side)](images)
        while str(side) in self.down:
            x = self.down[str(side)](x)
            side //= 2
            if blend < 1:
                x = (1 - blend) * self.from_image[str(side)](halve(images)) + blend * x
                blend = 1.0
        return self.to_code(x)


class Decoder(nn.Module):
    """Codes (B, latent_dim, latent_res, latent_res) -> images (B, C, R, R), not bounded."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        n, width, code = CONVOLUTIONS[config.kind], config.channels(), config.latent_dim
        self.least_res, first = config.least_res, width[config.least_res]
        self.up, self.to_image = nn.ModuleDict(), nn.ModuleDict()
        if config.latent_res == 1:
            self.from_code = activated(convolution(code, first, 4, padding=3))
        else:
            self.from_code = Block(code, first)
        for side in resolutions(config.least_res, config.max_res)[1:]:
            self.up[str(side)] = nn.Sequential(
                Block(width[side // 2], width[side], double), *blocks(width[side], n - 1)
            )
        for side in resolutions(config.initial_res, config.max_res):
            self.to_image[str(side)] = activated(convolution(width[side], config.in_channels))

    def forward(self, codes: Tensor, side: int, blend: float = 1.0) -> Tensor:
        """Images of `side` px; while this resolution fades in, `blend` is its share."""
        x, before = self.from_code(codes), None
        for at in resolutions(self.least_res, side)[1:]:
            before, x = x, self.up[str(at)](x)
        images = self.to_image[str(side)](x)
        if blend < 1:
            images = (1 - blend) * double(self.to_image[str(side // 2)](before)) + blend * images
        return images


class Autoencoder(nn.Module):
    """Images (B, C, R, R) -> their reconstructions. Errors: BadInput when the config does not fit."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        config.check()
        self.config, self.encoder, self.decoder = config, Encoder(config), Decoder(config)

    def forward(self, images: Tensor, blend: float = 1.0) -> Tensor:
        return self.decoder(self.encoder(images, blend), images.shape[-1], blend)


def critic(config: AutoencoderConfig) -> Encoder:
    """A residual9 network that gives one number per image, for images of an autoencoder's resolutions."""
    n_levels = len(resolutions(4, config.max_res))
    dims = config.dims if len(config.dims) == 1 else (config.dims + config.dims[-1:] * n_levels)[:n_levels]
    return Encoder(replace(config, kind="residual9", latent_res=1, latent_dim=1, dims=dims))
