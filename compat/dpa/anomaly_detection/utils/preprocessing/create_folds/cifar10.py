"""What `data/folds.py cifar10` does, whose flags it takes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[6]))

from common import cli
from data import folds

if __name__ == "__main__":
    cli.run(lambda: folds.main(["cifar10", *sys.argv[1:]]))
