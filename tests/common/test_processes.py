"""Choosing a GPU, on a machine without one: the stand-ins ask of a device what PyTorch's functions ask."""

import pytest
import torch
from torch.cuda._utils import _get_device_index

from common import processes
from common.errors import BadInput

GPUS = 4


@pytest.fixture
def gpus(monkeypatch):
    """A machine with GPUS of them, the second one current; the list of those that were made current."""
    chosen, zeros = [], torch.zeros

    def zeros_on(*size, device):
        if device.type == "cuda" and not 0 <= (1 if device.index is None else device.index) < GPUS:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return zeros(*size)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(_get_device_index(device)))
    monkeypatch.setattr(torch, "zeros", zeros_on)
    return chosen


@pytest.mark.parametrize(
    ("name", "rank", "index"),
    [("auto", None, 1), ("cuda", None, 1), ("cuda:2", None, 2), ("auto", 3, 3), ("cuda", 0, 0)],
)
def test_a_gpu_is_chosen_by_its_index(name, rank, index, gpus, monkeypatch):
    """Without one, it is the current GPU or that of torchrun's process."""
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert processes.select(name) == torch.device("cuda", index)
    assert gpus == [index]


def test_a_gpu_too_many_is_named(gpus, monkeypatch):
    with pytest.raises(BadInput, match="--device cuda:4: cannot be used: CUDA error: invalid device ordinal"):
        processes.select("cuda:4")
    monkeypatch.setenv("LOCAL_RANK", "7")
    with pytest.raises(BadInput, match="--device cuda:7: cannot be used"):
        processes.select("auto")
    assert not gpus


def test_the_cpu_stays_the_cpu_beside_gpus(gpus):
    assert processes.select("cpu") == torch.device("cpu")
    assert not gpus
