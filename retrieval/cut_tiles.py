"""Cut pictures or slides into tiles to train, validate and test on: cut_tiles.py --image scan.svs --out tiles

Each picture is divided across its longer side, a strip for each split: tiles of different splits never overlap.
Writes train/, valid/ and test/{picture}_{y}_{x}.png; what is there already is left as it is.
"""

import shlex
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401 (before torch)
from common import cli, pictures
from common.errors import BadInput
from common.files import make_folder
from data import photos, tiles
from data.slides.pyramid import Slide

FOLDERS = ("train", "valid", "test")
WHITE = 220  # grey value from which a pixel is background


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=cli.path, nargs="+", required=True, help="pictures or slides, at full size")
    parser.add_argument("--size", type=cli.positive, default=256, help="px of a tile's side")
    parser.add_argument("--stride", type=cli.positive, help="px between training tiles (default: --size)")
    parser.add_argument(
        "--test_stride",
        type=cli.positive,
        help="px between tiles to validate and test on (default: --size); pairs show the middle half of a tile of 256",
    )
    parser.add_argument(
        "--fractions",
        type=cli.positive_float,
        nargs=3,
        default=(0.6, 0.15, 0.25),
        metavar=("TRAIN", "VALID", "TEST"),
        help="widths of the strips, in any unit",
    )
    parser.add_argument("--most_white", type=cli.nonnegative_float, default=0.8, help="share of background in a tile")
    parser.add_argument("--out", "-o", type=cli.path, required=True, help="folder for train/, valid/ and test/")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    counts = dict.fromkeys(FOLDERS, 0)
    for path in args.image:
        picture = read(path)
        jobs = [(name, *corner) for name, corners in corners_of(picture.shape, args).items() for corner in corners]
        for name, y, x in cli.progress(jobs, len(jobs), path.name, "tile"):
            tile = picture[y : y + args.size, x : x + args.size]
            if (tile.mean(axis=2) > WHITE).mean() > args.most_white:
                continue
            target = make_folder(args.out / name) / f"{path.stem}_{y}_{x}.png"
            if not target.exists():
                pictures.write_png(target, tile)
            counts[name] += 1
    empty = [name for name, n in counts.items() if n < 2]
    if empty:
        raise BadInput(f"--image: fewer than two tiles of {args.size} px for {', '.join(empty)}; take a smaller --size")
    print(f"tiles in {args.out}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    flags = ["--train_path", args.out / "train", "--valid_path", args.out / "valid", "--synth_valid"]
    flags += ["--base", "autoencoder", "--logdir", f"runs/{args.out.name}"]
    print(f"next: python train_retrieval.py {shlex.join(map(str, flags))}")


def read(path: Path) -> np.ndarray:
    """A picture, or level 0 of a slide: (H, W, 3) uint8. BadInput names a file that is neither."""
    if path.suffix.lower() in photos.EXTENSIONS:
        return photos.read_image(path)
    with Slide(path, level=0) as slide:
        return slide.read(0, 0, *slide.shape)[0]


def corners_of(shape: tuple[int, ...], args) -> dict[str, np.ndarray]:
    """Split -> corners (N, 2) of its tiles in a picture (H, W, 3)."""
    axis = int(shape[1] > shape[0])  # the longer side
    edges = np.round(np.cumsum([0, *args.fractions]) / sum(args.fractions) * shape[axis]).astype(int)
    planned = {}
    for name, first, end in zip(FOLDERS, edges, edges[1:], strict=False):
        stride = (args.stride if name == "train" else args.test_stride) or args.size
        strip = (int(end - first), shape[1]) if axis == 0 else (shape[0], int(end - first))
        planned[name] = tiles.corners(*strip, args.size, stride) + first * np.eye(2, dtype=int)[axis]
    return planned


if __name__ == "__main__":
    cli.run(main)
