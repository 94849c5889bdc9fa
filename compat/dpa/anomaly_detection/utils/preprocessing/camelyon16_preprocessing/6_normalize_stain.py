"""Step 6 of data/camelyon16/prepare.py, whose flags it takes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[6]))

from common import cli
from data.camelyon16 import prepare

if __name__ == "__main__":
    cli.run(lambda: prepare.main(["6", *sys.argv[1:]]))
