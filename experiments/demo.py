"""Run the whole job at a size of minutes, by the commands a user types: data, training, saliency maps, a summary.

The settings are chosen to learn in minutes on two CPU cores; they are not Pawlowski 2019's.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.errors import BadInput
from experiments.stats import read_numbers, read_precision

ROOT = Path(__file__).resolve().parents[1]
# batch norm, a larger step and a narrow network: Pawlowski 2019's settings need tens of epochs at full width
QUICK = "--width -3 --norm bn --opt adam --lr 2e-3 -b 16"


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=["mnist", "camelyon"], help="which of the two data sets to try")
    parser.add_argument("--out", type=cli.path, default=ROOT / "demo", help="folder of the data and the run")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    started = time.monotonic()
    run_folder = {"mnist": demo_mnist, "camelyon": demo_camelyon}[args.data](args.out.absolute())
    summarise(run_folder, time.monotonic() - started)
    print("\nnext: your own data and settings, as README.md shows; each script explains its flags with --help")


def demo_mnist(out: Path) -> Path:
    """nMNIST at canvas 64 with one clutter digit; returns the run's folder."""
    source, passes = mnist_source()
    data, logdir = out / f"nmnist_64_{source}", out / f"run_{source}"
    digits = f"--mnist {source}" if source == "digits" else ""
    generate = f"data/cluttered_mnist/generate_data.py --canvas 64 --distortion-num 1 --patch-size 64 {digits}"
    command(f"{generate} --type test --out {quote(data)}")
    command(f"{generate} --duplicates {passes} --format none --out {quote(data)}")
    where = f"--data_path {quote(data)} --logdir {quote(logdir)}"
    command(f"train_mnist.py {where} {QUICK} --receptive_field 177 -e 1")
    command(f"predict_saliency.py {where} --datatype mnist")
    return logdir


def mnist_source() -> tuple[str, int]:
    """("mnist", 1 pass) with the files at hand or downloaded, else ("digits", 44 passes), about as many images."""
    from data.cluttered_mnist import digits

    try:
        digits.load(digits.default_source())
        return "mnist", 1
    except BadInput as error:
        print(f"{error}\nusing the 1,797 handwritten digits of scikit-learn instead of MNIST", flush=True)
        return "digits", 44


def demo_camelyon(out: Path) -> Path:
    """nCAMELYON crops of 64 px, O2I 1 to 10 %, of made slides; returns the run's folder."""
    slides, crops, logdir = out / "slides", out / "crops", out / "run_camelyon"
    pos, neg = quote(crops / "pos"), quote(crops / "neg")
    crop = f"--base_path {quote(slides / 'training')} --size 64"
    command(f"data/camelyon/make_slides.py --out {quote(slides)}")
    ratio = "--low_roir 0.01 --high_roir 0.1 --k 10"
    annotations, labels = quote(slides / "annotations"), quote(slides / "stage_labels.csv")
    command(f"extract_basic_pos_crops.py --data {annotations} {crop} {ratio} --save_dir {pos} --preview")
    command(f"extract_basic_neg_crops.py --label_path {labels} {crop} --save_dir {neg}")
    where = f"--pos_path {pos}/level3_size_64_ratio_0.01_0.1 --neg_path {neg} --logdir {quote(logdir)}"
    command(f"train_camelyon.py {where} {QUICK} --receptive_field 33 -e 4")
    command(f"predict_saliency.py {where} --datatype camelyon")
    return logdir


def quote(path: Path) -> str:
    """A path as it is typed."""
    return shlex.quote(str(path))


def command(line: str) -> None:
    """Run one of the project's scripts, shown as it could be typed; its failure ends the demo."""
    print(f"\n$ python {line}", flush=True)
    code = subprocess.run([sys.executable, *shlex.split(line)], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def summarise(logdir: Path, seconds: float) -> None:
    """Print the figures of the run and where its pictures lie. BadInput when they cannot be read."""
    stats = read_numbers(logdir / "stats.csv", ["eval_acc", "images_per_s"], ["test_acc", "test_auc"])
    best = stats.loc[stats.eval_acc.idxmax()]
    precision = read_precision(logdir / "saliency" / "localization.json")
    print(f"\ndone in {seconds / 60:.1f} minutes, at settings that learn in minutes (not those of Pawlowski 2019)")
    print(f"test accuracy            {best.test_acc:.3f}   (chance 0.5)")
    print(f"test AUC                 {best.test_auc:.3f}   (chance 0.5)")
    print(f"localisation AP          {precision:.3f}")
    print(f"training images/s        {stats.images_per_s.median():.0f}")
    print(f"contact sheet            {logdir / 'saliency' / 'contact_sheet.png'}")
    print(f"run folder               {logdir}")


if __name__ == "__main__":
    cli.run(main)
