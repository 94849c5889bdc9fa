"""Steps recorded as graphs equal plain ones to the bit; on a CPU a tape records what a GPU would."""

import sys

import pytest
import torch

import train
from common import processes
from common.optimizers import Resumable
from tests.synthetic import CPU, fit, make_args, make_loaders, make_model, vector
from tests.tape import TapeRecorder

N = 44  # images: five steps of 8 an epoch and one of 4


@pytest.fixture
def capturable(monkeypatch):
    """Let a CPU's optimisers count steps in tensors, as a GPU's do that are recorded."""
    for name in ("torch.optim.adam", "torch.optim.rmsprop"):
        monkeypatch.setattr(sys.modules[name], "_get_capturable_supported_devices", lambda supports_xla=True: ["cpu"])


def start(tmp_path, recorder, *flags, dtype=torch.float64, capturable=True):
    """A learner, with its steps recorded if there is a recorder, and its arguments."""
    args = make_args(tmp_path, "--width", "-4", *flags)
    learner = train.start(make_model(args).to(dtype), args, CPU)
    learner.optimizer = train.make_optimizer(learner.model, args, capturable=capturable)
    train.record(learner, recorder)
    return learner, args


def train_epochs(learner, args, epochs, dtype=torch.float64, dark=False):
    """All that the steps of some epochs return, with a learning rate for each; seeded as a run folder does."""
    loaders = make_loaders(args, N, dtype, dark=dark)
    learner.model.train()
    sums = []
    for epoch in epochs:
        for group in learner.optimizer.param_groups:
            group["lr"] = args.lr * 0.1**epoch
        for i, batches in enumerate(loaders.steps(epoch, max(1, args.delayed_step))):
            processes.seed_everything(args.seed, epoch, i)
            sums.append(train.step(learner, batches))
    return torch.stack(sums)


def content(learner):
    """Weights, batch norm's moments, the optimiser's and the gradients' as one vector."""
    moments = [value for state in learner.optimizer.state.values() for value in state.values()]
    variance = [value for _, value in learner.variance.values()] if learner.variance else []
    buffers = [b.double() for b in learner.model.buffers()]
    return torch.cat([t.flatten() for t in (vector(learner.model), *buffers, *moments, *variance)])


def places(learner):
    """Where weights, gradients and moments lie."""
    tensors = [t for p in learner.model.parameters() for t in (p, p.grad, *learner.optimizer.state[p].values())]
    return [t.data_ptr() for t in tensors]


@pytest.mark.parametrize(
    "flags",
    [
        ["--opt", "rmsprop", "--network_dropout"],
        ["--opt", "adam", "--l2", "1e-3", "--pooling", "attention"],
        ["--opt", "momentum", "--norm", "bn"],
        ["--grad_variance", "--delayed_step", 2, "-b", 4],
    ],
    ids=["rmsprop, dropout", "adam, weight decay", "momentum, batch norm", "variance, accumulation"],
)
def test_recorded_steps_equal_plain_ones_to_the_bit(flags, tmp_path, capturable, capsys):
    """Over three learning rates, each epoch with a shorter last step."""
    recorder, flags = TapeRecorder(), [*flags, "--background", "dense"]
    (plain, args), (recorded, _) = start(tmp_path, None, *flags), start(tmp_path, recorder, *flags)
    assert torch.equal(train_epochs(recorded, args, [0]), train_epochs(plain, args, [0]))
    before = places(recorded)
    assert torch.equal(train_epochs(recorded, args, [1, 2]), train_epochs(plain, args, [1, 2]))
    assert torch.equal(content(recorded), content(plain))
    assert places(recorded) == before
    assert recorder.recordings == 1 + 3  # gradients once, the optimiser at every rate
    assert recorder.replays == (5 - 3) + 5 + 5 + 3 * (6 - 3)
    assert not capsys.readouterr().out


def test_a_recorded_run_that_is_stopped_continues_like_a_plain_one(tmp_path, capturable):
    """Its state is loaded into new memory, and recorded anew."""
    flags = ["--network_dropout", "--background", "dense"]
    plain, args = start(tmp_path, None, *flags)
    train_epochs(plain, args, [0, 1])
    stopped, _ = start(tmp_path, TapeRecorder(), *flags)
    train_epochs(stopped, args, [0])
    recorder = TapeRecorder()
    resumed, _ = start(tmp_path, recorder, *flags)
    resumed.model.load_state_dict(stopped.model.state_dict())
    Resumable(resumed.optimizer).load_state_dict(stopped.optimizer.state_dict())
    train_epochs(resumed, args, [1])
    assert torch.equal(content(resumed), content(plain))
    assert recorder.replays > 0


def test_an_optimiser_that_reads_its_count_goes_on_unrecorded_after_one_line(tmp_path, capsys):
    flags = ["--opt", "adam"]
    plain, args = start(tmp_path, None, *flags, capturable=False)
    recorded, _ = start(tmp_path, TapeRecorder(), *flags, capturable=False)
    assert torch.equal(train_epochs(recorded, args, [0]), train_epochs(plain, args, [0]))
    assert torch.equal(content(recorded), content(plain))
    out = capsys.readouterr().out
    assert out.startswith("--cuda_graph: not recorded (operation not permitted") and out.count("\n") == 1


def test_the_loss_scaler_of_fp16_stays_outside(tmp_path, capturable):
    """It asks after every backward pass whether gradients are finite; forward and backward pass are recorded."""
    flags, recorder = ["--precision", "fp16"], TapeRecorder()  # without rows, as under autocast
    plain, args = start(tmp_path, None, *flags, dtype=torch.float32)
    recorded, _ = start(tmp_path, recorder, *flags, dtype=torch.float32)
    sums = [train_epochs(learner, args, [0, 1], torch.float32) for learner in (recorded, plain)]
    assert torch.equal(*sums) and torch.equal(content(recorded), content(plain))
    assert recorder.recordings == 1


def test_rows_which_wait_for_their_number_are_not_recorded(tmp_path, capturable):
    recorder = TapeRecorder()
    (plain, args), (recorded, _) = start(tmp_path, None), start(tmp_path, recorder)
    sums = [train_epochs(learner, args, [0], dark=True) for learner in (recorded, plain)]
    assert torch.equal(*sums)
    assert recorder.recordings == 1  # the optimiser's half


def test_counting_steps_in_tensors_changes_no_more_than_rounding(tmp_path, capturable):
    """Three steps along given gradients. Adam then computes 1 - 0.999^n in float32, whatever it moves."""
    for opt, tolerance in (("rmsprop", 1e-12), ("adam", 1e-4)):
        moved = []
        for in_tensors in (False, True):
            learner, _ = start(tmp_path, None, "--opt", opt, "--l2", "1e-3", capturable=in_tensors)
            initial = vector(learner.model)
            torch.manual_seed(1)
            for _ in range(3):
                for p in learner.model.parameters():
                    p.grad = torch.randn_like(p)
                learner.move(learner)
            moved.append(vector(learner.model))
        assert (moved[0] - moved[1]).norm() < tolerance * (moved[0] - initial).norm()


def test_a_run_of_a_cpu_continues_where_steps_are_counted_in_tensors(tmp_path, capturable):
    """And the other way round: what counts steps follows the optimiser that goes on."""
    for counts in ((False, True), (True, False)):
        learners = [start(tmp_path, None, "--opt", "adam", capturable=c)[0] for c in counts]
        args = make_args(tmp_path)
        train_epochs(learners[0], args, [0])
        Resumable(learners[1].optimizer).load_state_dict(learners[0].optimizer.state_dict())
        assert learners[1].optimizer.param_groups[0]["capturable"] == counts[1]
        train_epochs(learners[1], args, [1])


def test_recording_needs_one_gpu_and_is_refused_to_torchrun_in_one_line(tmp_path, monkeypatch, capsys):
    gpu = torch.device("cuda:0")
    assert train.records(make_args(tmp_path), gpu)
    assert not train.records(make_args(tmp_path), CPU)
    assert not train.records(make_args(tmp_path, "--cuda_graph", "off"), gpu)
    assert not train.records(make_args(tmp_path, "--checkpoint_activations"), gpu)
    assert not capsys.readouterr().out
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    assert not train.records(make_args(tmp_path), gpu)
    assert capsys.readouterr().out.startswith("--cuda_graph: not with torchrun")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("flags", [["--dropout"], ["--opt", "adam", "--grad_variance"], ["--precision", "fp16"]])
def test_a_gpu_takes_the_same_ten_steps_recorded(tmp_path, flags):
    """In float64 but for fp16; with an epoch's shorter last step. Kernels that add in any order may round."""
    dtype = torch.float32 if "fp16" in flags else torch.float64
    runs = []
    for way in ("auto", "off"):
        flags_of_run = [*flags, "--device", "cuda", "--compile", "off", "--cuda_graph", way, "--lr", "1e-6", "-e", 2]
        model, best = fit(tmp_path / way, *flags_of_run, n=36, dtype=dtype)
        runs.append((vector(model).cpu(), best["eval_loss"]))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=0, atol=1e-4 if "fp16" in flags else 1e-9)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-2 if "fp16" in flags else 1e-6)
