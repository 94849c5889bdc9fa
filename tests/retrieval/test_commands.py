"""evaluate_pairs.py, retrieve.py and cut_tiles.py as a user runs them: results, second runs and wrong input."""

import json
import os
import shlex

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from sklearn.metrics import auc

import train_retrieval
from common import checkpoint, cli
from common.errors import BadInput
from models.paired_autoencoder import PairedAutoencoder
from retrieval import cut_tiles, evaluate_pairs, retrieve
from tests.retrieval.images import shrink_networks, tissue, write_groups, write_images

PIXELS = ["--embedder", "pixels", "--workers", 0, "--device", "cpu"]


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    return write_groups(tmp_path_factory.mktemp("groups"), 6)


def evaluate(test_path, out, *flags):
    return evaluate_pairs.main([*map(str, ["--test_path", test_path, "--out", out, *PIXELS, *flags])])


def scores(out):
    return json.loads((out / "scores.json").read_text())


def test_both_kinds_of_negatives_are_scored_in_one_run(groups, tmp_path, capsys):
    assert evaluate(groups, tmp_path, "--n", 3, "--orientations", 8) == 0
    found = scores(tmp_path)
    assert (found["groups"], len(found["runs"])) == (6, 3)
    assert found["median"]["random_auc"] == np.median([run["random_auc"] for run in found["runs"]])
    table = pd.read_csv(tmp_path / "pairs.csv")
    assert table.groupby(["run", "kind", "label"]).size().to_dict() == {
        (run, kind, int(kind == "duplicate")): 6 for run in range(3) for kind in ("duplicate", "hardest", "random")
    }
    same = table["query"].str.split("/").str[0] == table["match"].str.split("/").str[0]
    assert (same == (table.label == 1)).all()
    for kind in ("hardest", "random"):
        curve = np.load(tmp_path / f"roc_{kind}.npy")
        assert auc(*curve) == pytest.approx(found["runs"][0][f"{kind}_auc"])
    for name in ("farthest_duplicates.png", "closest_different.png"):
        assert Image.open(tmp_path / name).size[0] > 500
    assert "AUC hardest" in capsys.readouterr().out


def test_a_seed_gives_the_same_pairs_and_another_run_other_ones(groups, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 5)):
        evaluate(groups, tmp_path / name, "--n", 1, "--seed", seed)
    a, b, c = ((tmp_path / name / "pairs.csv").read_bytes() for name in "abc")
    assert a == b != c


def test_checksums_that_would_not_be_checked_are_not_offered(groups, tmp_path, capsys):
    for command, flag in ((evaluate_pairs, "--test_path"), (retrieve, "--folder")):
        with pytest.raises(SystemExit):
            command.main([flag, str(groups), "--out", str(tmp_path / "out"), "--verify"])
        assert "unrecognized arguments: --verify" in capsys.readouterr().err


def test_all_pairs_take_both_sides(groups, tmp_path):
    evaluate(groups, tmp_path, "--all_pairs", "--n", 1)
    assert scores(tmp_path)["median"]["pairs"] == 12


def test_a_file_of_the_users_is_not_replaced_by_neighbours(tmp_path):
    images, notes = write_images(tmp_path / "images", 3), tmp_path / "notes.csv"
    notes.write_text("my notes")
    with pytest.raises(BadInput, match=r"notes\.csv: is there already and not a table of neighbours"):
        find(images, notes)
    assert notes.read_text() == "my notes"
    assert find(images, tmp_path / "out.csv")[1].equals(find(images, tmp_path / "out.csv")[1])


def test_a_name_that_is_no_text_is_told(tmp_path, capsys):
    images = write_images(tmp_path / "images", 3)
    (images / "image_00.png").rename(os.fsdecode(os.fsencode(images) + b"/\xff.png"))
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: find(images, tmp_path / "out.csv"))
    assert ended.value.code == 2
    assert r"'\udcff.png': the name of a file is not UTF-8; rename it" in capsys.readouterr().err


class Pictures:
    """Three blank views."""

    names = ("a", "b", "c")

    def __getitem__(self, i):
        return torch.zeros(1, 1, 2, 2)


def test_a_pair_met_both_ways_is_drawn_once(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(evaluate_pairs.pictures, "contact_sheet", lambda path, lines: drawn.append(lines))
    monkeypatch.setattr(evaluate_pairs.pictures, "Panel", lambda image, title: title.split("\n")[1])
    queries, matches = np.array([0, 1, 0]), np.array([1, 0, 2])
    evaluate_pairs.montage(tmp_path, Pictures(), queries, matches, np.arange(3.0), np.array([2, 0, 1]))
    assert drawn == [[["a", "c", "a", "b"]]]


def test_pairs_are_made_of_images_without_groups(tmp_path):
    images = write_images(tmp_path / "images", 5)
    evaluate(images, tmp_path / "out", "--synth_test", "--n", 1)
    assert scores(tmp_path / "out")["groups"] == 5
    assert "image_00.png (copy)" in (tmp_path / "out" / "pairs.csv").read_text()
    with pytest.raises(BadInput, match="index of other seed"):
        evaluate(images, tmp_path / "out", "--synth_test", "--seed", 1)


def test_an_unreadable_image_is_named_and_its_group_left_out(tmp_path, capsys):
    groups = write_groups(tmp_path / "groups", 4)
    (groups / "group_02" / "a.png").write_bytes(b"no picture")
    assert evaluate(groups, tmp_path / "out", "--n", 1) == 1
    said = capsys.readouterr()
    assert "group_02/a.png: not a readable picture" in said.err
    assert "3 groups" in said.out
    for i in range(3):
        (groups / f"group_0{i}" / "a.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="1 groups can be read, negatives need two"):
        evaluate(groups, tmp_path / "other")


def find(folder, out, *flags):
    code = retrieve.main([*map(str, ["--folder", folder, "--out", out, "--k", 2, *PIXELS, *flags])])
    return code, pd.read_csv(out, index_col=0)


def test_an_exact_copy_is_found_at_distance_zero_and_no_image_finds_itself(tmp_path):
    images = write_images(tmp_path / "images", 6)
    (images / "copy.png").write_bytes((images / "image_04.png").read_bytes())
    code, table = find(images, tmp_path / "out.csv")
    assert code == 0
    assert list(table.columns) == ["img", "match_0", "match_1", "dist_0", "dist_1"]
    assert table.index.tolist() == [*range(7)]
    row = table[table.img.str.endswith("image_04.png")].iloc[0]
    assert row.match_0.endswith("copy.png")
    assert row.dist_0 == 0
    assert (table.img != table.match_0).all()
    assert (table.img != table.match_1).all()
    assert (table.dist_0 <= table.dist_1).all()


def test_neighbours_are_those_of_brute_force(tmp_path):
    images = write_images(tmp_path / "images", 8)
    _, table = find(images, tmp_path / "out.csv")
    vectors = np.load(tmp_path / "out" / "gallery.npy")[:, 0]
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2) + 9 * np.eye(8)
    nearest = np.argsort(distances, axis=1)[:, :2]
    names = sorted(table.img)
    assert table.match_0.tolist() == [names[i] for i in nearest[:, 0]]
    assert table.match_1.tolist() == [names[i] for i in nearest[:, 1]]
    np.testing.assert_allclose(table.dist_0, np.sort(distances, axis=1)[:, 0], atol=1e-5)


def test_a_queried_file_of_the_folder_does_not_find_itself(tmp_path):
    images = write_images(tmp_path / "images", 4)
    flags = ["--embedder", "pixels", "--k", "3", "--workers", "0", "--out", str(tmp_path / "out.csv")]
    retrieve.main(["--folder", str(images), "--query", str(tmp_path / "images" / ".." / "images"), *flags])
    table = pd.read_csv(tmp_path / "out.csv")
    own = table["img"].str.rsplit("/").str[-1]
    assert not any((table[f"match_{j}"].str.rsplit("/").str[-1] == own).any() for j in range(3))


def test_a_turned_copy_is_found_with_eight_orientations(tmp_path):
    gallery = write_images(tmp_path / "gallery", 6)
    queries = tmp_path / "queries"
    queries.mkdir()
    Image.fromarray(np.rot90(tissue(0, 128))[:, ::-1].copy()).save(queries / "turned.png")
    _, table = find(gallery, tmp_path / "out.csv", "--query", queries, "--orientations", 8)
    assert table.match_0[0].endswith("image_01.png")
    assert table.dist_0[0] < 1e-3


def test_fewer_images_than_neighbours_leave_cells_empty(tmp_path):
    _, table = find(write_images(tmp_path / "images", 2), tmp_path / "out.csv")
    assert table.match_0.notna().all()
    assert table.match_1.isna().all()


def test_a_table_without_an_ending_lies_beside_its_vectors(tmp_path):
    images = write_images(tmp_path / "images", 3)
    for _ in range(2):
        assert find(images, tmp_path / "table")[0] == 0
    assert (tmp_path / "table").is_file() and (tmp_path / "table.index" / "gallery.npy").is_file()


def test_an_index_of_other_weights_is_refused(tmp_path, monkeypatch):
    shrink_networks(monkeypatch)
    images = write_images(tmp_path / "images", 3)
    for name in ("a", "b"):
        network = PairedAutoencoder()
        torch.nn.init.normal_(network.head[0].weight)
        content = {"state_dict": network.state_dict(), "config": network.config}
        checkpoint.save(tmp_path / f"{name}.pth", content)
    assert find(images, tmp_path / "out.csv", "--logdir", tmp_path / "a.pth")[0] == 0
    assert find(images, tmp_path / "out.csv", "--logdir", tmp_path / "a.pth")[0] == 0
    with pytest.raises(BadInput, match="index of other network than asked for"):
        find(images, tmp_path / "out.csv", "--logdir", tmp_path / "b.pth")


def test_an_unreadable_image_is_named_and_left_out_of_the_table(tmp_path, capsys):
    images = write_images(tmp_path / "images", 4)
    (images / "image_01.png").write_bytes(b"no picture")
    code, table = find(images, tmp_path / "out.csv")
    assert (code, len(table)) == (1, 3)
    assert "image_01.png: not a readable picture" in capsys.readouterr().err
    assert "image_01" not in table.to_csv()


def cut(out, *images, flags=()):
    cut_tiles.main([*map(str, ["--image", *images, "--out", out, "--size", 64, *flags])])
    return {part: sorted(path.name for path in (out / part).glob("*.png")) for part in cut_tiles.FOLDERS}


def test_tiles_of_different_splits_never_overlap(tmp_path):
    Image.fromarray(tissue(0, 0, 512)).save(tmp_path / "scan.png")
    found = cut(tmp_path / "tiles", tmp_path / "scan.png", flags=["--stride", 32])
    covered = {}
    for part, names in found.items():
        covered[part] = np.zeros((512, 512), bool)
        for name in names:
            y, x = map(int, name.removesuffix(".png").split("_")[1:])
            covered[part][y : y + 64, x : x + 64] = True
    assert sum(map(np.ndarray.astype, covered.values(), [int] * 3)).max() == 1
    assert len(found["train"]) > len(found["test"]) >= len(found["valid"]) >= 8
    y, x = map(int, found["test"][0].removesuffix(".png").split("_")[1:])
    tile = np.asarray(Image.open(tmp_path / "tiles" / "test" / found["test"][0]))
    np.testing.assert_array_equal(tile, tissue(0, 0, 512)[y : y + 64, x : x + 64])


def test_a_slide_is_cut_as_a_picture_is(tmp_path):
    picture = tissue(0, 0, 512)
    tifffile.imwrite(tmp_path / "scan.svs", picture, tile=(256, 256), compression="deflate", photometric="rgb")
    assert sum(map(len, cut(tmp_path / "tiles", tmp_path / "scan.svs").values())) >= 32
    for path in (tmp_path / "tiles").rglob("*.png"):
        y, x = map(int, path.stem.split("_")[1:])
        np.testing.assert_array_equal(np.asarray(Image.open(path)), picture[y : y + 64, x : x + 64])


def test_the_next_command_can_be_pasted_whatever_the_folders_name(tmp_path, capsys):
    Image.fromarray(tissue(0, 0, 512)).save(tmp_path / "a.png")
    flags = ["--image", tmp_path / "a.png", "--out", tmp_path / "my tiles", "--size", 64]
    cut_tiles.main([*map(str, flags)])
    words = shlex.split(capsys.readouterr().out.split("train_retrieval.py ")[1])
    args = train_retrieval.parse_args(words)
    assert args.train_path == tmp_path / "my tiles" / "train" and args.valid_path.is_dir()


def test_background_is_no_tile_and_too_small_a_picture_is_said_to_be(tmp_path):
    picture = np.full((256, 512, 3), 255, np.uint8)
    picture[:128] = 90
    Image.fromarray(picture).save(tmp_path / "scan.png")
    names = [name for part in cut(tmp_path / "tiles", tmp_path / "scan.png").values() for name in part]
    assert {int(name.split("_")[1]) for name in names} == {0, 64}
    with pytest.raises(BadInput, match="fewer than two tiles of 64 px for train"):
        Image.fromarray(picture[:64, :64]).save(tmp_path / "small.png")
        cut(tmp_path / "none", tmp_path / "small.png")
    (tmp_path / "slide.svs").write_bytes(b"no slide")
    with pytest.raises(BadInput, match=r"slide\.svs: not readable as a slide"):
        cut(tmp_path / "none", tmp_path / "slide.svs")
