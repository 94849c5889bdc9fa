"""What `data/nih.py folds` does, whose flags it takes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[6]))

from common import cli
from data import nih

if __name__ == "__main__":
    cli.run(lambda: nih.main(["folds", *sys.argv[1:]]))
