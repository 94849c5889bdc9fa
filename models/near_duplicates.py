"""Networks that learn to tell near-duplicates (Koker 2020): a trunk of torchvision's, GeM pooling and a linear layer.

`start` begins one from pretrained weights, `load_network` opens a trained one: ours, the first version's .pth or the
last one's .ckpt.
"""

import contextlib
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from common import checkpoint, torch_format
from common.errors import BadInput
from common.files import sha256_of
from models import weights as pretrained
from models.paired_autoencoder import PairedAutoencoder, grey
from models.pooling import generalized_mean_pool
from models.weights import Standardised

BASES = ("resnet50", "vgg19", "autoencoder")
IMAGENET = {"resnet50": "resnet50", "vgg19": "vgg19_bn"}  # base -> network of models.weights
CHANNELS = {"resnet50": 2048, "vgg19": 512}
LAST = {"resnet50": 1, "vgg19": 11}  # modules of the last run of 8: layer4; conv5_2 to conv5_4
LAYERS = ("last", "all", "none")
DIM = 2048
RESNET_PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")  # 0 to 7 of the trunk


class GeM(nn.Module):
    """Generalised-mean pooling (B, C, h, w) -> (B, C) whose exponent p learns (Radenovic et al. 2018)."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([3.0]))

    def forward(self, maps: Tensor) -> Tensor:
        return generalized_mean_pool(maps, self.p)


class TrunkNetwork(nn.Module):
    """Images (B, 1 or 3, H, W) in [0, 1], made grey -> unit vectors (B, 2048).

    Attributes: chunks, runs of the trunk's modules, all but the last computed twice to save memory; 0 = none.
    """

    smallest = 32

    def __init__(self, base: str):
        super().__init__()
        self.dim = DIM
        self.config = {"kind": "retrieval", "base": base}
        self.base, self.gem, self.fc = _trunk(base), GeM(), nn.Linear(CHANNELS[base], DIM)
        self.chunks, self.frozen = 0, []
        self.standardised = Standardised(*pretrained.INPUTS["torchvision"])

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < self.smallest:
            raise BadInput(f"images of {images.shape[-2]} x {images.shape[-1]} px, expected {self.smallest} px or more")
        maps = self._maps(self.standardised(grey(images)))
        return F.normalize(self.fc(self.gem(maps).flatten(1)).float())

    def _maps(self, inputs):
        """The trunk's maps (B, C, h, w). Not reentrant: runs learn though images need no gradient (PyTorch 42812)."""
        if self.chunks < 2 or not torch.is_grad_enabled():
            return self.base(inputs)
        length = max(1, len(self.base) // self.chunks)
        for first in range(0, length * (min(self.chunks, len(self.base)) - 1), length):
            run = self.base[first : first + length]
            inputs = recomputed(run, inputs, use_reentrant=False, context_fn=lambda run=run: _contexts(run))
        return self.base[first + length :](inputs)

    def choose_layers(self, layers: str) -> None:
        """Which of the trunk's layers learn: LAYERS. The others keep their batch statistics too; GeM and head learn."""
        n = {"last": LAST[self.config["base"]], "all": len(self.base), "none": 0}[layers]
        self.frozen = list(self.base[: len(self.base) - n])
        self.requires_grad_(True)
        for module in self.frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def parameter_groups(self, lr: float) -> list[dict]:
        """What learns, for an optimiser; the exponent of GeM learns ten times as fast."""
        others = [p for name, p in self.named_parameters() if p.requires_grad and name != "gem.p"]
        return [{"params": others, "lr": lr}, {"params": [self.gem.p], "lr": 10 * lr}]


def _trunk(base):
    """A Sequential of all but the classifier, freshly drawn, without building VGG's large one."""
    if base == "resnet50":
        return nn.Sequential(*list(torchvision.models.resnet50().children())[:-2])
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"], batch_norm=True)
    for module in layers:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return layers


def _contexts(run):
    """Contexts of the two passes through a run; the second must not count in the batch statistics again."""
    return contextlib.nullcontext(), _statistics_kept(run)


@contextlib.contextmanager
def _statistics_kept(run):
    norms = [module for module in run.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


def build(config: dict) -> nn.Module:
    """A freshly drawn network of a checkpoint's config. ValueError when it is of another kind."""
    if config.get("kind") != "retrieval" or config.get("base") not in BASES:
        raise ValueError(f"it is of a network of kind {config.get('kind', 'needle')!r}, not of a retrieval network")
    return PairedAutoencoder() if config["base"] == "autoencoder" else TrunkNetwork(config["base"])


def start(base: str, source: str, flag: str = "--weights") -> tuple[nn.Module, dict]:
    """A network to train, from `imagenet` weights of its trunk, `random` ones or a file; and what to say of them.

    A file is a trained network or torchvision's weights of the trunk. BadInput when it is of another base.
    """
    network = build({"kind": "retrieval", "base": base})
    if source == "random":
        if base != "autoencoder":
            pretrained.fetch(IMAGENET[base], source, flag)  # says so
        return network, {"weights": "random", "weights_sha256": None, "trained": False}
    if source == "imagenet":
        if base == "autoencoder":
            raise BadInput(f"{flag} imagenet: an autoencoder begins from random weights or a FILE of its own")
        weights = pretrained.fetch(IMAGENET[base], source, flag)
        path, state, sha256 = weights.path, weights.state, weights.sha256
    else:
        path = Path(source).expanduser()
        state, sha256 = _read(path), sha256_of(path)
    found, state = _recognise(state, path)
    if found != base:
        raise BadInput(f"{flag} {path}: weights of {found}, expected {base}; see --base")
    trained = "fc.weight" in state or "head.0.weight" in state
    checkpoint.load_weights(network if trained else network.base, state, path)
    return network, {"weights": Path(source).name, "weights_sha256": sha256, "trained": trained}


def load_network(path: Path) -> nn.Module:
    """A trained network, frozen, of a run folder or a checkpoint: (B, 1 or 3, H, W) in [0, 1] -> unit vectors (B, dim).

    Its `describe()` says what must be equal to compare vectors. BadInput: the file holds no trained retrieval network.
    """
    path = Path(path).expanduser()
    path = path / checkpoint.BEST if path.is_dir() else path
    base, state = _recognise(_read(path), path)
    if base != "autoencoder" and "fc.weight" not in state:
        raise BadInput(f"{path}: torchvision's weights of {base}, expected a trained network (fc.weight, gem.p)")
    with checkpoint.errors_name(path):
        network = build({"kind": "retrieval", "base": base})
        checkpoint.load_weights(network, state, path)
    facts = {"embedder": f"retrieval {base}", "weights": path.name, "weights_sha256": sha256_of(path)}
    network.describe = lambda: facts
    return network.eval().requires_grad_(False)


def _read(path):
    """The tensors by name of somebody's checkpoint. BadInput when it is of a network of another kind or has none."""
    content, _ = torch_format.read(path)  # Lightning's hold objects, which stay unread
    content = content if isinstance(content, dict) else {}
    config = content.get("config")
    if isinstance(config, dict) and config.get("kind", "needle") != "retrieval":
        raise BadInput(f"{path}: a network of kind {config.get('kind', 'needle')!r}, expected a retrieval network")
    state = content.get("state_dict", content)
    tensors = {str(k): v for k, v in state.items() if torch.is_tensor(v)} if isinstance(state, dict) else {}
    if not tensors:
        raise BadInput(f"{path}: expected weights of a retrieval network, found none")
    return tensors


def _recognise(state, path):
    """Base and weights under our names, of our own, the first version's, Lightning's (model.) or torchvision's names.

    BadInput when they are of no base that there is.
    """
    for prefix in (*checkpoint.WRAPPERS, "model."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    if "head.0.weight" in state:
        return "autoencoder", state
    if "gem.p" in state:
        state = {_number(name): value for name, value in state.items()}
        if state["gem.p"].numel() == 1:
            state["gem.p"] = state["gem.p"].reshape(1)
        first = "base.0.weight"
    else:
        others = ("fc.", "classifier.")
        state = {_number(n.removeprefix("features.")): v for n, v in state.items() if not n.startswith(others)}
        first = "0.weight"
    side = state[first].shape[-1:] if first in state else ()
    for base, length in (("resnet50", 7), ("vgg19", 3)):
        if side == (length,):
            return base, state
    raise BadInput(f"{path}: not weights of {', '.join(BASES)}: has {', '.join(list(state)[:3])} ...")


def _number(name):
    """conv1 ... layer4 of ResNet's names are 0 ... 7 in a trunk."""
    prefix = "base." if name.startswith("base.") else ""
    part, dot, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{RESNET_PARTS.index(part)}{dot}{rest}" if part in RESNET_PARTS else name
