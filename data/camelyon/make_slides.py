"""Make a small tree of slides shaped like CAMELYON17, to try everything on: make_slides.py --out slides

The slides are textures with painted blobs, not histology: they show that the programs work, nothing about cancer.
Writes training/center_C/*.tif, annotations/*.xml, masks/*_mask.tif and stage_labels.csv, or, with --layout camelyon16,
training/{normal,tumor}/*.tif, testing/images/*.tif, lesion_annotations/*.xml beside both, and testing/reference.csv.
Before them it writes make_slides.json, with the flags. What is there is never replaced: an interrupted run continues.
"""

import itertools
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common import cli, parallel
from common.claim import claim
from common.errors import BadInput
from common.files import atomic_open, make_folder, make_subfolder
from data.camelyon.layouts import LAYOUTS
from data.slides.annotations import read_xml
from data.slides.lesion_mask import LesionMask, mask_from_polygons
from data.slides.pyramid import Slide

BASE = 3  # the level at which slides are painted; finer levels repeat its pixels, coarser ones average them
TILE = 512
BACKGROUND, UNSCANNED = 243, 0
CLUSTER = ((90, (-9, -9)), (60, (-9, 9)), (120, (9, -9)), (75, (9, 9)))  # lesions close together: area at BASE; x, y
SETTINGS = "make_slides.json"
SHAPING = ("seed", "width", "height", "annotated", "negative", "lesion_sets", "compression", "texture", "outlines")
PIECE, STEP = 64, 48  # px of a piece of tissue, and from one to the next
MOST_TISSUE = 4096  # px of a texture that is pieced together


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--out", "-o", type=cli.path, required=True, help="folder for the tree")
    parser.add_argument("--layout", choices=LAYOUTS, default="camelyon17", help="names, folders and labels")
    parser.add_argument("--seed", type=cli.natural, default=0, help="decides shapes and places")
    parser.add_argument("--width", type=cli.positive, default=6144, help="level-0 pixels, a multiple of 256")
    parser.add_argument("--height", type=cli.positive, default=6144, help="level-0 pixels, a multiple of 256")
    parser.add_argument(
        "--annotated",
        type=cli.positive,
        default=4,
        help="slides with lesions of each of 5 centres, of two or more the last with one large lesion; "
        "in camelyon16 of training and test",
    )
    parser.add_argument("--negative", type=cli.positive, default=2, help="slides without, likewise")
    parser.add_argument("--lesion_sets", type=cli.positive, default=1, help="sets of 15 lesions on an annotated slide")
    parser.add_argument("--compression", choices=["deflate", "jpeg"], default="jpeg", help="of the slides")
    parser.add_argument("--texture", type=Path, help="slide to take tissue from (default: scikit-image's picture)")
    parser.add_argument(
        "--own_tissue",
        action="store_true",
        help="piece a texture together for every slide; else all have the same, and their crops are near-duplicates",
    )
    parser.add_argument("--outlines", type=Path, help="folder of ASAP XML to take lesions from (default: blobs)")
    cli.add_workers_flag(parser, 2, help="slides made at once, each in its own process")
    args = parser.parse_args(argv)
    if min(args.width, args.height) < 2048 or args.width % 256 or args.height % 256:
        parser.error("--width and --height must be multiples of 256 from 2048 on")
    return args


@dataclass(frozen=True)
class Painting:
    """What a slide shows: masks at level BASE, a texture for each, and the annotation's polygons, level-0 x, y."""

    tissue: LesionMask
    lesions: LesionMask
    textures: list[np.ndarray]
    outlines: list[np.ndarray]
    cut_outs: list[np.ndarray]

    def render(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """Pixels (height, width, 3) uint8 of a window of level BASE; background outside."""
        image = np.full((height, width, 3), BACKGROUND, np.uint8)
        for mask, texture in zip((self.tissue, self.lesions), self.textures, strict=True):
            inside = mask.window(y, x, height, width)
            if inside.any():
                rows, columns = np.arange(y, y + height) % len(texture), np.arange(x, x + width) % texture.shape[1]
                image[inside] = texture[np.ix_(rows, columns)][inside]
        top, left = (side - side // 5 for side in self.tissue.shape)  # the unscanned corner
        image[max(0, top - y) :, max(0, left - x) :] = UNSCANNED
        return image

    def tile(self, level: int, y: int, x: int) -> np.ndarray:
        """The tile (TILE, TILE, 3) of a level whose corner is (y, x); it may reach beyond the slide."""
        if level <= BASE:
            step = 2 ** (BASE - level)
            return self.render(y // step, x // step, TILE // step, TILE // step).repeat(step, 0).repeat(step, 1)
        step = 2 ** (level - BASE)
        tile = np.full((TILE, TILE, 3), BACKGROUND, np.uint8)
        bottom, right = (min(TILE, side // step - at) for side, at in zip(self.tissue.shape, (y, x), strict=True))
        for row in range(0, bottom, 8):  # a band at a time, because a coarse tile covers much of the slide
            band = self.render((y + row) * step, x * step, 8 * step, right * step)
            tile[row : row + 8, :right] = band.reshape(8, step, right, step, 3).mean(axis=(1, 3))
        return tile

    def mask_tile(self, level: int, y: int, x: int) -> np.ndarray:
        """The tile (TILE, TILE) of the slide's mask: 1 = lesion, 2 = cut-out, by the winding rule at that level."""
        shape, shift = (y + TILE, x + TILE), np.array([x, y]) * 2**level
        near = [
            [ring for ring in rings if _meets(ring - shift, TILE * 2**level)]
            for rings in (self.outlines, self.cut_outs)
        ]
        lesion, cut_out = mask_from_polygons(*near, level, shape), mask_from_polygons(near[1], [], level, shape)
        return lesion.window(y, x, TILE, TILE) + np.uint8(2) * cut_out.window(y, x, TILE, TILE)


def _meets(ring, side):
    """Whether the ring's bounding box meets the square from 0 to side."""
    return (ring.max(axis=0) >= 0).all() and (ring.min(axis=0) <= side).all()


def paint(
    shape: tuple[int, int],
    areas: Sequence[int],
    clusters: int,
    textures: list,
    shapes: list[np.ndarray],
    rng,
    hollow: int = 1,
) -> Painting:
    """A painting of this shape at level BASE, with lesions of these areas; `shapes` are outlines to use, none = blobs.

    Of what finds no place on the tissue nothing is painted. `hollow`: the lesion with a cut-out, 1 = the largest.
    """
    tissue = _blob(rng) * (0.47 * np.array(shape[::-1])) + np.array(shape[::-1]) / 2
    tissue = mask_from_polygons([tissue * 2**BASE], [], BASE, shape)
    outlines, placed = [], []
    for area in areas:
        ring = _scaled(shapes[rng.integers(len(shapes))] if shapes else _blob(rng), area)
        if _find_place(tissue, np.hypot(*ring.T).max(), placed, rng):
            outlines.append(ring + placed[-1][:2])
    for _ in range(clusters):
        if _find_place(tissue, 30, placed, rng):
            outlines += [_scaled(_blob(rng), area) + placed[-1][:2] + shift for area, shift in CLUSTER]
    ordered = sorted(outlines, key=_area)
    hollowed = ordered[len(ordered) - hollow : len(ordered) - hollow + 1]
    cut_outs = [ring.mean(axis=0) + 0.4 * (ring - ring.mean(axis=0)) for ring in hollowed]
    outlines, cut_outs = ([(ring * 2**BASE).round(2) for ring in rings] for rings in (outlines, cut_outs))
    return Painting(tissue, mask_from_polygons(outlines, cut_outs, BASE, shape), textures, outlines, cut_outs)


def _blob(rng):
    """A wavy ring (60, 2) around the origin, of radius about 1."""
    angle = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    radius = 1 + sum(rng.normal(0, 0.12 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 7))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]


def _area(ring):
    x, y = ring.T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


def _scaled(ring, area):
    return ring * math.sqrt(area / _area(ring))


def _find_place(tissue, radius, placed, rng):
    """Append a circle (x, y, radius) on tissue, apart from those placed; False when 1,000 tries find none."""
    for _ in range(1000 if 2 * radius < min(tissue.shape) else 0):
        y, x = (rng.uniform(radius, side - radius) for side in tissue.shape)
        apart = all(math.hypot(x - x2, y - y2) > radius + r2 + 4 for x2, y2, r2 in placed)
        if apart and tissue.window(int(y - radius), int(x - radius), int(2 * radius), int(2 * radius)).all():
            placed.append((x, y, radius))
            return True
    return False


def make_textures(source: np.ndarray, centre: int, rng) -> list[np.ndarray]:
    """Normal and lesion texture, uint8, in a centre's stain: lesions have smaller, denser and darker nuclei."""
    from skimage.color import hed2rgb, rgb2hed

    half = source.reshape(len(source) // 2, 2, -1, 2, 3).mean(axis=(1, 3))
    stain = np.array([1 + 0.06 * (centre - 2), 1, 1 - 0.05 * (centre - 2)])
    textures = []
    for hed in (rgb2hed(source / 255) * stain, rgb2hed(half / 255) * stain * [1.4, 1, 0.3] + [0.08, 0, 0]):
        image = (hed2rgb(hed) * 255).round().clip(16).astype(np.uint8)  # never black: black is unscanned
        image = np.concatenate([image, image[::-1]])  # mirrored, so that it repeats without a seam
        image = np.concatenate([image, image[:, ::-1]], axis=1)
        textures.append(np.roll(image, rng.integers(len(image), size=2), axis=(0, 1)))
    return textures


def texture_squares(path: Path | None) -> list[np.ndarray]:
    """RGB images (512, 512, 3) uint8 of tissue, the darkest first: scikit-image's, or squares of a slide's level 0."""
    if path is None:
        from skimage.data import immunohistochemistry

        return [immunohistochemistry()]
    with Slide(path, 0) as slide:
        corners = [(y, x) for y in range(0, slide.shape[0] - 511, 256) for x in range(0, slide.shape[1] - 511, 256)]
        squares = [image for image, unscanned in (slide.read(*at, 512, 512) for at in corners) if not unscanned.any()]
    if not squares:
        raise BadInput(f"--texture {path}: holds no scanned square of 512 px")
    return sorted(squares, key=lambda image: image[..., 1].mean())[: -(-len(squares) // 4)]  # the others show glass


def piece_together(squares: list[np.ndarray], side: int, rng) -> np.ndarray:
    """A texture (side, side, 3) uint8 of pieces from anywhere in the squares, mirrored at random and blended."""
    sums, weights = np.zeros((side + PIECE, side + PIECE, 3)), np.zeros((side + PIECE, side + PIECE, 1))
    ramp = np.minimum(np.arange(1, PIECE + 1), np.arange(PIECE, 0, -1)).clip(max=PIECE - STEP) / (PIECE - STEP)
    window = (ramp[:, None] * ramp[None])[..., None]
    for y in range(0, side, STEP):
        for x in range(0, side, STEP):
            (top, left), square = rng.integers(512 - PIECE, size=2), squares[rng.integers(len(squares))]
            piece = square[top : top + PIECE, left : left + PIECE][:: rng.choice((1, -1)), :: rng.choice((1, -1))]
            sums[y : y + PIECE, x : x + PIECE] += window * piece
            weights[y : y + PIECE, x : x + PIECE] += window
    return (sums / weights.clip(1e-9))[:side, :side].round().astype(np.uint8)


def outline_shapes(folder: Path | None) -> list[np.ndarray]:
    """The lesion outlines of every XML in a folder, centred on the origin."""
    if folder is None:
        return []
    found = [ring for path in sorted(folder.glob("*.xml")) for ring in read_xml(path)[0] if _area(ring) > 0]
    if not found:
        raise BadInput(f"--outlines {folder}: no .xml with lesions in it")
    return [ring - (ring.min(axis=0) + ring.max(axis=0)) / 2 for ring in found]


def write_pyramid(path: Path, tile_of, shape: tuple[int, ...], mpp: float, **options) -> None:
    """Write a tiled pyramid. tile_of(level, y, x) gives tiles; shape is that of level 0; options are tifffile's."""
    import tifffile

    options |= {"tile": (TILE, TILE), "metadata": None, "software": False, "maxworkers": 1}
    with atomic_open(path) as file, tifffile.TiffWriter(file, bigtiff=True) as tiff:
        for level in range(min(9, max(6, math.ceil(math.log2(max(shape) / 1024))))):
            height, width = (side >> level for side in shape[:2])
            corners = ((y, x) for y in range(0, height, TILE) for x in range(0, width, TILE))
            tiff.write(
                (tile_of(level, y, x) for y, x in corners), shape=(height, width, *shape[2:]), dtype=np.uint8,
                subfiletype=int(level > 0), resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER", **options,
            )  # fmt: skip


def write_xml(path: Path, outlines: list[np.ndarray], cut_outs: list[np.ndarray], groups: Sequence[str]) -> None:
    """Write ASAP XML: lesions in the groups but for the last one, in turn, cut-outs in the last one."""
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "<Annotations>"]
    for i, ring in enumerate(outlines + cut_outs):
        kind, group = (
            "Spline" if i == 1 else "Polygon",
            groups[i % (len(groups) - 1)] if i < len(outlines) else groups[-1],
        )
        lines.append(f'<Annotation Name="Annotation {i}" Type="{kind}" PartOfGroup="{group}"><Coordinates>')
        lines += [f'<Coordinate Order="{order}" X="{x:.2f}" Y="{y:.2f}" />' for order, (x, y) in enumerate(ring)]
        lines.append("</Coordinates></Annotation>")
    lines += ["</Annotations>", "<AnnotationGroups>"]
    lines += [f'<Group Name="{group}" PartOfGroup="None" />' for group in groups]
    with atomic_open(path, "w") as file:
        file.write("\n".join([*lines, "</AnnotationGroups>", "</ASAP_Annotations>", ""]))


def make_slide(name: str, lesions: dict[str, str], squares: list[np.ndarray], shapes: list[np.ndarray], args) -> None:
    """Write one slide and, when it has lesions, its annotation and mask, but for what is there already."""
    layout = LAYOUTS[args.layout]
    centre, (slide, *others) = layout.centre_of(name), layout.files_of(name, lesions[name], args.out)
    mpp, rng = layout.mpp[centre], np.random.default_rng([args.seed, *name.encode()])
    shape = args.height >> BASE, args.width >> BASE
    areas = layout.areas(lesions[name], args.lesion_sets, shape)
    clusters = args.lesion_sets * (lesions[name] == "many")
    source = piece_together(squares, min(2 * max(shape), MOST_TISSUE), rng) if args.own_tissue else squares[0]
    painting = paint(shape, areas, clusters, make_textures(source, centre, rng), shapes, rng, layout.hollow)
    size, quality = (args.height, args.width), {"level": 85 if args.compression == "jpeg" else 1}
    for path in itertools.filterfalse(os.path.lexists, [slide, *others]):
        if path.suffix == ".xml":
            write_xml(path, painting.outlines, painting.cut_outs, layout.groups)
        elif path != slide:
            write_pyramid(path, painting.mask_tile, size, mpp, photometric="minisblack", compression="deflate")
        else:
            write_pyramid(
                path, painting.tile, (*size, 3), mpp,
                photometric="rgb", compression=args.compression, compressionargs=quality,
            )  # fmt: skip


def open_tree(args, files: list[Path]) -> None:
    """Create the tree's folders. BadInput when it was made with other flags, or holds one of the files unmade."""
    flags = {key: getattr(args, key) for key in SHAPING}
    flags |= {"layout": args.layout} if args.layout != "camelyon17" else {}  # as in trees of earlier versions
    settings = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in flags.items()}
    settings |= {"own_tissue": True} if args.own_tissue else {}  # trees of earlier versions lack it
    foreign = next(filter(os.path.lexists, files), None)
    if foreign and not os.path.lexists(args.out / SETTINGS):
        raise BadInput(f"{foreign}: is there already, and not of this command; choose another --out")
    claim(make_folder(args.out), SETTINGS, settings, "--out")
    for folder in LAYOUTS[args.layout].folders:
        make_subfolder(args.out, folder)


def main(argv=None):
    args = parse_args(argv)
    squares, shapes = texture_squares(args.texture), outline_shapes(args.outlines)
    layout = LAYOUTS[args.layout]
    lesions, labels = layout.slide_names(args.annotated, args.negative), args.out / layout.labels
    files = {name: layout.files_of(name, found, args.out) for name, found in lesions.items()}
    open_tree(args, [labels, *itertools.chain(*files.values())])
    todo = [name for name, paths in files.items() if not all(map(os.path.lexists, paths))]
    task = partial(make_slide, lesions=lesions, squares=squares, shapes=shapes, args=args)
    for _ in cli.progress(parallel.map_jobs(task, todo, args.workers), len(todo), "painting", "slides"):
        pass
    if not os.path.lexists(labels):
        layout.write_labels(labels, lesions)
    diseased = sum(found != "none" for found in lesions.values())
    print(f"{len(lesions)} slides, {diseased} of them with lesions, in {args.out}")


if __name__ == "__main__":
    cli.run(main)
