"""A run's TensorBoard file. Steps count optimiser steps, epochs count from 1."""

import platform
import time
from pathlib import Path

import numpy as np
from torch import Tensor, cat

from common.files import errors_name

HISTOGRAM_VALUES = 100_000
_EDGES = 1e-12 * 1.1 ** np.arange(774)  # to 1e20, as TensorBoard's own histograms have them
HISTOGRAM_BINS = np.concatenate([-_EDGES[::-1], [0], _EDGES])


class EventFile:
    """What was written before `flush` returned outlasts the process: tensorboardX's own writer leaves it to a thread.

    Args:
        logdir: folder of the file; without it nothing is written.
        first_step: what an earlier file says of this step and later ones is void.
    """

    def __init__(self, logdir: Path | None = None, first_step: int = 1):
        self.file = None
        if logdir is None:
            return
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import RecordWriter

        self.path = logdir / f"events.out.tfevents.{int(time.time())}.{platform.node()}.{first_step}"
        self.file = RecordWriter(str(self.path))
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write values by tag."""
        if self.file is None or not values:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        self._write(
            step=step,
            summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]),
        )

    def histogram(self, tag: str, tensors: list[Tensor], step: int) -> None:
        """Write the histogram of the tensors' values, of at most 100,000 evenly spaced ones."""
        if self.file is None:
            return
        from tensorboardX import summary

        values = cat([tensor.detach().flatten() for tensor in tensors])
        values = values[:: -(-len(values) // HISTOGRAM_VALUES)].float().cpu().numpy()
        self._write(step=step, summary=summary.histogram(tag, values, HISTOGRAM_BINS))

    def picture(self, tag: str, picture: np.ndarray, step: int) -> None:
        """Write a picture (H, W, 3) uint8."""
        if self.file is None:
            return
        from tensorboardX import summary

        self._write(step=step, summary=summary.image(tag, picture, dataformats="HWC"))

    def flush(self) -> None:
        """Bring what was written to the disk."""
        if self.file:
            with errors_name(self.path):
                self.file.flush()

    def _write(self, **content):
        from tensorboardX.proto.event_pb2 import Event

        with errors_name(self.path):
            self.file.write(Event(wall_time=time.time(), **content).SerializeToString())

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        if self.file:
            with errors_name(self.path):
                self.file.close()
