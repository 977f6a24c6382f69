"""`adakv picture`: what is drawn where, read back from the PNG."""

import json
import sys

import pytest
from PIL import Image

from adakv_sglang.cli.heat_map import MASS, PAPER, Layout, colour, draw, scale_end


@pytest.fixture
def picture(adakv, stub):
    """Runs `adakv picture ...` against the stub server."""
    return lambda *arguments: adakv("picture", "--url", stub.url, *arguments)


def test_the_file_is_a_png_of_the_context(picture, stub, tmp_path):
    stub.add("aaaa1111")
    out = tmp_path / "budgets.png"
    status, said, err = picture("aaaa", "--out", out)
    with Image.open(out) as image:
        assert image.format == "PNG" and image.size == Layout.of(4, 2).size
        assert (status, said, err) == (0, f"{out}: {image.width} x {image.height} pixels\n", "")


def test_every_head_has_the_colour_of_its_budget():
    budgets = [[10 * layer + head for head in range(3)] for layer in range(40)]
    found = {"id": "a", "tokens": 400, "slots": 200, "head_budgets": budgets}
    image, layout = draw(found), Layout.of(40, 3)
    for layer, row in enumerate(budgets):
        for head, kept in enumerate(row):
            corner = (layout.left + head * layout.cell_width + 2, layout.top + layer * layout.cell_height + 2)
            assert image.getpixel(corner) == colour(kept / 400), (layer, head)


def test_every_layer_has_a_bar_as_long_as_its_mass():
    masses = [layer / 40 for layer in range(41)]
    image = draw({"id": "a", "tokens": 9, "head_budgets": [[5]] * 41, "retained_mass_per_layer": masses})
    layout = Layout.of(41, 1)
    for layer, mass in enumerate(masses):
        y = layout.top + layer * layout.cell_height + layout.cell_height // 2
        row = [image.getpixel((layout.panel_left + x, y)) for x in range(321)]
        assert abs(row.count(MASS) - 320 * mass) <= 4  # the line at the mean covers some


def test_the_colours_go_from_dark_to_bright():
    shades = [colour(step / 100) for step in range(101)]
    brightness = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in shades]
    assert brightness == sorted(brightness)
    assert colour(-1) == shades[0] and colour(2) == shades[-1]


@pytest.mark.parametrize(
    ("largest", "tokens", "end"),
    [
        (0, 0, 1),
        (1, 100, 1),
        (7, 100, 8),
        (90, 1000, 100),
        (101, 1000, 200),
        (930, 950, 950),
        (4100, 9000, 5000),
    ],
)
def test_the_scale_ends_at_a_round_number_and_not_above_the_tokens(largest, tokens, end):
    assert scale_end(largest, tokens) == end


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 40), (30, 3), (128, 64), (200, 1)])
def test_any_shape_fits_and_leaves_a_margin(layers, heads):
    image = draw({"id": "f" * 24, "tokens": 131072, "slots": 9, "head_budgets": [[131072] * heads] * layers})
    width, height = image.size
    assert 800 <= width <= 2500 and 600 <= height <= 2600
    edges = [
        image.crop(box)
        for box in ((0, 0, width, 20), (0, height - 20, width, height), (width - 20, 0, width, height))
    ]
    assert all(edge.getcolors() == [(edge.width * edge.height, PAPER)] for edge in edges)


def test_a_context_that_is_gone_has_no_picture(picture, stub, tmp_path):
    stub.add("aaaa1111", state="evicted")
    status, _, err = picture("aaaa", "--out", tmp_path / "a.png")
    assert (
        status == 1
        and err == "adakv: aaaa1111: expected a ready context, got one that is evicted; prepare it again\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_without_pillow_it_says_what_to_install(picture, stub, tmp_path, monkeypatch):
    stub.add("aaaa1111")
    monkeypatch.delitem(sys.modules, "adakv_sglang.cli.heat_map", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    status, _, err = picture("aaaa", "--out", tmp_path / "a.png")
    assert status == 1 and "pictures need Pillow" in err and err.endswith("run: pip install pillow\n")


def test_where_it_cannot_be_written_is_wrong_usage(picture, stub, tmp_path):
    stub.add("aaaa1111")
    status, _, err = picture("aaaa", "--out", tmp_path / "none" / "a.png")
    assert status == 2 and err.endswith("a.png: cannot be written (No such file or directory)\n")
    assert picture("aaaa", "--out", "a.jpg")[0] == 2
    assert picture("aaaa")[0] == 2


def test_json_names_the_file(picture, stub, tmp_path):
    stub.add("aaaa1111")
    found = json.loads(picture("aaaa", "--out", tmp_path / "a.PNG", "--json")[1])
    assert found["id"] == "aaaa1111" and found["file"] == str(tmp_path / "a.PNG")
