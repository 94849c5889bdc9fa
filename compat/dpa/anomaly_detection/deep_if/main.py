"""Train and evaluate deep_if by YAML files: main.py train_eval CONFIG"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from common import cli
from compat.dpa import translation

if __name__ == "__main__":
    cli.run(lambda: translation.main("deep_if", sys.argv[1:]))
