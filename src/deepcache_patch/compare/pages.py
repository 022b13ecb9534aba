"""What pages of results are made with: a template, its style and its script in one HTML file that
fetches nothing, and pictures and arguments as they stand in it.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from io import BytesIO
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..measuring.environment import versions


def rendered(package: str, name: str, **values: Any) -> str:
    """Returns the page.

    Args:
        package: In whose folder name.html, name.css and name.js stand.
        name: Of these.
        values: Of the template, beside style, script, their hashes and the versions.
    """
    folder = files(package)
    style, script, template = (
        folder.joinpath(f"{name}.{end}").read_text(encoding="utf-8")
        for end in ("css", "js", "html")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        style=Markup(style),
        script=Markup(script),
        hashes={"style": _hash(style), "script": _hash(script)},
        versions=versions(),
        **values,
    )


def _hash(text: str) -> str:
    """What the page's content security policy knows a style or script by."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def said(value: Any) -> str:
    """An argument as a person reads it: no pixels and no weights."""
    if isinstance(value, str):
        return value
    if isinstance(value, Image.Image):
        return f"picture of {value.width}×{value.height}"
    if isinstance(value, torch.Tensor) or hasattr(value, "shape"):
        return f"{type(value).__name__} of {'×'.join(map(str, value.shape))}"
    if isinstance(value, Sequence):
        shown = [said(each) for each in value[:32]]
        between = "; " if any(isinstance(each, str) for each in value) else ", "
        return between.join(shown) + (", …" if len(value) > 32 else "")
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {said(each)}" for key, each in value.items())
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    return type(value).__name__


def picture_uri(picture: Image.Image, *, lossless: bool = True) -> str:
    """A still exactly, a video's frame nearly: there are many of them."""
    file = BytesIO()
    picture.save(file, format="WEBP", lossless=lossless, quality=80 if lossless else 92)
    return uri("image/webp", file.getvalue())


def uri(kind: str, content: bytes) -> str:
    """A file within the page; `kind` is its media type."""
    return f"data:{kind};base64,{b64encode(content).decode()}"
