"""The pictures that the model `emoji` learns: emoji of two styles, with their names.

Two npm packages hold the artwork. They are fetched once, checked, and never become part of this
project. Here live the choice of emoji, their prompts, and how a training picture is drawn from an
artwork: shifted, scaled, on a plain background, never mirrored. Nothing here is about learning.
"""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.train.training import TRAINING_SEED, drawn_once

CATEGORIES = ("Animals & Nature", "Food & Drink", "Objects", "Activities", "Travel & Places")
#: Emoji in these categories, in version 16.0.0 of the packages.
NAMES = 857
CANVAS = 64
#: Of the artwork's own size; with the shift the whole artwork stays inside.
SCALES = (0.84, 0.93)
#: In pixels, to either side.
SHIFT = 2.0
#: Grey of the background, and how far each colour may be off it.
SHADES, TINT = (140, 235), 10


@dataclass(frozen=True)
class Package:
    """An npm package of artwork.

    Attributes:
        name: On npm.
        version: Exactly this one.
        integrity: SHA-512 of the archive, as npm writes it.
        folder: Of the pictures of 64x64 pixels, inside the archive.
        style: How prompts name the style.
    """

    name: str
    version: str
    integrity: str
    folder: str
    style: str


PACKAGES = (
    Package(
        "emoji-datasource-google",
        "16.0.0",
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "package/img/google/64",
        "noto",
    ),
    Package(
        "emoji-datasource-twitter",
        "16.0.0",
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "package/img/twitter/64",
        "twemoji",
    ),
)


@dataclass(frozen=True)
class Emoji:
    """One emoji in one style: its name in lower case, the style, and the file of its picture."""

    name: str
    style: str
    image: str

    @property
    def prompt(self) -> str:
        """What asks for it, as in "crescent moon, noto"."""
        return f"{self.name}, {self.style}"


@dataclass(frozen=True)
class Look:
    """How one training picture differs from its artwork.

    Attributes:
        shift: To the right and downwards, in pixels.
        scale: Size as a share of the artwork's own.
        shade: Colour of the background.
    """

    shift: tuple[float, float]
    scale: float
    shade: tuple[int, int, int]


def select(entries: Iterable[dict[str, Any]]) -> list[Emoji]:
    """The emoji of the chosen categories that both packages have a picture of.

    Args:
        entries: The contents of ``emoji.json``.

    Returns:
        First all of one style, then all of the other, in the order of the entries.
    """
    chosen = [
        entry
        for entry in entries
        if entry["category"] in CATEGORIES and entry["has_img_google"] and entry["has_img_twitter"]
    ]
    return [
        Emoji(entry["name"].lower().replace("’", ""), package.style, entry["image"])
        for package in PACKAGES
        for entry in chosen
    ]


def fetch(package: Package, directory: Path) -> Path:
    """The package's archive, fetched with npm unless it is in the directory already.

    Raises:
        RuntimeError: If there is no npm, or if the archive is not the one that was meant.
    """
    archive = directory / f"{package.name}-{package.version}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError(f"npm is needed to fetch {package.name}; or put {archive} there")
        directory.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", "--silent", f"{package.name}@{package.version}"]
        subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != package.integrity:
        raise RuntimeError(f"{archive} is not the {package.name} that was meant; delete it")
    return archive


def load(directory: Path) -> tuple[list[Emoji], list[Image.Image]]:
    """All emoji of both styles and their artworks, RGBA of 64x64 pixels.

    Raises:
        RuntimeError: If the packages are not those that are expected.
    """
    archives = [fetch(package, directory) for package in PACKAGES]
    with tarfile.open(archives[0]) as archive:
        emoji = select(json.loads(_read(archive, "package/emoji.json")))
    if len(emoji) != len(PACKAGES) * NAMES:
        raise RuntimeError(f"{len(emoji)} emoji were found, {len(PACKAGES) * NAMES} expected")
    artworks: list[Image.Image] = []
    for package, path in zip(PACKAGES, archives, strict=True):
        wanted = {f"{package.folder}/{each.image}" for each in emoji}
        with tarfile.open(path) as archive:
            files = {
                member.name: _read(archive, member) for member in archive if member.name in wanted
            }
        artworks += [
            Image.open(io.BytesIO(files[f"{package.folder}/{each.image}"])).convert("RGBA")
            for each in emoji
            if each.style == package.style
        ]
    return emoji, artworks


def sample_look(rng: np.random.Generator) -> Look:
    """A small shift, a scale and a light, hardly coloured background."""
    right, down = (float(value) for value in rng.uniform(-SHIFT, SHIFT, 2))
    scale = float(rng.uniform(*SCALES))
    red, green, blue = (rng.integers(*SHADES) + rng.integers(-TINT, TINT + 1, 3)).tolist()
    return Look((right, down), scale, (red, green, blue))


def draw(artwork: Image.Image, look: Look) -> Image.Image:
    """The artwork as an RGB picture of 64x64 pixels."""
    room = Image.new("RGBA", (2 * CANVAS, 2 * CANVAS))
    room.paste(artwork, (CANVAS // 2, CANVAS // 2))
    side = CANVAS / look.scale
    left, top = (CANVAS - side / 2 - shift / look.scale for shift in look.shift)
    box = (left, top, left + side, top + side)
    picture = Image.new("RGBA", (CANVAS, CANVAS), (*look.shade, 255))
    picture.alpha_composite(room.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC, box))
    return picture.convert("RGB")


def training_pictures(artworks: list[Image.Image], count: int, directory: Path) -> torch.Tensor:
    """The first pictures of an endless series that goes through all artworks again and again.

    Returns:
        uint8 of shape ``(count, 3, 64, 64)``; row ``r`` shows artwork ``r % len(artworks)``.
    """
    return drawn_once(
        directory / f"emoji-{TRAINING_SEED}-{count}.npy",
        count,
        lambda row: draw(
            artworks[row % len(artworks)], sample_look(np.random.default_rng([TRAINING_SEED, row]))
        ),
    )


def _read(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise RuntimeError(f"{member} of {archive.name} is no file")
    return file.read()
