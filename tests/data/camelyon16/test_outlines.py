import json

import numpy as np
import pytest

from common.errors import BadInput
from data.camelyon16 import outlines
from tests.data.slides.oracle import winding_numbers

XML = """<ASAP_Annotations><Annotations>
<Annotation Name="one" Type="Polygon" PartOfGroup="Tumor"><Coordinates>
<Coordinate Order="0" X="0.4" Y="0" /><Coordinate Order="1" X="4000.6" Y="0" /><Coordinate Order="2" X="0" Y="3000" />
</Coordinates></Annotation>
<Annotation Name="two" Type="Polygon" PartOfGroup="_1"><Coordinates>
<Coordinate Order="1" X="9" Y="1" /><Coordinate Order="0" X="1" Y="1" /><Coordinate Order="2" X="1" Y="9" />
</Coordinates></Annotation>
<Annotation Name="hole" Type="Polygon" PartOfGroup="_2"><Coordinates>
<Coordinate Order="0" X="1" Y="1" /><Coordinate Order="1" X="9" Y="1" /><Coordinate Order="2" X="1" Y="9" />
</Coordinates></Annotation>
<Annotation Name="dot" Type="Dot" PartOfGroup="Tumor"><Coordinates>
<Coordinate Order="0" X="1" Y="1" /></Coordinates></Annotation>
</Annotations></ASAP_Annotations>"""


def test_annotations_become_lists_of_tumour_and_normal(tmp_path):
    (tmp_path / "slide.xml").write_text(XML)
    outlines.write_outlines(tmp_path / "slide.xml", tmp_path)
    assert json.loads((tmp_path / "slide.json").read_text()) == {
        "tumor": [
            {"name": "one", "vertices": [[0, 0], [4001, 0], [0, 3000]]},
            {"name": "two", "vertices": [[1, 1], [9, 1], [1, 9]]},
        ],
        "normal": [{"name": "hole", "vertices": [[1, 1], [9, 1], [1, 9]]}],
    }


def write_json(path, tumor, normal=()):
    content = {"tumor": tumor, "normal": normal}
    named = {kind: [{"name": "", "vertices": ring} for ring in rings] for kind, rings in content.items()}
    path.write_text(json.dumps(named))
    return path


@pytest.mark.parametrize("level", [0, 3])
def test_a_pixel_is_tumour_where_its_centre_lies_in_a_polygon(tmp_path, level):
    rng, shape = np.random.default_rng(level), (40, 50)
    ring = rng.integers(-20, 60, (6, 2)) * 2**level + 1
    mask = outlines.draw_mask(write_json(tmp_path / "a.json", [ring.tolist()]), level, shape)
    centres = [(np.arange(side) + 0.5) * 2**level - 0.5 for side in shape]
    winding, on_edge = winding_numbers(ring.astype(float), centres[1], centres[0])
    agrees = (mask == outlines.TUMOR) == (winding != 0)
    assert (agrees | on_edge).all() and set(np.unique(mask)) == {0, outlines.TUMOR}


def test_cut_outs_lie_over_tumour_wherever_they_are(tmp_path):
    def square(low, high):
        return [[low, low], [high, low], [high, high], [low, high]]

    path = write_json(tmp_path / "a.json", [square(0, 10), square(0, 10)], [square(4, 14)])
    mask = outlines.draw_mask(path, 0, (20, 20))
    expected = np.zeros((20, 20), int)
    expected[:10, :10], expected[4:14, 4:14] = 127, 255
    assert (mask == expected).all()


@pytest.mark.parametrize("vertices", ["3", "[[1, 2, 3], [4, 5, 6]]", "[1, 2]", "[[1e99, 2]]", "[[NaN, 2]]", '"ab"'])
def test_vertices_that_are_no_points_are_named(tmp_path, vertices):
    (tmp_path / "a.json").write_text(f'{{"tumor": [{{"vertices": {vertices}}}]}}')
    with pytest.raises(BadInput, match=r"a\.json: expected tumor: a list of name and vertices"):
        outlines.read_rings(tmp_path / "a.json", "tumor")


@pytest.mark.parametrize("content", ["[]", "{}", '{"tumor": 3}', '{"tumor": [{}]}', "not JSON"])
def test_what_is_no_outline_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(BadInput, match=r"a\.json: (expected|not a JSON file)"):
        outlines.read_rings(tmp_path / "a.json", "tumor")
