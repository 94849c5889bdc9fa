"""Exact nearest neighbours by blocks of matrix products; memory does not grow with queries times gallery."""

import numpy as np
import torch
from torch import Tensor

from common.processes import exact_products

BLOCK = 2048  # queries, and 8 times as many gallery vectors, that are compared at once: 128 MB


def k_nearest(
    queries, gallery, k: int, query_groups=None, gallery_groups=None, device="cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery vectors of each query.

    Args:
        queries: (M, D), gallery: (N, D); arrays, memory maps too, or tensors; finite.
        query_groups: (M,) int, gallery_groups: (N,) int; vectors of the query's own group are left out.
    Returns: Euclidean distances (M, k) float32, ascending, and indices (M, k) int64; inf and -1 where fewer are left.
    """
    k_found = min(k, len(gallery))
    distances = np.full((len(queries), k), np.inf, np.float32)
    indices = np.full((len(queries), k), -1, np.int64)
    for first in range(0, len(queries) if k_found else 0, BLOCK):
        rows = slice(first, first + BLOCK)
        groups = None if query_groups is None else _tensor(query_groups[rows], device)
        best, found = _search(_tensor(queries[rows], device), gallery, k_found, groups, gallery_groups, device)
        distances[rows, :k_found], indices[rows, :k_found] = best.cpu().numpy(), found.cpu().numpy()
    indices[np.isinf(distances)] = -1
    return distances, indices


def _search(block, gallery, k, groups, gallery_groups, device):
    """Distances and indices (m, k) of one block of queries, by passes over the gallery."""
    best = torch.full((len(block), k), torch.inf, device=device)
    found = torch.full((len(block), k), -1, dtype=torch.int64, device=device)
    for first in range(0, len(gallery), 8 * BLOCK):
        part = _tensor(gallery[first : first + 8 * BLOCK], device)
        with exact_products(block.device):
            squares = torch.addmm(part.square().sum(1), block, part.T, alpha=-2)  # less the queries' own squares
        if groups is not None:
            own = groups[:, None] == _tensor(gallery_groups[first : first + 8 * BLOCK], device)
            squares.masked_fill_(own, torch.inf)
        near, places = squares.topk(min(k, len(part)), largest=False)
        candidates = torch.cat([best, near], 1)
        best, order = candidates.topk(k, largest=False)
        found = torch.cat([found, places + first], 1).gather(1, order)
    return _exact(block, gallery, best, found, device)


def _exact(block, gallery, best, found, device):
    """Distances of the vectors found, as differences: the product form cancels for near-duplicates."""
    columns = []
    for j in range(found.shape[1]):
        chosen = found[:, j].clamp(min=0).cpu()
        neighbours = _tensor(gallery[chosen if torch.is_tensor(gallery) else chosen.numpy()], device)
        columns.append((block - neighbours).square().sum(1).sqrt())
    exact = torch.stack(columns, 1).masked_fill(best.isinf(), torch.inf)
    exact, order = exact.sort(dim=1, stable=True)
    return exact, found.gather(1, order)


def _tensor(values, device) -> Tensor:
    """Values on the device; floats as float32. PyTorch warns of arrays that cannot be written to, as maps of files."""
    if not torch.is_tensor(values):
        values = np.require(values, requirements=["C", "W"])
    tensor = torch.as_tensor(values)
    return tensor.to(device, torch.float32 if tensor.is_floating_point() else torch.int64)
