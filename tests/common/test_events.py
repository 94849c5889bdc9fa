import errno
from pathlib import Path

import pytest

from common.events import EventFile


def test_a_disk_that_is_full_names_the_event_file(tmp_path):
    board = EventFile(tmp_path, 1)
    board.file._writer.close()
    board.file._writer = Path("/dev/full").open("wb")  # noqa: SIM115 (the file closes it)
    board.scalars(1, {"loss": 1.0})
    with pytest.raises(OSError, match="No space left") as error:
        board.flush()
    assert error.value.errno == errno.ENOSPC
    assert Path(error.value.filename).name.startswith("events.out.tfevents.")
