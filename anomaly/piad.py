"""PIAD (Tuluptceva et al. 2019): an autoencoder that two critics hold to the images and to a normal distribution.

A critic of images tells x from G(z), one of codes z ~ N(0, 1) from E(x). Encoder E and decoder G minimise

    E: w_E L(x, G(E(x))) - mean D_z(E(x))          G: w_G L(x, G(E(x))) - mean D_x(G(z))

with L of `models.perceptual`, and w such that the gradients of both terms are alike. The score is L.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from anomaly import adversarial, reconstruction
from anomaly.runs import arguments, check_same_network, open_run
from common import checkpoint, cli, processes
from common.errors import BadInput
from common.files import sha256_of
from common.optimizers import Resumable
from models.autoencoder import AutoencoderConfig, Decoder, Encoder, critic, resolutions
from models.perceptual import Perceptual, distance, distance_map, layer_weights
from models.perceptual import add_flags as add_perceptual_flags

BETAS = (0.5, 0.99)  # of Adam
CRITIC_STEPS = 2  # of both critics before each step of encoder and decoder
HIDDEN = 1024  # channels of the critic of codes
HISTORY, ALPHA = 200, 0.05  # looks at the gradients that count, and how fast a look counts less
SUMS = ("reconstruction", "encoder", "decoder", "image_critic", "code_critic", "images")
COLUMNS = {
    "epoch": None,
    "iteration": None,
    **{f"train_{name}": f"train_epoch/{name}" for name in SUMS[:-1]},
    "val_reconstruction": "eval/reconstruction",
    "weight_encoder": "stats/weight_encoder",
    "weight_decoder": "stats/weight_decoder",
    "seconds": None,
}


def add_flags(parser) -> None:
    """Declare VGG, the networks' sizes, iterations and rates."""
    add_perceptual_flags(parser, "r42")
    group = parser.add_argument_group("piad")
    add = group.add_argument
    add("--iters", type=cli.positive, default=5000, help="iterations (DPA repository, CAMELYON16: 100,000)")
    add("--val_iter", type=cli.positive, default=1000, help="iterations between two rows of stats.csv")
    add("--latent_dim", type=cli.positive, default=256, help="numbers of a code")
    add(
        "--dims", type=cli.positives, help="channels from the tile's size down to 4 px (default: 32, doubled up to 256)"
    )
    add("--critic_dims", type=cli.positives, help="the same of the critic of images (default: 32, doubled up to 128)")
    add("--lr", type=cli.positive_float, default=2e-4, help="learning rate of encoder and decoder")
    add("--critic_lr", type=cli.positive_float, default=5e-4, help="learning rate of both critics")
    add("--balance_iter", type=cli.positive, default=100, help="iterations between two looks at the gradients")


class Balance:
    """How much the reconstruction weighs beside a critic, by the norms that both gradients had.

    Args: network: whose tensors with names that end in weight are looked at.
    Attributes: weight, the median over weight tensors and looks of ewma(critic's norm) / ewma(reconstruction's), 1
        before the first look.
    """

    def __init__(self, network: nn.Module):
        n_tensors = sum(name.endswith("weight") for name, _ in network.named_parameters())
        self.norms = torch.zeros(0, 2, n_tensors, dtype=torch.float64)  # looks, (critic, reconstruction), tensors
        self.weight = 1.0

    def set_gradients(self, network: nn.Module, critics_loss: Tensor, by_reconstruction, look: bool) -> None:
        """Give the network the gradient of critics_loss + weight * reconstruction; `look` changes the weight first.

        Args: by_reconstruction: the gradient of the reconstruction by each of the network's parameters.
        """
        parameters = dict(network.named_parameters())
        by_critic = torch.autograd.grad(critics_loss, parameters.values())
        if look:
            chosen = [i for i, name in enumerate(parameters) if name.endswith("weight")]
            self.look([by_critic[i] for i in chosen], [by_reconstruction[i] for i in chosen])
        for parameter, a, b in zip(parameters.values(), by_critic, by_reconstruction, strict=True):
            parameter.grad = a + self.weight * b

    def look(self, by_critic: list[Tensor], by_reconstruction: list[Tensor]) -> None:
        """Take in the gradients of the weight tensors and change the weight."""
        norms = [torch.stack([g.norm() for g in gradients]) for gradients in (by_critic, by_reconstruction)]
        self.norms = torch.cat([self.norms, torch.stack(norms).double().cpu()[None]])[-HISTORY:]
        self._weigh()

    def _weigh(self):
        if len(self.norms):
            critics, reconstructions = ewma(self.norms).unbind(1)
            self.weight = float((critics / reconstructions.clamp_min(1e-12)).quantile(0.5))

    def state_dict(self) -> dict:
        return {"norms": self.norms}

    def load_state_dict(self, saved: dict) -> None:
        """ValueError when the norms are of other tensors."""
        if saved["norms"].shape[1:] != self.norms.shape[1:]:
            raise ValueError(f"norms of {tuple(saved['norms'].shape)}")
        self.norms = saved["norms"].double()
        self._weigh()


def ewma(values: Tensor) -> Tensor:
    """Exponentially weighted mean along the first axis, begun at its first value; the latest has the weight ALPHA."""
    means = [values[0]]
    for value in values[1:]:
        means.append((1 - ALPHA) * means[-1] + ALPHA * value)
    return torch.stack(means)


def code_critic(latent_dim: int) -> nn.Sequential:
    """Codes (B, latent_dim, 1, 1) -> (B, 1, 1, 1)."""
    layers = [nn.Conv2d(before, after, 1) for before, after in ((latent_dim, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1))]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
    return nn.Sequential(layers[0], nn.LeakyReLU(0.2), layers[1], nn.LeakyReLU(0.2), layers[2])


def config_of(args, in_channels: int) -> tuple[AutoencoderConfig, AutoencoderConfig]:
    """The networks of autoencoder and critic of images that the flags ask for. BadInput names what does not fit."""
    n = len(resolutions(4, args.tile))
    usual, usual_critic = (tuple(min(32 * 2**k, most) for k in range(n)) for most in (256, 128))
    config = AutoencoderConfig(in_channels, args.tile, args.tile, 1, args.latent_dim, args.dims or usual, "residual9")
    critic_config = replace(config, dims=args.critic_dims or usual_critic)
    for each in (config, critic_config):
        each.check()
    return config, critic_config


class Learner:
    """The networks, their optimisers, and what weighs the losses."""

    def __init__(self, args, in_channels: int, device: torch.device):
        self.config, critic_config = config_of(args, in_channels)
        self.layers = layer_weights(args.layer)
        self.perceptual = Perceptual.from_args(args, self.layers).to(device)
        if args.tile < self.perceptual.vgg.smallest:
            raise BadInput(f"--layer {args.layer}: lies too deep for images of {args.tile} px")
        self.networks = {
            "encoder": Encoder(self.config).to(device),
            "decoder": Decoder(self.config).to(device),
            "image_critic": critic(critic_config).to(device),
            "code_critic": code_critic(args.latent_dim).to(device),
        }
        self.encoder, self.decoder, self.image_critic, self.code_critic = self.networks.values()
        both = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizers = {
            "autoencoder": torch.optim.Adam(both, args.lr, BETAS),
            "image_critic": torch.optim.Adam(self.image_critic.parameters(), args.critic_lr, BETAS),
            "code_critic": torch.optim.Adam(self.code_critic.parameters(), args.critic_lr, BETAS),
        }
        self.balances = {name: Balance(self.networks[name]) for name in ("encoder", "decoder")}

    def state(self) -> dict:
        """All that changes in training, by its name in a checkpoint."""
        optimizers = {f"{name}_optimizer": Resumable(optimizer) for name, optimizer in self.optimizers.items()}
        balances = {f"{name}_balance": balance for name, balance in self.balances.items()}
        return {**self.networks, **optimizers, **balances, "statistics": self.perceptual.statistics}

    def rebuild(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images), images.shape[-1])

    def distances(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """L of each image, (B,)."""
        return distance(self.perceptual.reference(images), self.perceptual(rebuilt), self.layers)


def step(learner: Learner, images: Tensor, look: bool) -> Tensor:
    """Train both critics CRITIC_STEPS times, then encoder and decoder once.

    Args:
        images: (B, C, R, R) in [-1, 1]. look: whether the losses are balanced anew.
    Returns: SUMS, (6,) float64 on the device.
    """
    for _ in range(CRITIC_STEPS):
        critics = train_critics(learner, images)
    losses = torch.stack([*train_autoencoder(learner, images, look), *critics, torch.ones_like(critics[0])])
    return losses.double() * len(images)


def draw_codes(learner: Learner, images: Tensor) -> Tensor:
    """As many codes as images, from N(0, 1)."""
    return torch.randn(len(images), learner.config.latent_dim, 1, 1, device=images.device)


def train_critics(learner: Learner, images: Tensor) -> list[Tensor]:
    """One step of both critics, on x against G(z) and on z against E(x); returns their losses."""
    codes = draw_codes(learner, images)
    with torch.no_grad():
        made, encoded = learner.decoder(codes, images.shape[-1]), learner.encoder(images)
    losses = []
    for name, real, other in (("image_critic", images, made), ("code_critic", codes, encoded)):
        loss = adversarial.critic_loss(learner.networks[name], real, other)
        learner.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        learner.optimizers[name].step()
        losses.append(loss.detach())
    return losses


def train_autoencoder(learner: Learner, images: Tensor, look: bool) -> list[Tensor]:
    """One step of encoder and decoder; returns the mean of L, and the losses that the critics give them."""
    encoded = learner.encoder(images)
    rebuilt = learner.decoder(encoded, images.shape[-1])
    loss = learner.distances(images, rebuilt).mean()
    made = learner.decoder(draw_codes(learner, images), images.shape[-1])
    of_encoder = adversarial.generator_loss(learner.code_critic, encoded)
    of_decoder = adversarial.generator_loss(learner.image_critic, made)
    parameters = [*learner.encoder.parameters(), *learner.decoder.parameters()]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    n = len(list(learner.encoder.parameters()))
    learner.balances["encoder"].set_gradients(learner.encoder, of_encoder, gradients[:n], look)
    learner.balances["decoder"].set_gradients(learner.decoder, of_decoder, gradients[n:], look)
    learner.optimizers["autoencoder"].step()
    return [loss.detach(), of_encoder.detach(), of_decoder.detach()]


def fit(normals, val, args, device: torch.device) -> None:
    """Train --iters iterations; the last networks are kept."""
    if args.precision == "fp16":
        raise BadInput("--precision fp16: the critics' gradient penalty needs a wider range; choose another")
    learner = Learner(args, normals.in_channels, device)
    config = {"network": learner.config.to_dict(), **learner.perceptual.facts}
    if args.vgg_stats:
        config["vgg_stats_sha256"] = sha256_of(args.vgg_stats)
    n_steps = min(args.val_iter, args.iters)
    columns = {name: tag for name, tag in COLUMNS.items() if val is not None or not name.startswith("val")}
    with open_run(
        args,
        normals,
        device,
        columns=columns,
        config=config,
        state=learner.state(),
        sums=SUMS,
        steps_per_epoch=n_steps,
        kept=("encoder", "decoder", "statistics"),
        scalars=step_scalars,
        advice="lower --lr",
        place=lambda epoch, step: f"iteration {(epoch - 1) * n_steps + step}",
    ) as run:
        for epoch in run.epochs(-(-args.iters // n_steps)):
            if epoch == run.done == 0:
                reconstruction.measure(learner.perceptual, normals, args, device)
            first, last = epoch * n_steps, min(args.iters, (epoch + 1) * n_steps)
            for tiles, _, _ in run.steps(normals.batches(args, device, first + run.done, last * args.batch_size)):
                look = (first + run.done + 1) % args.balance_iter == 0
                with processes.autocast(device, args.precision):
                    run.count(step(learner, signed(tiles, device), look))
            row = {"iteration": last, **means(run.sums)}
            row |= {f"weight_{name}": balance.weight for name, balance in learner.balances.items()}
            if val is not None:
                row["val_reconstruction"] = validate(learner, val, args, device)
            images = signed(reconstruction.first_tiles(val or normals, device), device)
            reconstruction.draw_samples(run, args.logdir, images, learner.rebuild(images).detach())
            run.end_epoch(row)
            say_epoch(run, args.iters)


def signed(tiles: Tensor, device: torch.device) -> Tensor:
    """Tiles in [0, 1] as images in [-1, 1] on the device."""
    return 2 * tiles.to(device, non_blocking=True) - 1


def means(sums: dict[str, float]) -> dict[str, float]:
    """Averages over images of an epoch, named as in stats.csv."""
    return {f"train_{name}": value / sums["images"] for name, value in sums.items() if name != "images"}


def step_scalars(sums: dict[str, float]) -> dict[str, float]:
    """TensorBoard's values of one step."""
    return {f"train/{name.removeprefix('train_')}": value for name, value in means(sums).items()}


@torch.inference_mode()
def validate(learner: Learner, val, args, device: torch.device) -> float:
    """Mean L of the validation tiles."""
    total = 0.0
    for tiles, _, _ in val.batches(args, device, 0, val.n_images):
        images = signed(tiles, device)
        total += learner.distances(images, learner.rebuild(images)).double().sum().item()
    return total / val.n_images


def say_epoch(run, iters: int) -> None:
    """Print the losses of the epoch that has ended."""
    row = run.history[-1]
    val = f", of validation images {row['val_reconstruction']:.3f}" if "val_reconstruction" in row else ""
    print(
        f"iteration {row['iteration']}/{iters}  L {row['train_reconstruction']:.3f}{val}  critics "
        f"{row['train_image_critic']:.2f} {row['train_code_critic']:.2f}  weights {row['weight_encoder']:.3g} "
        f"{row['weight_decoder']:.3g}  {row['seconds']:.0f} s",
        flush=True,
    )


class Detector(nn.Module):
    """Encoder, decoder and VGG, ready to score."""

    def __init__(self, args, config: AutoencoderConfig):
        super().__init__()
        self.layers = layer_weights(args.layer)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.perceptual = Perceptual.from_args(args, self.layers)


def load(saved: dict, path: Path, device: torch.device) -> Detector:
    """The detector, from the content of best_checkpoint.pth. BadInput where VGG's weights differ."""
    config = saved["config"]
    detector = Detector(arguments(saved), AutoencoderConfig.from_dict(config["network"]))
    check_same_network(detector.perceptual.facts, config, path)
    for name, part in (
        ("encoder", detector.encoder),
        ("decoder", detector.decoder),
        ("statistics", detector.perceptual.statistics),
    ):
        checkpoint.load_weights(part, saved[name], path)
    return detector.to(device).eval()


@torch.inference_mode()
def score(detector: Detector, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """L of each tile (B,), and where it comes from (B, h, w)."""
    images = 2 * tiles - 1
    reference = detector.perceptual.reference(images)
    made = detector.perceptual(detector.decoder(detector.encoder(images), images.shape[-1]))
    found = distance(reference, made, detector.layers), distance_map(reference, made, detector.layers)
    return tuple(part.cpu() for part in found)
