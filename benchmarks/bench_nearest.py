"""Exact nearest neighbours: seconds and memory of common/nearest.py beside plain NumPy, and faiss if it is installed.

Unit vectors at random. Each version runs in a process of its own, which reads them from files, as an audit does.
Seconds of the cores tell what the wall clock does not on a machine with other work.
"""

import importlib.util
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import measure
import numpy as np
import torch

from common import cli
from common.nearest import k_nearest

GIB = 2**30


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--gallery", type=cli.positive, default=100_000, help="vectors to search")
    parser.add_argument("--queries", type=cli.positive, default=10_000, help="vectors to look up")
    parser.add_argument("--dim", type=cli.positive, default=512, help="numbers of a vector")
    parser.add_argument("--k", type=cli.positive, default=5, help="neighbours")
    parser.add_argument("--quick", action="store_true", help="a tenth of the gallery and of the queries")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    share = 10 if args.quick else 1
    sizes = {"gallery": args.gallery // share, "queries": args.queries // share}
    job = f"{sizes['gallery']:,} x {args.dim}, {sizes['queries']:,} queries, k {args.k}"
    print(f"{job}; {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("version           | seconds  of cores  peak GB  same neighbours")
    with tempfile.TemporaryDirectory() as folder:
        for seed, (name, n) in enumerate(sizes.items()):
            write_vectors(Path(folder) / f"{name}.npy", n, args.dim, seed)
        expected = None
        for name, search in VERSIONS.items():
            if name == "faiss" and importlib.util.find_spec("faiss") is None:
                print(f"{name:17} | not installed")
                continue
            seconds, of_cores, peak, found = run_alone(search, Path(folder), args.k)
            expected = found if expected is None else expected
            numbers = f"{seconds:7.1f} {of_cores:9.1f} {peak / GIB:8.2f}"
            print(f"{name:17} | {numbers}  {np.mean(found == expected):.4%}", flush=True)


def run_alone(search, folder: Path, k: int) -> tuple[float, float, int, np.ndarray]:
    """Seconds, those of the cores, bytes of main memory at most, and indices of a version in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (search, folder, k, torch.get_num_threads()))


def _timed(search, folder, k, threads):
    torch.set_num_threads(threads)
    start, before = time.perf_counter(), time.process_time()
    found = search(folder, k)
    return time.perf_counter() - start, time.process_time() - before, measure.most_resident(), found


def write_vectors(path: Path, n: int, dim: int, seed: int) -> None:
    """Write unit vectors (n, dim) float32, a block at a time."""
    rng = np.random.default_rng(seed)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, dim))
    for first in range(0, n, 10_000):
        block = rng.standard_normal((len(array[first : first + 10_000]), dim), dtype=np.float32)
        array[first : first + 10_000] = block / np.linalg.norm(block, axis=1, keepdims=True)


def blocks(folder: Path, k: int) -> np.ndarray:
    """common/nearest.py on memory maps; returns indices (M, k), as all versions do."""
    return k_nearest(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("queries", "gallery")), k)[1]


def plain(folder: Path, k: int) -> np.ndarray:
    """The straightforward way: all distances of a thousand queries, sorted in part."""
    queries, gallery = (np.load(folder / f"{name}.npy") for name in ("queries", "gallery"))
    found = []
    for first in range(0, len(queries), 1000):
        part = queries[first : first + 1000]
        squares = (part**2).sum(1)[:, None] - 2 * part @ gallery.T + (gallery**2).sum(1)
        near = np.argpartition(squares, k, axis=1)[:, :k]
        found.append(np.take_along_axis(near, np.argsort(np.take_along_axis(squares, near, 1), axis=1), 1))
    return np.concatenate(found)


def faiss_flat(folder: Path, k: int) -> np.ndarray:
    """faiss' exact index."""
    import faiss

    queries, gallery = (np.load(folder / f"{name}.npy") for name in ("queries", "gallery"))
    index = faiss.IndexFlatL2(gallery.shape[1])
    index.add(gallery)
    return index.search(queries, k)[1]


VERSIONS = {"common/nearest.py": blocks, "NumPy": plain, "faiss": faiss_flat}

if __name__ == "__main__":
    cli.run(main)
