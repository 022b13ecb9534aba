"""What `docs/design.md` draws of the package's rooms is what the imports are; rooms have maps."""

import ast
from itertools import permutations
from pathlib import Path

import pytest

grimp = pytest.importorskip("grimp", reason="grimp is not installed: it comes with import-linter")

ROOT = Path(__file__).resolve().parents[2]
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
HOUSE = DESIGN.partition("## The house")[2].partition("\n## ")[0]
PACKAGE = "deepcache_patch"
#: Known by everything, or knowing only the way in.
GROUND = {"errors", "versions"}
DOOR = "__main__"
#: Whose first paragraphs say of each module what it is for.
MAPPED = [
    *("settings", "inspection", "learning", "measuring"),
    *("running", "schedules", "cutting", "patching"),
    *("running/locating", "running/watching", "running/pipeline"),
]


@pytest.fixture(scope="module")
def arrows():
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    rooms = {name.split(".")[1] for name in graph.find_children(PACKAGE)} - GROUND - {DOOR}
    return {
        (above, below)
        for above, below in permutations(rooms, 2)
        if graph.direct_import_exists(
            importer=f"{PACKAGE}.{above}", imported=f"{PACKAGE}.{below}", as_packages=True
        )
    }


def reached_from(room, arrows):
    below = {end for start, end in arrows if start == room}
    return below.union(*(reached_from(each, arrows) for each in below))


def test_the_arrows_drawn_are_the_imports_less_those_that_others_lead_to(arrows):
    needed = {
        (above, below)
        for above, below in arrows
        if below not in reached_from(above, arrows - {(above, below)})
    }
    lines = HOUSE.partition("```mermaid")[2].partition("```")[0].splitlines()
    drawn = [tuple(line.split()[::2]) for line in lines if "-->" in line]
    assert sorted(drawn) == sorted(needed)


def test_the_table_names_every_room_once(arrows):
    rows = [line.split("|")[1] for line in HOUSE.splitlines() if line.startswith("| `")]
    named = [name.strip(" `/").removesuffix(".py") for row in rows for name in row.split(",")]
    rooms = {room for arrow in arrows for room in arrow}
    assert sorted(named) == sorted(rooms | GROUND)


@pytest.mark.parametrize("room", MAPPED)
def test_the_map_of_a_room_names_each_of_its_modules(room):
    folder = ROOT / "src" / PACKAGE / room
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    modules = {each.stem for each in folder.iterdir() if each.suffix == ".py" or each.is_dir()}
    missing = {name for name in modules if not name.startswith("__") and f"`{name}`" not in text}
    assert not missing
