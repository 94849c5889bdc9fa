import pytest
from matplotlib.figure import Figure

import train
from common.errors import BadInput
from common.files import write_csv
from experiments import plot_curves


def test_a_file_that_is_no_picture_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"thesis\.txt: is there already and not a PNG"):
        plot_curves.main([str(tmp_path), "--out", str(tmp_path / "thesis.txt")])
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_curves_hold_every_value_of_the_stats(tmp_path):
    rows = [{"epoch": 1, "train_running_acc": 0.5, "eval_acc": 0.6, "test_acc": 0.55}]
    rows.append({"epoch": 2, "train_running_acc": 0.7, "eval_acc": 0.58})  # no test evaluation
    write_csv(tmp_path / "stats.csv", rows, train.COLUMNS)
    curves = plot_curves.read_curves([tmp_path]).set_index(["split", "epoch"]).accuracy
    assert curves.to_dict() == {
        **{("training (running)", 1): 0.5, ("training (running)", 2): 0.7},
        **{("validation", 1): 0.6, ("validation", 2): 0.58, ("test", 1): 0.55},
    }
    plot_curves.main([str(tmp_path), "--out", str(tmp_path / "curve.png")])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_ticks_of_a_run_of_one_epoch_are_whole_epochs(tmp_path, monkeypatch):
    write_csv(tmp_path / "stats.csv", [{"epoch": 1, "train_running_acc": 0.5, "eval_acc": 0.6}], train.COLUMNS)
    drawn = []
    monkeypatch.setattr(plot_curves, "Figure", lambda **options: drawn.append(Figure(**options)) or drawn[-1])
    plot_curves.main([str(tmp_path), "--out", str(tmp_path / "curve.png")])
    axis = drawn[0].axes[0]
    low, high = axis.get_xlim()
    assert [tick for tick in axis.get_xticks() if low <= tick <= high] == [1]


def test_a_folder_without_stats_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"no stats\.csv"):
        plot_curves.read_curves([tmp_path])


@pytest.mark.parametrize("content", ["", "epoch,eval_acc\n", "epoch,eval_acc\n1,0.5\n", "\0", "a\n" * 9])
def test_a_stats_file_that_is_none_is_named_in_one_line(content, tmp_path):
    (tmp_path / "stats.csv").write_text(content)
    with pytest.raises(BadInput, match=r"stats\.csv: [^\n]+$"):
        plot_curves.read_curves([tmp_path])
