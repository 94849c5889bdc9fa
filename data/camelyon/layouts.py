"""What a tree of made slides looks like: folders, names, scanners, lesions and labels of CAMELYON17 and CAMELYON16.

A layout says of a slide whether it has "many" lesions, one "large" one or "none".
"""

from pathlib import Path

from common.files import atomic_open
from data.camelyon import slides


class Camelyon17:
    """Five centres; the annotated slides have CAMELYON17's names."""

    folders = ("annotations", "masks", "training", *(f"training/center_{centre}" for centre in range(5)))
    labels = "stage_labels.csv"
    mpp = (0.2431, 0.2426, 0.2428, 0.25, 0.2501)  # level-0 microns per pixel of each centre's scanner
    groups = ("metastases", "normal")  # of annotations: lesions, and the last one of cut-outs
    hollow = 1  # which lesion has a cut-out: the largest
    set_areas = (8, 40, 70, 110, 160, 220, 300, 400, 700, 1500, 4000)  # lesions of a set, pixels of level 3
    large = 36000  # pixels of level 3: more than a tenth of a crop of 512

    centre_of = staticmethod(slides.centre_of)

    def slide_names(self, annotated: int, negative: int) -> dict[str, str]:
        """Name -> "many" lesions, one "large" lesion or "none", of each centre so many annotated and negative ones."""
        names = {}
        for centre in range(5):
            own = [name for name in sorted(slides.ANNOTATED) if slides.centre_of(name) == centre]
            names |= dict.fromkeys(own[:annotated], "many")
            if annotated > 1:
                names[own[:annotated][-1]] = "large"
            others = (f"patient_{20 * centre + 19 - i % 20:03}_node_{i // 20}" for i in range(100))
            names |= dict.fromkeys([name for name in others if name not in slides.ANNOTATED][:negative], "none")
        return dict(sorted(names.items()))

    def files_of(self, name: str, found: str, out: Path) -> list[Path]:
        """Where a slide lies, and then, unless it has none of them, its lesions' outlines and mask."""
        slide = out / "training" / f"center_{slides.centre_of(name)}" / f"{name}.tif"
        return [slide] + [out / "annotations" / f"{name}.xml", out / "masks" / f"{name}_mask.tif"] * (found != "none")

    def areas(self, found: str, lesion_sets: int, shape: tuple[int, int]) -> tuple[int, ...]:
        """Areas of a slide's lesions, pixels of level 3."""
        return {"many": self.set_areas * lesion_sets, "large": (self.large,), "none": ()}[found]

    def write_labels(self, path: Path, lesions: dict[str, str]) -> None:
        """Write stage_labels.csv: rows of patients and of slides; 086_0 is labelled negative, as in CAMELYON17."""
        patients = {f"{name[:11]}.zip": "pN0" if found == "none" else "pN1" for name, found in lesions.items()}
        healthy = {name: found == "none" or name == "patient_086_node_0" for name, found in lesions.items()}
        rows = patients | {f"{name}.tif": "negative" if negative else "macro" for name, negative in healthy.items()}
        with atomic_open(path, "w") as file:
            file.write("patient,stage\n" + "".join(f"{name},{rows[name]}\n" for name in sorted(rows)))


class Camelyon16:
    """Two centres; a training and a test set. Lesions are large, since a patch of 768 px must lie in one as a whole."""

    folders = (
        "training",
        "training/normal",
        "training/tumor",
        "training/lesion_annotations",
        "testing",
        "testing/images",
        "testing/lesion_annotations",
    )
    labels = "testing/reference.csv"
    mpp = (0.2431, 0.2265)
    groups = ("Tumor", "_0", "_1", "_2")
    hollow = 2
    shares = (0.1, 0.05, 0.025, 0.005, 0.001)  # lesions of a set, of the slide's area

    def centre_of(self, name: str) -> int:
        """Slides come from both centres in turn."""
        return int(name[-3:]) % 2

    def slide_names(self, annotated: int, negative: int) -> dict[str, str]:
        """Name -> "many" lesions or "none": so many of training, and so many of test, which has them in turn."""
        training = {f"tumor_{i + 1:03}": "many" for i in range(annotated)}
        training |= {f"normal_{i + 1:03}": "none" for i in range(negative)}
        found = sorted([(i, "many") for i in range(annotated)] + [(i, "none") for i in range(negative)])
        return training | {f"test_{i:03}": kind for i, (_, kind) in enumerate(found, 1)}

    def files_of(self, name: str, found: str, out: Path) -> list[Path]:
        """Where a slide lies, and then, if it has any, its lesions' outlines."""
        kind = name.split("_")[0]
        slide, part = ("testing/images", "testing") if kind == "test" else (f"training/{kind}", "training")
        return [out / slide / f"{name}.tif"] + [out / part / f"lesion_annotations/{name}.xml"] * (found != "none")

    def areas(self, found: str, lesion_sets: int, shape: tuple[int, int]) -> tuple[int, ...]:
        """Areas of a slide's lesions, pixels of level 3, for a slide of this shape there."""
        areas = tuple(round(share * shape[0] * shape[1]) for share in self.shares * lesion_sets)
        return areas if found == "many" else ()

    def write_labels(self, path: Path, lesions: dict[str, str]) -> None:
        """Write reference.csv as CAMELYON16's: slide, Tumor or Normal, kind and size of tumour; no header."""
        kinds = {"many": "Tumor,IDC,Macro", "none": "Normal,None,None"}
        rows = [f"{name},{kinds[found]}\n" for name, found in sorted(lesions.items()) if name.startswith("test_")]
        with atomic_open(path, "w") as file:
            file.write("".join(rows))


LAYOUTS = {"camelyon17": Camelyon17(), "camelyon16": Camelyon16()}
