"""Measure each channel of VGG's layers over pictures, for --vgg_stats: compute_vgg_stats.py --images DIR --out FILE.npz

The file belongs to the weights that it was measured with, and names them. Sums alone are held, however many pictures.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common  # noqa: F401 (before torch)
from common import cli, processes
from common.errors import BadInput
from data import photos
from data.transforms import Transform, Transformed
from models import embedders, perceptual, vgg
from models import weights as pretrained


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=cli.path, required=True, help="folder of pictures")
    parser.add_argument("--out", "-o", type=cli.path, required=True, help=".npz file to write")
    parser.add_argument("--resize", type=cli.positive, default=256, help="px a side to which pictures are scaled")
    processes.add_device_flag(parser)
    embedders.add_flags(parser, "vgg19", ("--vgg_weights",), ("vgg16", "vgg19"), ("--vgg",))
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = processes.select_alone("anomaly/compute_vgg_stats.py", args.device)
    if args.out.suffix != ".npz":
        raise BadInput(f"--out {args.out}: expected a name that ends in .npz")
    data = Transformed(photos.load_unlabelled(args.images), Transform(resize=args.resize))
    weights = pretrained.fetch(args.embedder, args.embedder_weights, "--vgg_weights", args.weights_input)
    network = vgg.VGG(args.embedder, tuple(reached(args.embedder, weights)), weights).to(device)
    if args.resize < network.smallest:
        raise BadInput(f"--resize {args.resize}: {args.embedder} takes {network.smallest} px or more")
    images = (data[i][0][None].to(device) for i in range(len(data)))
    moments = perceptual.measure(network, cli.progress(images, len(data), "measuring", "picture"))
    perceptual.write_statistics(args.out, moments, args.embedder, weights.sha256)
    print(f"{len(moments)} layers of {args.embedder} over {len(data):,} pictures in {args.out}")


def reached(network: str, weights: pretrained.Weights) -> list[str]:
    """The layers before the first convolution that the weights lack."""
    names = vgg.layers(network)
    for i, name in enumerate(names):
        if name.startswith("c") and weights.state is not None and not vgg.has_layer(weights, i):
            return names[:i]
    return names


if __name__ == "__main__":
    cli.run(main)
