import errno
from pathlib import Path

import numpy as np
import pytest

from common import cli
from common.files import atomic_open, npy_bytes, write_npy


def test_a_file_is_whole_or_the_previous_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_open(path, "w") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as error:
        Path("/dev/full").write_bytes(npy_bytes(np.zeros(10**6)))  # numpy.save would not say why
    with pytest.raises(OSError, match="No space left") as named, atomic_open(tmp_path / "file"):
        raise error.value
    assert (named.value.errno, named.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))


def test_arrays_are_written_as_numpy_reads_them(tmp_path):
    array = np.arange(12, dtype=np.uint16).reshape(3, 4)
    write_npy(tmp_path / "a.npy", array[:, ::2])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array[:, ::2])


def test_a_killed_loader_process_counts_as_lack_of_memory():
    assert cli.is_out_of_memory(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert not cli.is_out_of_memory(RuntimeError("shape mismatch"))
