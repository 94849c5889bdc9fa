"""Every method's scores in one form: LOGDIR/scores/{split}.csv, a row per image, and {split}.json by object size.

img, img_path   number and file name of the image
label           1 = holds the object
o2i             the object's share of the image; empty without one or where it is not known
score           higher = class 1; of a classifier, logit 1 minus logit 0
peak_y, peak_x  centre of the largest cell of the method's map, in px of the image
cell            its side in px, 1 for saliency
confidence      its value
hit             1 where the cell holds a pixel of the object, else 0; empty where objects are not known
"""

import itertools
from pathlib import Path

import numpy as np

from common import checkpoint, metrics
from common.errors import BadInput
from common.files import check_replaceable, make_subfolder, read_json, read_table, sha256_of, write_csv, write_json

COLUMNS = ("img", "img_path", "label", "o2i", "score", "peak_y", "peak_x", "cell", "confidence", "hit")
START = b"img,img_path,label"  # of a table of any version
EDGES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0001, 0.0)
RANGES = tuple(  # of O2I, each with its upper edge and not its lower: name, low, high
    (f"({100 * low:g}-{100 * high:g}] %" if low else f"<= {100 * high:g} %", low, high)
    for high, low in itertools.pairwise(EDGES)
)
LEAST = 5  # positives below which there are no scores


def detection(values: np.ndarray, mask: np.ndarray | None, label: int, known: bool) -> dict:
    """Columns o2i, peak_y, peak_x, cell, confidence and hit of an image by its map's maximum.

    Args:
        values: (H, W), a value per pixel.
        mask: bool (H, W), the object's pixels; None without an object. known: whether objects are known.
    """
    y, x = divmod(int(values.argmax()), values.shape[1])
    return _detection(y, x, 1, values[y, x], mask, label, known)


def cell_detection(
    values: np.ndarray, corners: np.ndarray, cell: int, mask: np.ndarray | None, label: int, known: bool
) -> dict:
    """The same columns by the largest of a coarse map's cells.

    Args:
        values: (N,), a value per cell. corners: (N, 2) int, their upper left pixels, y and x. cell: their side in px.
    """
    best = int(values.argmax())
    y, x = map(int, corners[best])
    return _detection(y, x, cell, values[best], mask, label, known)


def _detection(y, x, cell, value, mask, label, known):
    """Columns of the cell with this upper left pixel."""
    hit = int(label == 1 and mask is not None and mask[y : y + cell, x : x + cell].any()) if known else None
    o2i = None if mask is None else float(mask.mean())
    peak = {"peak_y": y + cell // 2, "peak_x": x + cell // 2}
    return {"o2i": o2i, **peak, "cell": cell, "confidence": float(value), "hit": hit}


def write(
    logdir: Path, split: str, rows: list[dict], threshold: float | None = None, of_checkpoint: str | None = None
) -> dict:
    """Write a split's table and its scores by O2I; returns the latter.

    Args:
        threshold: the score above which an image counts as positive, chosen on validation, where a method has one.
        of_checkpoint: digest of the run's best checkpoint, where training may go on and replace it.
    BadInput: another table lies there.
    """
    folder, scores = make_subfolder(logdir, "scores"), summarise(rows)
    check_replaceable(folder / f"{split}.csv", START, "a table of scores")
    if threshold is not None:
        scores["threshold"] = threshold
    if of_checkpoint is not None:
        scores["checkpoint_sha256"] = of_checkpoint
    write_csv(folder / f"{split}.csv", [{name: row[name] for name in COLUMNS} for row in rows], COLUMNS)
    write_json(folder / f"{split}.json", scores)
    return scores


def read(path: Path):
    """The rows of a table with label and score, its img_path as text, and its method's threshold, None without one.

    BadInput: not such a table, or of a checkpoint that has been replaced since.
    """
    table, beside, best = read_table(path), path.with_suffix(".json"), path.parent.parent / checkpoint.BEST
    missing = [name for name in ("img_path", "label", "score") if name not in table]
    if missing or table.empty:
        raise BadInput(f"{path}: expected rows of img_path,label,score, found {','.join(table)}")
    try:
        table = table.astype({"img_path": str, "label": float, "score": float})
    except ValueError as error:
        raise BadInput(f"{path}: {str(error).splitlines()[0]}") from None
    if not (table["label"].isin((0, 1)) & np.isfinite(table["score"])).all():
        raise BadInput(f"{path}: expected labels 0 or 1 and finite scores")
    summary = read_json(beside) if beside.exists() else {}
    threshold, digest = summary.get("threshold"), summary.get("checkpoint_sha256")
    if not isinstance(threshold, (int, float, type(None))):
        raise BadInput(f"{beside}: threshold is {threshold!r}, expected a number")
    if digest is not None and best.exists() and sha256_of(best) != digest:
        raise BadInput(f"{path}: of a network that has since been trained further; score its images again")
    return table, threshold


def summarise(rows: list[dict]) -> dict:
    """AUC, AP and localisation AP of all rows and by range of O2I.

    A range's positives stand against all negatives. Fewer than LEAST positives, in a range or in all, have none, and
    there is no localisation AP where objects are not known.
    """
    negatives = [row for row in rows if row["label"] == 0]
    positives = [row for row in rows if row["label"] == 1]
    measured = [row for row in positives if row["o2i"] is not None]
    ranges = [
        {"o2i": name, **_scores([row for row in measured if low < row["o2i"] <= high], negatives)}
        for name, low, high in RANGES
    ]
    return {"images": len(rows), **_scores(positives, negatives), "ranges": ranges}


def _scores(positives, negatives):
    """Scores of a set of positives against the negatives."""
    found = {"positives": len(positives), "auc": None, "ap": None, "localization_ap": None}
    if len(positives) < LEAST or not negatives:
        return found
    rows = positives + negatives
    scores = metrics.classification([row["label"] for row in rows], np.array([row["score"] for row in rows]))
    found |= {"auc": scores["auc"], "ap": scores["ap"]}
    if all(row["hit"] is not None for row in rows):
        hits = np.array([row["hit"] for row in rows])
        confidences = np.array([row["confidence"] for row in rows])
        found["localization_ap"] = metrics.localization_ap(hits, confidences, len(positives))
    return found
