"""Write an nMNIST data set: generate_data.py --canvas 256 --patch-size 64 --out nmnist_256 --mnist MNIST_DIR

Every positive image shows one needle digit among clutter digits, every negative image clutter only (Pawlowski 2019,
appendix A.1). The same flags give the same bytes, whatever --workers is; an interrupted run continues with the same
command.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from common import cli, lock
from common.errors import BadInput
from data.cluttered_mnist import digits, folder, placements, recipe, render

EXAMPLES = 4  # columns of the example sheet


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("-o", "--out", type=cli.path, required=True, help="folder to write")
    add(
        "-m",
        "--mnist",
        default=digits.default_source(),
        help="folder of the four MNIST files, downloaded if absent, or 'digits': 1,797 digits of scikit-learn, offline;"
        " without the flag $MNIST_DIR counts",
    )
    add("--type", choices=("detection", "test"), default="detection", help="data set, or one example PNG")
    add("--canvas", type=cli.positive, default=2048, help="rows and columns of an image in px")
    add("--digit", type=int, choices=range(10), default=3, metavar="0..9", help="class of the needle")
    add(
        "--distortion-num",
        type=cli.natural,
        help="clutter digits on a positive, negatives have one more (default: 25 (canvas / 256)^2, at least 2)",
    )
    add("--distortion-scale", type=cli.positive_float, default=1.0, help="zoom factor of every clutter digit")
    add(
        "--patch-size",
        type=cli.natural,
        default=0,
        help="px of a grid that divides --canvas, in one cell of which the needle lies; 0: anywhere",
    )
    add("--center-patch", action="store_true", help="needle in the middle cell of the grid of --patch-size")
    add(
        "--distortion-location",
        type=int,
        default=-1,
        help="without --patch-size: the needle's top-left lies below this px, down and right; -1: anywhere",
    )
    add("-s", "--scale", type=cli.positive_float, default=1.0, help="zoom factor of the finished image")
    add(
        "--duplicates",
        type=cli.positive,
        default=2,
        help="images of each needle digit; training uses 11,276 images by default",
    )
    add("--seed", type=cli.natural, default=1234, help="of the one random stream, below 2^32")
    add("--format", choices=("npz", "none"), default="npz", help="write images, or only the recipe they follow from")
    add("--digit-clutter", action="store_true", help="without effect: clutter is always digits")
    cli.add_workers_flag(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    layout = make_layout(args)
    splits = digits.load(args.mnist)
    counts = count_images(splits, args)
    if args.type == "test":
        return write_example(args, layout, splits["train"])
    check_space(args, layout, sum(counts.values()))
    settings = settings_of(args, layout, splits)
    with lock.held(args.out, "--out"):
        recipe.refuse_strangers(args.out, settings)
        folder.claim(args.out, settings)
        if not write_data_set(args, layout, splits, settings):
            print(f"{args.out}: complete already, nothing to do")
    side = render.zoomed_side(args.canvas, args.scale)
    print(f"{args.out}: {', '.join(f'{split} {count:,}' for split, count in counts.items())} images of {side} px")
    print(f"O2I {100 * (digits.SIDE / args.canvas) ** 2:.3g} %, {layout.clutter} clutter digits, one more on negatives")
    folder.print_next(args.out)


def make_layout(args) -> placements.Layout:
    """The flags on placement, checked."""
    if args.seed >= 2**32:
        raise BadInput(f"--seed {args.seed}: expected less than 2^32")
    if args.center_patch and args.patch_size == 0:
        raise BadInput("--center-patch: needs the grid of --patch-size")
    if args.distortion_location != -1 and args.patch_size:
        print("--distortion-location: without effect, --patch-size decides where the needle lies")
    clutter = placements.default_clutter(args.canvas) if args.distortion_num is None else args.distortion_num
    side = render.zoomed_side(digits.SIDE, args.distortion_scale, "--distortion-scale")
    layout = placements.Layout(
        args.canvas, clutter, args.patch_size, args.center_patch, args.distortion_location, clutter_side=side
    )
    render.zoomed_side(args.canvas, args.scale, "--scale")
    return layout


def count_images(splits: dict, args) -> dict[str, int]:
    """Images per split: two per needle digit and pass; BadInput when needle digits or clutter digits are missing."""
    needles = {split: int((labels == args.digit).sum()) for split, (_, labels) in splits.items()}
    for split, (_, labels) in splits.items():
        if needles[split] in (0, len(labels)):
            found = f"{needles[split]} of the {len(labels)} {split} digits"
            raise BadInput(f"--digit {args.digit}: {found} of --mnist {args.mnist} are of this class, expected some")
    return {split: 2 * args.duplicates * count for split, count in needles.items()}


def settings_of(args, layout: placements.Layout, splits: dict) -> dict:
    """Flag -> value for all that decides a byte of the data set; MNIST enters by content."""
    names = "canvas digit distortion_scale patch_size center_patch distortion_location scale duplicates seed format"
    values = {name.replace("_", "-"): getattr(args, name) for name in names.split()}
    return {"generator": "nmnist", "distortion-num": layout.clutter, "mnist": digits.content_digest(splits)} | values


def check_space(args, layout: placements.Layout, images: int) -> None:
    """Raise BadInput when the data set, by a low estimate of its size, does not fit on the disk of args.out."""
    needed = images * layout.clutter * 6
    if args.format == "npz":
        needed += images * (layout.clutter * 120 + args.canvas**2 // 1000) * min(1, args.scale) ** 2
    folder.check_space(args.out, int(needed))


def write_data_set(args, layout: placements.Layout, splits: dict, settings: dict) -> bool:
    """Write what args.out lacks of recipe, images and CSVs; returns whether anything was lacking."""
    wrote = not recipe.is_whole(args.out, settings)
    if wrote:
        recipe.write(args.out, splits, layout, args.digit, args.duplicates, args.seed)
        folder.list_files(args.out, recipe.FILES)
    for split in splits:
        source = recipe.Recipe(args.out, split, settings)
        positions = source.part("needle")[:, 1:] * args.scale
        wrote |= folder.write_split(args.out, split, source, args.format == "npz", args.workers, positions)
    return wrote


def write_example(args, layout: placements.Layout, train: digits.Digits) -> None:
    """Write example.png: positives on top needles outlined in red, negatives below (Pawlowski 2019, figure 10)."""
    from common.files import make_folder
    from common.pictures import Panel, contact_sheet, is_sheet

    path = make_folder(args.out) / "example.png"
    if path.exists() and not is_sheet(path):
        raise BadInput(f"{path}: was not written by this command; remove it or choose another --out")
    needles, pool = train.images[train.labels == args.digit], train.images[train.labels != args.digit]
    rows = [[], []]
    draws = placements.draw_split(np.random.RandomState(args.seed), layout, len(pool), 2 * EXAMPLES)
    for i, (y, x, clutter) in enumerate(draws):
        layers = [(render.zoom_stack(pool[clutter[:, 0]], layout.clutter_side), clutter[:, 1], clutter[:, 2])]
        if i % 2 == 0:
            layers.append((needles[[i // 2 % len(needles)]], np.array([y]), np.array([x])))
        image = render.zoom_uint8(render.compose(layout.canvas, *layers), args.scale) / 255
        box = tuple(edge * args.scale for edge in (y, x, y + digits.SIDE, x + digits.SIDE))
        rows[i % 2].append(Panel(image, f"train {i}", [] if i % 2 else [box]))
    contact_sheet(path, rows, [f"digit {args.digit}", "none"])
    print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
