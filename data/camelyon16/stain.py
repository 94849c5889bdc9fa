"""Structure-preserving colour normalisation of H&E stains (Vahadane et al. 2016), with two atoms in closed form.

An optical density (red, green, blue) is a mixture a @ atoms of two stains, a >= 0. The atoms (2, 3) of a picture are
unit vectors >= 0 in the order haematoxylin, eosin; another picture is given the atoms of the target.
"""

import numpy as np

BRIGHT = 90  # percentile of a picture's values that becomes white
TISSUE_Y = ((0.8 * 100 + 16) / 116) ** 3  # relative luminance below which LAB's L is below 80 of 100
ATOM_PENALTY, MIXTURE_PENALTY = 0.1, 0.01  # of the lasso that finds atoms, and of the one that mixes them
START = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # haematoxylin and eosin, Ruifrok and Johnston 2001
MOST_PIXELS = 2**15  # that atoms are fitted to
MOST_STEPS, TOLERANCE = 500, 1e-5  # of the fit
_VALUES = np.arange(256)
_DENSITY = -np.log(np.maximum(_VALUES, 1) / 255).astype(np.float32)
_LINEAR = np.where(_VALUES <= 10, _VALUES / 255 / 12.92, ((_VALUES / 255 + 0.055) / 1.055) ** 2.4)  # of sRGB


def brightened(image: np.ndarray) -> np.ndarray:
    """The picture uint8 with its 90th percentile at white; a black one as it is."""
    bright = np.percentile(image, BRIGHT)
    return np.clip(image * (255 / bright), 0, 255).astype(np.uint8) if bright > 0 else image


def optical_density(image: np.ndarray) -> np.ndarray:
    """-ln(max(I, 1) / 255) of uint8, as float32."""
    return _DENSITY[image]


def is_tissue(image: np.ndarray) -> np.ndarray:
    """Where LAB's L / 100 is below 0.8, bool (H, W), of (H, W, 3) uint8 in sRGB."""
    return _LINEAR[image] @ np.array([0.2126, 0.7152, 0.0722]) < TISSUE_Y


def mixtures(density: np.ndarray, atoms: np.ndarray, penalty: float) -> np.ndarray:
    """The a >= 0 that minimise 1/2 |x - a @ atoms|^2 + penalty * sum(a), for every density x (..., 3): (..., 2).

    With g the product of the unit atoms, b = x @ atoms.T - penalty and u = b - g * b[::-1]: where u_2 > 0, a_1 is
    max(u_1, 0) / (1 - g^2), for both are active or the second alone; elsewhere max(b_1, 0), for it is alone or none is.
    """
    atoms = atoms.astype(np.float32)
    g = float(atoms[0] @ atoms[1])
    b = density @ atoms.T - np.float32(penalty)
    u = b - g * b[..., ::-1]
    return np.where(u[..., ::-1] > 0, np.maximum(u, 0) / max(1 - g**2, 1e-6), np.maximum(b, 0))


def find_atoms(density: np.ndarray) -> np.ndarray:
    """The atoms (2, 3) that minimise the mean of 1/2 |x - a @ atoms|^2 + 0.1 * sum(a) over densities x (N, 3).

    Mixtures and atoms are fitted in turn, from a fixed start (Mairal et al. 2009, algorithm 2), to pixels drawn with a
    fixed seed where there are many.
    """
    if len(density) > MOST_PIXELS:
        density = density[np.random.default_rng(0).choice(len(density), MOST_PIXELS, replace=False)]
    atoms = START / np.linalg.norm(START, axis=1, keepdims=True)
    for _ in range(MOST_STEPS):
        a, before = mixtures(density, atoms, ATOM_PENALTY).astype(np.float64), atoms.copy()
        gram, target = a.T @ a, a.T @ density
        for j in range(2):
            if gram[j, j] > 0:  # else no pixel has this stain
                atom = np.maximum(atoms[j] + (target[j] - gram[j] @ atoms) / gram[j, j], 0)
                atoms[j] = atom / max(np.linalg.norm(atom), 1e-12)
        if np.abs(atoms - before).max() < TOLERANCE:
            break
    return atoms[np.argsort(-atoms[:, 0], kind="stable")]  # haematoxylin absorbs more red


def atoms_of(image: np.ndarray) -> np.ndarray | None:
    """The atoms of a picture (H, W, 3) uint8, brightened; None when all of it is glass."""
    image = brightened(image)
    tissue = is_tissue(image)
    return find_atoms(optical_density(image[tissue])) if tissue.any() else None


def normalised(image: np.ndarray, target: np.ndarray) -> np.ndarray | None:
    """The picture (H, W, 3) uint8, brightened, in the stains of the target's atoms; None when all of it is glass."""
    atoms = atoms_of(image)
    if atoms is None:
        return None
    a = mixtures(optical_density(brightened(image)), atoms, MIXTURE_PENALTY)
    return (255 * np.exp(-a @ target.astype(np.float32))).round().astype(np.uint8)
