"""VGG's features at named layers: c42 is convolution 2 of block 4, r42 its ReLU, p4 the block's pooling."""

from torch import Tensor, nn

from common.errors import BadInput
from models import weights as pretrained
from models.weights import Standardised, Weights

CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}  # of each block
CHANNELS = (64, 128, 256, 512, 512)


def layers(network: str) -> list[str]:
    """Names of the layers of torchvision's `features`, in their order."""
    names = []
    for block, n in enumerate(CONVOLUTIONS[network], 1):
        names += [f"{kind}{block}{i}" for i in range(1, n + 1) for kind in "cr"] + [f"p{block}"]
    return names


def least_side(network: str, tap: str) -> int:
    """The least side in px of an image that the layer gives a feature for."""
    before = layers(network)[: layers(network).index(tap) + 1]
    return 2 ** sum(name.startswith("p") for name in before)


class VGG(nn.Module):
    """Frozen features: images (B, 3, H, W) in [0, 1] -> {tap: (B, C, h, w)}; computes nothing beyond the last tap.

    Attributes: smallest, the least side of an image in px.
    Errors: BadInput for a tap that the network lacks or that lies beyond the last layer of the weights.
    """

    def __init__(self, network: str, taps: tuple[str, ...], weights: Weights):
        super().__init__()
        names = layers(network)
        for tap in taps:
            if tap not in names:
                raise BadInput(f"layer {tap}: {network} has {names[0]} to {names[-1]}, without it")
        self.depths = {names.index(tap): tap for tap in taps}
        depth = max(self.depths) + 1
        self.smallest = least_side(network, names[depth - 1])
        _check_depth(names[:depth], weights)
        self.features = pretrained.seeded(lambda: make_trunk(network)[:depth])
        pretrained.load(self.features, weights, "features.")
        self.channels = {tap: CHANNELS[int(tap[1]) - 1] for tap in taps}
        self.standardised = Standardised(weights.mean, weights.std)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True):
        return super().train(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x, found = self.standardised(images), {}
        for depth, module in enumerate(self.features):
            x = module(x)
            if depth in self.depths:
                found[self.depths[depth]] = x
        return found


def make_trunk(network: str) -> nn.Sequential:
    """The layers of torchvision's `features`, drawn by its rule."""
    modules, before = [], 3
    for n, after in zip(CONVOLUTIONS[network], CHANNELS, strict=True):
        for _ in range(n):
            convolution = nn.Conv2d(before, after, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(convolution.bias)
            modules += [convolution, nn.ReLU()]  # not in place: taps keep their values
            before = after
        modules.append(nn.MaxPool2d(2))
    return nn.Sequential(*modules)


def _check_depth(names, weights):
    """BadInput when weights end before the last of these layers."""
    for i, name in enumerate(names):
        if name.startswith("c") and weights.state is not None and not has_layer(weights, i):
            last = [n for n in names[:i] if n.startswith("c")]
            reached = f"end at {last[-1]}" if last else "hold no VGG"
            raise BadInput(f"{weights.path}: layer {names[-1]} is asked for, but these weights {reached}")


def has_layer(weights: Weights, i: int) -> bool:
    """Whether weights that are not random hold layer i of `features`, a convolution."""
    return any(key in weights.state for key in (f"features.{i}.weight", f"{i}.weight"))
