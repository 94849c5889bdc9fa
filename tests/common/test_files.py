import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest

from common import cli, files
from common.errors import BadInput
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


def fifo(path):
    os.mkfifo(path)
    return path


def link(path, target):
    path.symlink_to(target)
    return path


READERS = [files.read_json, files.read_table, files.open_npy, files.read_text, files.open_input, files.sha256_of]


@pytest.mark.parametrize("read", READERS)
def test_only_plain_files_are_read_and_nothing_is_waited_on(tmp_path, read):
    strangers = {
        "found a named pipe": fifo(tmp_path / "pipe"),
        "found a folder": tmp_path,
        "found a device": Path("/dev/zero"),
        "Too many levels of symbolic links": link(tmp_path / "loop", tmp_path / "loop"),
        "No such file": tmp_path / "none",
        "embedded null byte": tmp_path / "a\0b",
    }
    for said, path in strangers.items():
        with pytest.raises(BadInput, match=f"^{re.escape(str(path))}: .*{said}"):
            read(path)


def test_a_link_to_a_plain_file_is_read(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    assert files.read_json(link(tmp_path / "b.json", tmp_path / "a.json")) == {}


def test_a_file_is_written_where_nothing_or_a_plain_file_is(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("out", ".out.part"):
        for make in (lambda path: path.symlink_to(precious), lambda path: path.mkdir(), os.mkfifo):
            make(tmp_path / name)
            with pytest.raises(BadInput, match=f"{name}: is a .* where a file is to be written"):
                files.write_json(tmp_path / "out", {})
            (tmp_path / name).rmdir() if (tmp_path / name).is_dir() else (tmp_path / name).unlink()
    os.link(precious, tmp_path / ".out.part")  # as a second name it is taken away, never written to
    files.write_json(tmp_path / "out", {})
    assert precious.read_text() == "mine"


def test_a_copy_replaces_a_file_and_no_link(tmp_path):
    source, theirs = tmp_path / "source", tmp_path / "theirs"
    source.write_bytes(b"new")
    theirs.write_bytes(b"old")
    files.copy_file(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"new"
    with pytest.raises(BadInput, match="link: is a link where a file is to be written"):
        files.copy_file(source, link(tmp_path / "link", theirs))
    assert theirs.read_bytes() == b"old"


def test_a_folder_within_ours_is_no_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link(tmp_path / "recipe", tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="recipe: is a link where a folder is to be written"):
        files.make_subfolder(tmp_path, "recipe")
    assert files.make_subfolder(tmp_path, "new").is_dir()


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "not a table: No columns"),
        (b"a,b\n1,2\n1,2,3\n", "not a table"),
        (b"\n\n" + b"," * 10**6, "1,000,001 columns, expected 1,000"),
        (b'"a\nb"' + b"," * 10**6, "1,000,001 columns"),
        ("a,b\n".encode("utf-16"), "not text in UTF-8"),
        (b"a" * (files.MAX_TABLE + 1), "134,217,729 bytes, expected 134,217,728 at most"),
    ],
)
def test_what_is_no_table_is_said_before_it_takes_memory(tmp_path, content, said):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"t.csv: .*{re.escape(said)}"):
        files.read_table(path)


def test_a_table_of_a_million_images_is_read_back(tmp_path):
    name = "level3_size_512_ratio_0.001_0.01/patient_000_node_0_00000000.png"
    rows = [{"id": name, "score": 0.123456789, "label": 1}] * 10**6
    files.write_csv(tmp_path / "scores.csv", rows, ["id", "score", "label"])
    assert len(files.read_table(tmp_path / "scores.csv")) == 10**6


def test_a_table_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfimg_path,label\na,1\n")
    assert files.read_table(tmp_path / "t.csv").columns.tolist() == ["img_path", "label"]


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little"))
    os.truncate(path, 2**32)  # takes no room on the disk
    with pytest.raises(BadInput, match=r"a\.npy: damaged: its header is longer"):
        files.open_npy(path)


def test_an_array_cut_short_or_of_another_shape_is_not_whole(tmp_path):
    path = tmp_path / "map.npy"
    assert not files.is_whole(path, (3, 4))
    files.write_npy(path, np.ones((3, 4), np.float32))
    assert files.is_whole(path, (3, 4), np.float32) and files.is_whole(path, (None, 4))
    assert not any(files.is_whole(path, shape) for shape in ((4, 3), (None,), (3, 4, 1)))
    assert not files.is_whole(path, (3, 4), np.uint8)
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"0", content[:40], bytes(len(content)), b""):
        path.write_bytes(damaged)
        assert not files.is_whole(path, (3, 4))


def test_what_holds_nothing_or_begins_as_ours_may_be_replaced(tmp_path):
    path = tmp_path / "table.csv"
    files.check_replaceable(path, b"a,b", "a table")
    for content in (b"", b"a,b\n1,2\n"):
        path.write_bytes(content)
        files.check_replaceable(path, b"a,b", "a table")
    path.write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"table\.csv: is there already and not a table"):
        files.check_replaceable(path, b"a,b", "a table")
