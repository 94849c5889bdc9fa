"""Classification and localisation scores: pure functions of arrays."""

import numpy as np

DRAWS = 20  # of random cells, for localisation at chance


def confusion(labels: np.ndarray, predictions: np.ndarray) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives of two 0/1 arrays."""
    labels, predictions = np.asarray(labels, bool), np.asarray(predictions, bool)
    return (
        int((labels & predictions).sum()),
        int((~labels & predictions).sum()),
        int((labels & ~predictions).sum()),
        int((~labels & ~predictions).sum()),
    )


def rates(tp: int, fp: int, fn: int, tn: int) -> dict[str, float]:
    """Accuracy, precision and recall from confusion counts; 0 where nothing was predicted or present."""
    total = tp + fp + fn + tn
    return {
        "acc": (tp + tn) / total if total else 0.0,
        "prec": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn) if tp + fn else 0.0,
    }


def classification(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Accuracy, precision, recall, ROC AUC and average precision.

    Args:
        labels: (N,) 0/1.
        scores: (N,) logit of class 1 minus that of class 0; above 0 predicts class 1.
    AUC and AP are NaN when only one class is present.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    result = rates(*confusion(labels, scores > 0))
    both = 0 < np.sum(labels) < len(labels)
    result["auc"] = float(roc_auc_score(labels, scores)) if both else float("nan")
    result["ap"] = float(average_precision_score(labels, scores)) if both else float("nan")
    return result


def youden_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The score above which to predict 1, so that the true minus the false positive rate is largest.

    It lies halfway between two neighbouring scores; of several best ones the highest, NaN where only one class is
    present. Source: Youden 1950.
    """
    from sklearn.metrics import roc_curve

    if not 0 < np.sum(labels) < len(labels):
        return float("nan")
    fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    best = float(thresholds[1:][np.argmax((tpr - fpr)[1:])])  # the first one is infinite
    below = np.asarray(scores)[np.asarray(scores) < best]
    middle = (best + float(below.max())) / 2 if len(below) else best
    return min(middle, float(np.nextafter(best, -np.inf)))  # below `best` also where it rounds to it


def at_threshold(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Accuracy, precision, recall and F1 when scores above the threshold predict 1."""
    tp, fp, fn, tn = confusion(labels, np.asarray(scores, np.float64) > threshold)
    return {**rates(tp, fp, fn, tn), "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0}


def localization_ap(hits: np.ndarray, confidences: np.ndarray, positives: int) -> float:
    """Average precision of one detection per image.

    Sum over detections by falling confidence of (R_n - R_{n-1}) P_n, without interpolation and with ties as one
    step; R = hits / positives, so that a positive whose detection misses stays a false negative.

    Args:
        hits: (N,) whether the detection lies on the object; never true for an image without one.
        confidences: (N,) finite.
        positives: images that hold an object.
    Source: Pawlowski 2019, section C.4.
    """
    from sklearn.metrics import average_precision_score

    found = int(np.sum(hits))
    if found == 0:
        return 0.0
    return float(average_precision_score(hits, confidences)) * found / positives


def localization_ap_at_chance(shares: np.ndarray, confidences: np.ndarray, positives: int) -> float:
    """Mean localisation AP of the same confidences, had each image's detection been one of its cells at random.

    Args:
        shares: (N,) share of an image's cells that lie on its object.
    """
    draws = np.random.default_rng(0).random((DRAWS, len(shares))) < shares
    return float(np.mean([localization_ap(hits, confidences, positives) for hits in draws]))
