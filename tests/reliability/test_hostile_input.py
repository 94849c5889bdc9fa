"""Input from strangers: damaged, absurd, or made to do harm. Every command says in one line what is wrong with it."""

import gzip
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import extract_basic_neg_crops
import extract_basic_pos_crops
import predict_saliency
import train_camelyon
import train_mnist
from data.camelyon import make_slides
from data.cluttered_mnist import digits, generate_data
from tests.reliability import sandbox

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "4"))  # of every kind of file; make torture takes more
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
ODD = [
    *(b"-1", b"0", b"1e999", b"nan", b"99999999999999999999", b"2147483648", b"../../evil", b"/etc/passwd", b"\0", b""),
    *(b"null", b"[]", b"{}", b'"', b",", b"\n", b"<a>", b"]" * 50, b"[" * 3000, b"9" * 5000, b"A" * 5000, b"\xff\xfe"),
    *(b"\x1b[31m", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", "\u0663\u202e".encode()),
]
SMALL = "--canvas 32 --distortion-num 1 --duplicates 1 --workers 1"
TRAIN = ["--width", "-4", "-e", "1", "--workers", "0", "-b", "8", "--device", "cpu", "--kernel3", "9"]


@st.composite
def mutations(draw):
    """A function that damages bytes in up to four places: flips, cuts, repeats, odd numbers and words."""
    changes = draw(
        st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1), st.integers(0, 2**16)), min_size=1, max_size=4)
    )

    def mutate(content):
        for kind, place, value in changes:
            at = int(place * max(0, len(content) - 1))
            odd = ODD[value % len(ODD)]
            length = 1 + value % 16
            content = [
                content[:at] + bytes([value % 256]) + content[at + 1 :],
                content[:at],
                content[:at] + odd + content[at + len(odd) :],
                content[:at] + odd + content[at:],
                content[:at] + content[at + length :],
                content[:at] + content[max(0, at - length) :],
            ][kind]
        return content

    return mutate


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Good input of every kind in a folder of its own, all small and without the checksums of a manifest."""
    place = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "VALIDATION", 20)
        write_mnist(place / "mnist")
        for name, form in (("files", "npz"), ("recipe", "none")):
            flags = [*SMALL.split(), "--mnist", place / "mnist", "--out", place / name, "--format", form]
            generate_data.main(list(map(str, flags)))
        shutil.copytree(place / "recipe", place / "checked")
        for name in ("files", "recipe"):  # else their checksums would name every change
            (place / name / "manifest.json").unlink()
        shutil.rmtree(place / "files" / "recipe")
        shutil.copytree(place / "recipe", place / "run" / "data")
        train_mnist.main([*TRAIN, "--data_path", str(place / "recipe"), "--logdir", str(place / "run" / "out")])
        write_crops(place / "crops")
        write_slides(place / "slides")
        write_used(place)
        yield place


def write_used(place):
    """What commands continue or explain: a data set beside its digits, a cut slide, a run on crops."""
    shutil.copytree(place / "mnist", place / "again" / "mnist")
    generate_data.main([str(word) for word in generate_again(place / "again")[1]])
    shutil.copytree(place / "slides", place / "cut")
    extract_basic_pos_crops.main([str(word) for word in cut_outlined(place / "cut")[1]])
    shutil.copytree(place / "crops", place / "crop_run")
    train_camelyon.main([str(word) for word in train_crops(place / "crop_run")[1]])


def write_mnist(folder):
    """Forty training and twenty test digits of scikit-learn in MNIST's format."""
    images, labels = digits.load("digits")["train"]
    folder.mkdir()
    for (split, kind), name in digits.FILES.items():
        part = slice(0, 60) if split == "train" else slice(60, 90)
        data = images[part] if kind == "images" else labels[part]
        content = struct.pack(f">I{data.ndim}I", 0x800 + data.ndim, *data.shape) + data.tobytes()
        zipped = split == "test"
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)


def write_crops(folder):
    """Two crops of each class in each split, with their tables."""
    rng = np.random.default_rng(0)
    for label, endings in (("pos", ("_img", "_seg")), ("neg", ("",))):
        names = [f"{part}patient_000_node_{i}_3_1_0" for part in ("", "valid/", "test/") for i in range(2)]
        for name in names:
            for ending in endings:
                path = folder / label / f"{name}{ending}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, rng.integers(0, 255, (32, 32, 3)[: 2 + (ending != "_seg")], dtype=np.uint8))
        (folder / label / "crops.csv").write_text("\n".join(["file", *(f"{n}{endings[0]}.npy" for n in names), ""]))


def write_slides(folder):
    """One slide with lesions, outlined in XML and painted in a mask, and one without."""
    tree = folder.parent / "tree"
    make_slides.main(["--out", str(tree), "--width", "2048", "--height", "2048", *SLIDES.split()])
    stage = {line.split(",")[0]: line for line in (tree / "stage_labels.csv").read_text().splitlines()}
    lesion = sorted(path.stem for path in (tree / "annotations").glob("patient_0[01]*.xml"))[0]
    healthy = next(name[:-4] for name, line in stage.items() if line.endswith("negative") and name.endswith(".tif"))
    for name in (lesion, healthy):
        slide = next((tree / "training").glob(f"*/{name}.tif"))
        (folder / "training" / slide.parent.name).mkdir(parents=True, exist_ok=True)
        slide.rename(folder / "training" / slide.parent.name / slide.name)
    for kind, name in (("annotations", f"{lesion}.xml"), ("masks", f"{lesion}_mask.tif")):
        (folder / kind).mkdir()
        (tree / kind / name).rename(folder / kind / name)
    rows = ["patient,stage", stage[f"{healthy}.tif"], stage[f"{lesion}.tif"], ""]
    (folder / "labels.csv").write_text("\n".join(rows))
    shutil.rmtree(tree)


def generate(work):
    return generate_data.main, [*SMALL.split(), "--mnist", work, "--out", work / "out", "--format", "none"]


def generate_again(work):
    return generate_data.main, [*SMALL.split(), "--mnist", work / "mnist", "--out", work / "out", "--format", "npz"]


def train(work):
    return train_mnist.main, ["--data_path", work, "--logdir", work / "out", *TRAIN]


def train_crops(work):
    return train_camelyon.main, [
        "--pos_path",
        work / "pos",
        "--neg_path",
        work / "neg",
        "--logdir",
        work / "out",
        *TRAIN,
    ]


def resume(work):
    return train_mnist.main, ["--data_path", work / "data", "--logdir", work / "out", *TRAIN, "-e", "2"]


def explain(work):
    flags = ["--datatype", "mnist", "--data_path", work / "data", "--logdir", work / "out", "--overlays", "1"]
    return predict_saliency.main, [*flags, "--workers", "0", "--device", "cpu", "-b", "8"]


def explain_crops(work):
    flags = ["--datatype", "camelyon", "--pos_path", work / "pos", "--neg_path", work / "neg", "--overlays", "1"]
    return predict_saliency.main, [*flags, "--logdir", work / "out", "--workers", "0", "--device", "cpu", "-b", "8"]


def cut_outlined(work, annotations="annotations"):
    flags = ["--data", work / annotations, "--base_path", work / "training", "--save_dir", work / "out", *CUT]
    return extract_basic_pos_crops.main, [*flags, "--low_roir", "0.001", "--high_roir", "0.9"]


def cut_masked(work):
    return cut_outlined(work, "masks")


def cut_healthy(work):
    flags = ["--label_path", work / "labels.csv", "--base_path", work / "training", "--save_dir", work / "out"]
    return extract_basic_neg_crops.main, [*flags, *CUT]


SLIDES = "--annotated 1 --negative 1 --compression deflate --workers 1"
CUT = ["--size", "64", "--k", "2", "--workers", "1"]
ATTACKS = {  # what is attacked -> the folder of good input, the files to choose from, the command that reads them
    "idx": ("mnist", "*ubyte*", generate),
    "npz": ("files", "*_[01].npz", train),
    "csv": ("recipe", "*.csv", train),
    "json": ("recipe", "*.json", train),
    "recipe": ("recipe", "recipe/*.npy", train),
    "crops": ("crops", "**/*.npy", train_crops),
    "crops.csv": ("crops", "*/crops.csv", train_crops),
    "checkpoint": ("run", "out/checkpoint.pth", resume),
    "best_checkpoint": ("run", "out/best_checkpoint.pth", explain),
    "xml": ("slides", "annotations/*.xml", cut_outlined),
    "manifest": ("checked", "manifest.json", train),
    "tiff_mask": ("slides", "masks/*.tif", cut_masked),
    "tiff_slide": ("slides", "training/*/*.tif", cut_outlined),
    "labels": ("slides", "labels.csv", cut_healthy),
    "data set continued": ("again", "out/**/*.*", generate_again),
    "crop folder continued": ("cut", "out/**/*.*", cut_outlined),
    "masks explained": ("crop_run", "pos/valid/*.npy", explain_crops),
    "run explained": ("crop_run", "out/best_checkpoint.pth", explain_crops),
}
STRANGE = {
    "a named pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
}


def attack(place, tmp, kind, damage):
    """Run the command on a copy of the good input, one file of it damaged; returns the outcome."""
    folder, pattern, command = ATTACKS[kind]
    work = tmp / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(place / folder, work)
    damage(sorted(work.glob(pattern)))
    before = {path for path in tmp.rglob("*") if path.is_file()}
    outcome = sandbox.run(*command(work))
    sandbox.check(outcome, before, tmp, work / "out")
    return outcome


@pytest.mark.parametrize("kind", ATTACKS)
def test_the_good_input_passes(place, tmp_path, kind):
    assert attack(place, tmp_path, kind, lambda files: None).code == 0


@pytest.mark.parametrize("thing", STRANGE)
@pytest.mark.parametrize("kind", ATTACKS)
def test_what_is_no_plain_file_is_refused_and_never_waited_on(place, tmp_path, kind, thing):
    def replace_file(files):
        path = next(path for path in files if path.is_file())
        path.unlink()
        STRANGE[thing](path)

    assert attack(place, tmp_path, kind, replace_file).code in (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ATTACKS)
def test_mutated_files(place, tmp_path, kind):
    outcomes = []

    @FUZZ
    @given(mutations(), st.integers(0, 2**16))
    def fuzz(mutate, which):
        def damage(files):
            files = [path for path in files if path.is_file()]
            path = files[which % len(files)]
            path.write_bytes(mutate(path.read_bytes()))

        outcomes.append(attack(place, tmp_path, kind, damage))

    fuzz()
    codes = [outcome.code for outcome in outcomes]
    print(f"{kind}: {len(codes)} inputs, {codes.count(2)} x 2, {codes.count(1)} x 1, {codes.count(0)} harmless")


ODD_VALUES = [None, -1, 10**12, "x", "../../evil", [], {}, float("nan"), True, torch.zeros(3), [[]]]
ODD_VALUES += [torch.zeros(1).expand(10**9), torch.zeros(2, dtype=torch.int64), {"a": 1}, (), b"x"]


def leaves(content, path=()):
    """Paths to everything in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def replace(content, path, value):
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["checkpoint", "best_checkpoint"])
def test_checkpoints_of_whole_files_with_odd_content(place, tmp_path, kind):
    outcomes = []

    @FUZZ
    @given(st.floats(0, 1), st.sampled_from(range(len(ODD_VALUES))))
    def fuzz(where, value):
        def damage(files):
            content = torch.load(files[0], weights_only=True)
            paths = sorted(leaves(content), key=lambda path: (len(path), str(path)))
            replace(content, paths[int(where**3 * (len(paths) - 1))], ODD_VALUES[value])
            torch.save(content, files[0])

        outcomes.append(attack(place, tmp_path, kind, damage).code)

    fuzz()
    print(f"{kind}: {len(outcomes)} contents, {outcomes.count(2)} refused")


class Malicious:
    """Runs a command when it is unpickled carelessly."""

    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return subprocess.call, ([sys.executable, "-c", f"open({str(self.trap)!r}, 'w')"],)


def bomb_npz(path, shape, size):
    """A small .npz of zeros; its header claims the shape, it unpacks to `size` bytes."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("arr_0.npy", "w") as member,
    ):
        member.write(np_header(shape))
        for _ in range(size // 2**20):
            member.write(bytes(2**20))


def idx(*sizes):
    return struct.pack(f">I{len(sizes)}I", 0x800 + len(sizes), *sizes)


def bomb_xml(entity):
    return f'<?xml version="1.0"?><!DOCTYPE a [{entity}]>{ASAP.format("&e;")}'


LAUGHS = '<!ENTITY d "lol">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("dcbazyxwv", "cbazyxwve", strict=True)
)
OUTLINE = '<Annotation Type="Polygon" PartOfGroup="metastases"><Coordinates>{}</Coordinates></Annotation>'
ZIGZAG = "".join(f'<Coordinate Order="{i}" X="{i % 1000}" Y="{(i % 2) * 1000000}"/>' for i in range(70_000))
ASAP = "<ASAP_Annotations><Annotations>{}</Annotations></ASAP_Annotations>"


def bomb_tiff(path, **sizes):
    """A mask of one tile that claims other sizes in its tags."""
    tifffile.imwrite(path, np.ones((256, 256), np.uint8), tile=(256, 256), compression="deflate")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name, value in sizes.items():
            file.pages[0].tags[name].overwrite(value)


def bomb_checkpoint(path, members, size):
    """A zip of zeros that PyTorch could have written, but compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(members):
            with archive.open(f"archive/data/{i}", "w") as member:
                for _ in range(size // 2**20):
                    member.write(bytes(2**20))


def first(write):
    """Damage the first file."""
    return lambda files: write(files[0])


BOMBS = {
    "npz: 10 kB claim 10^9 pixels": ("npz", first(lambda p: bomb_npz(p, (31623, 31623), size=0))),
    "npz: half a gigabyte of zeros": ("npz", first(lambda p: bomb_npz(p, (2**15, 2**15), size=2**29))),
    "npz: half a gigabyte beside a small shape": ("npz", first(lambda p: bomb_npz(p, (32, 32), size=2**29))),
    "npz: the second canvas": ("npz", lambda files: bomb_npz(files[3], (16384, 16384), size=2**28)),
    "npz: objects": ("npz", first(lambda p: np.savez(p, np.array([Malicious(p.parent / "executed")], object)))),
    "npz: brackets": ("npz", first(lambda p: bomb_npz(p, "(" * 4000, size=0))),
    "idx: 10^9 images": ("idx", lambda files: files[-2].write_bytes(idx(10**9, 28, 28))),
    "idx: product beyond 64 bits": ("idx", lambda files: files[-2].write_bytes(idx(2**31, 2**31, 4))),
    "idx: gzip of half a gigabyte": (
        "idx",
        first(lambda p: p.write_bytes(gzip.compress(idx(2**18, 28, 28) + bytes(2**29), 1))),
    ),
    "crop: 10^9 pixels": ("crops", first(lambda p: p.write_bytes(np_header((18258, 18258, 3))))),
    "crop: objects": ("crops", first(lambda p: np.save(p, np.array([Malicious(p.parent / "executed")], object)))),
    "recipe: 10^9 digits": ("recipe", first(lambda p: p.write_bytes(np_header((10**9, 28, 28))))),
    "recipe: objects": ("recipe", first(lambda p: np.save(p, np.array([Malicious(p.parent / "executed")], object)))),
    "json: canvas": ("json", first(lambda p: edit_json(p, canvas=10**9))),
    "json: infinite scale": ("json", first(lambda p: edit_json(p, scale=float("inf")))),
    "json: brackets": ("json", first(lambda p: p.write_text("[" * 10**6))),
    "manifest: brackets": ("manifest", first(lambda p: p.write_text('{"a":' * 10**6))),
    "manifest: outside": ("manifest", first(lambda p: edit_json(p, crc32={"../../../etc/passwd": ["00000000"]}))),
    "csv: outside": ("csv", first(lambda p: p.write_text("img_path,label\n../../../etc/passwd,1\n../../x,0\n"))),
    "crops.csv: outside": ("crops.csv", first(lambda p: p.write_text("file\n../../evil_img.npy\n/etc/evil.npy\n"))),
    "xml: entities of entities": ("xml", first(lambda p: p.write_text(bomb_xml(LAUGHS)))),
    "xml: file": ("xml", first(lambda p: p.write_text(bomb_xml('<!ENTITY e SYSTEM "file:///etc/passwd">')))),
    "xml: outline of 10^8 crossings": ("xml", first(lambda p: p.write_text(ASAP.format(OUTLINE.format(ZIGZAG))))),
    "xml: elements in elements": ("xml", first(lambda p: p.write_text("<a>" * 10**5 + "</a>" * 10**5))),
    "mask: 10^9 pixels": ("tiff_mask", first(lambda p: bomb_tiff(p, ImageWidth=31623, ImageLength=31623))),
    "mask: a tile of 10^9 pixels": ("tiff_mask", first(lambda p: bomb_tiff(p, TileWidth=31616, TileLength=31616))),
    "slide: 10^9 pixels": ("tiff_slide", first(lambda p: bomb_tiff(p, ImageWidth=31623, ImageLength=31623))),
    "slide: a tile of 10^9 pixels": ("tiff_slide", first(lambda p: bomb_tiff(p, TileWidth=31616, TileLength=31616))),
    "checkpoint: half a gigabyte of zeros": ("checkpoint", first(lambda p: bomb_checkpoint(p, 1, 2**29))),
    "checkpoint: runs a command": (
        "checkpoint",
        first(lambda p: torch.save({"a": Malicious(p.parent / "executed")}, p)),
    ),
    "best checkpoint: half a gigabyte of zeros": ("best_checkpoint", first(lambda p: bomb_checkpoint(p, 8, 2**26))),
    "best checkpoint: runs a command": (
        "best_checkpoint",
        first(lambda p: p.write_bytes(pickle.dumps({"state_dict": Malicious(p.parent / "executed")}, protocol=2))),
    ),
}


def np_header(shape):
    """The beginning of a .npy file of bytes."""
    header = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_and_traps(place, tmp_path, bomb):
    """Small files that claim or unpack to a lot, lead elsewhere, or run something."""
    outcome = attack(place, tmp_path, *BOMBS[bomb])
    assert outcome.code in (1, 2), outcome
    assert not list(tmp_path.rglob("executed"))


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_rows_of_an_interrupted_explanation_lead_nowhere(place, tmp_path):
    """Whoever sends a log folder also sends its saliency.part."""
    work = tmp_path / "work"
    shutil.copytree(place / "run", work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_saliency.MapFolder, "publish", lambda maps: None)
        main, argv = explain(work)
        main(list(map(str, argv)))
    rows = work / "out" / "saliency.part" / "rows.jsonl"
    rows.write_text(rows.read_text().replace('"img": 0', '"img": "../../../evil"'))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    outcome = sandbox.run(*explain(work))
    sandbox.check(outcome, before, tmp_path, work / "out")
    assert outcome.code == 0
