"""What the reliability tests share: what a run or a folder holds, and whether two hold the same."""

from pathlib import Path

import pandas as pd
import torch

from common import checkpoint

TIMINGS = ["seconds", "images_per_s"]


def events(logdir: Path) -> dict[tuple[str, int], bytes]:
    """(tag, step) -> value of everything in a run's event files; of several, the last one written."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = {}
    for path in sorted(logdir.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_ctime_ns):
        for event in LegacyEventFileLoader(str(path)).Load():
            found |= {(value.tag, event.step): value.SerializeToString() for value in event.summary.value}
    return found


def assert_same_run(one: Path, other: Path) -> None:
    """Two log folders hold the same weights to the bit, statistics but for timings, and TensorBoard values."""
    for name in (checkpoint.LATEST, checkpoint.BEST):
        weights, others = (checkpoint.load(logdir / name)["state_dict"] for logdir in (one, other))
        assert weights.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in weights.items())
    tables = [pd.read_csv(logdir / "stats.csv").drop(columns=TIMINGS) for logdir in (one, other)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    values = events(one)
    assert values == events(other)
    assert len(values) > 20


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
