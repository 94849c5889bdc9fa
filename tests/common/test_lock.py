"""One writer a folder, on any file system, and no harm to a file that is not ours."""

import errno
import fcntl
import os

import pytest

from common import lock
from common.errors import BadInput


@pytest.fixture(autouse=True)
def nothing_said():
    lock._say_unlocked.cache_clear()


def test_the_lock_names_its_holder_and_is_gone_afterwards(tmp_path):
    with (
        lock.held(tmp_path, "--out"),
        pytest.raises(BadInput, match=rf"--out .*: in use by \S+ process {os.getpid()};"),
        lock.held(tmp_path, "--out"),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "number", [errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EACCES, errno.EBADF, errno.EIO, 524]
)
def test_a_file_system_without_locks_is_used_unlocked_which_is_said_once(number, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with lock.held(tmp_path, "--out"):
            assert (tmp_path / ".lock").exists()
    assert not list(tmp_path.iterdir())
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and os.strerror(number) in said


def test_what_a_killed_run_left_is_taken_over(tmp_path):
    (tmp_path / ".lock").write_text("node7 process 4711\n")
    with lock.held(tmp_path, "--out"):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"poetry\n", b"node7 process 4711\nand more\n", b"\xff" * 5000])
def test_a_file_that_is_no_lock_of_ours_is_left_as_it_is(content, tmp_path):
    (tmp_path / ".lock").write_bytes(content)
    with pytest.raises(BadInput, match=r"\.lock: is not a lock of this software"), lock.held(tmp_path, "--out"):
        pass
    assert (tmp_path / ".lock").read_bytes() == content


def test_links_and_pipes_are_refused(tmp_path):
    target, folder = tmp_path / "notes.txt", tmp_path / "out"
    folder.mkdir()
    target.write_text("")
    for make in (lambda path: path.symlink_to(target), lambda path: os.mkfifo(path)):
        make(folder / ".lock")
        with pytest.raises(BadInput, match=r"\.lock: is a (link|named pipe) where a file"), lock.held(folder, "--out"):
            pass
        assert os.path.lexists(folder / ".lock") and target.read_text() == ""
        (folder / ".lock").unlink()


def test_a_file_put_in_the_locks_place_meanwhile_stays(tmp_path):
    with lock.held(tmp_path, "--out"):
        (tmp_path / ".lock").unlink()
        (tmp_path / ".lock").write_text("mine")
    assert (tmp_path / ".lock").read_text() == "mine"
