import pickle
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import torch

import models
from common import checkpoint, first_release
from common.errors import BadInput
from models import ModelConfig, build_model


def old_checkpoint(model):
    """What the first release saved: weights, flags with a NumPy number among them, pandas tables."""
    return {
        "state_dict": OrderedDict(model.state_dict()),
        "config": {
            **{"network_att_type": "soft_mil_att_forward", "kernel3": (1, 1, 0, 0), "network_width": np.int64(-2)},
            **{"network_dropout": False, "input_channels": 1, "lr": np.float64(5e-5)},
        },
        "stats": pd.DataFrame({"epoch": [0, 1], "acc": [0.5, 0.6]}),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip format", "format before 1.6"])
def test_first_release_checkpoints_are_read(tmp_path, zipped):
    model = build_model(ModelConfig(1, (1, 1, 0, 0), -2, "attention"))
    torch.save(old_checkpoint(model), tmp_path / "best.pth", _use_new_zipfile_serialization=zipped)
    content, is_old = checkpoint.load_any(tmp_path / "best.pth")
    config = models.read_config(content["config"], is_old, "best.pth")
    assert is_old
    assert config == model.config
    assert content["config"]["lr"] == 5e-5
    assert type(content["stats"]).__name__ == "Placeholder"
    again = build_model(config)
    again.load_state_dict(content["state_dict"])
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


def test_numpy_objects_are_not_rebuilt():
    payload = pickle.dumps({"a": np.array([Malicious("nowhere")], dtype=object), "b": np.float32(1.5)})
    import io

    content = first_release.RestrictedUnpickler(io.BytesIO(payload)).load()
    assert type(content["a"]).__name__ == "Placeholder"
    assert content["b"] == 1.5


def test_other_archives_are_refused(tmp_path):
    import tarfile

    scripted = tmp_path / "script.pth"
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(scripted))
    with pytest.raises(BadInput, match="TorchScript"):
        first_release.load(scripted)
    with tarfile.open(tmp_path / "tar.pth", "w") as archive:
        archive.add(__file__, "pickle")
    (tmp_path / "text.pth").write_text("hello")
    for name in ("tar.pth", "text.pth"):
        with pytest.raises(BadInput, match="not a checkpoint"):
            checkpoint.load_any(tmp_path / name)
    with pytest.raises(BadInput, match="no such checkpoint"):
        checkpoint.load_any(tmp_path / "absent.pth")


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
    with pytest.raises(BadInput, match=r"best\.pth: damaged: the checksum of .* does not hold"):
        checkpoint.load_any(path)


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pth"
    checkpoint.save(path, {"epoch": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoint.save(path, {"epoch": lambda: 2})
    assert checkpoint.load(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pth"]
