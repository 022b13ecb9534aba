"""What pages of results are made with: one HTML file that fetches nothing. Each has a template, a
style and a script of its own within those that all share, page.html, page.css and page.js;
code.html is what is to be copied. And pictures and arguments, as they stand in a page.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from io import BytesIO
from typing import Any, Final

import torch
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from ..measuring.environment import versions

#: What a line should not break within: an option, a range, a measure with its value and unit.
_WHOLE: Final = re.compile(
    r"--[a-z-]+(?: (?:N|\d+))?|[\d.]+–[\d.]+×?|(?:(?:PSNR|SSIM|LPIPS|SNR) )?\d+\.\d+(?: dB)?"
)


def rendered(package: str, name: str, about: Mapping[str, Any], **values: Any) -> str:
    """Returns the page.

    Args:
        package: In whose folder name.html, name.css and name.js stand.
        name: That of the three. The template fills the blocks of page.html, which stands here.
        about: What the settings at the end of the page are made of.
        values: Values for the template; `title` and `notes`, which all pages have, among them.
    """

    def read(kind: str) -> str:
        parts = (files(__package__) / f"page.{kind}", files(package) / f"{name}.{kind}")
        return "".join(each.read_text(encoding="utf-8") for each in parts)

    style, script = read("css"), read("js")
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(each, "") for each in (package, __package__)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    return environment.get_template(f"{name}.html").render(
        style=Markup(style),
        script=Markup(script),
        hashes={"style": _hash(style), "script": _hash(script)},
        versions=versions(),
        settings=list(_settings(about)),
        **values,
    )


def _settings(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What all results of a page have in common: name, and value in words."""
    device = about["device"]
    for name in ("model", "pipeline", "scheduler", "schedule"):
        if name in about:
            yield name, str(about[name])
    for name in ("first", "last", "replay", "offload"):
        if about.get(name):  # some schedules bring their own replay
            yield name, str(about[name])
    if about.get("scheduler_settings"):
        yield "scheduler settings", said(about["scheduler_settings"])
    for each in about.get("loras", ()):
        yield "LoRA", f"{each['file'] or each['name']}, scale {each['scale']:g}"
    yield "device", f"{device['type']} ({device['name']}), {about['dtype']}"
    yield "seeds", said(about["seeds"])
    yield "timed runs of each", str(about["repeats"])
    guidance = about.get("guidance_scale")
    if guidance is not None and "guidance_scale" not in about["call"]:
        yield "guidance_scale", f"{said(guidance)}, as the pipeline has it"
    for name, value in about["call"].items():
        yield name, said(value)


def _unbroken(text: str) -> Markup:
    """A sentence with its figures and options each on one line."""
    return Markup(_WHOLE.sub(r'<span class="whole">\g<0></span>', str(escape(text))))


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
