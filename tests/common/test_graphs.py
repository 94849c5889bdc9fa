"""Recorded work does what it does unrecorded. A tape stands in for the GPU, which refuses what a recording refuses."""

from types import SimpleNamespace

import pytest
import torch

from common import processes
from common.graphs import WARM_UP, CudaGraphs, Recorded
from tests.tape import TapeRecorder


def add_to(total):
    """Work that adds to a tensor."""

    def work(x, factor):
        total.add_(x * factor)
        return total * 2

    return work


def test_alike_calls_are_recorded_and_replayed_others_are_not():
    totals, recorder = torch.zeros(2, 3), TapeRecorder()
    plain, recorded = add_to(totals[0]), Recorded(add_to(totals[1]), recorder)
    calls = [(torch.full((3,), i), 1.0) for i in range(8)]
    calls.insert(6, (torch.ones(1), 1.0))  # another shape
    calls.insert(7, (torch.ones(3), 2.0))  # another number
    results = []
    for x, factor in calls:
        results.append(recorded(x, factor))
        assert torch.equal(results[-1], plain(x, factor))
    assert (recorder.recordings, recorder.replays) == (1, 8 - WARM_UP)
    assert len({result.data_ptr() for result in results}) == len(results)  # no result is overwritten later


def test_recording_itself_changes_nothing():
    total, recorder = torch.zeros(3), TapeRecorder()
    replay, result = recorder.record(lambda: add_to(total)(torch.ones(3), 1.0))
    assert not total.any()
    replay()
    assert (total == 1).all() and (result == 2).all()


def test_a_constant_that_changes_is_recorded_anew():
    total, rate, recorder = torch.zeros(1), [1.0], TapeRecorder()
    recorded = Recorded(lambda: total.add_(rate[0]), recorder, constants=lambda: rate)
    for expected in range(1, 6):
        assert recorded() == expected
    rate[0] = 10.0
    for expected in range(15, 66, 10):
        assert recorded() == expected
    assert recorder.recordings == 2


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.tolist, bool, float])
def test_what_reads_from_the_device_is_not_recorded_and_says_so_in_one_line(read, capsys):
    seen = []

    def work(x):
        seen.append(read(x))
        return x + 1

    recorded = Recorded(work, TapeRecorder())
    for i in range(6):
        assert recorded(torch.tensor([float(i)])) == i + 1
    assert len(seen) == 6
    out = capsys.readouterr().out
    assert out.startswith("--cuda_graph: not recorded (operation not permitted") and out.count("\n") == 1


def test_what_cannot_be_recorded_is_worked_off():
    recorder = TapeRecorder()
    recorded = Recorded(lambda x: x + 1, recorder, unless=lambda x: len(x) == 2)
    assert all((recorded(torch.ones(2)) == 2).all() for _ in range(6))
    assert recorder.recordings == 0


def test_draws_follow_the_seed_at_replay():
    def work(x):
        return torch.nn.functional.dropout(x, 0.5)

    recorded, x = Recorded(work, TapeRecorder()), torch.ones(100)
    for i in range(6):
        processes.seed_everything(0, i)
        found = recorded(x)
        processes.seed_everything(0, i)
        assert torch.equal(found, work(x))


class Capture:
    """torch.cuda.graph as it fails: by an error of its own, and the generator is left as in a recording."""

    stuck = False

    def __init__(self, graph, **options):
        Capture.stuck = True

    def __enter__(self):
        pass

    def __exit__(self, kind, *_):
        if kind:
            raise RuntimeError("operation failed due to a previous error during capture")
        Capture.stuck = False


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_recording_that_failed_is_over_and_its_first_reason_is_given(error, monkeypatch):
    streams = []
    stand_ins = {"Stream": torch.device, "CUDAGraph": lambda: SimpleNamespace(replay=None), "graph": Capture}
    stand_ins |= {"current_stream": lambda device: "main", "set_stream": streams.append}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def work():
        raise error("not in a recording")

    with pytest.raises(RuntimeError, match=r"^not in a recording$"):
        CudaGraphs(torch.device("cpu")).record(work)
    assert not Capture.stuck and streams == ["main"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_records_and_replays_with_the_draws_of_the_seed():
    device = torch.device("cuda", torch.cuda.current_device())
    total = torch.zeros(1000, device=device)

    def work(x):
        total.add_(torch.nn.functional.dropout(x, 0.5))
        return total * 2

    results = []
    for run in (work, Recorded(work, CudaGraphs(device))):
        total.zero_()
        for i in range(8):
            processes.seed_everything(0, i)
            result = run(torch.full((1000,), float(i), device=device))
        results.append(result.clone())
    assert torch.equal(*results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_refuses_goes_on_without(capsys):
    device = torch.device("cuda", torch.cuda.current_device())
    recorded = Recorded(lambda x: x * x.sum().item(), CudaGraphs(device))
    assert all(recorded(torch.full((1,), 3.0, device=device)) == 9 for _ in range(6))
    said = capsys.readouterr().out
    assert "--cuda_graph: not recorded" in said and "previous error" not in said
    assert torch.rand(100, device=device).std() > 0  # the generator still draws
