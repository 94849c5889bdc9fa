import hashlib

import pytest

from common.errors import BadInput
from data import fingerprints


def write_files(folder, n):
    paths = [folder / f"{i:02}" for i in range(n)]
    for path in paths:
        path.write_text(path.name)
    return paths


def test_it_is_the_digest_it_has_always_been(tmp_path):
    """Else runs that began before could not be continued."""
    paths = write_files(tmp_path, 31)  # of which every second one is looked at
    read = "".join(path.read_text() for path in paths[::2])
    assert fingerprints.of_files(b"names", paths) == hashlib.sha256(b"names" + read.encode()).hexdigest()


def test_a_change_in_any_of_few_files_is_seen(tmp_path):
    paths = write_files(tmp_path, fingerprints.N_FILES)
    before = fingerprints.of_files(b"", paths)
    for path in paths:
        text = path.read_text()
        path.write_text("??")
        assert fingerprints.of_files(b"", paths) != before
        path.write_text(text)
    assert fingerprints.of_files(b"", paths) == before


def test_a_file_too_large_is_named(tmp_path):
    with pytest.raises(BadInput, match="00: has 2 bytes, expected 1 at most"):
        fingerprints.of_files(b"", write_files(tmp_path, 1), most_bytes=1)
