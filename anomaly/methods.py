"""The anomaly detectors by name."""

from anomaly import deep_geo, deep_if, deep_knn, dpa, piad

METHODS = {
    "dpa": dpa,
    "deep_geo": deep_geo,
    "deep_if": deep_if,
    "deep_knn": deep_knn,
    "piad": piad,
}
