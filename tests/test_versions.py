"""Versions outside the tested range warn, once and by name; the range is the same everywhere."""

import configparser
import re
import runpy
import warnings
from importlib import import_module
from pathlib import Path

import pytest
from builders.unets import unet2d
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from deepcache_patch import DeepCacheHelper, DeepCacheWarning, Uniform
from deepcache_patch.versions import TESTED, warn_of_untested

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _first_helper():
    """As if no helper had been made in this process yet."""
    warn_of_untested.cache_clear()
    yield
    warn_of_untested.cache_clear()


@pytest.fixture
def warned(monkeypatch):
    """What the warnings of two helpers say when a package is of the version that is given."""

    def messages(package, version):
        monkeypatch.setattr(import_module(package), "__version__", version)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            DeepCacheHelper(unet2d(), schedule=Uniform())
            DeepCacheHelper(unet2d(), schedule=Uniform())
        assert [(each.category, each.filename) for each in caught] == (
            [(DeepCacheWarning, __file__)] * len(caught)
        )
        return [str(each.message) for each in caught]

    return messages


OUTSIDE = [
    ("torch", "2.3.1"),
    ("torch", "1.13.1+cu117"),
    ("torch", "2.99.0.dev20300101+cpu"),
    ("diffusers", "0.34.0"),
    ("diffusers", "0.99.0.dev0"),
    ("diffusers", "1.0.0"),
    ("wrapt", "1.15.0"),
    ("wrapt", "3.0.0rc1"),
    ("numpy", "1.25.2"),
    ("numpy", "a build of my own"),
]


@pytest.mark.parametrize(("package", "version"), OUTSIDE)
def test_a_version_outside_the_range_warns_once_and_by_name(warned, package, version):
    oldest, newest = TESTED[package]
    assert warned(package, version) == [
        f"{package} {version} is not tested with deepcache_patch, {oldest} to {newest} are: "
        "compare pictures without and with the helper, or install one of those"
    ]


INSIDE = [
    *((package, bound) for package, bounds in TESTED.items() for bound in bounds),
    ("torch", "2.13.0+cpu"),
    ("torch", "2.4.0a0+07cecf4168.nv24.05"),
    ("diffusers", "0.42.99"),
    ("diffusers", "0.36.0.dev0"),
    ("wrapt", "2.0.0rc1"),
]


@pytest.mark.parametrize(("package", "version"), INSIDE)
def test_a_version_inside_the_range_does_not_warn(warned, package, version):
    assert warned(package, version) == []


def test_the_versions_that_run_this_are_inside(warned):
    assert warned("torch", import_module("torch").__version__) == []


# --- the range wherever it stands ---------------------------------------------------------------


def minor(version):
    return ".".join(map(str, Version(version).release[:2]))


def pins(*names):
    """Package -> all versions that the constraints files pin, for one Python or another."""
    found = {}
    for name in names:
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                requirement = Requirement(line)
                (pin,) = requirement.specifier
                assert pin.operator == "=="
                found.setdefault(requirement.name, set()).add(pin.version)
    return found


OLDEST, NEWEST = "constraints-oldest.txt", "constraints.txt"


@pytest.fixture(scope="module")
def metadata():
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


@pytest.fixture(scope="module")
def matrix():
    return runpy.run_path(str(ROOT / ".ci" / "matrix.py"))


def test_the_range_is_that_of_the_constraints_files():
    pinned = pins(OLDEST, NEWEST)
    assert {
        name: (minor(min(pinned[name], key=Version)), minor(max(pinned[name], key=Version)))
        for name in TESTED
    } == TESTED


def test_the_metadata_states_the_oldest_version_of_each_package_and_shuts_out_none_newer(metadata):
    lines = metadata["options"]["install_requires"].split("\n")
    requirements = [Requirement(line) for line in lines if line]
    oldest = {name: bounds[0] for name, bounds in TESTED.items()}
    # What compares versions, and what reads the command line, are not themselves in the range; they
    # have to be there, though.
    assert {each.name: str(each.specifier) for each in requirements} == {
        **{name: f">={version}" for name, version in oldest.items()},
        **{name: f">={minor(*pins(OLDEST)[name])}" for name in ("packaging", "click")},
    }
    # The bound is the very release that is run, not a later patch of it.
    for each in requirements:
        (bound,) = each.specifier
        assert Version(bound.version) == min(map(Version, pins(OLDEST)[each.name]))


def test_the_table_of_versions_is_that_of_the_matrix_and_nothing_fails_in_it(matrix):
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    table = text.partition("<!-- versions -->")[2].partition("<!-- end of versions -->")[0]
    header, _, *rows = [line.strip("| ").split(" | ") for line in table.strip().splitlines()]
    runs = [dict(zip(header, row, strict=True)) for row in rows]
    assert header == ["set", "Python", *matrix["PACKAGES"], *matrix["COUNTS"]]
    assert [(run["set"], run["Python"]) for run in runs] == matrix["chosen"]([])
    assert {run["failed"] for run in runs} == {"0"}
    for name, files in {"oldest": [OLDEST], "newest": [NEWEST]}.items():
        for package, versions in pins(*files).items():
            if package in header:
                assert {run[package] for run in runs if run["set"] == name} == versions


def test_the_pythons_of_the_metadata_are_those_of_the_matrix(metadata, matrix):
    classifiers = metadata["metadata"]["classifiers"].split("\n")
    pythons = [
        line.rpartition(" ")[2] for line in classifiers if re.search(r"Python :: 3\.\d+$", line)
    ]
    assert tuple(pythons) == matrix["PYTHONS"]
    assert SpecifierSet(metadata["options"]["python_requires"]) == SpecifierSet(f">={pythons[0]}")
    assert {python for _, python in matrix["chosen"]([])} == set(pythons)


def test_the_core_tests_are_those_of_every_folder_but_the_ones_left_out(matrix):
    tests = ROOT / "tests"
    core = [Path(name).relative_to(tests).as_posix() for name in matrix["core_tests"]()]
    every = {file.relative_to(tests).as_posix() for file in tests.rglob("test_*.py")}
    left_out = {
        name for name in every if name.startswith(("benchmarks/", "documents/", "examples/"))
    }
    assert every - set(core) == left_out | {"running/test_processes.py", "test_zoo.py"}
    assert len(core) == len(set(core))
    assert all((tests / name).exists() for name in matrix["NOT_CORE"])
