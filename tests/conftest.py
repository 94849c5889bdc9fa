import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist_dir():
    """The folder of the real MNIST files."""
    folder = Path(os.environ.get("MNIST_DIR", ""))
    if not any((folder / sub / "train-images-idx3-ubyte.gz").exists() for sub in (".", "MNIST/raw")):
        pytest.skip("needs the real MNIST: set MNIST_DIR to the folder of its four IDX files")
    return folder
