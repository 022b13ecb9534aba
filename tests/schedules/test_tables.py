"""Tables: aligned columns of text; for a notebook, what is told is text, whatever it holds."""

from __future__ import annotations

from xml.etree import ElementTree

from deepcache_patch.schedules.tables import aligned, html_table

NASTY = "<script>\"&'</td>"


def test_figures_stand_to_the_right_names_and_the_last_column_to_the_left() -> None:
    rows = [("", "name", "speed", "why"), ("1", "a", "2×", ""), ("12", "bc", "10.5×", "more")]
    assert aligned(rows, 1) == ["    name  speed  why", " 1  a        2×", "12  bc    10.5×  more"]
    assert aligned(rows)[1] == " 1     a     2×"


def test_names_stand_before_their_rows() -> None:
    table = ElementTree.fromstring(html_table(NASTY, [("speed", "2×"), ("", NASTY)]))
    assert [each.tag for each in table] == ["caption", "tr", "tr"]
    assert table[0].text == NASTY
    assert [(cell.tag, cell.text) for cell in table[1]] == [("th", "speed"), ("td", "2×")]
    assert [(cell.tag, cell.text) for cell in table[2]] == [("th", None), ("td", NASTY)]


def test_a_header_names_the_columns() -> None:
    table = ElementTree.fromstring(html_table("t", [(NASTY, "b")], header=("x", NASTY)))
    assert [(cell.tag, cell.text) for cell in table[1]] == [("th", "x"), ("th", NASTY)]
    assert [(cell.tag, cell.text) for cell in table[2]] == [("td", NASTY), ("td", "b")]
    for row in table[1:]:  # figures to the right, and what they are of to the left
        assert ["text-align:right" in cell.attrib["style"] for cell in row] == [True, False]
