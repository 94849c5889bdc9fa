"""The images that an audit compares, what is known of them, what was found for each: audit.csv, pairs.png, truth."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from common import cli, pictures
from common.files import atomic_open
from retrieval import audit
from retrieval.index import Vectors, all_distances, turned

COLUMNS = ("query", "split", "label", "match", "match_split", "distance", "ncc", "same_slide", "same_lesion", "overlap")
CORRELATED_SIDE = 64  # px that larger images are shrunk to before they are correlated
ROWS = 32  # queries whose distances to all of the gallery are held at once
PAIRS_PER_LINE, LINES_NEAR, LINES_BEYOND = 3, 4, 2  # of pairs.png
LONGEST_NAME = 26  # characters of a file's name over its picture


@dataclass
class Images:
    """Images of a split.

    Attributes: data, its data set; places (N,) of the images in it; images, what is compared: themselves or their
        objects; slides (N,) int, -1 where not known, the same in all splits; lesions (N,), corners (N, 2) y, x and
        sides (N,) of crops in px of the level, NaN where not known.
    """

    split: str
    data: object
    places: np.ndarray
    images: object
    slides: np.ndarray
    lesions: np.ndarray
    corners: np.ndarray
    sides: np.ndarray

    def __post_init__(self):
        self.names, self.labels = [self.data.names[i] for i in self.places], self.data.labels[self.places]

    def __len__(self) -> int:
        return len(self.places)

    def o2i(self, i: int) -> float | None:
        """The object's share of image i; None where not known."""
        return self.data.o2i(int(self.places[i])) if self.data.has_objects else None

    def groups(self) -> np.ndarray:
        """(N,) int, equal for images of one slide; an image of no known slide has a number of its own."""
        return np.where(self.slides < 0, -1 - np.arange(len(self)), self.slides)

    def grey(self, i: int) -> Tensor:
        """Image i as (h, w), shrunk to at most CORRELATED_SIDE px."""
        image = self.images[i][0].mean(0)
        factor = -(-max(image.shape) // CORRELATED_SIDE)
        return F.avg_pool2d(image[None, None], factor)[0, 0] if factor > 1 else image

    def panel(self, i: int, orientation: int, title: str) -> pictures.Panel:
        image = turned(self.images[i][0], orientation).clamp(0, 1).permute(1, 2, 0).numpy()
        name = self.names[i]
        if len(name) > LONGEST_NAME:
            name = f"...{name[3 - LONGEST_NAME :]}"
        return pictures.Panel(image[..., 0] if image.shape[2] == 1 else image, f"{title}\n{name}")


def overlap(queries: Images, i: np.ndarray, gallery: Images, j: np.ndarray) -> np.ndarray:
    """Intersection over union of crops i with crops j, broadcast; 0 in different slides, NaN where not known."""
    same = queries.slides[i] == gallery.slides[j]
    value = audit.overlap(queries.corners[i], queries.sides[i], gallery.corners[j], gallery.sides[j])
    value = np.where(same, value, 0.0)
    return np.where((queries.slides[i] < 0) | (gallery.slides[j] < 0), np.nan, value)


@dataclass
class Matches:
    """The k nearest gallery images of each query, as `index.search` gives them.

    Attributes: readable (M,); correlations (M, k), NaN where `correlate` was not asked for them.
    """

    queries: Images
    gallery: Images
    distances: np.ndarray
    indices: np.ndarray
    orientations: np.ndarray
    readable: np.ndarray
    correlations: np.ndarray = field(init=False)

    def __post_init__(self):
        self.correlations = np.full(self.distances.shape, np.nan)

    def flagged(self, threshold: float, verified: bool = False) -> np.ndarray:
        """(M,) whether an image has a near-duplicate; with `verified` only one that correlates as a copy counts."""
        near = self.distances <= threshold
        return (near & (self.correlations >= audit.COPY) if verified else near).any(axis=1)

    def correlate(self, threshold: float, orientations: int) -> None:
        """Fill in the correlations of all pairs within the threshold."""
        pairs = np.argwhere(self.distances <= threshold)
        for i, j in cli.progress(pairs, len(pairs), f"correlating {self.queries.split}", "pairs"):
            query, match = self.queries.grey(int(i)), self.gallery.grey(int(self.indices[i, j]))
            self.correlations[i, j] = audit.best_correlation(query, match, orientations)

    def shares(self, threshold: float, verified: bool = False) -> dict:
        """`audit.shares` of the queries that could be read."""
        kept = np.flatnonzero(self.readable)
        flagged = self.flagged(threshold, verified)[kept]
        return audit.shares(flagged, self.queries.labels[kept], [self.queries.o2i(i) for i in kept])

    def table(self):
        """audit.csv: k rows for each query, nearest first; what is not known stays empty."""
        import pandas as pd

        i, j = np.nonzero(self.indices >= 0)
        found, queries, gallery = self.indices[i, j], self.queries, self.gallery
        known = (queries.slides[i] >= 0) & (gallery.slides[found] >= 0)
        same = queries.slides[i] == gallery.slides[found]
        outlined = np.isfinite(queries.lesions[i] + gallery.lesions[found])
        same_lesion = same & (queries.lesions[i] == gallery.lesions[found])
        columns = {
            "query": np.array(queries.names, object)[i],
            "split": queries.split,
            "label": np.where(queries.labels[i] < 0, np.nan, queries.labels[i]),
            "match": np.array(gallery.names, object)[found],
            "match_split": gallery.split,
            "distance": self.distances[i, j].round(5),
            "ncc": self.correlations[i, j].round(4),
            "same_slide": np.where(known, same, np.nan),
            "same_lesion": np.where(known & outlined, same_lesion, np.nan),
            "overlap": overlap(queries, i, gallery, found).round(4),
        }
        table = pd.DataFrame(columns, columns=COLUMNS)
        return table.astype(dict.fromkeys(["label", "same_slide", "same_lesion"], "Int64"))

    def nearest(self) -> list[tuple[float, int]]:
        """Distance and number of the queries that have a match; of two that match each other, one."""
        first, numbers = self.indices[:, 0], np.arange(len(self.indices))
        kept = first >= 0
        if self.queries is self.gallery:
            kept &= (first[first] != numbers) | (numbers < first)
        return [(float(self.distances[i, 0]), int(i)) for i in np.flatnonzero(kept)]

    def pair(self, i: int) -> list[pictures.Panel]:
        """Query i, turned as it matches, and its nearest image."""
        match, correlation = int(self.indices[i, 0]), self.correlations[i, 0]
        turn, label = int(self.orientations[i, 0]), int(self.queries.labels[i])
        said = f"{self.queries.split}{f', class {label}' if label >= 0 else ''}{', turned' if turn else ''}"
        measured = f"distance {self.distances[i, 0]:.3f}"
        measured += f", ncc {correlation:.2f}" if np.isfinite(correlation) else ""
        return [self.queries.panel(i, turn, said), self.gallery.panel(match, 0, measured)]


def write_table(path: Path, found: list[Matches]) -> None:
    """Write audit.csv."""
    import pandas as pd

    with atomic_open(path, "w") as file:
        pd.concat([matches.table() for matches in found]).to_csv(file, index=False)


def draw_pairs(path: Path, found: list[Matches], threshold: float) -> None:
    """Write pairs.png: queries beside their nearest images, from nearest to the threshold, then the next beyond."""
    pairs = sorted((distance, s, i) for s, matches in enumerate(found) for distance, i in matches.nearest())
    near = [pair for pair in pairs if pair[0] <= threshold]
    spread = np.unique(np.linspace(0, len(near) - 1, PAIRS_PER_LINE * LINES_NEAR).astype(int)) if near else []
    parts = {
        "within the threshold": [near[i] for i in spread],
        "beyond it": pairs[len(near) :][: PAIRS_PER_LINE * LINES_BEYOND],
    }
    lines, titles = [], []
    for title, chosen in parts.items():
        for first in range(0, len(chosen), PAIRS_PER_LINE):
            part = chosen[first : first + PAIRS_PER_LINE]
            lines.append([panel for _, s, i in part for panel in found[s].pair(i)])
            titles.append(f"{title}\n({threshold:.3f})")
    if lines:
        pictures.contact_sheet(path, lines, titles)


def known_duplicates(gallery: Images, reference: Vectors, in_gallery: Vectors) -> np.ndarray:
    """The distances of a reference drawn from the gallery to the nearest other crop that overlaps, where one does."""
    rows, found = reference.places, []
    for part in np.array_split(np.arange(len(rows)), -(-len(rows) // ROWS)):
        duplicate = overlap(gallery, rows[part][:, None], gallery, np.arange(len(gallery))[None]) >= audit.OVERLAP
        duplicate[np.arange(len(part)), rows[part]] = False
        distances = all_distances(reference.array[part], in_gallery.array[:, 0])
        nearest = np.where(duplicate & in_gallery.readable, distances, np.inf).min(axis=1)
        found.append(nearest[np.isfinite(nearest) & reference.readable[part]])
    return np.concatenate(found)


def hold_against_truth(
    matches: Matches, vectors: Vectors, in_gallery: Vectors, threshold: float, most: int, rng
) -> dict:
    """What overlap says of the detector: of all pairs (`audit.Truth`) and, by the threshold, of images.

    Args:
        most: queries drawn at random, if there are more.
    """
    queries, gallery = matches.queries, matches.gallery
    rows = np.flatnonzero(matches.readable & np.isfinite(queries.corners).all(axis=1))
    rows = np.sort(rng.choice(rows, most, replace=False)) if len(rows) > most else rows
    truth, largest = audit.Truth(len(rows) * len(gallery), rng), []
    for part in np.array_split(rows, max(1, -(-len(rows) // ROWS))):
        value = overlap(queries, part[:, None], gallery, np.arange(len(gallery))[None])
        value[:, ~in_gallery.readable] = np.nan
        if queries is gallery:
            value[np.arange(len(part)), part] = np.nan
        truth.add(all_distances(vectors.array[part], in_gallery.array[:, 0]), value >= audit.OVERLAP, value == 0)
        largest.append(np.nan_to_num(value).max(axis=1, initial=0))
    largest, flagged = np.concatenate(largest), matches.flagged(threshold)[rows]
    held = {"with_duplicate": largest >= audit.OVERLAP, "without_overlap": largest == 0}
    images = {name: audit.share(flagged, chosen) for name, chosen in held.items()}
    return {**truth.summary(), "images": images}
