import argparse
import os
import pickle
import re
import subprocess
import sys
import tarfile
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import torch

from common import checkpoint, torch_format
from common.errors import BadInput
from models import needle
from models.needle import ModelConfig, build_model
from tests.reliability import sandbox


def old_checkpoint(model):
    """What the first release saved: weights, flags with a NumPy number among them, pandas tables."""
    return {
        "state_dict": OrderedDict(model.state_dict()),
        "config": {
            "network_att_type": "soft_mil_att_forward",
            "kernel3": (1, 1, 0, 0),
            "network_width": np.int64(-2),
            "network_dropout": False,
            "input_channels": 1,
            "lr": np.float64(5e-5),
        },
        "stats": pd.DataFrame({"epoch": [0, 1], "acc": [0.5, 0.6]}),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip format", "format before 1.6"])
def test_first_release_checkpoints_are_read(tmp_path, zipped):
    model = build_model(ModelConfig(1, (1, 1, 0, 0), -2, "attention"))
    torch.save(old_checkpoint(model), tmp_path / "best.pth", _use_new_zipfile_serialization=zipped)
    again, content, is_old = needle.load(tmp_path / "best.pth")
    assert is_old
    assert again.config == model.config
    assert content["config"]["lr"] == 5e-5
    assert isinstance(content["stats"], torch_format.Foreign)
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(again(images), model(images))


class Malicious:
    """Runs a command when unpickled carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return subprocess.call, ([sys.executable, "-c", f"open({str(self.path)!r}, 'w')"],)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_checkpoint_does_nothing(tmp_path, zipped):
    trap = tmp_path / "executed"
    pickle.loads(pickle.dumps(Malicious(trap)))
    assert trap.exists()  # the trap works
    trap.unlink()
    content = {**old_checkpoint(build_model(ModelConfig(1, width=-2))), "extra": Malicious(trap)}
    torch.save(content, tmp_path / "best.pth", _use_new_zipfile_serialization=zipped)
    checkpoint.load_any(tmp_path / "best.pth")
    with pytest.raises(BadInput, match=r"best\.pth: not a readable checkpoint"):
        checkpoint.load(tmp_path / "best.pth")
    assert not trap.exists()


def test_numpy_numbers_are_read_and_arrays_are_not_rebuilt(tmp_path):
    content = {"a": np.array([Malicious("nowhere")], dtype=object), "b": np.float32(1.5), "c": np.int64(-2)}
    torch.save(content, tmp_path / "a.pth")
    read, foreign = torch_format.read(tmp_path / "a.pth")
    assert foreign
    assert isinstance(read["a"], torch_format.Foreign)
    assert (read["b"], read["c"]) == (1.5, -2)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", list(torch_format.DTYPES.values()), ids=str)
def test_what_torch_save_wrote_is_read_to_the_bit(tmp_path, zipped, dtype):
    whole = (torch.rand(4, 6, 5) * 9).to(dtype)
    content = {
        "whole": whole,
        "part": whole[1:, ::2],
        "turned": whole.transpose(0, 2),
        "none": whole[:0],
        "parameter": torch.nn.Parameter(torch.rand(2)),
        "number": torch.tensor(3).to(dtype),
        "size": whole.shape,
        **{1: [True, None, -5, 2**40, 1e-9, "text", b"bytes"], "pair": (1, [2, {"three": ()}])},
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    read, foreign = torch_format.read(tmp_path / "a.pth")
    assert not foreign
    assert list(read) == list(content)
    for name in ("whole", "part", "turned", "none", "parameter", "number"):
        assert read[name].dtype == content[name].dtype
        assert torch.equal(read[name], content[name].detach())
    assert read["part"].untyped_storage().data_ptr() == read["whole"].untyped_storage().data_ptr()
    assert (read["size"], read[1], read["pair"]) == ((4, 6, 5), content[1], content["pair"])


def torchscript(path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))


def hidden_torchscript(path):
    """What zipfile takes for no zip at all and PyTorch, by the end record before the last, for a program."""
    torchscript(path)
    path.write_bytes(path.read_bytes() + b"PK\x05\x06")


def tar(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "pickle")


@pytest.mark.parametrize(
    "write, said",
    [
        (torchscript, "TorchScript archive"),
        (hidden_torchscript, "something follows its end"),
        (tar, "not a checkpoint, by its first bytes"),
        (lambda path: path.write_text("hello"), "not a checkpoint, by its first bytes"),
        (lambda path: path.write_bytes(b""), "not a checkpoint, by its first bytes"),
        (lambda path: path.write_bytes(pickle.dumps({}, 2)), "not a checkpoint, by its first bytes"),
        (lambda path: np.savez(path.open("wb"), a=1), "a zip archive, not a checkpoint"),
        (os.mkfifo, "expected a file, found a named pipe"),
        (os.mkdir, "expected a file, found a folder"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "expected a file, found a device"),
        (lambda path: None, "No such file"),
    ],
)
def test_what_is_no_checkpoint_is_refused_before_pytorch_sees_it(tmp_path, write, said, monkeypatch):
    write(tmp_path / "a.pth")
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(torch.jit, "load", None)
    for load in (checkpoint.load, checkpoint.load_any):
        with pytest.raises(BadInput, match=f"a.pth: .*{said}"):
            load(tmp_path / "a.pth")


def in_the_old_format(*operations):
    """A file as PyTorch wrote it before 1.6, whose content is these operations of a pickle."""
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return head + b"\x80\x02" + b"".join(operations) + b"."


def nested(opening, closing):
    """Thirty levels of a container that holds the one before it twice: 2**30 values in some hundred bytes."""
    level = [bytes([ord("q"), 0])]
    for i in range(1, 31):
        level.append(opening + b"h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + closing + b"q" + bytes([i]))
    return b"]" + b"".join(level)


LISTS, TUPLES = nested(b"](", b"e"), nested(b"", b"\x86")
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ\xff\xff\xff\x7fNtQ"


SMALL_BUT = {
    "bytes by a call": [b"c__builtin__\nbytearray\n\x8a\x05" + (4 * 10**9).to_bytes(5, "little") + b"\x85R"],
    "bytes": [b"\x96" + (4 * 10**9).to_bytes(8, "little")],
    "text": [b"X\xff\xff\xff\x7f"],
    "lists in lists": [LISTS],
    "tuples in tuples": [TUPLES],
    "a key of tuples": [b"}", TUPLES, b"Ns"],
    "a key of tuples in an OrderedDict": [b"ccollections\nOrderedDict\n]]", TUPLES, b"ea\x85R"],
    "a storage": [b"(", STORAGE, b"t"],
    "a storage named by tuples": [b"(", STORAGE.replace(b"X\x01\0\0\x000", TUPLES), b"t"],
    "the same text, decoded often": [
        b"X\0\0\x20\0",
        b"a" * 2**21,
        b"q\x000",
        b"c_codecs\nencode\nh\0X\x06\0\0\0latin1\x86R" * 10**5,
    ],
    "many lists": [b"](", b"]" * 10**7, b"e"],
}


@pytest.mark.parametrize("bomb", SMALL_BUT)
def test_a_small_pickle_takes_neither_memory_nor_time(tmp_path, bomb):
    """Doing what it says would take gigabytes or years."""
    (tmp_path / "a.pth").write_bytes(in_the_old_format(*SMALL_BUT[bomb]))
    outcome = sandbox.run(lambda argv: checkpoint.load_any(tmp_path / "a.pth"), [])
    assert outcome.code == 2, outcome
    assert "a.pth" in outcome.said


@pytest.mark.parametrize("pandas_inside", [True, False], ids=["first release", "ours"])
def test_a_flipped_byte_is_noticed(tmp_path, pandas_inside):
    content = old_checkpoint(build_model(ModelConfig(1, width=-2)))
    if not pandas_inside:
        content = {"state_dict": content["state_dict"], "config": {}, "args": {}}
    path = tmp_path / "best.pth"
    torch.save(content, path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # inside a weight
    path.write_bytes(damaged)
    with pytest.raises(BadInput, match=r"best\.pth: Bad CRC-32 for file"):
        checkpoint.load_any(path)


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pth"
    checkpoint.save(path, {"epoch": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoint.save(path, {"epoch": lambda: 2})
    assert checkpoint.load(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_a_tensor_in_place_of_a_shape_does_not_unfold(tmp_path):
    """A hundred shapes that name a tensor of 100,000 bytes would be ten million tensors."""
    tensor = torch.zeros(10**5, dtype=torch.uint8)

    class Shape:
        def __reduce__(self):
            return torch.Size, (tensor,)

    torch.save([Shape() for _ in range(100)], tmp_path / "a.pth")
    outcome = sandbox.run(lambda argv: checkpoint.load_any(tmp_path / "a.pth"), [])
    assert outcome.code == 2 and "a.pth: damaged: a tensor of no size" in outcome.said, outcome


VARIANTS = {
    "DataParallel": lambda weights: {f"module.{name}": value for name, value in weights.items()},
    "torch.compile": lambda weights: {f"_orig_mod.{name}": value for name, value in weights.items()},
    "both": lambda weights: {f"_orig_mod.module.{name}": value for name, value in weights.items()},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_prefixes_of_wrappers_are_taken_off(variant):
    model = build_model(ModelConfig(1, (1, 1, 0, 0), -4))
    other = build_model(model.config)
    checkpoint.load_weights(other, VARIANTS[variant](model.state_dict()), "a.pth")
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda w: w.pop("cnn.bn1.bias"), r"has no parameter cnn\.bn1\.bias, expected one of shape \(4,\)"),
        (lambda w: w.update({"cnn.bn1.bias": torch.zeros(5)}), r"cnn\.bn1\.bias has shape \(5,\), expected \(4,\)"),
        (lambda w: w.update(extra=torch.zeros(1)), "a parameter extra, which the network of its config lacks"),
        (lambda w: w["mlp.bias"].fill_(torch.nan), r"parameter mlp\.bias holds values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named_by_the_first_of_them(change, said):
    model = build_model(ModelConfig(1, (1, 1, 0, 0), -4))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    change(weights)
    with pytest.raises(BadInput, match=f"^a.pth: {said}|^a.pth: .*{said}"):
        checkpoint.load_weights(model, weights, "a.pth")


@pytest.mark.parametrize(
    "content, said",
    [
        ({"a": torch.zeros(1)}, "a bare state_dict of 1 tensors; a checkpoint has a config beside it"),
        (
            {"state_dict": {}, "config": argparse.Namespace(a=1)},
            r"its config is a argparse\.Namespace, expected a dict",
        ),
        ({"weights": {}}, "needs a state_dict and a config, found weights"),
        ([1], "expected a checkpoint, found a list"),
    ],
)
def test_what_a_checkpoint_lacks_is_said(tmp_path, content, said):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(BadInput, match=said):
        checkpoint.load_any(tmp_path / "a.pth")


def test_kernel3_is_read_as_text_too_and_quoted_as_it_is():
    flags = {"input_channels": 1, "network_width": -4, "network_att_type": "max_forward"}
    assert needle.read_config({**flags, "kernel3": "1_1_0_0"}, True, "a.pth").kernel3 == (1, 1, 0, 0)
    for wrong in ("1_9", (1, 2), 7):
        with pytest.raises(BadInput, match=re.escape(repr(wrong))):
            needle.read_config({**flags, "kernel3": wrong}, True, "a.pth")
