import pytest

from common.errors import BadInput
from mil import bag_list


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "tiles" / name).mkdir(parents=True)
    return tmp_path


def write(folder, *lines):
    path = folder / "bags.csv"
    path.write_text("\n".join(["bag,label,split,file", *lines, ""]))
    return path


def test_a_list_is_read_as_it_was_written(folder):
    path = folder / "lists" / "bags.csv"
    path.parent.mkdir()
    bag_list.write(path, [("a", 1, "train", folder / "tiles" / "a"), ("b", 0, "", folder / "tiles" / "b")])
    assert "a,1,train,../tiles/a" in path.read_text()
    rows = bag_list.read(path)
    assert [(row.bag, row.label, row.split, row.file.resolve().name) for row in rows] == [
        ("a", 1, "train", "a"),
        ("b", 0, "", "b"),
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a,2,train,tiles/a"], "line 2: found a,2,train,tiles/a, expected a name, a label of 0 to 1"),
        (["a,,train,tiles/a"], "line 2: found a,,train"),
        (["a,1,dev,tiles/a"], "a split of train, val, test or none"),
        (["a,1,train,tiles/a", "a,1,train,tiles/a"], "line 3: bag a is listed twice"),
        (["a,1,train,tiles/a", "d,1,train,tiles/d"], "line 3: bag d: .*tiles/d: no such file or folder"),
        ([], "expected rows of bag,label,split,file, found 0"),
    ],
)
def test_a_wrong_line_is_named(folder, lines, said):
    with pytest.raises(BadInput, match=said):
        bag_list.read(write(folder, *lines))


def test_splits_need_both_classes(folder):
    path = write(folder, "a,1,train,tiles/a", "b,0,train,tiles/b", "c,1,val,tiles/c")
    rows = bag_list.read(path)
    assert [row.bag for row in bag_list.by_split(rows, path, ["train"])["train"]] == ["a", "b"]
    with pytest.raises(BadInput, match="split val has only label 1, expected bags of both classes"):
        bag_list.by_split(rows, path)
    with pytest.raises(BadInput, match="split test has no bag"):
        bag_list.by_split(rows, path, ["test"])
    path = write(folder, "a,1,,tiles/a")
    with pytest.raises(BadInput, match=r"bag a has no split \(1 of 1"):
        bag_list.by_split(bag_list.read(path), path)
