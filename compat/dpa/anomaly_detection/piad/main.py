"""Train and evaluate piad by YAML files: main.py train|eval CONFIG, or train_eval TRAIN EVAL"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from common import cli
from compat.dpa import translation

if __name__ == "__main__":
    cli.run(lambda: translation.main("piad", sys.argv[1:]))
