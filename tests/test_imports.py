"""Imports point one way: commands, then the four systems, then models/ and data/, then common/, then libraries."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {  # who may import which of the project's own modules
    "common": {"common"},
    "models": {"common", "models"},
    "data": {"common", "data"},
    **{part: {"common", "data", "models", part} for part in ("train", "anomaly", "mil", "retrieval")},
}
OWN = {"benchmarks", "compat", "experiments", "tests", *LAYERS, *(path.stem for path in ROOT.glob("*.py"))}
FILES = [Path("train.py"), *sorted(p.relative_to(ROOT) for layer in LAYERS for p in (ROOT / layer).rglob("*.py"))]


def imported(path):
    """The project's own top-level modules that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports by its place"
            names.add(node.module.split(".")[0])
    return names & OWN


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path):
    assert imported(path) <= LAYERS[path.parts[0].removesuffix(".py")]


def test_the_walk_sees_imports_within_functions_too():
    assert imported("experiments/estimate.py") >= {"experiments", "models"}
