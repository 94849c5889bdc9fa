"""What every command shares: streams that are closed or unread, shortages in one line, progress without a terminal."""

import argparse
import errno
import io
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import cli
from common.errors import BadInput

ROOT = Path(__file__).parents[2]


def shell(line, tmp_path, script):
    """Run a script that may import the project; `line` has a {} for its command."""
    (tmp_path / "job.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom common import cli\n{script}")
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(tmp_path / 'job.py'))}"
    return subprocess.run(
        ["bash", "-c", line.format(command)], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )


PRINT_MUCH = """
import multiprocessing
def chat():
    for i in range(20000):
        print("line", i)
        print("line", i, file=sys.stderr)
def main():
    chat()
    child = multiprocessing.get_context("fork").Process(target=chat)
    child.start(), child.join()
    open("done", "w").write(str(child.exitcode))
    return 1
cli.run(main)
"""


@pytest.mark.parametrize(
    "line",
    [
        "{} >&-",
        "{} 2>&-",
        "{} <&- >&- 2>&-",
        "{} 2>&1 | head -1",
        "{} 2>&1 >/dev/null | head -1",
        "PYTHONUNBUFFERED=1 {} | head -1",
    ],
)
def test_a_stream_that_is_closed_or_has_lost_its_reader_stops_nothing(line, tmp_path):
    done = shell(f"set -o pipefail; {line}", tmp_path, PRINT_MUCH)
    assert done.returncode == 1
    assert (tmp_path / "done").read_text() == "0"
    assert "Error" not in done.stdout + done.stderr


def test_with_stderr_closed_nothing_is_printed_into_a_file_that_is_opened_next(tmp_path):
    script = """
import os
def main():
    with open("data", "w") as file:
        os.write(2, b"a warning of a C library")
        print("for stderr", file=sys.stderr)
        file.write("data")
cli.run(main)
"""
    done = shell("{} 2>&-", tmp_path, script)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "data").read_text() == "data"


def test_streams_that_are_read_get_everything(tmp_path):
    done = shell("{}", tmp_path, "cli.run(lambda: print('ä out', flush=True) or print('err', file=sys.stderr) or 3)")
    assert (done.returncode, done.stdout, done.stderr) == (3, "ä out\n", "err\n")


def test_on_windows_every_command_says_what_to_do():
    """Windows has no fcntl."""
    for script in ("train_mnist.py", "predict_saliency.py", "data/cluttered_mnist/generate_data.py"):
        program = f"import sys, runpy; sys.modules['fcntl'] = None; sys.path.insert(0, {str(ROOT)!r})\n"
        program += f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        expected = "this software runs on Linux and macOS; on Windows use WSL\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_pictures_are_drawn_whatever_backend_a_notebook_exports():
    program = "import common, matplotlib.pyplot as plt; plt.plot([1]); print(plt.get_backend())"
    env = {**os.environ, "MPLBACKEND": "module://no_such_package.backend_inline"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.stdout.lower(), done.stderr) == ("agg\n", "")


@pytest.mark.parametrize(
    ("error", "ways_out"),
    [
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
            "/dev/shm",
        ),
        (RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"), "--shm-size"),
        (
            RuntimeError("unable to open shared memory object </torch_1_2> in read-write mode: Permission denied"),
            "/dev/shm",
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"), "--workers 0"),
        (RuntimeError("unable to open shared memory object </torch_1_2>: Too many open files (24)"), "ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "ulimit -n"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit -n"),
        (ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)), "ulimit -n"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "data.csv"), "fewer --workers"),
        (OSError("Caught OSError in DataLoader worker process 0.\n[Errno 24] Too many open files"), "ulimit -n"),
        (ImportError("libz.so: cannot open shared object file: Too many open files"), "ulimit -n"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG), "a.pth"), "a.pth: too large; raise ulimit -f"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "smaller -b"),
        (RuntimeError("unable to mmap 80 bytes from file </torch_1>: Cannot allocate memory (12)"), "smaller -b"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "smaller -b"),
        (MemoryError(), "smaller -b"),
    ],
)
def test_a_shortage_is_one_line_with_ways_out(error, ways_out, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1
    assert ways_out in said


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("a bug"), ImportError("no module named x")])
def test_a_bug_keeps_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error), match=str(error)):
        cli.run(main)


def test_without_a_terminal_progress_is_told_soon_and_then_seldom(monkeypatch):
    """The first line does not wait for an item, the next ones say what is left."""
    assert cli.FIRST_LINE < 10 < cli.LINES
    monkeypatch.setattr(cli, "FIRST_LINE", 0.05)
    monkeypatch.setattr(cli, "LINES", 0.2)
    monkeypatch.setattr("sys.stderr", said := io.StringIO())

    def items():
        time.sleep(0.15)
        yield from range(2)

    for i in cli.progress(items(), 2, "saliency", "batch"):
        time.sleep(0.2 if i else 0)
    assert said.getvalue() == "saliency: 0/2 batch\nsaliency: 1/2 batch, 0:00:00 left\n"


def test_what_is_done_soon_makes_no_lines(monkeypatch, capsys):
    monkeypatch.setattr(cli, "FIRST_LINE", 0.05)
    assert list(cli.progress(range(3), 3, "work")) == [0, 1, 2]
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["train_mnist", "train_camelyon", "predict_saliency", "extract_basic_neg_crops"])
def test_what_comes_before_torch_comes_before_torch(command):
    """How idle threads wait and what Ctrl-C looks like are decided by then."""
    script = (
        "import sys\n"
        "class Order:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch' and 'common' not in sys.modules: sys.exit('torch is first')\n"
        "sys.meta_path.insert(0, Order())\n"
        f"import {command}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_too_many_open_files_are_not_the_files_fault(capsys):
    def main():
        raise BadInput("recipe/pool.npy: Too many open files; expected a recipe")

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "value"),
    [([], False), (["--flag"], True), (["--flag", "no"], False), (["--flag", "1"], True), (["--flag", "True"], True)],
)
def test_a_flag_of_yes_or_no_means_yes_when_bare(given, value):
    parser = cli.ArgumentParser()
    cli.add_yes_no(parser, "--flag", False, "a flag")
    assert parser.parse_args(given).flag is value


def test_a_flag_of_yes_or_no_takes_nothing_else(capsys):
    parser = cli.ArgumentParser()
    cli.add_yes_no(parser, "--flag", True, "a flag")
    with pytest.raises(SystemExit):
        parser.parse_args(["--flag", "maybe"])
    assert "expected yes or no, got 'maybe'" in capsys.readouterr().err
    assert "(default: yes)" in parser.format_help()


def test_help_shows_defaults_as_one_types_them_and_keeps_paragraphs_apart():
    parser = cli.ArgumentParser(
        description="What it is.\n\nOf which\nthere is more.\n\n    an.py  a line\n    as it is\n"
    )
    parser.add_argument("--dims", type=str, default=(4, 8), help="channels")
    parser.add_argument("--shares", nargs=3, default=(0.6, 0.2, 0.2), help="of the whole")
    text = parser.format_help()
    assert "channels (default: 4,8)" in text
    assert "of the whole (default: 0.6 0.2 0.2)" in text
    assert "What it is.\n\nOf which there is more.\n\n    an.py  a line\n    as it is\n" in text


def test_a_share_lies_between_0_and_1():
    assert [cli.share(text) for text in ("0", "0.25", "1")] == [0, 0.25, 1]
    for wrong in ("-0.1", "1.01", "50%", "nan", "inf", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a share from 0 to 1, got"):
            cli.share(wrong)


def test_a_log_of_both_streams_ends_with_the_reason(tmp_path):
    """Stdout is buffered where it is no terminal, stderr is not."""
    script = "def main():\n    print('a notice')\n    raise cli.BadInput('the reason')\ncli.run(main)"
    shell("env -u PYTHONUNBUFFERED {} > log 2>&1", tmp_path, script)
    assert (tmp_path / "log").read_text().splitlines() == ["a notice", "job.py: the reason"]
