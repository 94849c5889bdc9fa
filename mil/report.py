"""What a trained bag classifier leaves of a split: scores/{split}.csv, maps, instance scores, a sheet of pictures."""

from pathlib import Path

import numpy as np

from common import metrics, pictures, scores
from common.files import make_subfolder, write_csv, write_npy
from data import tiles
from mil import rounds
from mil.bags import UNKNOWN, Bags

INSTANCES = ("bag", "y", "x", "score", "truth")  # columns of instances_{split}.csv
PICTURED = "test"  # the split that gets a sheet, which takes longer than its scores
LARGEST = 256  # px of a panel without an image
BRIGHTEST = 99  # percentile of a split's instance probabilities that is drawn red; the median gets no red


def write(logdir: Path, split: str, bags: Bags, found: rounds.Scores, threshold: float, images=None) -> dict:
    """Write LOGDIR/scores/{split}.csv, .json, instances_{split}.csv, maps and, of test, a sheet; returns the scores.

    Args:
        images: the bags as images (mil.tiles.CutTiles), where there are any.
    Returns: rounds.evaluate's scores and, where the objects are known, localization_ap and that of random cells.
    """
    known = bags.truth_known
    rows = [row_of(i, bags, found, images, known) for i in range(len(bags))]
    by_size = scores.write(logdir, split, rows, threshold)
    write_instances(logdir / "scores" / f"instances_{split}.csv", bags, found.instances)
    folder = make_subfolder(logdir / "scores", split)
    for i, logits in enumerate(found.instances):
        write_npy(folder / f"map_{i}.npy", grid(logits, bags.corners[i]), sync=False)
    if split == PICTURED:
        sheet(folder / "contact_sheet.png", bags, found, threshold, images)
    result = rounds.evaluate(bags, found, threshold) | {"localization_ap": by_size["localization_ap"]}
    if by_size["localization_ap"] is not None:
        result["localization_ap_chance"] = chance(rows)
    return result


def row_of(i: int, bags: Bags, found: rounds.Scores, images, known: bool) -> dict:
    """A bag's row of scores/{split}.csv, and `hits`, the share of its tiles that would be one.

    Its highest instance is its detection, a hit where that is `known`: of an image where its tile holds any pixel of
    the object, else where its tile is a positive one.
    """
    label, logits, truth = int(bags.labels[i]), found.instances[i], bags.truth[i]
    mask = None if images is None else images.object_mask(i)
    row = {"img": i, "img_path": bags.names[i], "label": label, "score": float(found.bags[i])}
    row |= scores.cell_detection(logits, bags.corners[i], bags.tile, mask, label, known)
    hits = truth == 1 if mask is None else tiles.holds_object(mask, bags.corners[i], bags.tile)
    if known and images is None:
        row["hit"] = int(hits[logits.argmax()])
    return row | {"hits": hits.mean()}


def chance(rows: list[dict]) -> float:
    """Localisation AP of the same confidences, had each bag's detection been one of its tiles at random."""
    shares, confidences, labels = (np.array([row[name] for row in rows]) for name in ("hits", "confidence", "label"))
    return metrics.localization_ap_at_chance(shares, confidences, int((labels == 1).sum()))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Sigmoid."""
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def write_instances(path: Path, bags: Bags, instances: list[np.ndarray]) -> None:
    """Write the probability and the truth of every instance, empty where unknown."""
    table = []
    for name, corners, truth, logits in zip(bags.names, bags.corners, bags.truth, instances, strict=True):
        parts = zip(corners.tolist(), probabilities(logits).tolist(), truth.tolist(), strict=True)
        table += [(name, y, x, score, None if real == UNKNOWN else str(real)) for (y, x), score, real in parts]
    write_csv(path, table, INSTANCES)


def grid(values: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """A bag's map (h, w) float32 of cells: values (n,) by the rows and columns of their corners, NaN without a tile."""
    ys, rows = np.unique(corners[:, 0], return_inverse=True)
    xs, columns = np.unique(corners[:, 1], return_inverse=True)
    cells = np.full((len(ys), len(xs)), np.nan, np.float32)
    cells[rows, columns] = values
    return cells


# --- pictures ---


def sheet(path: Path, bags: Bags, found: rounds.Scores, threshold: float, images) -> None:
    """Write the first bags of each outcome, instances the redder the higher they score among all of the split."""
    values = [probabilities(logits) for logits in found.instances]
    low, high = np.percentile(np.concatenate(values), (50, BRIGHTEST))
    weights = [((each - low) / max(high - low, 1e-9)).clip(0, 1) for each in values]
    predictions = (found.bags.astype(np.float64) > threshold).astype(int)
    panels = []
    for label, predicted in pictures.OUTCOMES:
        chosen = np.flatnonzero((bags.labels == label) & (predictions == predicted))[: pictures.PANELS_PER_ROW]
        panels.append([panel(i, bags, weights[i], probabilities(found.bags)[i], images) for i in chosen.tolist()])
    limit = float(probabilities(np.array([threshold]))[0])
    outcomes = pictures.OUTCOMES.items()
    titles = [f"{title}\n(p {'>' if predicted else '≤'} {limit:.2f})" for (_, predicted), title in outcomes]
    pictures.contact_sheet(path, panels, titles)


def panel(i: int, bags: Bags, weights: np.ndarray, probability: float, images) -> pictures.Panel:
    """A bag under its instances' weights (n,): an image with its object outlined, or else the grid of its tiles."""
    title = f"bag {i}, p = {probability:.2f}"
    if images is None:
        cells = grid(weights, bags.corners[i])
        side = max(1, LARGEST // max(cells.shape))
        cells = cells.repeat(side, 0).repeat(side, 1)
        missing = np.isnan(cells)[..., None].astype(float)  # white
        return pictures.Panel(pictures.blend_saliency(missing, np.nan_to_num(cells), top=1), title)
    image = images.image(i).permute(1, 2, 0).numpy()  # (H, W, 1 or 3)
    weight = np.zeros(image.shape[:2])
    for (y, x), value in zip(bags.corners[i], weights, strict=True):
        area = weight[y : y + bags.tile, x : x + bags.tile]
        np.maximum(area, value, out=area)  # where tiles overlap
    picture = pictures.blend_saliency(image, weight, top=1 / pictures.OPACITY)
    return pictures.Panel(picture, title, mask=images.object_mask(i), color=images.data.outline)
