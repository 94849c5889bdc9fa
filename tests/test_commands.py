"""Every command of README and docs/ runs as printed, small; wrong input ends in one line and exit code 2."""

import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import processes
from experiments import demo
from tests.synthetic import environment

ROOT = Path(__file__).parent.parent
PAGES = (  # in the order of reading
    "README.md",
    "docs/FORMATS.md",
    "docs/RELIABILITY.md",
    "docs/SCALING.md",
    "docs/ANOMALY.md",
    "docs/MIL.md",
    "docs/RETRIEVAL.md",
    "docs/adding_a_method.md",
    "docs/coming_from.md",
)
NOTES = """data/cluttered_mnist/generate_data.py --digit-clutter --distortion-num 25 --patch-size 64 --type detection
    --canvas 256 --out DIR --mnist MNIST_DIR
data/cluttered_mnist/generate_noise_data.py --canvas 256 --num_train 11276 --out DIR
extract_basic_pos_crops.py --data ANNOTATIONS --base_path TRAINING --save_dir DIR --size 512
    --low_roir 0.1 --high_roir 0.5
extract_basic_neg_crops.py --label_path LABELS --base_path TRAINING --save_dir DIR --size 256
train_mnist.py --data_path DIR --logdir LOGS -b 32 -e 200 --delayed_step 4
train_camelyon.py --pos_path POS --neg_path NEG --logdir LOGS -b 8 -e 50 --delayed_step 4
predict_saliency.py --logdir LOGS --datatype mnist --data_path DIR
predict_saliency.py --logdir LOGS --datatype camelyon --pos_path POS --neg_path NEG"""  # what users have in theirs
SMALLER = {  # flag -> value that replaces the pages': paths, sizes, epochs and width only
    "--mnist": "digits",
    "--canvas": "32",
    "--patch-size": "32",
    "--distortion-num": "1",
    "--duplicates": "1",
    "--num_train": "8",
    "--num_val": "4",
    "--num_test": "4",
    "--num_examples": "64",
    "--size": "64",
    "--k": "2",
    "--tile": "16",
    "--stride": "16",
    "--num_epoch_mil": "2",
    "--epoch_to_extract_mil": "1",
    "--reconstruction_epochs": "1",
    "-e": "1",
    "--epochs": "1",
    "--width": "-2",
}
SWEEP = "--canvas 40 --num_examples 260 --width -4 --seeds 1 --epochs 1"  # all images the digits give
PATHS = {"CAMELYON17": "slides", "level3_size_512": "level3_size_64"}
TRAINED = ("train_mnist.py", "train_camelyon.py")


def readme_commands():
    """The python lines of the shell blocks of README and docs/, in order."""
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    blocks = re.findall(r"```sh\n(.*?)```", pages, flags=re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("python ", "torchrun "))]


def smaller(line):
    """The command as a list of arguments, its sizes, epochs and width replaced by small ones."""
    for name, stand_in in PATHS.items():
        line = line.replace(name, stand_in)
    words = shlex.split(line, comments=True)
    for i, word in enumerate(words[:-1]):
        if word in SMALLER:
            words[i + 1] = SMALLER[word]
    if any(script in words for script in TRAINED):
        words += [word for flag in ("-e", "--width") if flag not in words for word in (flag, SMALLER[flag])]
    if "experiments/run_experiments.py" in words:
        words += SWEEP.split()
    return words


def run_here(words):
    """Run a script of the project in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    return exit_info.value.code


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """An empty folder that the pages' commands share, in their order."""
    return tmp_path_factory.mktemp("readme")


def test_the_readme_has_the_commands_users_know():
    printed = " ".join(readme_commands())
    for script in (*(path.name for path in ROOT.glob("*.py") if path.name != "train.py"), "generate_noise_data.py"):
        assert script in printed


@pytest.mark.parametrize("note", NOTES.replace("\n    ", " ").splitlines())
def test_a_command_in_users_notes_is_printed_but_for_its_paths(note):
    def parts(line):  # script, flags and their values; a path is in capitals
        return {word for word in line.split() if not word.isupper()}

    assert any(parts(note) <= parts(line) for line in readme_commands())


def test_the_pages_read_are_all_there_are():
    assert {*PAGES[1:]} == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}


def test_every_script_in_the_readmes_table_is_run():
    named = re.findall(r"\| `python (\S+)", (ROOT / "README.md").read_text())
    assert named
    assert {*named} <= {line.split()[1] for line in readme_commands() if line.startswith("python ")}


@pytest.mark.slow
@pytest.mark.parametrize("line", readme_commands())
def test_readme_command(line, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("data.loaders.NEEDLES_TRAIN_SIZE", 64)  # else the epochs of small sets are multiplied
    words = smaller(line)
    if words[0] == "torchrun":
        starter = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
        script = next(i for i, word in enumerate(starter) if word.endswith(".py"))
        starter[script] = str(ROOT / starter[script])
        starter += ["--device", "cpu"]  # two processes do not share a GPU
        assert subprocess.run(starter, timeout=300).returncode == 0
    else:
        assert run_here(words[1:]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("data", ["mnist", "camelyon"])
def test_demo(data, tmp_path, monkeypatch, capsys):
    """make demo and make demo-camelyon, small."""

    def command(line):
        assert run_here(smaller(f"python {line}")[1:]) == 0

    monkeypatch.setattr("data.loaders.NEEDLES_TRAIN_SIZE", 64)
    monkeypatch.setattr(demo, "mnist_source", lambda: ("digits", 1))
    monkeypatch.setattr(demo, "command", command)
    demo.main([data, "--out", str(tmp_path)])
    closing = capsys.readouterr().out.split("done in")[1]
    for figure in ("test accuracy", "test AUC", "localisation AP", "training images/s", "run folder"):
        assert figure in closing
    sheet = next(line.split()[-1] for line in closing.splitlines() if line.startswith("contact sheet"))
    assert Path(sheet).read_bytes().startswith(b"\x89PNG")


def one_line(capsys):
    """What the command complained, which is one line."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def nmnist(tmp_path_factory):
    """A small nMNIST of scikit-learn's digits."""
    out = tmp_path_factory.mktemp("data") / "nmnist"
    flags = "--canvas 32 --distortion-num 1 --mnist digits --duplicates 1 --format none --workers 1"
    run_here(["data/cluttered_mnist/generate_data.py", *flags.split(), "--out", str(out)])
    return out


def train(data, logdir, *flags):
    return run_here(["train_mnist.py", "--data_path", str(data), "--logdir", str(logdir), "--width", "-2", *flags])


def test_a_closed_stdout_is_no_obstacle(tmp_path):
    flags = ["--mnist", "digits", "--canvas", "40", "--format", "none", "--out", str(tmp_path)]
    command = [sys.executable, str(ROOT / "data" / "cluttered_mnist" / "generate_data.py"), *flags]
    done = subprocess.run(["sh", "-c", f"{shlex.join(command)} >&-"], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "test.csv").exists()


def test_ctrl_c_is_one_line_while_libraries_are_still_imported():
    ctrl_c = "import signal, common; signal.default_int_handler(2, None)"
    done = subprocess.run([sys.executable, "-c", ctrl_c], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "interrupted\n")


def test_more_examples_than_the_data_hold(nmnist, tmp_path, capsys):
    assert train(nmnist, tmp_path, "--num_examples", "99999") == 2
    assert "--num_examples, --data_balance: 99999 images" in one_line(capsys)


def test_an_empty_data_folder(tmp_path, capsys):
    assert train(tmp_path, tmp_path / "run") == 2
    assert "no train.csv" in one_line(capsys)


def test_a_csv_that_names_a_missing_file(nmnist, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for path in nmnist.glob("*.csv"):
        shutil.copy(path, data)
    assert train(data, tmp_path / "run") == 2
    assert "train_0.npz: no such file" in one_line(capsys)


def test_a_log_folder_that_cannot_be_written(nmnist, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train(nmnist, tmp_path / "file" / "run") == 2
    assert f"{tmp_path / 'file' / 'run'}: cannot write" in one_line(capsys)


def test_a_checkpoint_that_is_no_checkpoint(nmnist, tmp_path, capsys):
    (tmp_path / "best_checkpoint.pth").write_text("hello")
    flags = ["--logdir", str(tmp_path), "--datatype", "mnist", "--data_path", str(nmnist)]
    assert run_here(["predict_saliency.py", *flags]) == 2
    assert "best_checkpoint.pth: not a checkpoint" in one_line(capsys)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--kernel3", "5_1_1_1"], "expected 9, 33, 177 or four counts"),
        (["--pooling", "median"], "expected one of max"),
        (["-b", "0"], "whole number of 1 or more"),
        (["--lr", "0"], "a number above 0"),
        (["--l2", "-1"], "a finite number of 0 or more"),
        (["--l2", "nan"], "a finite number of 0 or more"),
        (["--data_scaling", "1e9"], "--data_scaling 1e+09: makes 32 px"),
        (["--logdir", ""], "expected a path"),
        (["--width", "-9"], "invalid choice: -9"),
        (["--device", "meta"], "--device meta: expected cpu or cuda"),
        (["--data_scaling", "0.2"], "at least 11 px"),
        (["--data_balance", "1.5"], "share between 0 and 1"),
        (["--num_classes", "3"], "invalid choice: 3"),
        (["--epoch", "3"], "unrecognized arguments"),
    ],
)
def test_wrong_flags(nmnist, tmp_path, capsys, flags, said):
    assert train(nmnist, tmp_path, *flags) == 2
    assert said in one_line(capsys)


@pytest.mark.parametrize(
    "command",
    [
        "predict_saliency.py --datatype mnist --logdir X",
        "train_anomaly.py --neg_path X --logdir X",
        "score_anomaly.py --logdir X",
        "anomaly/compute_vgg_stats.py --images X --out X.npz",
        "train_mil.py --datatype mnist --data_path X --logdir X",
        "mil/extract_features.py --datatype mnist --data_path X --out X",
        "mil/pretrain_simclr.py --datatype mnist --data_path X --logdir X",
        "mil/finetune.py --datatype mnist --data_path X --encoder_weights random --logdir X",
        "train_retrieval.py --train_path X --valid_path X --logdir X",
        "audit_leakage.py --data_path X --out X",
        "retrieval/evaluate_pairs.py --test_path X --out X",
        "retrieval/retrieve.py --folder X",
        "retrieval/split_crops.py --pos_path X --neg_path X --by slide --out X",
    ],
)
def test_a_command_of_one_process_is_refused_to_torchrun(command, monkeypatch, capsys, tmp_path):
    """Else each process would do its share of the work and write it over that of the others."""
    script, *flags = command.replace("X", str(tmp_path / "X")).split()
    for name in processes.LAUNCHED:
        monkeypatch.setenv(name, "2")
    assert run_here([script, *flags]) == 2
    assert f"{script} runs in one process: start it without torchrun" in one_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.5, 1, 1.5])
def test_sigterm_to_all_processes_of_a_training_run_is_one_line(nmnist, tmp_path, delay):
    """As SLURM sends it: to the loader processes too."""
    command = ["train_mnist.py", "--data_path", nmnist, "--logdir", tmp_path, "--width", "-2", "--workers", "2"]
    command += ["--device", "cpu"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, start_new_session=True, **pipes)
    while not (tmp_path / "config.json").exists():
        time.sleep(0.01)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (143, "train_mnist.py: terminated; the same command continues\n")


def test_a_signal_that_arrives_in_a_destructor_is_not_lost(tmp_path):
    """Python drops exceptions there."""
    script = tmp_path / "job.py"
    script.write_text(
        "import os, signal, time\nfrom common import cli\n"
        "class Loader:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01)\n"
        "def main():\n"
        "    Loader()\n"
        "    time.sleep(5)\n"
        "cli.run(main)\n"
    )
    env = environment(ROOT)
    done = subprocess.run([sys.executable, script], env=env, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (143, "job.py: terminated; the same command continues\n")


@pytest.mark.parametrize("script", [path.name for path in ROOT.glob("*.py") if path.name != "train.py"])
def test_help_explains_every_flag(script, capsys):
    assert run_here([script, "--help"]) == 0
    text = capsys.readouterr().out
    assert "default: " in text
    assert "SUPPRESS" not in text


@pytest.mark.timing
def test_help_answers_as_soon_as_torch_is_imported():
    def seconds(*command):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(str(ROOT / "train_mnist.py"), "--help") < seconds("-c", "import torch") + 0.5
