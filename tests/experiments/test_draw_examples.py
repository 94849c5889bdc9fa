import imageio.v3 as iio
import numpy as np

from common import pictures
from data.cluttered_mnist import generate_data
from experiments import draw_examples
from tests.data.test_contract import crops


def shows(path, colour):
    return (np.abs(iio.imread(path)[..., :3].astype(int) - colour).max(axis=-1) < 30).sum() > 20


def test_lesions_and_needles_are_outlined_and_fields_drawn(tmp_path):
    crops(tmp_path / "crops")
    data = ["--canvas", "200", "--distortion-num", "1", "--mnist", "digits", "--duplicates", "1", "--workers", "1"]
    generate_data.main([*data, "--format", "none", "--out", str(tmp_path / "nmnist")])
    folders = ["--pos_path", str(tmp_path / "crops/pos"), "--neg_path", str(tmp_path / "crops/neg")]
    draw_examples.main([*folders, "--data_path", str(tmp_path / "nmnist"), "--out", str(tmp_path)])
    assert shows(tmp_path / "crop_examples.png", pictures.LESION)
    assert shows(tmp_path / "receptive_fields.png", pictures.NEEDLE)
    assert shows(tmp_path / "receptive_fields.png", pictures.EXAMPLE)
