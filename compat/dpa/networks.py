"""Sections on networks, losses and schedules -> flags of train_anomaly.py."""

from compat.dpa.section import Section

PIAD_LR = {"enc_dec": "--lr", "ddis": "--critic_lr", "edis": "--critic_lr"}
PIAD_BETAS = [0.5, 0.99]


def dpa_flags(config: Section) -> dict:
    """Of a training config of DPA, without its data."""
    side, first = config.whole("max_image_res"), config.whole("initial_image_res")
    latent_res, latent_dim = config.whole("latent_res"), config.whole("latent_dim")
    flags = {"--tile": side, "--latent_res": latent_res, "--latent_dim": latent_dim}
    flags["--finetune_from"] = config.text("finetune_from", None)
    flags |= schedule_flags(config, first, side)
    adam = config.section("adam_kwargs")
    flags["--lr"] = adam.number("lr")
    adam.one_of("betas", ([0.9, 0.999],), None)
    flags |= autoencoder_flags(config, side, 4 if latent_res == 1 else latent_res)
    flags |= adversarial_flags(config)
    return flags | loss_flags(config, first, side)


def schedule_flags(config: Section, first: int, side: int) -> dict:
    """Iterations of each stage, batch, and when it stops early."""
    trns, stab = config.whole("trns_iter", 0), config.whole("stab_iter", None)
    own = config.section("iters_per_res", {})
    sides = [first * 2**k for k in range((side // max(first, 1)).bit_length())]
    if not first or sides[-1] != side:
        raise config.error("initial_image_res", f"{first} is not max_image_res {side} halved some times")
    stages = []
    for each in sides:
        changed = own.section(str(each), {})
        fade, stable = changed.whole("trns", trns), changed.whole("stab", stab)
        if stable is None:
            raise config.error("stab_iter", "missing")
        stages += [stable] if each == first else [fade, stable]
    if not all(stages):
        raise config.error("trns_iter", "0, but the network grows: expected 1 or more for every resolution")
    flags = {"--iters": stages[0]}
    if len(stages) > 1:
        flags = {"--progressive": True, "--initial_res": first, "--stage_iters": ",".join(map(str, stages))}
    val_iter, patience = config.whole("val_iter", 0), config.whole("early_stopping_patience", 0)
    min_delta = config.number("early_stopping_min_delta", 0)
    if 0 < val_iter <= stages[-1]:  # else it never validates, and the last weights are kept
        flags |= {"--val_iter": val_iter, "--patience": patience, "--min_delta": min_delta}
    return flags | {"-b": batch_size(config)}


def batch_size(config: Section) -> int:
    """The batch, which is the same at every resolution."""
    sizes = config.section("batch_sizes")
    found = {sizes.whole(key) for key in list(sizes.left)}
    if len(found) != 1:
        raise config.error("batch_sizes", f"expected one size for all resolutions, found {sorted(found)}")
    return found.pop()


def autoencoder_flags(config: Section, side: int, least: int) -> dict:
    """Kind and channels of encoder and decoder, which mirror each other."""
    encoder, decoder = config.section("enc"), config.section("dec")
    kind = encoder.one_of("type", ("residual18", "residual9"))
    decoder.one_of("type", (kind,))
    dims = channels(encoder, side, least)
    if channels(decoder, side, least, from_start=True) != dims[::-1]:
        raise config.error("dec.kwargs.inner_dims", f"expected the encoder's in reverse, {dims[::-1]}")
    return {"--network": kind, "--dims": ",".join(map(str, dims))}


def channels(network: Section, side: int, least: int, from_start: bool = False) -> list[int]:
    """Channels of the resolutions in use: the list's last ones, of a decoder its first ones."""
    kwargs = network.section("kwargs")
    kwargs.one_of("norm", ("none",), "none")
    kwargs.one_of("pad_type", ("zero",), "zero")
    dims, n = kwargs.take("inner_dims"), (side // least).bit_length()
    if not isinstance(dims, list) or len(dims) < n or not all(type(d) is int and d > 0 for d in dims):
        raise kwargs.error("inner_dims", f"expected {n} numbers for {side} to {least} px, found {dims}")
    if len(dims) > n:
        kwargs.note("inner_dims", f"has {len(dims)} numbers, {n} are used, the {'first' if from_start else 'last'}")
    return dims[:n] if from_start else dims[-n:]


def adversarial_flags(config: Section) -> dict:
    """The adversarial ablation; none without image_adv_loss."""
    n_dis = config.whole("n_dis", 0)
    if not config.has("image_adv_loss"):
        if n_dis:
            raise config.error("n_dis", f"{n_dis}, but there is no image_adv_loss")
        config.drop("ddis", "image_adv_loss", "loss_weights")
        return {}
    if not n_dis:
        raise config.error("n_dis", "0, but there is an image_adv_loss")
    config.section("image_adv_loss").one_of("loss_type", ("wgan_gp",), "wgan_gp")
    critic = config.section("ddis")
    critic.one_of("type", ("residual9",))
    critic.note("kwargs", "no effect: the critic has the channels of the encoder")
    critic.drop("kwargs")
    weights = config.section("loss_weights")
    reconstruction = weights.number("image_rec_loss")
    if not reconstruction:
        raise weights.error("image_rec_loss", "expected a number above 0")
    return {"--n_dis": n_dis, "--adv_weight": f"{weights.number('image_adv_loss') / reconstruction:g}"}


def loss_flags(config: Section, first: int, side: int) -> dict:
    """image_rec_loss: perceptual, of pixels, or a share of pixels beside the perceptual one."""
    loss = config.section("image_rec_loss")
    kind = loss.one_of("loss_type", ("relative_perceptual_L1", "l1", "l2", "compose"))
    scored_by = kind
    if kind == "compose":
        flags, scored_by = composed_flags(loss, first, side), "relative_perceptual_L1"
    elif kind == "relative_perceptual_L1":
        flags = perceptual_flags(loss.section("loss_kwargs"), first, side)
    else:
        loss.drop("loss_kwargs")
        flags = {"--loss": kind}
    if config.has("test_image_rec_loss"):
        check_scored_alike(config.section("test_image_rec_loss"), scored_by, flags, first, side)
    elif kind == "compose" or "--l1_weight" in flags:
        loss.note("loss_type", f"{kind}: images are scored by its perceptual part alone")
    return flags


def check_scored_alike(test: Section, kind: str, flags: dict, first: int, side: int) -> None:
    """BadInput when images are to be scored by another loss than these flags train with."""
    test.one_of("loss_type", (kind,))
    if kind != "relative_perceptual_L1":
        test.drop("loss_kwargs")
        return
    wanted = perceptual_flags(test.section("loss_kwargs"), first, side)
    if "--l1_weight" in wanted or not wanted.items() <= flags.items():
        asked = " ".join(f"{flag} {value}" for flag, value in wanted.items())
        raise test.error("loss_kwargs", f"{asked} is not offered: the layers of image_rec_loss alone score images")


def composed_flags(loss: Section, first: int, side: int) -> dict:
    """Pixel L1 beside the perceptual loss, relative to it."""
    kwargs, found = loss.section("loss_kwargs"), {}
    for name in ("loss_1", "loss_2"):
        part = kwargs.section(name)
        kind = part.one_of("loss_type", ("l1", "relative_perceptual_L1"))
        found[kind] = part
    if len(found) != 2:
        raise kwargs.error("loss_2", "expected l1 and relative_perceptual_L1, one each")
    found["l1"].drop("loss_kwargs")
    flags = perceptual_flags(found["relative_perceptual_L1"].section("loss_kwargs"), first, side)
    weights = {kind: part.number("loss_weight", 1.0) for kind, part in found.items()}
    if not weights["relative_perceptual_L1"]:
        raise found["relative_perceptual_L1"].error("loss_weight", "expected a number above 0")
    if "--l1_weight" in flags:
        raise kwargs.error("loss_1", "l1, but img_weight of the perceptual loss is not 0 either; give one")
    layers = flags.get("--layers", flags.get("--layer")).split(",")[-1].split("+")
    total = sum(float(layer.partition(":")[2] or 1) for layer in layers)
    return flags | {"--l1_weight": f"{total * weights['l1'] / weights['relative_perceptual_L1']:g}"}


def perceptual_flags(kwargs: Section, first: int, side: int) -> dict:
    """Layers of VGG by resolution, or for all."""
    if not kwargs.switch("use_smooth_pg", default=first < side) and first < side:
        raise kwargs.error("use_smooth_pg", "false is not offered: a resolution fades in with its loss")
    if not kwargs.has("weights_per_resolution"):
        layer, img_weight = layer_text(kwargs)
        return {"--layer": layer, **({"--l1_weight": f"{img_weight:g}"} if img_weight else {})}
    by_side = kwargs.section("weights_per_resolution")
    found = {}
    for each in (first * 2**k for k in range((side // first).bit_length())):
        found[each] = layer_text(by_side.section(str(each)))
    for other in list(by_side.left):
        by_side.note(other, "not used: no resolution of this training")
        by_side.drop(other)
    img_weights = {img_weight for _, img_weight in found.values()}
    if len(img_weights) > 1:
        raise by_side.error(str(side), f"expected one img_weight for all resolutions, found {sorted(img_weights)}")
    layers = [layer for layer, _ in found.values()]
    flags = {"--layer": layers[0]} if len(layers) == 1 else {"--layers": ",".join(layers)}
    return flags | ({"--l1_weight": f"{max(img_weights):g}"} if any(img_weights) else {})


def layer_text(kwargs: Section) -> tuple[str, float]:
    """Layers with their weights as --layer takes them, and the weight of pixels."""
    weights = kwargs.section("feature_weights")
    found = {name: weights.number(name) for name in list(weights.left)}
    used = {name: weight for name, weight in found.items() if weight}
    if not used:
        raise kwargs.error("feature_weights", "expected a layer with a weight above 0")
    parts = [name if weight == 1 else f"{name}:{weight:g}" for name, weight in used.items()]
    return "+".join(parts), kwargs.number("img_weight", 0)


def piad_flags(config: Section) -> dict:
    """Of a training config of PIAD, without its data."""
    side = config.whole("image_res")
    config.one_of("latent_res", (1,), 1)
    config.one_of("n_dis", (2,), 2)
    flags = {"--tile": side, "--latent_dim": config.whole("latent_dim"), "--iters": config.whole("iters")}
    flags |= {"-b": config.whole("batch_size"), "--balance_iter": config.whole("update_grad_norm_iter", 100)}
    val_iter = config.whole("val_iter", 0)
    flags |= {"--val_iter": min(val_iter, flags["--iters"])} if val_iter else {}
    flags |= piad_rates(config.section("adam_kwargs"))
    sizes = autoencoder_flags(config, side, 4)
    if sizes["--network"] != "residual9":
        raise config.error("enc.type", f"{sizes['--network']} is not offered, expected residual9")
    critic = config.section("ddis")
    critic.one_of("type", ("residual9",), "residual9")
    flags |= {"--dims": sizes["--dims"], "--critic_dims": ",".join(map(str, channels(critic, side, 4)))}
    code_critic = config.section("edis", {"kwargs": {}})
    code_critic.section("kwargs").one_of("inner_dims", ([1024, 1024],), None)
    for name in ("image_adv_loss", "latent_adv_loss"):
        config.section(name, {}).one_of("loss_type", ("wgan_gp",), "wgan_gp")
    loss = config.section("image_rec_loss")
    loss.one_of("loss_type", ("relative_perceptual_L1",))
    found = perceptual_flags(loss.section("loss_kwargs"), side, side)
    if "--l1_weight" in found:
        raise loss.error("loss_kwargs.img_weight", "expected 0")
    return flags | found


def piad_rates(adam: Section) -> dict:
    """Learning rates of the three optimisers, two of which are one."""
    flags = {}
    for name, flag in PIAD_LR.items():
        own = adam.section(name)
        rate = own.number("lr")
        own.one_of("betas", (PIAD_BETAS,), PIAD_BETAS)
        if flags.setdefault(flag, rate) != rate:
            raise adam.error(f"{name}.lr", f"{rate:g}, but the other critic has {flags[flag]:g}; expected one for both")
    return flags


def deep_geo_flags(config: Section) -> dict:
    """Of a training config of deep_geo, without its data."""
    flags = {"-e": config.whole("epochs"), "-b": config.whole("batch_size", 128), "--patience": 0}
    if config.has("checkpoint_callback"):  # Keras' ModelCheckpoint
        kept = config.section("checkpoint_callback")
        kept.one_of("monitor", ("val_loss",), "val_loss")
        kept.one_of("save_best_only", (True,))
        kept.drop("filepath", "verbose", "mode", "save_weights_only", "period")
        flags["--patience"] = flags["-e"]
    if config.has("early_stopping_callback"):
        stopping = config.section("early_stopping_callback")
        stopping.one_of("monitor", ("val_loss",), "val_loss")
        stopping.one_of("min_delta", (0, 0.0), 0)
        stopping.drop("verbose", "mode", "restore_best_weights")
        flags["--patience"] = stopping.whole("patience")
    config.drop("checkpoint_callback", "early_stopping_callback")
    return flags


def deep_if_flags(config: Section) -> dict:
    """Of deep_if's one config, without its data."""
    layers = {"concat": "concat", "default": "conv2d_7b"}
    kind = config.one_of("feature_extraction_type", tuple(layers))
    flags = {"--embedder": "inception_resnet_v2", "--layers": layers[kind], "-b": config.whole("batch_size", 32)}
    return flags
