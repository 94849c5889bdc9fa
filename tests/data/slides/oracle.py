"""Slow, independent answers to what the fast code must give: winding numbers point by point, masks, valid crops."""

import itertools
from xml.etree import ElementTree

import numpy as np


def winding_numbers(polygon, xs, ys):
    """Winding numbers (len(ys), len(xs)) of a polygon (N, 2) around a grid of points, and which lie on an edge.

    Sunday's test: an edge counts when a rightward ray from the point meets it.
    """
    x1, y1 = polygon.T[:, :, None]  # (N, 1)
    x2, y2 = np.roll(polygon, -1, axis=0).T[:, :, None]
    px, rows = np.asarray(xs, float), []
    for py in np.asarray(ys, float):
        left = (x2 - x1) * (py - y1) - (px - x1) * (y2 - y1)  # (N, len(xs))
        winding = ((y1 <= py) & (y2 > py) & (left > 0)).sum(axis=0) - ((y1 > py) & (y2 <= py) & (left < 0)).sum(axis=0)
        within = (np.minimum(x1, x2) <= px) & (px <= np.maximum(x1, x2))
        within &= (np.minimum(y1, y2) <= py) & (py <= np.maximum(y1, y2))
        rows.append((winding, ((left == 0) & within).any(axis=0)))
    return tuple(np.stack(part) for part in zip(*rows, strict=True))


def mask_window(lesions, cut_outs, level, y, x, height, width):
    """The mask (height, width) of a window by the winding rule, and the pixels on an edge, which may go either way."""
    ys, xs = (np.arange(height) + y) * 2**level, (np.arange(width) + x) * 2**level
    mask, unsure = np.zeros((height, width), bool), np.zeros((height, width), bool)
    for polygons, value in [(lesions, True), (cut_outs, False)]:
        for polygon in polygons:
            low, high = polygon.min(axis=0), polygon.max(axis=0)
            columns, rows = (
                np.flatnonzero((a >= lo) & (a <= hi)) for a, lo, hi in zip((xs, ys), low, high, strict=True)
            )
            if len(rows) and len(columns):
                part = np.ix_(rows, columns)
                winding, on_edge = winding_numbers(polygon, xs[columns], ys[rows])
                mask[part] = np.where(winding != 0, value, mask[part])
                unsure[part] |= on_edge
    return mask, unsure


def polygons_of(path, groups):
    """The polygons (N, 2) of an annotation file that are in one of the groups."""
    rings = []
    for item in ElementTree.parse(path).iter("Annotation"):
        if item.get("PartOfGroup") in groups:
            points = sorted(
                (int(p.get("Order")), float(p.get("X")), float(p.get("Y"))) for p in item.iter("Coordinate")
            )
            rings.append(np.array(points)[:, 1:])
    return rings


def valid_corners(mask, unscanned, component, size, low, high):
    """All top-lefts (y, x) of crops that hold the component, have their share strictly in range and are scanned."""
    rows, columns = np.nonzero(component)
    corners = []
    tops = range(max(0, rows.max() + 1 - size), min(rows.min(), mask.shape[0] - size) + 1)
    lefts = range(max(0, columns.max() + 1 - size), min(columns.min(), mask.shape[1] - size) + 1)
    for y, x in itertools.product(tops, lefts):
        window = slice(y, y + size), slice(x, x + size)
        if low < mask[window].mean() < high and not unscanned[window].any():
            corners.append((y, x))
    return corners
