"""The short form of `make torture`: what is killed and started again ends with the same bytes and weights."""

import pytest

from data.camelyon import make_slides
from data.cluttered_mnist import generate_data
from tests.reliability import kills

KILLS = 2


@pytest.mark.slow
def test_generation(tmp_path):
    target = kills.generation(64, "--duplicates", "1")
    print(kills.kill_until_done(target, tmp_path / "whole", tmp_path, KILLS))


@pytest.mark.slow
def test_extraction(tmp_path):
    flags = "--width 4096 --height 3072 --annotated 1 --negative 1 --compression deflate --workers 1"
    make_slides.main(["--out", str(tmp_path / "slides"), *flags.split()])
    target = kills.extraction(tmp_path / "slides", size=64, k=5)
    print(kills.kill_until_done(target, tmp_path / "whole", tmp_path, KILLS))


@pytest.mark.slow
def test_training(tmp_path):
    flags = "--mnist digits --canvas 32 --distortion-num 1 --duplicates 1 --format none --workers 1"
    generate_data.main([*flags.split(), "--out", str(tmp_path / "data")])
    target = kills.training(tmp_path / "data", 1)
    print(kills.kill_until_done(target, tmp_path / "whole", tmp_path, KILLS))
