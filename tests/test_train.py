import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import train
from common import checkpoint, processes, runfolder
from common.errors import BadInput, WorkFailed
from common.moments import GradientVariance
from common.runfolder import RunFolder
from models import background
from tests.synthetic import CPU, assert_same_training, environment, fit, make_args, make_loaders, make_model, vector

TIMINGS = ["seconds", "images_per_s"]


def stats(logdir):
    return pd.read_csv(logdir / "stats.csv")


@pytest.mark.parametrize(("batch", "accumulation", "images"), [(4, 4, 32), (3, 4, 32), (5, 2, 23)])
def test_accumulated_batches_equal_one_large_batch(tmp_path, batch, accumulation, images):
    """In float64, with a short last batch and group too; SGD, since RMSprop's division magnifies rounding."""
    flags, totals = ("--opt", "momentum", "--lr", "1e-5"), []
    moved = []
    for b, n in ((batch, accumulation), (batch * accumulation, 0)):
        args = make_args(tmp_path, "-b", b, "--delayed_step", n, *flags)
        learner = train.start(make_model(args).double(), args, CPU)
        steps = make_loaders(args, images, torch.float64).steps(epoch=0, accumulation=max(1, n))
        totals.append(sum(train.step(learner, batches) for batches in steps))
        moved.append(vector(learner.model))
    assert_same_training(*moved)
    np.testing.assert_allclose(*totals, rtol=1e-6)


def test_it_learns(tmp_path):
    _, best = fit(tmp_path, "-e", 6, "--norm", "bn", "--opt", "adam", n=96)
    assert best["test_acc"] > 0.9


def test_a_run_resumed_from_any_epoch_equals_the_uninterrupted_one(tmp_path):
    flags = ("--network_dropout", "--grad_variance")
    whole, best = fit(tmp_path / "whole", "-e", 4, *flags)
    for stop in (1, 3):
        logdir = tmp_path / f"stopped_{stop}"
        fit(logdir, "-e", stop, *flags)
        resumed, resumed_best = fit(logdir, "-e", 4, *flags)
        assert torch.equal(vector(resumed), vector(whole))
        assert resumed_best["test_acc"] == best["test_acc"]
        kept = stats(tmp_path / "whole").drop(columns=TIMINGS)
        again = stats(logdir).drop(columns=TIMINGS)
        last = [f"{split}_{name}" for split in ("train", "test") for name in train.SPLIT_COLUMNS]
        again.loc[stop - 1, last] = kept.loc[stop - 1, last]  # evaluated there as the last epoch of its run
        pd.testing.assert_frame_equal(kept, again)


def test_a_log_folder_of_an_earlier_version_continues(tmp_path, monkeypatch):
    """It was stopped after step 2 of the second epoch of three, when resume.py and runlog.py wrote the folder."""
    old = shutil.copytree(Path(__file__).parent / "reference" / "run_7a45ba7", tmp_path / "old")
    saved, before = checkpoint.load(old / "checkpoint.pth"), stats(old)
    found, step = [], train.step

    def noted(learner, batches):
        found.append(copy.deepcopy([part.state_dict() for part in (learner.model, learner.optimizer)]))
        return step(learner, batches)

    monkeypatch.setattr(train, "step", noted)
    fit(old, "--width", "-4", "--dropout", "-e", 3)
    torch.testing.assert_close(found[0], [saved["state_dict"], saved["optimizer"]], rtol=0, atol=0)
    assert len(found) == 3 * 4 - 6
    pd.testing.assert_frame_equal(stats(old)[:1], before)


def test_workers_and_resuming_do_not_touch_dropout(tmp_path):
    results = []
    for name, epochs, workers in (("whole", [2], 2), ("resumed", [1, 2], 2), ("alone", [2], 0)):
        for n in epochs:
            model, _ = fit(tmp_path / name, "-e", n, "--workers", workers, "--dropout")
        results.append(vector(model))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_finished_run_is_left_alone(tmp_path):
    _, first = fit(tmp_path)
    before = (tmp_path / "checkpoint.pth").read_bytes()
    _, second = fit(tmp_path)
    assert second == first
    assert (tmp_path / "checkpoint.pth").read_bytes() == before


def test_a_lost_best_checkpoint_is_named(tmp_path, capsys):
    _, best = fit(tmp_path, "-e", 4, "--lr", "1e-9")
    assert best["epoch"] == 1
    (tmp_path / "best_checkpoint.pth").unlink()
    fit(tmp_path, "-e", 4, "--lr", "1e-9")
    assert "best_checkpoint.pth: missing, was of epoch 1" in capsys.readouterr().out


def test_test_figures_are_those_of_the_best_validation_epoch(tmp_path):
    _, best = fit(tmp_path, "-e", 5, "--test_all")
    table = stats(tmp_path)
    assert best["epoch"] == table.eval_acc.idxmax() + 1
    assert best["test_acc"] == table.test_acc[table.eval_acc.idxmax()]
    saved = checkpoint.load(tmp_path / "best_checkpoint.pth")
    args = make_args(tmp_path)
    model = make_model(args, seed=1)
    model.load_state_dict(saved["state_dict"])
    scores = train.evaluate(model, make_loaders(args).evaluation["test"], torch.device("cpu"))
    assert saved["epoch"] == best["epoch"]
    assert scores["acc"] == best["test_acc"]
    assert scores["loss"] == pytest.approx(best["test_loss"], rel=1e-5)


def test_train_and_test_are_evaluated_when_validation_improves_and_at_the_end(tmp_path):
    fit(tmp_path, "-e", 5)
    table = stats(tmp_path)
    improved = table.eval_acc > table.eval_acc.cummax().shift(fill_value=-1)
    improved.iloc[-1] = True
    assert (table.test_acc.notna() == improved).all()
    assert (table.train_acc.notna() == improved).all()


def test_log_folder_holds_what_the_readme_says(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(tmp_path, "--test_all", "--grad_variance")
    assert list(stats(tmp_path).columns) == list(train.COLUMNS)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["arguments"]["lr"] == 1e-3
    assert config["versions"]["torch"] == torch.__version__
    assert {"git_commit", "device"} <= set(config) and config["epochs_in_all"] == 2
    for name in ("checkpoint.pth", "best_checkpoint.pth"):
        torch.load(tmp_path / name, weights_only=True)
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"train/{name}" for name in ("loss", "precision", "recall", "accuracy", "labels")} <= tags
    assert {f"{folder}/acc" for folder in ("eval", "train_eval", "test")} | {"stats/lr"} <= tags
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))  # 2 epochs of 4 steps
    histograms = events.Tags()["histograms"]
    assert {"rmsprop_second_moment/cnn.layer1", "gradient_variance/mlp"} <= set(histograms)


def test_a_continued_run_says_what_began_it(tmp_path):
    found = []
    for epochs in (1, 2, 3):
        fit(tmp_path, "-e", epochs)
        found.append(json.loads((tmp_path / "config.json").read_text()))
    assert [config["epochs_in_all"] for config in found] == [1, 2, 3]
    assert "earlier" not in found[0]
    assert found[2]["earlier"] == [{name: config[name] for name in runfolder.CALL} for config in found[:2]]
    (tmp_path / "config.json").write_text("")  # it only informs
    fit(tmp_path, "-e", 4)
    assert "earlier" not in json.loads((tmp_path / "config.json").read_text())


def test_a_folder_of_another_configuration_is_refused_naming_the_flags(tmp_path):
    fit(tmp_path, "-e", 1)
    with pytest.raises(BadInput, match=r"lr 0\.001 \(now 0\.002\), pooling max \(now mean\); choose another"):
        fit(tmp_path, "--lr", "2e-3", "--pooling", "mean")
    with pytest.raises(BadInput, match="differs in other data"):
        fit(tmp_path, seed=5)


def test_flags_that_change_no_weight_may_differ_on_resuming(tmp_path):
    flags = ("--opt", "momentum", "--lr", "1e-5")
    fit(tmp_path / "a", "-e", 1, *flags, dtype=torch.float64)
    others = ("-e", 2, "-b", 4, "--delayed_step", 2, "--workers", 1, "--test_all")
    resumed, _ = fit(tmp_path / "a", *flags, *others, dtype=torch.float64)
    whole, _ = fit(tmp_path / "b", "-e", 2, *flags, dtype=torch.float64)
    assert_same_training(vector(whole), vector(resumed))


def test_results_without_a_checkpoint_to_continue_from_are_not_overwritten(tmp_path):
    (tmp_path / "best_checkpoint.pth").write_bytes(b"the first release's")
    with pytest.raises(BadInput, match=r"holds best_checkpoint\.pth of a run without checkpoint\.pth; choose another"):
        fit(tmp_path)
    assert (tmp_path / "best_checkpoint.pth").read_bytes() == b"the first release's"
    (tmp_path / "best_checkpoint.pth").unlink()
    (tmp_path / "config.json").write_text('{"mine": 1}')
    with pytest.raises(BadInput, match=r"config\.json: not of a run; choose another --logdir"):
        fit(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"mine": 1}'


def test_a_run_that_ends_between_its_files_continues(tmp_path, monkeypatch):
    """checkpoint.pth comes first; what follows from it is written again."""
    fit(tmp_path / "whole", "-e", 2)

    def end(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "_write_results", end)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", "-e", 2)
    monkeypatch.undo()
    fit(tmp_path / "cut", "-e", 2)
    whole, cut = (checkpoint.load(tmp_path / name / "best_checkpoint.pth") for name in ("whole", "cut"))
    assert whole["epoch"] == cut["epoch"]
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, cut["state_dict"][name])
    pd.testing.assert_frame_equal(*(stats(tmp_path / name).drop(columns=TIMINGS) for name in ("whole", "cut")))


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("optimizer"),
        lambda saved: saved.update(history=[]),
        lambda saved: saved.update(best_epoch=99),
        lambda saved: saved.update(best_epoch=None),
        lambda saved: saved["progress"].update(steps=10**9),
        lambda saved: saved["progress"].update(seconds=float("nan")),
        lambda saved: saved["progress"].update(totals=[float("nan")] * 5),
        lambda saved: saved.update(identity=None),
        lambda saved: saved["state_dict"].popitem(),
    ],
)
def test_a_checkpoint_of_unexpected_content_is_named_in_one_line(tmp_path, damage):
    fit(tmp_path, "-e", 1)
    saved = checkpoint.load(tmp_path / "checkpoint.pth")
    damage(saved)
    checkpoint.save(tmp_path / "checkpoint.pth", saved)
    with pytest.raises(BadInput, match=r"checkpoint\.pth: (its content is not as expected|has no parameter)") as error:
        fit(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["checkpoint.pth", "stats.csv"])
def test_a_link_where_a_run_writes_is_refused_before_it_trains(tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match=f"{name}: is a link where a file is to be written"):
        fit(tmp_path)
    assert not list(tmp_path.glob("events*"))


def test_diverging_training_stops_and_keeps_the_last_epoch(tmp_path):
    fit(tmp_path, "-e", 1, "--opt", "momentum", "--lr", "1e-5")
    before = (tmp_path / "checkpoint.pth").read_bytes()
    with pytest.raises(WorkFailed, match=r"step \d+: the loss is not finite; lower --lr"):
        fit(tmp_path / "new", "--opt", "momentum", "--lr", "1e30")
    assert (tmp_path / "checkpoint.pth").read_bytes() == before
    assert not (tmp_path / "new" / "checkpoint.pth").exists()


def test_batch_norm_sees_the_split_into_batches(tmp_path):
    fit(tmp_path, "-e", 1, "--norm", "bn")
    with pytest.raises(BadInput, match=r"batch_size 8 \(now 4\)"):
        fit(tmp_path, "--norm", "bn", "-b", 4, "--delayed_step", 2)


def test_learning_rate_falls_after_each_milestone_and_stretches_with_small_sets(tmp_path):
    args = make_args(tmp_path, "--lr", "1")
    optimizer = train.make_optimizer(make_model(args), args)

    def rate(epoch, factor=1):
        return train.set_learning_rate(optimizer, args.lr, epoch, factor)

    rates = [rate(epoch) for epoch in (0, 79, 80, 119, 120, 160)]
    assert optimizer.param_groups[0]["lr"] == rates[-1]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001])
    assert [rate(epoch, 4) for epoch in (319, 320)] == pytest.approx([1, 0.1])


def test_small_training_sets_train_longer(tmp_path, monkeypatch):
    monkeypatch.setattr("data.loaders.NEEDLES_TRAIN_SIZE", 32)
    fit(tmp_path, "-e", 1, "--num_examples", 12)
    assert len(stats(tmp_path)) == 2  # 32 // 12


def test_evaluation_leaves_no_gradient_and_weights_images_not_batches(tmp_path):
    model, loss = make_model(make_args(tmp_path)).double(), {}
    for b in (7, 32):
        batches = make_loaders(make_args(tmp_path, "-b", b), dtype=torch.float64).evaluation["eval"]
        loss[b] = train.evaluate(model, batches, CPU)["loss"]
    assert loss[7] == pytest.approx(loss[32], rel=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_the_loss_of_an_evaluation_is_the_mean_cross_entropy(tmp_path):
    args = make_args(tmp_path, "-b", 32)
    model, batches = make_model(args), make_loaders(args).evaluation["eval"]
    ((images, labels),) = batches
    expected = torch.nn.functional.cross_entropy(model.eval()(images), labels).item()
    assert train.evaluate(model, batches, CPU)["loss"] == pytest.approx(expected, rel=1e-4)


def test_optimisers_are_those_of_pawlowski_2019(tmp_path):
    model = make_model(make_args(tmp_path))
    rmsprop = train.make_optimizer(model, make_args(tmp_path, "--lr", "5e-5")).defaults
    assert {key: rmsprop[key] for key in ("lr", "alpha", "eps", "momentum")} == {
        "lr": 5e-5,
        "alpha": 0.99,
        "eps": 1e-5,
        "momentum": 0,
    }
    assert train.make_optimizer(model, make_args(tmp_path, "--opt", "momentum")).defaults["momentum"] == 0.9
    for name in ("rmsprop", "momentum", "adam"):
        decaying = train.make_optimizer(model, make_args(tmp_path, "--opt", name, "--l2", "0.01"))
        assert [group["weight_decay"] for group in decaying.param_groups] == [0.01]


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_other_precisions_train(tmp_path, precision):
    _, best = fit(tmp_path, "--precision", precision, "-e", 1)
    assert np.isfinite(best["eval_loss"])


def test_a_cpu_cannot_emulate_tf32_where_activations_are_computed_again(tmp_path):
    with pytest.raises(BadInput, match=r"--checkpoint_activations: .* --precision tf32"):
        fit(tmp_path, "--precision", "tf32", "--checkpoint_activations")


def test_batch_norm_and_activations_computed_again_exclude_each_other(tmp_path):
    """A second forward pass would move the moments by which images are scored."""
    with pytest.raises(BadInput, match="--checkpoint_activations: batch norm would count each batch twice"):
        fit(tmp_path, "--norm", "bn", "--checkpoint_activations")


@pytest.mark.parametrize("flags", [["--norm", "bn"], ["--precision", "bf16"]])
def test_rows_that_cannot_be_are_told(tmp_path, capsys, flags):
    args = make_args(tmp_path, "--background", "rows", *flags)
    assert train.start(make_model(args), args, torch.device("cpu")).model.background == "dense"
    assert "--background rows: not with --norm bn, fp16 or bf16; going on dense" in capsys.readouterr().out


def test_steps_that_the_loss_scaler_skips_have_no_part_in_the_gradient_variance(tmp_path):
    model = make_model(make_args(tmp_path))
    variance, gradients = GradientVariance(model), [1.0, float("inf"), 3.0, float("nan")]
    for gradient in gradients:
        for p in model.parameters():
            p.grad = torch.full_like(p, gradient)
        variance.add()
    assert all((value == 2).all() for _, value in variance.values())  # of 1 and 3


@pytest.mark.parametrize("content", [b"no checkpoint", b"", b"PK\x03\x04 broken"])
def test_a_file_that_is_not_a_checkpoint_is_named(tmp_path, content):
    (tmp_path / "checkpoint.pth").write_bytes(content)
    with pytest.raises(BadInput, match=r"checkpoint\.pth: (not a checkpoint|damaged)"):
        fit(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_what_the_cpu_does(tmp_path):
    _, on_cpu = fit(tmp_path / "cpu", "-e", 1)
    _, on_gpu = fit(tmp_path / "gpu", "-e", 1, "--device", "cuda")
    assert on_gpu["eval_loss"] == pytest.approx(on_cpu["eval_loss"], rel=0.05)


def launch(script, *arguments, processes=2):
    """Run a Python script that imports the project and the tests' helpers, by torchrun on the CPU."""
    root = Path(__file__).parent.parent
    env = environment(root, root / "tests", OMP_NUM_THREADS="1")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run([*torchrun, script, *arguments], env=env, timeout=120, capture_output=True, text=True)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Steps, gradients and scores of an epoch agree in float64; the last batch has an image for one process only.

    The images are dark, so that they go by rows of active cells.
    """
    flags = ["-e", "1", "-b", "6", "--delayed_step", "2", "--opt", "momentum", "--lr", "1e-7"]
    script = tmp_path / "job.py"
    script.write_text(
        f"import sys, torch, synthetic\nsynthetic.fit(sys.argv[1], *{flags}, n=31, dtype=torch.float64, dark=True)\n"
    )
    done = launch(script, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best validation epoch") == 1
    one, _ = fit(tmp_path / "one", *flags, n=31, dtype=torch.float64, dark=True)
    scores = [stats(tmp_path / name).drop(columns=TIMINGS) for name in ("one", "two")]
    pd.testing.assert_frame_equal(*scores, rtol=1e-6)
    saved = [checkpoint.load(tmp_path / name / "checkpoint.pth") for name in ("one", "two")]
    gradients = [
        torch.cat([state["momentum_buffer"].flatten() for state in content["optimizer"]["state"].values()])
        for content in saved
    ]
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 1e-6
    two = make_model(make_args(tmp_path)).double()
    two.load_state_dict(saved[1]["state_dict"])
    assert_same_training(vector(one), vector(two))


def test_black_background_is_computed_once_or_not_with_the_same_steps(tmp_path, monkeypatch):
    taken = []
    logits = background.logits
    monkeypatch.setattr(background, "logits", lambda *inputs: taken.append(logits(*inputs)) or taken[-1])
    moved = []
    for way in ("rows", "dense"):
        flags = ("-e", 1, "--background", way, "--opt", "momentum", "--lr", "1e-9")  # larger steps magnify rounding
        moved.append(vector(fit(tmp_path / way, *flags, dtype=torch.float64, dark=True)[0]))
        assert any(found is not None for found in taken) == (way == "rows")
        taken.clear()
    assert_same_training(*moved)


def test_batch_norm_is_refused_with_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("common.processes.world_size", lambda: 2)
    args = make_args(tmp_path, "--norm", "bn")
    with pytest.raises(BadInput, match="--norm bn: batch norm needs whole batches"):
        train.start(make_model(args), args, CPU)


@pytest.mark.slow
def test_when_one_process_fails_the_others_say_so_in_one_line(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import os, torch\nfrom common import cli, processes\nfrom common.errors import BadInput\n"
        "def main():\n"
        "    processes.select('cpu')\n"
        "    if processes.rank() == 0: raise BadInput('damaged.npz: not a canvas')\n"
        "    processes.sum_over_processes(torch.ones(1))\n"
        "cli.run(main)\n"
    )
    done = launch(script)
    assert done.returncode == 1
    own = [line for line in done.stderr.splitlines() if line.startswith("job.py: ")]
    assert "job.py: damaged.npz: not a canvas" in own
    assert "connection" not in done.stderr.lower()


@pytest.mark.slow
def test_a_run_that_lost_a_process_ends_in_one_line_and_continues(tmp_path):
    """The second process dies in the second epoch, in the middle of a step; the same command goes on from the first."""
    script = tmp_path / "job.py"
    script.write_text(
        "import os, sys, synthetic, train\nfrom common import cli\n"
        "step, log = train.step, []\n"
        "def die(learner, batches):\n"
        "    log.append(1)\n"
        "    if os.environ['RANK'] == '1' and len(log) == 6 and sys.argv[2] == 'die': os._exit(9)\n"
        "    return step(learner, batches)\n"
        "train.step = die\n"
        "cli.run(lambda: synthetic.fit(sys.argv[1], '-e', 3) and None)\n"
    )
    lost = launch(script, tmp_path / "run", "die")
    assert lost.returncode == 1
    assert "Error: " not in lost.stderr.replace("ChildFailedError: ", "")
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pth")["epoch"] == 1
    again = launch(script, tmp_path / "run", "live")
    assert again.returncode == 0, again.stderr
    assert len(stats(tmp_path / "run")) == 3


def test_processes_of_torchrun_do_not_share_a_gpu(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match="--device cuda:0: torchrun gives every process a GPU of its own"):
        processes.select("cuda:0")


def test_unknown_devices_are_named():
    with pytest.raises(BadInput, match="--device cuda:99"):
        processes.select("cuda:99")
