"""DPA's configurations of Shvetsova et al. 2021 by name, as defaults of the flags: train_anomaly.py --setting NAME.

The numbers are those of the original's configuration files, which do not say how NIH's pictures were cropped before.
They have a learning rate for each class of cifar10 and svhn; here is the one of cifar10's class 0, and none of svhn.
"""

CAMELYON16 = {"tile": 64, "crop": 64, "random_crop": True, "flip": True, "latent_res": 8, "latent_dim": 4, "dims": (4,)}
SMALL_CODE = CAMELYON16 | {"layer": "r42", "lr": 1e-3, "iters": 34_666}
LARGE_CODE = CAMELYON16 | {"latent_res": 16, "latent_dim": 64, "dims": (64,)}
NIH = {"tile": 64, "resize": 64, "grey": True, "latent_res": 1, "latent_dim": 16, "dims": (16,)}
NIH_GROWING = NIH | {"progressive": True, "initial_res": 8, "lr": 1e-3, "layers": ("r12", "r22", "r32", "r32")}
CIFAR10 = {"tile": 32, "latent_res": 1, "latent_dim": 32, "dims": (32,)}


def stage_iters(n: int, last: int) -> tuple[int, ...]:
    """Steps of n stages, 20,000 each but for the last."""
    return (20_000,) * (n - 1) + (last,)


SETTINGS = {
    "cifar10_class0": CIFAR10 | {"layer": "r32", "lr": 2e-3, "iters": 20_000},
    "camelyon16": SMALL_CODE,
    "camelyon16_pg": CAMELYON16
    | {"progressive": True, "initial_res": 16, "layers": ("r32", "r32", "r42")}
    | {"lr": 1e-3, "stage_iters": stage_iters(5, 8_666)},
    "camelyon16_l1": SMALL_CODE | {"l1_weight": 0.1},
    "camelyon16_adversarial": SMALL_CODE | {"lr": 2e-4, "adv_weight": 0.1, "n_dis": 2},
    "camelyon16_unsupervised": LARGE_CODE | {"layer": "r42", "lr": 1e-4, "iters": 77_000},
    "camelyon16_unsupervised_l1": LARGE_CODE
    | {"latent_dim": 32, "dims": (32,), "loss": "l1", "lr": 2e-4, "iters": 46_000},
    "nih": NIH | {"layer": "r42", "lr": 2e-3, "iters": 16_000},
    "nih_pg": NIH_GROWING | {"layers": ("r12", "r22", "r32", "r42"), "stage_iters": stage_iters(7, 3_500)},
    "nih_ap_pg": NIH_GROWING
    | {"latent_dim": 64, "dims": (32, 32, 64, 64, 64), "lr": 5e-4, "stage_iters": stage_iters(7, 7_000)},
    "nih_pa_pg": NIH_GROWING | {"stage_iters": stage_iters(7, 10_000)},
}
