"""A run's data are scored again as they are; a flag that is given says otherwise, whatever its value."""

from pathlib import Path

import pytest

from common import cli
from common.errors import BadInput
from data import datatypes

SAVED = {
    "mnist": {"datatype": "mnist", "data_path": "/data/nmnist", "data_scaling": 2.0, "grey": False},
    "cifar10": {"datatype": "cifar10", "root": "/data/cifar", "classes": [3], "resize": 64},
    "camelyon": {"datatype": "camelyon", "neg_path": "/data/neg", "pos_path": None, "equalize": True},
}


def taken(run, *flags):
    parser = cli.ArgumentParser()
    datatypes.add_flags_of_run(parser)
    args = parser.parse_args(flags)
    datatypes.take_flags_of_run(args, SAVED[run])
    return args


def test_without_flags_the_data_are_the_runs():
    args = taken("mnist")
    assert (args.datatype, args.data_path, args.data_scaling) == ("mnist", Path("/data/nmnist"), 2.0)
    assert taken("cifar10").classes == [3] and taken("cifar10").resize == 64
    assert taken("camelyon").equalize is True and taken("camelyon").pos_path is None


def test_a_flag_counts_also_where_it_gives_the_default():
    parser = cli.ArgumentParser()
    datatypes.add_flags(parser)
    assert parser.get_default("data_scaling") == 1 != SAVED["mnist"]["data_scaling"]
    assert taken("mnist", "--data_scaling", "1").data_scaling == 1


def test_a_flag_that_the_run_does_not_know_has_its_default():
    assert taken("cifar10").data_scaling == 1


@pytest.mark.parametrize(
    ("run", "flags", "datatype"),
    [
        ("camelyon", ["--pos_path", "/data/pos"], "camelyon"),
        ("camelyon", ["--photos", "/data/photos"], "photos"),
        ("mnist", ["--root", "/data/pictures"], "list"),
        ("cifar10", ["--root", "/elsewhere/cifar"], "cifar10"),
        ("cifar10", ["--root", "/data/pictures", "--datatype", "list"], "list"),
        ("cifar10", ["--data_path", "/data/nmnist"], "mnist"),
    ],
)
def test_what_is_given_says_what_is_scored(run, flags, datatype):
    args = taken(run, *flags)
    assert args.datatype == datatype and str(getattr(args, flags[0][2:])) == flags[1]


def test_training_needs_data():
    parser = cli.ArgumentParser()
    datatypes.add_flags(parser)
    with pytest.raises(BadInput, match="no data: give one of --data_path, --neg_path, --photos, --root"):
        datatypes.settle(parser.parse_args([]))
