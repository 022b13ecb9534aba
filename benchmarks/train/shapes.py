"""The pictures that the benchmark models learn: two or three plain shapes on a shaded background.

A scene is drawn at random from a seeded generator; its picture and its caption follow from the
scene alone. Here live the scenes, their pictures and their captions, and nothing about learning.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (220, 35, 35),
    "green": (30, 165, 60),
    "blue": (35, 75, 235),
    "yellow": (250, 215, 30),
    "purple": (180, 50, 205),
    "white": (248, 248, 248),
}
COLOUR_NAMES = tuple(COLOURS)
SIZES = ("small", "large")

#: Radius of each size in pixels of a 64x64 picture, lowest and highest.
RADII = {"small": (8.0, 9.0), "large": (12.0, 13.0)}
#: The farthest that any kind reaches from its centre, in radii (the corners of the square).
REACH = 1.2
CANVAS = 64
OVERSAMPLING = 4
THREE_SHAPES_SHARE = 0.25


@dataclass(frozen=True)
class Shape:
    """One shape: names from KINDS, COLOURS and SIZES; centre and radius in 64ths of the picture."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def words(self) -> str:
        """How a caption names the shape, as in "a small red circle"."""
        return f"a {self.size} {self.colour} {self.kind}"


@dataclass(frozen=True)
class Background:
    """A linear gradient between two muted colours, ``angle`` in radians."""

    start: tuple[int, int, int]
    end: tuple[int, int, int]
    angle: float


@dataclass(frozen=True)
class Scene:
    """The shapes in the order in which the caption names them, and what lies behind them."""

    shapes: tuple[Shape, ...]
    background: Background


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene of two, or now and then three, shapes that differ in kind and in colour."""
    count = 3 if rng.random() < THREE_SHAPES_SHARE else 2
    kinds = [str(kind) for kind in rng.permutation(KINDS)[:count]]
    colours = [str(colour) for colour in rng.permutation(COLOUR_NAMES)[:count]]
    return Scene(place(kinds, colours, rng), _sample_background(rng))


def sample_clutter(rng: np.random.Generator) -> Scene:
    """A scene of none to four shapes whose kinds may repeat, for teaching a classifier to count.

    The generators never learn from these: they stand for what a poor generator may draw.
    """
    count = int(rng.integers(0, 5))
    kinds = [str(kind) for kind in rng.choice(KINDS, count)]
    colours = [str(colour) for colour in rng.choice(COLOUR_NAMES, count)]
    return Scene(place(kinds, colours, rng), _sample_background(rng))


def training_scene(seed: int, index: int) -> Scene:
    """Scene ``index`` of the endless series ``seed``; each is independent of the others."""
    return sample_scene(np.random.default_rng([seed, index]))


def place(kinds: list[str], colours: list[str], rng: np.random.Generator) -> tuple[Shape, ...]:
    """Give shapes a size and a place each, so that none overlaps another or the picture's edge."""
    while True:
        shapes: list[Shape] = []
        for kind, colour in zip(kinds, colours, strict=True):
            size = str(rng.choice(SIZES))
            radius = float(rng.uniform(*RADII[size]))
            margin = REACH * radius
            for _ in range(20):
                x, y = (float(v) for v in rng.uniform(margin, CANVAS - margin, 2))
                if all(
                    math.hypot(x - other.x, y - other.y) > REACH * (radius + other.radius)
                    for other in shapes
                ):
                    shapes.append(Shape(kind, colour, size, x, y, radius))
                    break
            else:
                break  # no room was left: begin again, with other sizes
        if len(shapes) == len(kinds):
            return tuple(shapes)


def caption(scene: Scene) -> str:
    """What the scene shows, as in "a small red circle above a large blue square"."""
    words = [shape.words for shape in scene.shapes]
    if len(words) == 2:
        first, second = scene.shapes
        dx, dy = first.x - second.x, first.y - second.y
        if abs(dy) >= abs(dx):
            relation = "above" if dy < 0 else "below"
        else:
            relation = "left of" if dx < 0 else "right of"
        return f"{words[0]} {relation} {words[1]}"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def draw(scene: Scene, size: int = CANVAS) -> Image.Image:
    """The scene as an RGB picture of ``size`` x ``size`` pixels, edges smoothed."""
    picture = _draw_background(scene.background, size)
    scale = size * OVERSAMPLING / CANVAS
    for shape in scene.shapes:
        mask = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING))
        _draw_outline(ImageDraw.Draw(mask), shape, scale)
        picture.paste(COLOURS[shape.colour], mask=mask.reduce(OVERSAMPLING))
    return picture


def _draw_outline(pen: ImageDraw.ImageDraw, shape: Shape, scale: float) -> None:
    x, y, radius = shape.x * scale, shape.y * scale, shape.radius * scale
    if shape.kind == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    elif shape.kind == "square":
        half = 0.84 * radius
        pen.rectangle((x - half, y - half, x + half, y + half), fill=255)
    elif shape.kind == "triangle":
        # Lowered a little, so that the triangle's bounding box is centred like the others'.
        pen.polygon(_corners(x, y + 0.2 * radius, [1.18 * radius] * 3), fill=255)
    elif shape.kind == "star":
        pen.polygon(_corners(x, y, [1.18 * radius, 0.5 * radius] * 5), fill=255)
    else:
        raise ValueError(f"unknown kind of shape {shape.kind!r}; it is one of {KINDS}")


def _corners(x: float, y: float, radii: list[float]) -> list[tuple[float, float]]:
    """Corners at equal angles around a centre, clockwise from the top."""
    angles = [2 * math.pi * index / len(radii) for index in range(len(radii))]
    return [
        (x + r * math.sin(angle), y - r * math.cos(angle))
        for r, angle in zip(radii, angles, strict=True)
    ]


def _sample_background(rng: np.random.Generator) -> Background:
    # Grey with a slight tint, never bright: no shape's colour is ever near it.
    def muted() -> tuple[int, int, int]:
        red, green, blue = (rng.integers(55, 145) + rng.integers(-10, 11, 3)).tolist()
        return red, green, blue

    return Background(muted(), muted(), float(rng.uniform(0, 2 * math.pi)))


def _draw_background(background: Background, size: int) -> Image.Image:
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    along = axis[None, :] * math.cos(background.angle) + axis[:, None] * math.sin(background.angle)
    share = (along / math.sqrt(2) + 0.5)[..., None]
    start = np.array(background.start, dtype=np.float32)
    end = np.array(background.end, dtype=np.float32)
    return Image.fromarray((start + (end - start) * share).round().astype(np.uint8))
