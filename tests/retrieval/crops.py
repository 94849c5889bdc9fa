"""Crop folders cut from smooth noise, with crops.csv, in a second: each slide has a texture of its own."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from data.camelyon.slides import SPLIT_FOLDERS, SPLIT_OF_CENTRE

SIDE, LESIONS, PER_LESION, PER_SLIDE = 48, 2, 6, 8


def slide_texture(seed, side=256):
    """Smooth noise (side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.standard_normal((side, side)), 2)
    grey = np.clip(128 + 60 * noise / noise.std(), 0, 255)[..., None]
    return (grey * [1, 0.8, 0.9]).astype(np.uint8)


def write(folder, centres=range(5), seed=0, reach=8):
    """Write folder/pos and folder/neg: crops of a lesion lie within `reach` px of each other, negatives anywhere."""
    rng, rows = np.random.default_rng(seed), {"pos": [], "neg": []}
    for centre in centres:
        for node, kind in enumerate(("pos", "neg")):
            slide = f"patient_{20 * centre:03}_node_{node}"
            texture = slide_texture([seed, centre, node])
            for lesion in range(1, LESIONS + 1) if kind == "pos" else [None]:
                corner = rng.integers(0, 256 - SIDE - reach, 2)
                for i in range(PER_LESION if lesion else PER_SLIDE):
                    y, x = corner + rng.integers(0, reach + 1, 2) if lesion else rng.integers(0, 256 - SIDE, 2)
                    rows[kind].append(save(folder / kind, texture, slide, centre, lesion, i, int(y), int(x)))
    for kind, found in rows.items():
        pd.DataFrame(found).to_csv(folder / kind / "crops.csv", index=False)
    return SimpleNamespace(pos=folder / "pos", neg=folder / "neg")


def table_of_splits(written, splits):
    """A table file,label,split of what `write` returned, the splits in turn."""
    tables = [pd.read_csv(folder / "crops.csv").assign(label=c) for c, folder in enumerate((written.neg, written.pos))]
    table = pd.concat(tables)
    return table.assign(split=np.resize(splits, len(table)))[["file", "label", "split"]]


def save(folder, texture, slide, centre, lesion, i, y, x):
    """Write a crop, of a positive its mask too, and return its row of crops.csv."""
    split = SPLIT_OF_CENTRE[centre]
    stem = f"{SPLIT_FOLDERS[split]}/{slide}_3_{f'{lesion}_' if lesion else ''}{i}".lstrip("/")
    name = f"{stem}_img.npy" if lesion else f"{stem}.npy"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    np.save(folder / name, texture[y : y + SIDE, x : x + SIDE])
    if lesion:
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[10 : 10 + 4 * lesion, 10:20] = 1
        np.save(folder / f"{stem}_seg.npy", mask)
    place = {"y": y, "x": x, "o2i": 0.02 * lesion if lesion else None, "mpp": 0.25}
    return {"file": name, "slide": slide, "centre": centre, "split": split, "lesion": lesion, **place}
