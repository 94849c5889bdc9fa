"""The anomaly detectors by name."""

from anomaly import deep_knn

METHODS = {"deep_knn": deep_knn}
