"""The benchmarks run, and their baselines compute what they are compared with."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import baseline
import bench_anomaly
import bench_evaluation
import bench_extraction
import bench_generator
import bench_input
import bench_memory
import bench_mil
import bench_nearest
import bench_training
import measure


@pytest.mark.parametrize("field", ["9", "33", "177"])
def test_the_baseline_takes_the_same_steps(field):
    """In float64, losses and weights of two steps agree with those of the training loop."""
    images = torch.zeros(4, 1, 40, 40, dtype=torch.float64)
    images[:, :, 5:30, 8:27] = torch.rand(4, 1, 25, 19)
    labels = torch.tensor([0, 1, 1, 0])
    model = bench_training.make_network(field, -4).double()
    theirs = baseline.BaselineTraining(baseline.BaselineNetwork(model))
    ours = bench_training.make_network(field, -4).double()
    optimizer = torch.optim.RMSprop(ours.parameters(), 5e-5, alpha=0.99, eps=1e-5)
    losses = []
    for _ in range(2):
        theirs.step(images, labels)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(ours(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert theirs.scores[0] == pytest.approx(sum(losses), rel=1e-9)
    assert sum(theirs.scores[1:]) == 8


def test_the_baseline_reads_what_was_composed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 40), np.uint8)
    files = baseline.BaselineFiles(tmp_path, images)
    assert files[3][1] == 0
    torch.testing.assert_close(files[3][0], torch.from_numpy(images[3:4]) / 255)


def test_operators_cost_what_they_read_write_and_compute():
    a, b = torch.rand(8, 4), torch.rand(4, 2)
    with measure.Roofline(measure.Rates(matrix=128.0, copy=1000.0)) as line:
        product = a @ b  # 128 FLOP in a second; 224 + 4 * 16 bytes
        _ = product.T.flatten()[:2]  # flatten copies 64 bytes to 64
        product += 1  # reads and writes 64 bytes
    assert line.flops == 128
    assert line.bytes == 4 * (32 + 8 + 16) + 128 + 128
    assert line.seconds == pytest.approx(1 + 0.128 + 0.128)


def test_counted_peaks_include_what_is_kept_and_what_is_not():
    weight = torch.zeros(1000)

    def work():
        _ = [weight + 1, weight + 2]

    where = torch.device("cpu")
    layer = torch.nn.Linear(10, 100, bias=False)
    layer.weight = torch.nn.Parameter(weight)
    assert measure.peak_bytes(work, where, layer) == 3 * 4000


def numbers(line):
    return [float(cell.rstrip("%")) for cell in line.replace("|", " ").split() if cell[:1].isdigit() or cell[0] == "-"]


def test_training_table(capsys):
    flags = "--mnist digits --fields 9 --widths -4 --canvases 40 --rounds 1 --device cpu"
    bench_training.main(flags.split())
    theirs, ours = map(numbers, capsys.readouterr().out.splitlines()[3:])
    assert theirs[:4] == ours[:4] == [9, -4, 40, 32]
    assert theirs[5] == 1
    assert ours[5] == pytest.approx(ours[4] / theirs[4], rel=0.1)


def test_evaluation_table(capsys):
    flags = "--mnist digits --fields 9 --width -4 --canvases 40 --quick --device cpu"
    bench_evaluation.main(flags.split())
    row = numbers(capsys.readouterr().out.splitlines()[-1])
    assert row[:4] == [9, -4, 40, 32] and len(row) == 8
    ours, theirs, _, saliency = row[4:]
    assert 0.3 < ours < theirs  # which goes backward, too
    assert saliency > 0.3


def test_input_table(capsys):
    flags = "--mnist digits --field 9 --width -4 --canvases 40 --sizes 32 --rounds 1 --device cpu"
    bench_input.main(flags.split())
    lines = capsys.readouterr().out.splitlines()
    row = numbers(lines[2])
    assert row[0] == 40 and row[5] == pytest.approx(row[2] / row[4], rel=0.1)
    assert numbers(lines[-1])[0] == 32


def test_memory_table_counts_less_when_activations_are_recomputed(capsys, monkeypatch):
    monkeypatch.setattr(measure, "free_memory", lambda where: 0)
    bench_memory.main(["--field", "9", "--width", "-2", "--canvases", "256", "12000", "--device", "cpu"])
    small, large = capsys.readouterr().out.splitlines()[3:]
    kept, recomputed = numbers(small)[1:3]
    assert recomputed < kept / 2
    assert small.count("no room") == 2
    assert "beyond 32-bit indices" not in small
    assert "beyond 32-bit indices" in large


@pytest.mark.slow
def test_generator_table_row_by_row(capsys):
    bench_generator.main(["--quick", "--mnist", "digits", "--canvas", "64"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("canvas 64, 2 clutter digits") and "10 images" in lines[0]
    for line in lines[3:6]:
        ours, theirs, ratio = (float(cell.rstrip("x")) for cell in line.split()[-3:])
        assert ratio == pytest.approx(theirs / ours, rel=0.2, abs=0.1)


@pytest.mark.slow
def test_extraction_table_row_by_row(capsys):
    bench_extraction.main(["--quick", "--width", "4096", "--height", "4096"])
    first, second = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    assert first[:3] == ["128", "0.01-0.1", "ours"] and second[:3] == ["128", "0.01-0.1", "whole"]
    assert float(first[3]) > 0 and float(second[3]) > 0


@pytest.mark.parametrize(
    ("bench", "rows"),
    [
        (bench_training, {"fields": ["33"], "widths": [-2], "canvases": [64], "rounds": 1}),
        (bench_evaluation, {"fields": ["33"], "canvases": [64], "batches": 4, "rounds": 1}),
        (bench_input, {"canvases": [64], "sizes": [128], "rounds": 1}),
        (bench_memory, {"canvases": [256]}),
    ],
)
def test_quick_is_one_row_unless_flags_ask_for_others(bench, rows):
    quick, whole = bench.parse_args(["--quick"]), bench.parse_args([])
    assert {name: getattr(quick, name) for name in rows} == rows
    assert all(getattr(whole, name) != value for name, value in rows.items())
    assert bench.parse_args(["--quick", "--canvases", "1024"]).canvases == [1024]


def test_nearest_table_finds_the_same_neighbours(capsys):
    bench_nearest.main(["--gallery", "20000", "--queries", "300", "--dim", "16", "--quick"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2,000 x 16, 30 queries")
    ours, theirs = (line for line in lines[2:] if "not installed" not in line and "faiss" not in line)
    assert ours.endswith("100.0000%") and theirs.endswith("100.0000%")
    assert 0.05 < numbers(ours.split("|")[1])[2] < 4


def test_the_benchmark_of_bags_runs(capsys):
    bench_mil.main(["--quick", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0].split(":")[0] for line in lines[1:]] == ["embedding"] * 2 + ["training"] * 3


def test_the_straightforward_step_of_dpa_moves_the_weights_alike():
    args = bench_anomaly.parse_args(["--quick", "--device", "cpu"])
    tiles, images = torch.rand(4, 3, 16, 16), torch.arange(4)
    theirs, ours, cached = (bench_anomaly.make_learner(args, torch.device("cpu")) for _ in range(3))
    cached.cache = bench_anomaly.dpa.References(cached.detector.reference(2 * tiles - 1))
    for _ in range(2):
        losses = [bench_anomaly.baseline_step(theirs, tiles)]
        losses += [learner.step(tiles, images, 1.0)[0] for learner in (ours, cached)]
    assert [float(loss) for loss in losses] == pytest.approx([float(losses[0])] * 3, rel=1e-5)


@pytest.mark.slow
def test_detectors_table(capsys):
    bench_anomaly.main(["--quick", "--device", "cpu"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert [line.split("|")[0].strip() for line in lines[1:4]] == [
        "baseline",
        "images that change",
        "images that never change",
    ]
    assert float(lines[1].split()[-1]) == 1 and "-" in lines[-1]
    assert numbers(lines[-2].split("|", 1)[1])[0] == 25
