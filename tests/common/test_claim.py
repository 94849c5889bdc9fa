import pytest

from common.claim import claim
from common.errors import BadInput


def test_a_folder_stays_with_the_settings_that_began_it(tmp_path):
    settings = {"size": 64, "weights_sha256": "0a1b", "seed": None}
    claim(tmp_path, "made.json", settings, "--out")
    claim(tmp_path, "made.json", settings, "--out")
    with pytest.raises(BadInput) as error:
        claim(tmp_path, "made.json", {"size": 128, "weights_sha256": "ffff", "seed": None, "k": 5}, "--out")
    text = (
        f"--out {tmp_path}: was made with --size 64 (now 128), other weights_sha256, --k None (now 5); "
        "choose another folder"
    )
    assert str(error.value) == text
    claim(tmp_path, "made.json", settings, "--out")
