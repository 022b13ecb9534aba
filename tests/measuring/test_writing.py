"""Files that are written: whole or not at all, whatever comes between."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepcache_patch.measuring import writing
from deepcache_patch.measuring.writing import write_whole

OLD, NEW = b"old" * 10_000, b"new" * 10_000


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "folder" / "a.json"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


@pytest.fixture
def small_disk(tmp_path):
    """A disk of sixteen KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_several_files_are_written(file):
    other = file.with_name("b.png")
    write_whole({file: NEW, other: b"x"})
    assert (file.read_bytes(), other.read_bytes()) == (NEW, b"x")
    assert sorted(file.parent.iterdir()) == [file, other]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(errno.EIO, "broken")])
@pytest.mark.parametrize(
    ("owner", "call"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"]
)
def test_what_comes_between_leaves_the_old_file(owner, call, error, file, monkeypatch):
    def interrupted(*_):
        raise error

    monkeypatch.setattr(owner, call, interrupted)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        write_whole({file: NEW})
    assert file.read_bytes() == OLD
    assert list(file.parent.iterdir()) == [file]


def test_an_error_of_the_second_file_leaves_both_old(file, tmp_path):
    # The command `compare` once wrote the picture, and then had no room for the figures.
    with pytest.raises(FileNotFoundError, match=r"'.*/missing/b\.json'"):
        write_whole({file: NEW, tmp_path / "missing" / "b.json": b"x"})
    assert file.read_bytes() == OLD
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.slow  # as root, it mounts a disk
def test_a_full_disk_leaves_what_was_there(small_disk):
    file, other = small_disk / "a.json", small_disk / "b.json"
    write_whole({file: b"old"})
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_whole({other: b"x", file: NEW})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(file))
    assert file.read_bytes() == b"old"
    assert list(small_disk.iterdir()) == [file]


@pytest.mark.slow  # as root, it mounts a disk
def test_a_disk_for_reading_only_is_named(small_disk):
    # What was said was of the file beside, which could not be removed either.
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match=r"Read-only file system: '.*/disk/a\.json'"):
        write_whole({small_disk / "a.json": b"x"})
    assert list(small_disk.iterdir()) == []


def test_a_link_stays_and_its_target_is_replaced(file, tmp_path):
    # The link was replaced, and what it pointed at stayed old.
    link = tmp_path / "link.json"
    link.symlink_to(file)
    write_whole({link: NEW})
    assert link.is_symlink()
    assert file.read_bytes() == NEW
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_only_files_are_replaced(kind, tmp_path):
    # As root, writing to /dev/null would have made a file of it.
    place = tmp_path / kind
    if kind == "device":
        place.symlink_to("/dev/full")
        before = os.stat("/dev/full").st_rdev
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(OSError, match=r"Is a directory|Not a regular file") as caught:
        write_whole({place: NEW})
    assert str(place) in str(caught.value)
    assert list(tmp_path.iterdir()) == [place]
    if kind == "device":
        assert os.stat("/dev/full").st_rdev == before


def test_a_long_name_is_no_hindrance(tmp_path):
    # The file beside once had the name and more, which was too long for the system.
    file = tmp_path / ("ü" * 120 + ".json")
    write_whole({file: NEW})
    assert list(tmp_path.iterdir()) == [file]


PACKAGE = str(Path(writing.__file__).parent)
WRITE_FOR_EVER = """
import itertools, json, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
sys.path.append(sys.argv[3])
from writing import write_whole  # alone: the package brings torch along
path = Path(sys.argv[1])
for number in itertools.count(int(sys.argv[2])):
    write_whole({path: json.dumps([number] * 20_000).encode()})
    print("written", flush=True)
"""


@pytest.mark.parametrize(
    ("sent", "kills"),
    [
        (signal.SIGKILL, 1),
        (signal.SIGINT, 1),
        pytest.param(signal.SIGKILL, 25, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 25, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_is_killed_leaves_a_whole_file(sent, kills, tmp_path):
    file = tmp_path / "a.json"
    file.write_text("[0, 0]")
    for kill in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, file, str(1000 * kill), PACKAGE],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        process.stdout.readline()
        time.sleep(0.0013 * (kill % 9))  # somewhere within a write
        process.send_signal(sent)
        process.communicate()
        assert process.returncode == -sent
        numbers = json.loads(file.read_text())
        assert len(numbers) == 20_000
        assert len(set(numbers)) == 1
        beside = [path for path in tmp_path.iterdir() if path != file]
        if sent == signal.SIGINT:
            assert beside == []
        assert all(path.suffix == ".partial" for path in beside)
        for path in beside:
            Path(path).unlink()
