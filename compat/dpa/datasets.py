"""Sections on data -> flags of train_anomaly.py and score_anomaly.py."""

from pathlib import Path

from compat.dpa.section import Section

LISTED, BY_CLASS = ("camelyon16", "nih"), ("cifar10", "svhn")
SIDE = 32  # px of the pictures of cifar10 and svhn


def training_flags(config: Section, expected: int | None) -> dict:
    """Of train_dataset and val_dataset.

    Args: expected: side of the network's images, px; None: that of the data.
    """
    data = config.section("train_dataset")
    kind = data.one_of("dataset_type", LISTED + BY_CLASS)
    side, flags = transform_flags(data, kind, image_dim(config, kind))
    if expected not in (None, side):
        raise data.error("transform_kwargs", f"make images of {side} px, but those of the network have {expected}")
    flags |= {"--tile": side, "--datatype": "list" if kind == "camelyon16" else kind}
    kwargs = data.section("dataset_kwargs")
    kwargs.drop("cache_data")
    flags |= listed_flags(kwargs, "--list") if kind in LISTED else class_flags(kwargs, "--list")
    if config.has("val_dataset"):
        flags |= validation_flags(config.section("val_dataset"), kind, flags)
    config.drop("val_dataset")
    return flags


def image_dim(config: Section, kind: str) -> int | None:
    """Channels of the images, where the config says so."""
    return config.one_of("image_dim", (1,) if kind == "nih" else (1, 3), None)


def transform_flags(data: Section, kind: str, channels: int | None) -> tuple[int, dict]:
    """Side of the images, and what is done to them."""
    kwargs = data.section("transform_kwargs", {})
    flags, side = {"--equalize": kwargs.switch("equalize_hist")}, SIDE
    if kind in BY_CLASS:
        flags["--grey"] = kwargs.switch("to_grayscale", default=None if channels is None else channels == 1)
        if channels and flags["--grey"] != (channels == 1):
            raise kwargs.error("to_grayscale", f"{flags['--grey']}, but image_dim is {channels}")
    elif kind == "camelyon16":
        side = flags["--crop"] = kwargs.whole("crop_size", 128)
        flags |= {"--random_crop": kwargs.switch("random_crop"), "--flip": kwargs.switch("random_flip")}
        if channels == 1:
            raise data.error("dataset_type", "camelyon16 has colours, but image_dim is 1")
    else:
        flags |= {"--crop": kwargs.whole("crop_size", 768), "--resize": kwargs.whole("resize", 128)}
        side = flags["--resize"]
    return side, flags


def listed_flags(kwargs: Section, flag: str) -> dict:
    """Folder of the pictures, and the list of a split."""
    folder, split = Path(kwargs.text("split_root")), kwargs.text("split")
    path = list_at(folder, split)
    if not path.exists() and "abnormal" in folder.parts:  # as DPA's example calls the folder anomaly
        other = list_at(Path(*("anomaly" if part == "abnormal" else part for part in folder.parts)), split)
        if other.exists():
            kwargs.note("split_root", f"no list {path}; taking {other}")
            path = other
    return {"--root": kwargs.text("image_root"), flag: path}


def list_at(folder: Path, split: str) -> Path:
    """A list's file, with or without .txt."""
    path = folder / split
    return path if path.exists() else next(iter(folder.glob(f"{split}.txt")), path)


def class_flags(kwargs: Section, flag: str) -> dict:
    """Folder of torchvision's files, and normal classes or a list of numbers in the training part."""
    flags = {"--root": kwargs.text("root")}
    kwargs.drop("download")
    if kwargs.has("target_classes") and kwargs.has("target_indexes_path"):
        raise kwargs.error("target_classes", "given beside target_indexes_path; leave one out")
    if kwargs.has("target_indexes_path"):
        kwargs.one_of("split", ("train",), "train")
        return flags | {flag: kwargs.text("target_indexes_path")}
    kwargs.one_of("split", ("train",) if flag == "--list" else ("train", "test"))
    return flags | {"--classes": classes(kwargs)}


def classes(kwargs: Section) -> list[int]:
    found = kwargs.take("target_classes")
    if not isinstance(found, list) or not found or not all(type(c) is int and 0 <= c <= 9 for c in found):
        raise kwargs.error("target_classes", f"expected a list of classes from 0 to 9, found {found!r}")
    return sorted(set(found))


def validation_flags(data: Section, kind: str, training: dict) -> dict:
    """The list of normal validation images; classes have none but the training images."""
    data.one_of("dataset_type", (kind,))
    data.drop("transform_kwargs")  # those of training, without what is drawn
    kwargs = data.section("dataset_kwargs")
    kwargs.drop("cache_data")
    flags = listed_flags(kwargs, "--val_list") if kind in LISTED else class_flags(kwargs, "--val_list")
    if str(flags["--root"]) != str(training["--root"]):
        raise kwargs.error(
            "image_root" if kind in LISTED else "root", f"expected that of training, {training['--root']}"
        )
    if "--val_list" in flags:
        return {"--val_list": flags["--val_list"]}
    data.note("dataset_kwargs.target_classes", "no effect: without target_indexes_path there is no validation part")
    return {"--patience": None, "--min_delta": None}


def test_flags(config: Section) -> dict:
    """Of test_datasets: normal images and anomalies."""
    both = config.section("test_datasets")
    normal, anomaly = both.section("normal"), both.section("anomaly")
    kind = normal.one_of("dataset_type", LISTED + BY_CLASS)
    anomaly.one_of("dataset_type", (kind,))
    _, flags = transform_flags(normal, kind, None)
    if transform_flags(anomaly, kind, None)[1] != flags:
        raise anomaly.error("transform_kwargs", "expected those of the normal images")
    flags |= {"--random_crop": False, "--flip": False, "--datatype": "list" if kind == "camelyon16" else kind}
    sections = normal.section("dataset_kwargs"), anomaly.section("dataset_kwargs")
    for kwargs in sections:
        kwargs.drop("cache_data")
    if kind in LISTED:
        found = listed_flags(sections[0], "--test_list"), listed_flags(sections[1], "--abnormal_list")
    else:
        found = class_test_flags(*sections)
    if str(found[0]["--root"]) != str(found[1]["--root"]):
        raise sections[1].error("image_root" if kind in LISTED else "root", f"expected {found[0]['--root']}")
    return flags | found[1] | found[0]


def class_test_flags(normal: Section, anomaly: Section) -> tuple[dict, dict]:
    """Two lists of numbers, or classes: those of the anomalies must be all others."""
    if anomaly.left.get("split") == "train" and anomaly.has("target_classes"):  # as in DPA's examples
        anomaly.note("split", "train: taking test, for the detector is not to be judged by training images")
        anomaly.left["split"] = "test"
    found = class_flags(normal, "--test_list"), class_flags(anomaly, "--abnormal_list")
    if ("--classes" in found[0]) != ("--classes" in found[1]):
        raise anomaly.error("target_classes", "expected classes for both or target_indexes_path for both")
    if "--classes" in found[0]:
        others = [c for c in range(10) if c not in found[0]["--classes"]]
        if found[1].pop("--classes") != others:
            raise anomaly.error("target_classes", f"expected all others than the normal ones, {others}")
    return found
