"""Pretrained weights for every system: torchvision's ImageNet weights, a file, or random ones; never in silence."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn

from common import checkpoint, cli, torch_format
from common.errors import BadInput
from common.files import sha256_of

ENUMS = {  # network -> torchvision's weights: their address ends in the first digits of the file's sha256
    "vgg16": torchvision.models.VGG16_Weights.IMAGENET1K_FEATURES,  # Oxford's own, convolutions alone
    "vgg19": torchvision.models.VGG19_Weights.IMAGENET1K_V1,
    "vgg19_bn": torchvision.models.VGG19_BN_Weights.IMAGENET1K_V1,
    "squeezenet": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "inception_resnet_v2": SimpleNamespace(  # not torchvision's; timm's own file, converted from TensorFlow's
        url="https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights/"
        "inception_resnet_v2-940b1cd6.pth"
    ),
}
INPUTS = {  # mean and standard deviation of RGB in [0, 1] that a training took away
    "torchvision": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "oxford": ((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
USUAL_INPUT = {"vgg16": "oxford", "inception_resnet_v2": "inception"}  # of the weights in ENUMS; else torchvision's
KNOWN = {  # sha256 -> network and input of ImageNet weights that are not torchvision's files
    "cdfb6c5dcb3993c51eed9193f66636c93a5845236fce6ff0f4e4c49b42b16836": ("vgg16", "oxford"),  # to conv4_3, 16 bits
    "e3c71c0d420b03bd49b9a1b49431f1aae970dadccb9325f6b02edde33c92d2f0": ("squeezenet", "torchvision"),  # 16 bits
}


@dataclass(frozen=True)
class Weights:
    """Where a network's weights come from.

    Attributes: source, imagenet, a file's name or random; state, its tensors by name, None when random; path and
        sha256 of the file; input, a key of INPUTS.
    """

    source: str
    state: dict[str, Tensor] | None = None
    path: Path | None = None
    sha256: str | None = None
    input: str = "torchvision"

    @property
    def mean(self) -> tuple[float, float, float]:
        return INPUTS[self.input][0]

    @property
    def std(self) -> tuple[float, float, float]:
        return INPUTS[self.input][1]

    def describe(self) -> dict:
        """What config.json says of them, and what must be equal to go on with a run."""
        return {"weights": self.source, "weights_sha256": self.sha256, "weights_input": self.input}


class Standardised(nn.Module):
    """RGB (B, 3, H, W) in [0, 1] less the mean, by the standard deviation, of each channel; not in a state_dict."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def parse_source(text: str) -> str | Path:
    """Parse `imagenet`, `random` or a file (an argparse type)."""
    return text if text in ("imagenet", "random") else cli.path(text).expanduser()


def fetch(network: str, source: str | Path, flag: str = "--embedder_weights", input: str | None = None) -> Weights:
    """The weights of a network: `imagenet`, `random` or a file.

    imagenet: $WEIGHTS_DIR is searched by sha256, then torchvision's cache; then they are downloaded.

    Args:
        network: a key of ENUMS.
        flag: that chose the source, for messages.
        input: a key of INPUTS, for a file that is not known; default torchvision, of inception_resnet_v2 inception.
    Errors: BadInput when there are none, with the ways out.
    """
    if source == "random":
        print(f"{flag} random: {network} is not pretrained; its features are those of chance", file=sys.stderr)
        return Weights("random", input=_default_input(network))
    if source == "imagenet":
        return _read(*_fetch_imagenet(network, flag), source)
    path = Path(source).expanduser()
    sha256 = sha256_of(path)
    known = _input_of(network, sha256)
    if known is None:
        known = input or _default_input(network)
        print(f"{path}: unknown weights; input as {known} (--weights_input)", file=sys.stderr)
    return _read(path, sha256, known, path.name)


def load(module: nn.Module, weights: Weights, prefix: str = "") -> None:
    """Load what the module needs from weights whose names may begin with the prefix. BadInput: one lacks or misfits.

    Random weights stay as `seeded` drew them.
    """
    if weights.state is None:
        return
    chosen = {}
    for name in module.state_dict():
        for candidate in (prefix + name, name):
            if candidate in weights.state:
                value = weights.state[candidate]
                chosen[name] = value.float() if torch.is_tensor(value) and value.is_floating_point() else value
                break
        else:
            if name.endswith("num_batches_tracked"):  # not in files of early versions
                chosen[name] = module.state_dict()[name]
    checkpoint.load_weights(module, chosen, weights.path)


def _default_input(network):
    """What a file of unknown weights wants; most are trained with torchvision."""
    return "inception" if network == "inception_resnet_v2" else "torchvision"


def seeded(make):
    """Make a module from a fixed seed, whatever the global generator's state, which stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def _read(path, sha256, input, source):
    state, foreign = torch_format.read(path)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if foreign or not isinstance(state, dict) or not any(torch.is_tensor(value) for value in state.values()):
        raise BadInput(f"{path}: expected a state_dict of weights, found something else")
    return Weights(source, state, path, sha256, input)


def find_imagenet(network: str) -> Path | None:
    """Where a network's ImageNet weights lie; None where they would have to be downloaded."""
    folder = os.environ.get("WEIGHTS_DIR")
    for path in sorted(Path(folder).glob("*.pth")) if folder else ():
        if _input_of(network, sha256_of(path)):
            return path
    path = _cached(network)
    return path if path.exists() else None


def _cached(network):
    """Where torchvision keeps its own file."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(ENUMS[network].url).path).name


def _fetch_imagenet(network, flag):
    """Path, sha256 and input of a network's ImageNet weights, downloaded where they lie nowhere; BadInput without."""
    path = find_imagenet(network)
    if path is None:
        path = _cached(network)
        _download(ENUMS[network].url, path, network, flag, os.environ.get("WEIGHTS_DIR"))
    sha256 = sha256_of(path)
    if not _input_of(network, sha256):
        raise BadInput(f"{path}: damaged: its sha256 is {sha256[:8]}; remove it and it is downloaded again")
    return path, sha256, _input_of(network, sha256)


def _download(url, path, network, flag, folder):
    places = f"{path}" + (f" and $WEIGHTS_DIR ({folder})" if folder else "; WEIGHTS_DIR is not set")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_digits(url), progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # no network; a damaged transfer
        reason = " ".join(str(error).split())[:120]
        raise BadInput(
            f"{flag} imagenet: no weights of {network} in {places}, and no download ({reason}): "
            f"put the file there, or name a FILE, or say random"
        ) from None


def _digits(url):
    return Path(urlparse(url).path).stem.rsplit("-", 1)[1]


def _input_of(network, sha256):
    """The input that a network's known file with this sha256 wants; None for another file."""
    if KNOWN.get(sha256, (None,))[0] == network:
        return KNOWN[sha256][1]
    if sha256.startswith(_digits(ENUMS[network].url)):
        return USUAL_INPUT.get(network, "torchvision")
    return None
