import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import compilation
from common.compilation import Compiler
from tests.synthetic import environment, fit, vector

ROOT = Path(__file__).parents[2]


def no_backend(graph, inputs):
    raise RuntimeError("no compiler\nof any kind")


def square(x):
    return x * x


def twice(x):
    return 2 * x


def test_a_kind_of_input_is_built_once_and_announced_once(capsys):
    compiler = Compiler("eager")
    function = compiler(square)
    for n in (3, 4, 3, 4):
        x = torch.arange(float(n), requires_grad=True)
        function(x).sum().backward()
        assert torch.equal(x.grad, 2 * x.detach())
    assert compiler.kinds == 2
    compiler.announce()
    compiler.announce()
    assert capsys.readouterr().out == f"compiled for 2 kinds of input in {compiler.seconds:.0f} s (--compile)\n"


def test_what_cannot_be_built_runs_as_written_after_one_line(capsys):
    compiler = Compiler(no_backend)
    functions = [compiler(square), compiler(twice)]
    x = torch.ones(3)
    for function, expected in zip(functions, (square, twice), strict=True):
        assert torch.equal(function(x), expected(x))
    compiler.announce()
    out = capsys.readouterr().out
    assert out.startswith("--compile: ") and "no compiler of any kind" in out and out.count("\n") == 1


def test_more_kinds_than_are_built_run_as_written(monkeypatch, capsys):
    monkeypatch.setattr(compilation, "MOST_KINDS", 2)
    compiler = Compiler("eager")
    function = compiler(square)
    assert all(torch.equal(function(torch.ones(n)), torch.ones(n)) for n in range(1, 6))
    assert compiler.kinds == 2 and compiler.working
    assert capsys.readouterr().out == "--compile: 2 kinds of input; others run uncompiled\n"


def test_training_with_a_broken_compiler_is_training_without(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Compiler.__init__, "__defaults__", (no_backend,))
    flags = ("-e", 1, "--background", "dense")
    plain, _ = fit(tmp_path / "plain", *flags, dtype=torch.float64)
    capsys.readouterr()
    broken, _ = fit(tmp_path / "broken", *flags, "--compile", "on", dtype=torch.float64)
    out = capsys.readouterr().out
    assert torch.equal(vector(plain), vector(broken))
    assert out.count("--compile: ") == 1 and "going on without" in out


@pytest.mark.slow
def test_a_machine_whose_compiler_fails_says_so_in_one_line(tmp_path):
    program = "import torch\nfrom common.compilation import Compiler\n"
    program += "print(Compiler()(lambda x: x.sin())(torch.zeros(2)).tolist())"
    env = environment(ROOT, CXX="/bin/false", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and lines[0].startswith("--compile: ") and lines[1] == "[0.0, 0.0]", done.stderr


@pytest.mark.parametrize("choice", ["auto", "on", "off"])
def test_auto_compiles_on_a_gpu(choice):
    wanted = [compilation.wanted(choice, torch.device(name)) for name in ("cpu", "cuda:0")]
    assert wanted == {"auto": [False, True], "on": [True, True], "off": [False, False]}[choice]


def test_builds_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    def place(**variables):
        for name in (compilation.CACHE, "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        compilation.keep_builds()
        return os.environ.get(compilation.CACHE)

    assert place(HOME="/home/me") == "/home/me/.cache/needles/inductor"
    assert place(HOME="/home/me", XDG_CACHE_HOME="/cache") == "/cache/needles/inductor"
    assert place(HOME="/home/me", TORCHINDUCTOR_CACHE_DIR="/mine") == "/mine"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert place() is None
    monkeypatch.delenv(compilation.CACHE, raising=False)
