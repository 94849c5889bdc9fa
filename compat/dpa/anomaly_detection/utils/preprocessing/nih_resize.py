"""What `data/nih.py resize` does, whose flags it takes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[5]))

from common import cli
from data import nih

if __name__ == "__main__":
    cli.run(lambda: nih.main(["resize", *sys.argv[1:]]))
