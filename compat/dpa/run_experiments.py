"""What `experiments/run_experiments.py anomaly` does: run_experiments.py --model dpa deep_if --datasets camelyon16"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common import cli
from compat.dpa import translation

if __name__ == "__main__":
    cli.run(lambda: translation.run_experiments(sys.argv[1:]))
