"""Made-up bags of tiles in folders: a positive bag has one tile with a bright square."""

import numpy as np
from PIL import Image

from mil import bag_list

SIDE = 40
COUNTS = {"train": 10, "val": 6, "test": 6}  # bags of a split, every other one positive


def write(folder, counts=COUNTS, seed=0, named_by_truth=True):
    """Write the tiles and bags.csv; returns its path."""
    rng, rows = np.random.default_rng(seed), []
    for split, n in counts.items():
        for i in range(n):
            label, path = (i + 1) % 2, folder / "tiles" / f"{split}_{i}"
            path.mkdir(parents=True)
            rows.append((f"{split}_{i}", label, split, path))
            n_tiles = int(rng.integers(3, 6))
            holds = int(rng.integers(n_tiles))
            for x in range(n_tiles):
                truth = int(label == 1 and x == holds)
                pixels = rng.integers(0, 100, (SIDE, SIDE, 3), np.uint8)
                if truth:
                    pixels[8:24, 8:24] = 250
                name = f"{x}_0_{truth}.png" if named_by_truth else f"{x}_0.png"
                Image.fromarray(pixels).save(path / name)
    bag_list.write(folder / "bags.csv", rows)
    return folder / "bags.csv"
