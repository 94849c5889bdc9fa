"""Draw what the networks are shown: draw_examples.py --pos_path POS --neg_path NEG --data_path NMNIST --out FOLDER

Writes crop_examples.png, crops with their lesions outlined above crops without, and receptive_fields.png, the fields
of the three networks around the needle of a canvas.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401 (before torch)
from common import cli, pictures
from common.files import make_folder
from common.pictures import Panel
from data.camelyon import dataset as camelyon
from data.cluttered_mnist import dataset as mnist
from models.needle import KERNEL3_BY_RECEPTIVE_FIELD

COLUMNS = 6
TRIED = 200  # canvases among which one is chosen
SEED = 42  # chooses the crops of a class


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    camelyon.add_flags(parser)
    mnist.add_flags(parser)
    parser.add_argument("--out", "-o", type=cli.path, required=True, help="folder of the pictures")
    parser.set_defaults(seed=SEED)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    make_folder(args.out)
    if args.pos_path or args.neg_path:
        draw_crops(camelyon.load_splits(args, ["train"])["train"], args.out / "crop_examples.png")
    if args.data_path:
        draw_fields(mnist.load_splits(args, ["train"])["train"], args.out / "receptive_fields.png")


def draw_crops(crops, path: Path) -> None:
    """Positive crops with outlines above negative ones, evenly from the first to the last of each class."""
    rows = []
    for label in (1, 0):
        chosen = [i for i in range(len(crops)) if crops.labels[i] == label]
        rows.append([crop_panel(crops, i) for i in chosen[:: max(1, len(chosen) // COLUMNS)][:COLUMNS]])
    pictures.contact_sheet(path, rows, ["lesion", "none"])
    print(f"wrote {path}")


def crop_panel(crops, i: int) -> Panel:
    """A crop with its lesion outlined, and the lesion's share of it."""
    share = crops.o2i(i)
    title = "" if share is None else f"O2I {100 * share:.0f} %"
    return Panel(to_array(crops[i][0]), title, [], crops.object_mask(i), crops.outline)


def draw_fields(canvases, path: Path) -> None:
    """One canvas under the field of each network, around its needle, which lies near the middle."""
    centres = {i: centre(canvases.object_mask(i)) for i in range(0, min(len(canvases), TRIED), 2)}  # positives
    middle = len(canvases[0][0][0]) / 2
    chosen = min(centres, key=lambda i: max(abs(place - middle) for place in centres[i]))
    image, (y, x) = twice(to_array(canvases[chosen][0])), centres[chosen]
    panels = [Panel(image, "the needle", [], twice(canvases.object_mask(chosen)), canvases.outline)]
    for side in KERNEL3_BY_RECEPTIVE_FIELD:
        half = side // 2
        box = (y - half, x - half, y + half + 1, x + half + 1)
        panels.append(Panel(image, f"{side} px", [tuple(2 * edge for edge in box)]))
    pictures.contact_sheet(path, [panels])
    print(f"wrote {path}")


def twice(image):
    """Every pixel as 2 x 2, so that outlines are wide enough for a small sheet."""
    return image.repeat(2, axis=0).repeat(2, axis=1)


def centre(mask) -> tuple[int, int]:
    """y and x of the middle of what a mask marks."""
    return tuple(int(axis.mean()) for axis in mask.nonzero())


def to_array(image):
    """An image (1 or 3, H, W) as an array (H, W) or (H, W, 3)."""
    return image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()


if __name__ == "__main__":
    cli.run(main)
