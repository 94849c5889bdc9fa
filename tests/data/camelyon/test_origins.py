import pytest

from common.errors import BadInput
from data.camelyon import origins
from tests.retrieval.crops import write


def test_names_tell_slide_centre_and_lesion_but_no_corner():
    table = origins.of_names(["patient_004_node_4_3_12_0_img.npy", "valid/patient_064_node_4_3_7.npy", "cat.png"])
    assert table["slide"].tolist()[:2] == ["patient_004_node_4", "patient_064_node_4"]
    assert table["centre"].tolist()[:2] == [0, 3] and table["lesion"].tolist()[0] == 12
    assert table.iloc[2].isna().all() and table[["y", "x"]].isna().all(axis=None)


def test_the_table_tells_the_corner_and_names_what_it_lacks(tmp_path):
    crops = write(tmp_path)
    names = ["patient_000_node_0_3_2_1_img.npy", "patient_000_node_0_3_2_99_img.npy"]
    table = origins.of_folders({crops.pos: names})
    assert table.index.tolist() == names
    assert table["slide"].tolist() == ["patient_000_node_0"] * 2 and table["lesion"].tolist() == [2, 2]
    assert table["y"].notna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,slide,y\na,b,1\n", "its columns lack x"),
        ("file,slide,y,x\na,b,1,2\nc,d,1,low\n", "line 3: expected a file, its slide and numbers y, x"),
        ("file,slide,y,x\n,b,1,2\n", "line 2: expected a file"),
    ],
)
def test_a_table_that_is_no_crops_csv_is_named(tmp_path, text, said):
    (tmp_path / "crops.csv").write_text(text)
    with pytest.raises(BadInput, match=said):
        origins.read(tmp_path / "crops.csv")
