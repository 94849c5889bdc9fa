"""What `data/nih.py resize` does, whose flags it takes; without them from data/data/nih, as DPA's README has it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[5]))

from common import cli
from data import nih

PLACES = ("-i", "data/data/nih", "-o", "data/data/nih_300")

if __name__ == "__main__":
    cli.run(lambda: nih.main(["resize", *PLACES, *sys.argv[1:]]))
