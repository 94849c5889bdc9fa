"""HNM-WSI's pickles are read, and nothing in a pickle is ever run."""

import collections
import io
import os
import pickle
import pickletools

import numpy as np
import pytest

from common.errors import BadInput
from mil import pickles

PROTOCOLS = range(2, 6)


def read(tmp_path, content: bytes):
    path = tmp_path / "labels.p"
    path.write_bytes(content)
    return pickles.read(path)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_hnm_wsi_writes_is_read_as_it_was(tmp_path, protocol):
    scores = {"/training/tumor_050": {"10_2_1": 0.25, "9_2_0": np.float32(0.5), "0_0_0": np.float64(0.125)}}
    truth = collections.OrderedDict({("/training/tumor_050/", 10, 2): 1})
    counts = collections.defaultdict(int, {"tumor_050": 3})
    assert read(tmp_path, pickle.dumps(scores, protocol)) == scores
    assert read(tmp_path, pickle.dumps(truth, protocol)) == truth
    assert read(tmp_path, pickle.dumps(counts, protocol)) == counts


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", "|u1", "<U3"])
def test_arrays_are_read_as_they_were(tmp_path, protocol, dtype):
    vector = np.arange(6).reshape(2, 3).astype(dtype)
    tiles = np.empty(2, object)
    tiles[:] = [("1_2_0", vector[0]), ("3_4_1", np.asfortranarray(vector))]
    found = read(tmp_path, pickle.dumps({"bag": tiles}, protocol))["bag"]
    assert (found.dtype, found.shape, found[0][0]) == (object, (2,), "1_2_0")
    np.testing.assert_array_equal(found[0][1], vector[0])
    np.testing.assert_array_equal(found[1][1], vector)


class Runs:
    """A pickle that calls something when Python's own unpickler reads it."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("function", "args"),
    [(os.mkdir, ["x"]), (eval, ["1"]), (io.open, ["x", "w"]), (np.load, ["x"]), (np.fromfile, ["x"]), (dict, [[]])],
)
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path, monkeypatch, protocol, function, args):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"labels.p: (names|damaged)"):
        read(tmp_path, pickle.dumps({"bag": Runs(function, *args)}, protocol))
    assert [path.name for path in tmp_path.iterdir()] == ["labels.p"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x80\x04",
        b"\x80\x04K\x01",  # no end
        b"\x80\x04}\x94(K\x01u.",  # odd items
        b"(i__builtin__\neval\n.",  # INST
        b"\x80\x02cnumpy\nndarray\n.",  # a class as a value
        b"\x80\x02}cnumpy\nndarray\nK\x01s.",  # as a key
        b"\x80\x02cnumpy\ndtype\nU\x02O8\x85R.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # text without an end
        b"Pid\n.",  # a persistent name
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\x00\x00x.",  # an array of 2**48 bytes
    ],
)
def test_a_damaged_pickle_is_one_line(tmp_path, content):
    with pytest.raises(BadInput, match=r"labels\.p: "):
        read(tmp_path, content)


def test_any_cut_pickle_is_one_line(tmp_path):
    whole = pickle.dumps({"bag": {"1_2_0": np.float32(0.5)}, "array": np.arange(3.0)}, 4)
    for end in range(len(whole)):
        with pytest.raises(BadInput):
            read(tmp_path, whole[:end])


def test_lists_that_share_lists_come_to_an_end(tmp_path):
    deep, wide, key = [], [0] * 100, ()
    for _ in range(40):
        deep, key = [deep, deep], (key, key)
    for _ in range(10):
        wide = [wide] * 100
    for value in (deep, wide):
        with pytest.raises(BadInput, match="more values in it"):
            read(tmp_path, pickle.dumps(value, 4))
    hashed = b"\x80\x04}" + pickle.dumps(key, 2)[2:-1] + b"K\x01s."
    with pytest.raises(BadInput, match="a key that is neither text nor number"):
        read(tmp_path, hashed)


def test_an_array_larger_than_its_bytes_is_refused(tmp_path):
    content = pickle.dumps(np.zeros(4), 2)
    shapes = [at for op, arg, at in pickletools.genops(content) if op.name == "BININT1" and arg == 4]
    grown = content[: shapes[-1] + 1] + b"\xff" + content[shapes[-1] + 2 :]
    with pytest.raises(BadInput, match="not a readable pickle"):
        read(tmp_path, grown)


def test_what_is_written_python_reads(tmp_path):
    content = {"/training/tumor_050": {"10_2_1": 0.25}}
    assert pickle.loads(pickles.write_bytes(content)) == content
    assert read(tmp_path, pickles.write_bytes(content)) == content
