"""Instance scores on disk: this software's table bag,y,x,score,truth, or HNM-WSI's pickle {bag: {"x_y_z": score}}.

Scores are probabilities. A pickle's tile is named by column x, row y and truth z; its bag by `/training/NAME`.
"""

from pathlib import Path

import numpy as np

from common.errors import BadInput
from common.files import atomic_open, open_input
from mil import pickles
from mil.tiles import TileBags, place_of

FLAG = "--pseudo_label_path"  # that names the files, for messages
COLUMNS = ("bag", "y", "x", "score")
PICKLES = (".p", ".pkl", ".pickle")


def read(path: Path) -> dict[str, dict[tuple[int, int], float]]:
    """Bag -> (y, x) -> score; bags without the slashes around their names. BadInput names what is not as expected."""
    found = _read_pickle(path) if path.suffix in PICKLES else _read_table(path)
    for bag, tiles in found.items():
        for (y, x), score in tiles.items():
            if not 0 <= score <= 1:  # NaN neither
                raise BadInput(f"{FLAG} {path}: bag {bag}, tile {x}_{y}: score {score}, expected one from 0 to 1")
    return found


def _read_pickle(path):
    content = pickles.read(path)
    if not isinstance(content, dict) or not all(isinstance(tiles, dict) for tiles in content.values()):
        raise BadInput(f"{path}: expected a pickled dict of bags, each a dict of tiles and scores")
    found = {}
    for bag, tiles in content.items():
        scores = {place_of(path.parent / f"{name}.jpeg")[:2]: score for name, score in tiles.items()}
        if not all(isinstance(score, (int, float)) for score in scores.values()):
            raise BadInput(f"{path}: bag {bag}: expected a number for each tile")
        found[str(bag).strip("/")] = scores
    return found


def _read_table(path):
    import pandas as pd

    types = {"bag": str, "y": np.int64, "x": np.int64, "score": np.float64}
    try:
        with open_input(path) as file:
            table = pd.read_csv(file, usecols=list(COLUMNS), dtype=types, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own are ValueErrors too
        raise BadInput(f"{path}: expected a table of {','.join(COLUMNS)}: {str(error).splitlines()[0]}") from None
    return {
        str(bag).strip("/"): dict(
            zip(zip(rows["y"].tolist(), rows["x"].tolist(), strict=True), rows["score"], strict=True)
        )
        for bag, rows in table.groupby("bag", sort=False)
    }


def align(found: dict, tiles: TileBags, path: Path, others: set[str]) -> np.ndarray:
    """The score of each tile (T,) float64, joined by name and place.

    Args:
        found: as `read` gives it. others: names of further bags, which may be among them.
    Errors: BadInput when a bag or a tile has no score, or a score is of a bag that is neither here nor among others.
    """
    own = {name.strip("/"): i for i, name in enumerate(tiles.names)}
    unknown = sorted(found.keys() - own.keys() - {name.strip("/") for name in others})
    if unknown:
        raise BadInput(f"{FLAG} {path}: names bag {unknown[0]}, which is not among the bags ({len(unknown)} such)")
    scores = []
    for name, i in own.items():
        if name not in found:
            raise BadInput(f"{FLAG} {path}: has no scores of bag {name}, which is among the bags")
        places = [(y, x) for y, x in tiles.corners[i].tolist()]
        missing = [place for place in places if place not in found[name]]
        if missing:
            y, x = missing[0]
            raise BadInput(
                f"{FLAG} {path}: bag {name}: no score of tile {x}_{y} ({len(missing)} of {len(places)} tiles lack one)"
            )
        scores.append([found[name][place] for place in places])
    return np.concatenate(scores).astype(np.float64)


def write_pickle(path: Path, names: list[str], corners: list[np.ndarray], truth: list[np.ndarray], scores) -> None:
    """Write HNM-WSI's pickle of scores (n,) by bag; z is 1 for a tile known to be positive, else 0."""
    content = {}
    for name, places, known, values in zip(names, corners, truth, scores, strict=True):
        rows = zip(places.tolist(), known.tolist(), values.tolist(), strict=True)
        content[f"/{name.strip('/')}"] = {f"{x}_{y}_{int(z == 1)}": score for (y, x), z, score in rows}
    with atomic_open(path) as file:
        file.write(pickles.write_bytes(content))
