import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from common.errors import BadInput
from data.slides import annotations, lesion_mask
from tests.data.slides.oracle import mask_window, polygons_of

SHAPE = (90, 110)


def random_polygons(rng, n, corners=7, decimals=0):
    """Self-crossing polygons that reach beyond a level of SHAPE pixels, in level-0 coordinates of level 2."""
    return [(rng.uniform(-40, 480, (corners, 2))).round(decimals) for _ in range(n)]


@pytest.mark.parametrize("decimals", [0, 2])
def test_mask_follows_the_winding_rule_for_self_crossing_polygons_and_cut_outs(decimals):
    rng = np.random.default_rng(decimals)
    for _ in range(10):
        lesions, cut_outs = random_polygons(rng, 3, decimals=decimals), random_polygons(rng, 1, decimals=decimals)
        mask = lesion_mask.mask_from_polygons(lesions, cut_outs, 2, SHAPE)
        expected, unsure = mask_window(lesions, cut_outs, 2, 0, 0, *SHAPE)
        agrees = mask.window(0, 0, *SHAPE) == expected
        assert (agrees | unsure).all()
        assert expected.any()


def test_any_window_is_a_part_of_the_whole():
    mask = lesion_mask.mask_from_polygons(random_polygons(np.random.default_rng(1), 4), [], 2, SHAPE)
    whole = mask.window(0, 0, *SHAPE)
    for y, x, height, width in [(0, 0, 1, 1), (10, 20, 30, 40), (80, 100, 10, 10)]:
        assert (mask.window(y, x, height, width) == whole[y : y + height, x : x + width]).all()
    assert not mask.window(200, 0, 5, 5).any()


def test_lesions_are_the_8_connected_components_in_raster_order():
    rng = np.random.default_rng(2)
    for density in (0.02, 0.2, 0.4):
        pixels = rng.random(SHAPE) < density
        mask = lesion_mask.LesionMask(SHAPE, lesion_mask.array_runs(pixels, 0, 0))
        labels, n = ndimage.label(pixels, np.ones((3, 3)))
        assert (mask.window(0, 0, *SHAPE) == pixels).all()
        firsts = [np.flatnonzero(labels == label)[0] for label in range(1, n + 1)]
        found = mask.lesions()
        assert [lesion.number for lesion in found] == list(range(1, n + 1))
        for lesion, label in zip(found, np.argsort(firsts) + 1, strict=True):
            rows, columns = ndimage.find_objects((labels == label).astype(int))[0]
            box = (rows.start, rows.stop, columns.start, columns.stop)
            assert (lesion.top, lesion.bottom, lesion.left, lesion.right) == box
            assert lesion.area == (labels == label).sum()


@pytest.mark.slow
def test_real_annotations_follow_the_winding_rule():
    folder = Path(os.environ.get("CAMELYON_FIXTURES", "")) / "camelyon16" / "lesion_annotations"
    files = sorted(folder.glob("*.xml"))
    if not files:
        pytest.skip("needs real annotations: set CAMELYON_FIXTURES to the folder of camelyon16/lesion_annotations")
    rng = np.random.default_rng(3)
    for path in files:
        read = annotations.read_xml(path)
        lesions, cut_outs = polygons_of(path, {"Tumor", "_0", "_1"}), polygons_of(path, {"_2"})
        assert (len(read[0]), len(read[1])) == (len(lesions), len(cut_outs))
        for level in (3, 4, 5, 6):
            shape = tuple(int(max(ring[:, axis].max() for ring in lesions)) // 2**level + 3 for axis in (1, 0))
            mask = lesion_mask.mask_from_polygons(*read[:2], level, shape)
            for ring in [lesions[i] for i in rng.integers(len(lesions), size=2)] + cut_outs[:1]:
                x, y = (ring[rng.integers(len(ring))] / 2**level - 12).astype(int).clip(0)  # where an outline runs
                expected, unsure = mask_window(lesions, cut_outs, level, y, x, 24, 24)
                assert ((mask.window(y, x, 24, 24) == expected) | unsure).all(), (path, level, y, x)


def xml(*items):
    """An ASAP file of (type, group, points) items."""
    text = ""
    for kind, group, points in items:
        coordinates = "".join(
            f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in reversed([*enumerate(points)])
        )
        text += f'<Annotation Name="a" Type="{kind}" PartOfGroup="{group}"><Coordinates>{coordinates}</Coordinates>'
        text += "</Annotation>"
    return f"<ASAP_Annotations><Annotations>{text}</Annotations></ASAP_Annotations>"


SQUARE = [(0, 0), (40, 0), (40, 40), (0, 40)]


def test_groups_and_types_of_asap(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(
        xml(
            ("Polygon", "metastases", SQUARE),
            ("Rectangle", "Tumor", SQUARE),
            ("Spline", "_1", SQUARE),
            ("Polygon", "normal", SQUARE),
            ("Polygon", "_2", SQUARE),
            ("Dot", "metastases", [("", "")]),
            ("Polygon", "metastases", SQUARE[:2]),
            ("Polygon", "stroma", SQUARE),
        )
    )
    lesions, cut_outs, ignored = annotations.read_xml(path)
    assert (len(lesions), len(cut_outs)) == (3, 2)
    assert all((ring == SQUARE).all() for ring in lesions + cut_outs)  # in the order of Order, not of the file
    assert ignored == Counter(
        {
            "annotation of type Dot ignored": 1,
            "annotation of fewer than three points ignored": 1,
            "annotation of group stroma ignored": 1,
        }
    )


def grouped(group, *groups):
    """An ASAP file of one square in a group, with these (name, parent) groups."""
    listed = "".join(f'<Group Name="{name}" PartOfGroup="{parent}"/>' for name, parent in groups)
    text = xml(("Polygon", group, SQUARE))
    return text.replace("</Annotations>", f"</Annotations><AnnotationGroups>{listed}</AnnotationGroups>")


@pytest.mark.parametrize(
    ("text", "lesions", "cut_outs"),
    [
        (grouped(" metastases "), 1, 0),
        (grouped("macro", ("macro", "metastases"), ("metastases", "None")), 1, 0),
        (grouped("a", ("c", " Tumor"), ("b ", "c"), ("a", "B")), 1, 0),
        (grouped("hole", ("hole", "normal")), 0, 1),
        (grouped("normal", ("normal", "metastases")), 0, 1),  # the nearest group decides
        (grouped("a", ("a", "b"), ("b", "a")), 0, 0),
        (grouped("a", ("a", "a")), 0, 0),
        (grouped("None", ("", "metastases")), 0, 0),
    ],
)
def test_a_group_means_what_the_first_known_one_above_it_means(tmp_path, text, lesions, cut_outs):
    (tmp_path / "a.xml").write_text(text)
    found = annotations.read_xml(tmp_path / "a.xml")
    assert (len(found[0]), len(found[1])) == (lesions, cut_outs)
    assert sum(found[2].values()) == 1 - lesions - cut_outs


def test_decimal_commas_are_read(tmp_path):
    points = [(x + 0.5, y + 0.25) for x, y in SQUARE]
    text = xml(("Polygon", "Tumor", [(str(x).replace(".", ","), str(y).replace(".", ",")) for x, y in points]))
    (tmp_path / "a.xml").write_text(text)
    assert (annotations.read_xml(tmp_path / "a.xml")[0][0] == points).all()


def test_an_outline_between_pixels_is_counted():
    mask = lesion_mask.mask_from_polygons([np.array([(1, 1), (3, 1), (3, 3)])], [], 3, SHAPE)
    assert mask.lesions() == []
    assert mask.notes == {"outline holds no pixel at this level": 1}


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><ASAP_Annotations>&c;</ASAP_Annotations>'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (BOMB, "DTD"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><ASAP_Annotations/>', "DTD"),
        ("<ASAP_Annotations>", "not an XML file"),
        ("<html><body>404</body></html>", "expected ASAP_Annotations, found html"),
        (xml(("Polygon", "Tumor", [(0, "nan"), (1, 1), (2, 2)])), "coordinate"),
        (xml(("Polygon", "Tumor", [(0, "1e300"), (1, 1), (2, 2)])), "coordinate"),
        (xml(("Polygon", "Tumor", SQUARE)).replace("Order", "Rank"), "coordinate.*Order None, X '0'"),
        (xml(("Polygon", "Tumor", [("512;5", 1), (1, 1), (2, 2)])), "coordinate.*'512;5'"),
        (xml(*[("Polygon", "Tumor", SQUARE[:3])] * 10_001), "more than 10,000 outlines"),
        (f'<ASAP_Annotations a="{"a" * 2**24}"/>', "expected 16,777,216 at most"),
        (f"<ASAP_Annotations>{' ' * 2**24}</ASAP_Annotations>", "expected 16,777,216 at most"),
    ],
)
def test_unusable_xml_is_named_in_one_line(tmp_path, text, complaint):
    path = tmp_path / "patient_004_node_4.xml"
    path.write_text(text)
    with pytest.raises(BadInput, match=complaint) as error:
        annotations.read_xml(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_memory_hangs_on_outlines_not_on_area():
    side = 200_000
    ring = np.array([(0, 0), (side, 0), (side, side), (0, side)])
    mask = lesion_mask.mask_from_polygons([ring], [], 0, (side, side))
    assert len(mask.runs.rows) == side
    assert mask.lesions()[0].area == side**2


def test_many_outlines_may_not_cross_more_rows_together_than_one(monkeypatch):
    ring = np.array([(0, 0), (80, 0), (80, 80), (0, 80)])  # 10 rows down and 10 up
    monkeypatch.setattr(lesion_mask, "MAX_CROSSINGS", 100)
    assert lesion_mask.mask_from_polygons([ring] * 4, [ring], 3, SHAPE).lesions() == []
    with pytest.raises(BadInput, match="cross 120 rows of pixels, expected 100 at most"):
        lesion_mask.mask_from_polygons([ring] * 4, [ring] * 2, 3, SHAPE)


@pytest.mark.parametrize("item", ["<a/>" * 1000, "<a " + " ".join(f"a{i}=''" for i in range(1000)) + "/>"])
def test_elements_and_attributes_are_counted(tmp_path, monkeypatch, item):
    monkeypatch.setattr(annotations, "MAX_ELEMENTS", 1000)
    (tmp_path / "a.xml").write_text(f"<ASAP_Annotations>{item}</ASAP_Annotations>")
    with pytest.raises(BadInput, match=r"a\.xml: has more than 1,000 elements"):
        annotations.read_xml(tmp_path / "a.xml")


def test_long_attributes_are_read_once(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(f'<ASAP_Annotations a="{"a" * 8_000_000}"/>')
    started = time.process_time()
    annotations.read_xml(path)
    assert time.process_time() - started < 1
