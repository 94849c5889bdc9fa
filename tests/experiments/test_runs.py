import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import train_mnist
from common.errors import WorkFailed
from data.cluttered_mnist import generate_data
from experiments import run_experiments, runs, sources
from experiments.figures import FIGURES, PAPER, SMALL, Point
from experiments.runs import Places, Trial
from tests.experiments.sweeps import crop_folders, plan, refusal


def test_the_commands_say_what_the_points_say(tmp_path):
    point = Point(canvas=128, num_examples=1400, balance=0.25, receptive_field=177, pooling="attention", width=-1)
    run = Trial(point, PAPER, 3, True, Places(tmp_path, batch_size=8))
    script, *flags = run.commands()[0]
    args = train_mnist.parse_args(flags)
    assert script == "train_mnist.py"
    assert (args.num_examples, args.data_balance, args.kernel3, args.width) == (1400, 0.25, (3, 4, 6, 3), -1)
    assert (args.pooling, args.seed, args.batch_size, args.delayed_step, args.epochs) == ("attention", 3, 8, 4, 200)
    assert run.epochs == 200 * 8
    assert run.commands()[1][0] == "predict_saliency.py"
    assert runs.generation(run)[3:7] == ["--format", "none", "--canvas", "128"]


def test_runs_are_told_apart_by_their_folders_and_shared_between_figures(tmp_path):
    names = [run.name for figure in FIGURES for run in plan(figure, "--root", str(tmp_path), "--seeds", "1")]
    assert len(set(names)) < len(names)
    assert len(set(names)) == len({run.point for figure in FIGURES for run in plan(figure, "--seeds", "1")})


@pytest.fixture(scope="module")
def made_from_digits(tmp_path_factory):
    """A run of a sweep with scikit-learn's digits, as its commands leave it."""
    found = sources.digits_of("digits")
    places = Places(tmp_path_factory.mktemp("root"), "digits", found)
    tiny = replace(SMALL, epochs=1, batch_size=130, scale=0.3)
    run = Trial(Point(canvas=40, width=-4, receptive_field=9), tiny, 1, False, places)
    generate_data.main(runs.generation(run)[1:])
    train_mnist.main(run.commands()[0][1:])
    return run


def test_a_run_is_done_only_if_it_saw_the_sweeps_data(made_from_digits):
    run = made_from_digits
    assert runs.is_done(run)
    other = replace(run, places=replace(run.places, digits=sources.MNIST))
    assert not runs.is_done(other)
    shutil.copytree(run.logdir, other.logdir)  # as an earlier version called it
    words, data = runs.generation(other), Path(runs.generation(other)[2])
    generate_data.main([*words[1:], "--digit", "5"])
    assert not runs.is_done(other)
    shutil.rmtree(data)
    sources.fingerprint.cache_clear()
    assert not runs.is_done(other)  # who knows
    shutil.copytree(runs.generation(run)[2], data)
    assert f"{data} holds other digits than --mnist" in refusal(run_experiments.check_data, {run, other})
    run_experiments.check_data({run})


def test_maps_of_a_longer_run_are_not_those_of_its_first_epochs(tmp_path):
    """The best checkpoint is of epoch 2 here, that of the first epoch is gone."""
    run = Trial(Point(num_examples=11276), replace(SMALL, epochs=1), 1, True, Places(tmp_path))
    (run.logdir / "saliency").mkdir(parents=True)
    (run.logdir / "saliency" / "localization.json").write_text('{"average_precision": 0.4}')
    columns = "epoch,eval_acc,train_running_acc,seconds,train_acc,test_acc,test_auc\n"
    (run.logdir / "stats.csv").write_text(columns + "1,0.6,0.6,1,1,1,1\n2,0.7,0.7,1,1,1,1\n")
    longer = replace(run, setting=replace(run.setting, epochs=2))
    assert (runs.localization(longer), runs.localization(run)) == (0.4, None)
    assert "trained beyond epoch 1, whose best weights are gone" in refusal(runs.is_done, run)
    assert not runs.is_done(longer)  # its data are not there


def test_digits_other_than_mnist_are_in_the_names_of_folders_and_in_the_label(made_from_digits):
    assert made_from_digits.name.startswith("nmnist_40_digits_")
    flags = ["figure4", "--preset", "small", "--num_examples", "260", "--seeds", "1"]
    made = plan(*flags, "--mnist", "digits")
    assert {run.setting.label for run in made} == {"small, --num_examples 260, --mnist digits"}


def test_mnist_itself_keeps_the_names_that_runs_have(mnist_dir, tmp_path):
    assert sources.digits_of(str(mnist_dir)) == sources.MNIST
    assert sources.digits_of(str(tmp_path / "to_download")) == sources.MNIST


def test_crops_of_other_positions_are_other_runs(tmp_path):
    names = []
    for folder, rows in (("a", "slide,y\ns,1\n"), ("b", "slide,y\ns,2\n"), ("copy_of_a", "slide,y\ns,1\n")):
        crop_folders(tmp_path / folder, 6)
        (tmp_path / folder / "level3_size_128_ratio_0.01_0.1" / "crops.csv").write_text(rows)
        planned = plan("figure4", "--crops", str(tmp_path / folder), "--seeds", "1", "--canvas", "64")
        names.append([run.name for run in planned if run.point.data == "made"])
    assert names[0] == names[2]
    assert set(names[0]).isdisjoint(names[1])


@pytest.mark.parametrize(("slides", "data"), [(197, "ncamelyon"), (6, "made")])
def test_crops_of_made_slides_are_told_from_camelyon17(tmp_path, slides, data):
    crop_folders(tmp_path, slides)
    planned = plan("figure7", "--crops", str(tmp_path), "--seeds", "1", "--canvas", "64")
    found = [run for run in planned if run.point.data == data]
    assert [run.point.receptive_field for run in found] == [9, 33, 177]
    assert found[0].commands()[0][:5] == [
        "train_camelyon.py",
        "--pos_path",
        str(tmp_path / "level3_size_128_ratio_0.01_0.1"),
        "--neg_path",
        str(tmp_path / "neg_128"),
    ]


def test_a_link_in_the_place_of_a_run_or_its_log_is_not_followed(stub, tmp_path):
    run, other = (run for run in plan("figure4", "--canvas", "64", "--seeds", "2", "--root", str(tmp_path / "root")))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    run.logdir.parent.mkdir(parents=True)
    run.logdir.symlink_to(tmp_path / "mine")
    other.logdir.mkdir()
    (other.logdir / "output.log").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(WorkFailed, match=r"2 runs failed: .*is a link where a folder.*is a link where a file"):
        stub("--jobs", "1")
    assert not list((tmp_path / "mine").iterdir())
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert stub.calls == ["s3"]


def test_only_the_maps_of_predict_saliency_are_removed(tmp_path):
    run = Trial(Point(canvas=40), SMALL, 1, True, Places(tmp_path))
    maps = run.logdir / "saliency"
    maps.mkdir(parents=True)
    for name in ("sal_0.npy", "pred_12.npy", "mine.npy", "sal_0_mine.npy", "pred.csv"):
        (maps / name).touch()

    class Nothing:
        def call(self, words, **options):
            return 0

    assert runs.execute(replace(run, localise=False), Nothing(), {}) == 0
    assert len(list(maps.iterdir())) == 5
    assert runs.execute(run, Nothing(), {}) == 0
    assert sorted(path.name for path in maps.iterdir()) == ["mine.npy", "pred.csv", "sal_0_mine.npy"]
