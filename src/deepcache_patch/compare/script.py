"""What was made, as a script in Python that makes it again: the pipeline, as far as it is known how
that was set up, the helper with its settings, and the calls. For a comparison, a sweep, the page.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import diffusers
from packaging.version import Version

from ..learning.auto import Auto
from ..measuring.generation import shared_out
from ..schedules.plans import Plan
from .about import PictureFile
from .call_steps import pythons
from .contest import CALIBRATION_SEEDS

#: How a call to make one of the package's schedules begins; those of a file are read again.
_SCHEDULE: Final = re.compile(r"(Uniform|Centred|Adaptive|Auto|Explicit)\(")
_DEFAULT, _CALIBRATED = "NoiseAware(", "Calibrated("
_USUAL_REPLAY: Final = "Extrapolate(strength=1.0)"

#: What cannot be written down.
_LEFT_OUT: Final = "..."


def python_of(about: Mapping[str, Any], *, plan: Plan | None = None, saves: bool = True) -> str:
    """Returns the script, without a newline at the end.

    Where something is no text or number, or is not known, `...` stands, and a comment says so.

    Args:
        about: What ran, as in `Comparison.about`. Without "schedule", the plain pipeline runs.
        plan: What ran, step by step; `None` where that is not known.
        saves: Whether pictures are made, which are saved by their seeds.
    """
    helper, ours, remarks = _helper(about)
    made, theirs = _pipeline(about)
    calls = _calls(about, plan, saves)
    loads = any(isinstance(value, PictureFile) for value in about["call"].values())
    lines = [
        "import torch",
        *([f"from diffusers import {', '.join(theirs)}"] if theirs else []),
        *(["from diffusers.utils import load_image"] if loads else []),
        *(["", f"from deepcache_patch import {', '.join(sorted(ours))}"] if ours else []),
        "",
        *made,
        *remarks,
        *helper,
        "",
        *calls,
    ]
    text = "\n".join(lines)
    if any(getattr(each, "value", None) is Ellipsis for each in ast.walk(ast.parse(text))):
        text = f"# Fill in what is left out: ...\n{text}"
    return text


def _pipeline(about: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """How the pipeline is set up, and the classes of diffusers that it takes."""
    kind, scheduler = about["pipeline"], f"{about['scheduler']}Scheduler"
    theirs = dir(diffusers)  # without importing any
    if kind not in theirs or "Modular" in kind:
        sampler = f", sampled by {about['scheduler']}" if about["scheduler"] else ""
        return [f"# pipe: the {_one_line(kind)} of {_one_line(about['model'])}{sampler}"], []
    model = _LEFT_OUT if about["model"] == kind else repr(str(about["model"]))
    place = "" if about.get("offload") else f".to({about['device']['type']!r})"
    # The one name is not known before diffusers 0.40, and the other is deprecated from there on.
    name = "dtype" if Version(diffusers.__version__).release >= (0, 40) else "torch_dtype"
    files = _arguments(about.get("model_files", {}))
    given = ", ".join([model, *files, f"{name}=torch.{about['dtype']}"])
    lines = [f"pipe = {kind}.from_pretrained({given}){place}"]
    changed = about.get("scheduler_settings")
    classes = [kind]
    if changed is not None and scheduler in theirs:
        config = ", ".join(["pipe.scheduler.config", *_arguments(changed)])
        lines.append(f"pipe.scheduler = {scheduler}.from_config({config})")
        classes.append(scheduler)
    loras = about.get("loras", ())
    for each in loras:
        file = _LEFT_OUT if each["file"] is None else repr(each["file"])
        lines.append(f"pipe.load_lora_weights({file}, adapter_name={each['name']!r})")
    if loras:
        names, scales = ([each[key] for each in loras] for key in ("name", "scale"))
        lines.append(f"pipe.set_adapters({_literal(names)}, {_literal(scales)})")
    if about.get("offload"):
        lines.append(f"pipe.enable_{about['offload']}_cpu_offload()")
    return lines, sorted(classes)


def _helper(about: Mapping[str, Any]) -> tuple[list[str], set[str], list[str]]:
    """The line that makes the helper, the names that it takes, and what is said before it."""
    schedule, names, remarks = about.get("schedule"), {"DeepCacheHelper"}, list[str]()
    if schedule is None:
        return [], set(), []
    known = _SCHEDULE.match(schedule)
    if schedule.startswith(_DEFAULT):
        given = schedule.removeprefix(_DEFAULT).removesuffix(")").removesuffix(", branch=-1")
    elif known:
        given = f"schedule={schedule}"
        names.add(known[1])
    elif schedule.startswith(_CALIBRATED):
        given = f"schedule=Calibrated.load({about.get('schedule_file', 'schedule.json')!r})"
        names.add("Calibrated")
    else:
        given = f"schedule={_LEFT_OUT}"
    if not known and not schedule.startswith(_DEFAULT):
        remarks = [f"# schedule: {_one_line(schedule)}"]
    more = [f"{name}={_literal(about[name])}" for name in ("first", "last") if about.get(name)]
    replay = about.get("replay")
    if replay == "Reuse()":
        more.append('replay="reuse"')
    elif replay not in (None, _USUAL_REPLAY):
        is_ours = replay.startswith("Extrapolate(")
        more.append(f"replay={replay if is_ours else _LEFT_OUT}")
        names |= {"Extrapolate"} if is_ours else set()
    line = f"helper = DeepCacheHelper({', '.join(['pipe', given, *more])}).enable()"
    return [line], names, remarks


def _calls(about: Mapping[str, Any], plan: Plan | None, saves: bool) -> list[str]:
    """One call for each seed; with prompts that are shared out, each with its own."""
    seeds, call = list(about["seeds"]), dict(about["call"])
    shared = shared_out(call, len(seeds))
    remark = ""
    is_auto = (about.get("schedule") or "").startswith("Auto(")
    if is_auto and (plan is None or Auto.is_worth_it(plan)):
        seeds = [seeds[0] + CALIBRATION_SEEDS, *seeds]
        shared = {name: [*values[:1], *values] for name, values in shared.items()}
        remark = "  # the schedule learns from the first result"
    head = f"for seed in {_literal(seeds)}:"
    if shared:
        lists = ", ".join(map(_literal, [seeds, *shared.values()]))
        head = f"for {', '.join(['seed', *shared])} in zip({lists}):"
    own = {name: value for name, value in call.items() if name not in shared}
    arguments = [*(f"{name}={name}" for name in shared), *_arguments(own)]
    return [
        f"{head}{remark}",
        "    torch.manual_seed(seed)",  # of the noise that pipelines take from no generator
        "    output = pipe(",
        *(f"        {argument}," for argument in arguments),
        '        generator=torch.Generator("cpu").manual_seed(seed),',
        "    )",
        *(['    output.images[0].save(f"{seed}.png")'] if saves else []),
    ]


def _arguments(call: Mapping[str, Any]) -> list[str]:
    pairs = ((name, _literal(value)) for name, value in call.items())
    return [
        f"{name}={value}" if name.isidentifier() else f"**{{{name!r}: {value}}}"
        for name, value in pairs
    ]


def _literal(value: Any) -> str:
    """The value as Python has it, or `...`."""
    # What is like a number or a text need not be printed as one.
    plain = value.value if isinstance(value, Enum) else value
    plain = pythons(plain)
    kind = type(plain)
    if kind is PictureFile:
        resized = "" if plain.size is None else f".resize({plain.size})"
        return f"load_image({str(plain)!r}){resized}"
    if kind is float and not math.isfinite(plain):
        return f"float('{plain}')"
    if plain is None or kind in (str, bool, int, float):
        return repr(plain)
    if kind is dict:
        inner = [f"{_literal(key)}: {_literal(each)}" for key, each in plain.items()]
        return f"{{{', '.join(inner)}}}"
    if kind is list:
        return f"[{', '.join(map(_literal, plain))}]"
    if kind is tuple:
        inner = [*map(_literal, plain)]
        return f"({inner[0]},)" if len(inner) == 1 else f"({', '.join(inner)})"
    return _LEFT_OUT


def _one_line(text: Any) -> str:
    """For a comment: nothing in it may end the line."""
    return " ".join(str(text).split())
