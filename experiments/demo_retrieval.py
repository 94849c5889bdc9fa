"""The leakage audit on made slides, by the commands a user types: crops, a split that leaks, the audit, a clean split.

The slides are textures with painted blobs: the figures show what the programs find, nothing about histology.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import cli
from common.files import read_json
from experiments.demo import ROOT, command, quote


def parse_args(argv=None):
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=cli.path, default=ROOT / "demo", help="folder of slides, crops and audits")
    parser.add_argument("--quick", action="store_true", help="smaller slides and fewer crops, in a folder of their own")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    started = time.monotonic()
    audits = demo(args.out.absolute() / ("retrieval_quick" if args.quick else "retrieval"), args.quick)
    summarise(audits, time.monotonic() - started)
    print("\nnext: your own crops or folders, as docs/RETRIEVAL.md shows; audit_leakage.py --help explains its flags")


def demo(out: Path, quick: bool) -> dict[str, Path]:
    """Cut crops, split them at random and by slide, audit both; returns the folders of the audits."""
    slides, crops, side = out / "slides", out / "crops", 2048 if quick else 3072
    each, healthy = (6, 10) if quick else (30, 60)  # crops of a lesion, of a slide without
    flags = f"--own_tissue --annotated 1 --negative 2 --width {side} --height {side}"
    command(f"data/camelyon/make_slides.py --out {quote(slides)} {flags}")
    base, pos, neg = f"--base_path {quote(slides / 'training')} --size 64", quote(crops / "pos"), quote(crops / "neg")
    ratio = f"--low_roir 0.1 --high_roir 0.5 --k {each}"
    command(f"extract_basic_pos_crops.py --data {quote(slides / 'annotations')} {base} {ratio} --save_dir {pos}")
    labels = quote(slides / "stage_labels.csv")
    command(f"extract_basic_neg_crops.py --label_path {labels} {base} --k {healthy} --save_dir {neg}")
    pos = quote(crops / "pos" / "level3_size_64_ratio_0.1_0.5")
    folders, truth, audits = f"--pos_path {pos} --neg_path {neg}", f"--truth {pos}/crops.csv {neg}/crops.csv", {}
    for by in ("random", "slide"):
        splits, audits[by] = quote(out / f"splits_{by}.csv"), out / f"audit_{by}"
        command(f"retrieval/split_crops.py {folders} --by {by} --out {splits}")
        command(f"audit_leakage.py {folders} --splits {splits} {truth} --k 1 --verify ncc --out {quote(audits[by])}")
    return audits


def summarise(audits: dict[str, Path], seconds: float) -> None:
    """Print what the audits found, and where their pictures lie."""
    print(f"\ndone in {seconds / 60:.1f} minutes, on made slides (a check of the programs, no result)")
    print("split by   test images flagged   of them copies   true duplicates found   false alarms expected")
    for by, folder in audits.items():
        report = read_json(folder / "summary.json")
        test, rate = report["splits"]["test"], report["threshold"]["false_alarm_rate"]
        near, copies, true = test["near_duplicates"], test["copies"], test["truth"]["images"]["with_duplicate"]
        found = f"{true['flagged']} of {true['images']}"
        print(f"{by:10} {near['share']:19.1%} {copies['flagged']:>16} {found:>23} {rate:23.1%}")
    for by, folder in audits.items():
        print(f"pairs, split {by:10} {folder / 'pairs.png'}")
    print(f"tables               {', '.join(str(folder / 'audit.csv') for folder in audits.values())}")


if __name__ == "__main__":
    cli.run(main)
