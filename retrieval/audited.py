"""The images that an audit compares, as its flags name them, with the slides that they were cut from."""

import numpy as np

from common.errors import BadInput
from data import SPLITS
from data.camelyon import dataset as camelyon
from data.camelyon import origins
from data.cluttered_mnist import dataset as mnist
from data.folders import PhotoFolder
from retrieval.index import Objects
from retrieval.matches import Images

TRAIN = "train"


def load_images(args) -> tuple[list[Images], Images, Images]:
    """The splits to look up, the one to look them up in, and the one whose images set the automatic threshold.

    The last is the one looked up in. With --within and without slides it is another, if there is one: images of the
    same split may be the copies that are sought.
    """
    crops = args.pos_path or args.neg_path
    kinds = {"--data_path": args.data_path, "--folders": args.folders, "--pos_path and --neg_path": crops}
    given = [flag for flag, value in kinds.items() if value]
    if len(given) != 1:
        raise BadInput(f"expected one of {', '.join(kinds)}; found {' and '.join(given) or 'none'}")
    if args.splits and not crops:
        raise BadInput(f"--splits {args.splits}: goes with --pos_path and --neg_path")
    there, searched = tuple(args.folders or SPLITS), args.within or TRAIN
    if searched not in there:
        flag = f"--within {searched}" if args.within else "--folders"
        raise BadInput(f"{flag}: no split {searched} among {', '.join(there)}")
    others = [name for name in there if name != searched]
    if not others and not args.within:
        raise BadInput("--folders: expected another split to look up in train, or --within train")
    if args.within:
        others = [] if crops else others[:1]
    truth, slides = origins.read(*args.truth) if args.truth else None, {}
    data = load_data([searched, *others], args)
    images = {name: describe(name, split, truth, slides, args) for name, split in data.items()}
    gallery = images.pop(searched)
    if not args.within:
        return list(images.values()), gallery, gallery
    elsewhere = next(iter(images.values()), gallery) if (gallery.slides < 0).all() else gallery
    return [gallery], gallery, elsewhere


def load_data(names: list[str], args) -> dict:
    """The data sets of these splits."""
    if args.folders:
        return {name: PhotoFolder(args.folders[name], args.side) for name in names}
    if args.data_path:
        return mnist.load_splits(args, names)
    return camelyon.load_splits(args, names, balanced=False)


def describe(name: str, data, truth, slides: dict[str, int], args) -> Images:
    """What is known of a split's images, or with --objects of their objects; new slides are added to `slides`."""
    images = Objects(data) if args.objects else data
    places = images.indices if args.objects else np.arange(len(data))
    origin = origin_of(name, data, places, truth, args)
    codes = [slides.setdefault(slide, len(slides)) if isinstance(slide, str) else -1 for slide in origin["slide"]]
    corners, sides = origin[["y", "x"]].to_numpy(float), np.full(len(places), np.nan)
    if np.isfinite(corners).any() and not args.objects:
        sides[:] = [data.file_side(i) for i in places] if args.folders else data.size
    return Images(name, data, places, images, np.array(codes), origin["lesion"].to_numpy(float), corners, sides)


def origin_of(split: str, data, places: np.ndarray, truth, args):
    """A row of slide, centre, lesion, y, x for each of these images, by the truth before what lies beside them.

    As data/camelyon/origins.py has them. BadInput when the truth names none of the images.
    """
    names, labels = np.array(data.names, object)[places], data.labels[places]
    if truth is not None and not set(names) & set(truth.index):
        raise BadInput(f"--truth {args.truth[0]}: names none of the {split} images, as {names[0]}")
    if args.folders or args.data_path:
        return origins.of_names([""] * len(names)) if truth is None else truth.reindex(names)
    parts = {folder: names[labels == label] for folder, label in ((args.pos_path, 1), (args.neg_path, 0))}
    own = origins.of_folders(parts).reindex(names)
    return own if truth is None else truth.reindex(names).combine_first(own).reindex(names)[own.columns]
