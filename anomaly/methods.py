"""The anomaly detectors by name."""

from anomaly import deep_geo, deep_if, deep_knn

METHODS = {"deep_geo": deep_geo, "deep_if": deep_if, "deep_knn": deep_knn}
