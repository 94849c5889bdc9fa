import errno
from pathlib import Path

import pytest

from common import runlog


def test_a_disk_that_is_full_names_the_event_file(tmp_path):
    board = runlog.TensorBoard(tmp_path, 1)
    board.file._writer.close()
    board.file._writer = Path("/dev/full").open("wb")
    board.steps(1, [[1.0, 1, 1, 1, 1]])
    with pytest.raises(OSError, match="No space left") as error:
        board.flush()
    assert error.value.errno == errno.ENOSPC
    assert Path(error.value.filename).name.startswith("events.out.tfevents.")
