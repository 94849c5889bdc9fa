import imageio.v3 as iio
import numpy as np
import pytest
import torch

from common.errors import BadInput
from data.folders import PhotoFolder, centre_square


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in {"b.png": (40, 60, 3), "a.jpg": (50, 50, 3), "below/c.png": (32, 90)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        iio.imwrite(tmp_path / name, rng.integers(0, 256, shape, dtype=np.uint8))
    np.save(tmp_path / "d.npy", rng.integers(0, 256, (48, 48, 3), dtype=np.uint8))
    return tmp_path


def test_it_keeps_the_contract_of_data_sets_without_labels(folder):
    data = PhotoFolder(folder, 32)
    assert data.names == ["a.jpg", "b.png", "below/c.png", "d.npy"] and len(data) == len(data.labels) == 4
    assert set(data.labels.tolist()) == {-1} and not data.has_objects and len(data.outline) == 3
    for i in range(4):
        image, label = data[i]
        assert image.shape == (3, 32, 32) and image.dtype == torch.float32 and label == -1
        assert image.min() >= 0 and image.max() <= 1
        assert data.object_mask(i) is None and data.o2i(i) is None
    assert [data.file_side(i) for i in range(4)] == [50, 40, 32, 48]


def test_the_centre_is_kept_as_it_is_at_its_own_size():
    image = torch.rand(3, 32, 50)
    assert torch.equal(centre_square(image, 32), image[:, :, 9:41])


def test_the_fingerprint_depends_on_content_not_on_place(folder, tmp_path_factory):
    before = PhotoFolder(folder, 32).fingerprint()
    assert before != PhotoFolder(folder, 16).fingerprint()
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    assert PhotoFolder(moved, 32).fingerprint() == before
    np.save(moved / "d.npy", np.zeros((48, 48, 3), np.uint8))
    assert PhotoFolder(moved, 32).fingerprint() != before


def test_a_damaged_picture_is_named(folder):
    (folder / "b.png").write_text("no picture")
    with pytest.raises(BadInput, match=r"b.png: "):
        PhotoFolder(folder, 32)[1]
