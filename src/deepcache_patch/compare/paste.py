"""What was made, as a script in Python that makes it again: the pipeline, as far as it is known how
that was set up, the helper with its settings, and the calls. For a comparison, a sweep, the page.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import diffusers

from .contest import CALIBRATION_SEEDS

#: How a call to make one of the package's schedules begins; those of a file are read again.
_SCHEDULE: Final = re.compile(r"(Uniform|Centred|Adaptive|Auto|Explicit)\(")
_DEFAULT, _CALIBRATED = "NoiseAware(", "Calibrated("
_USUAL_REPLAY: Final = "Extrapolate(strength=1.0)"

#: What cannot be written down.
_LEFT_OUT: Final = "..."


def python_of(about: Mapping[str, Any], *, saves: bool = True) -> str:
    """Returns the script, without a newline at the end.

    Where something is no text or number, or is not known, `...` stands, and a comment says so.

    Args:
        about: As in `Comparison`. Without "schedule", the plain pipeline runs.
        saves: Whether pictures are made, which are saved by their seeds.
    """
    helper, ours, remarks = _helper(about)
    made, theirs = _pipeline(about)
    calls = _calls(about, saves)
    lines = [
        "import torch",
        *([f"from diffusers import {', '.join(theirs)}"] if theirs else []),
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
    lines = [f"pipe = {kind}.from_pretrained({model}, dtype=torch.{about['dtype']}){place}"]
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
        lines.append(f"pipe.set_adapters({names}, {scales})")
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
    more = [f"{name}={about[name]}" for name in ("first", "last") if about.get(name)]
    replay = about.get("replay")
    if replay == "Reuse()":
        more.append('replay="reuse"')
    elif replay not in (None, _USUAL_REPLAY):
        is_ours = replay.startswith("Extrapolate(")
        more.append(f"replay={replay if is_ours else _LEFT_OUT}")
        names |= {"Extrapolate"} if is_ours else set()
    line = f"helper = DeepCacheHelper({', '.join(['pipe', given, *more])}).enable()"
    return [line], names, remarks


def _calls(about: Mapping[str, Any], saves: bool) -> list[str]:
    """One call for each seed; with prompts that are shared out, each with its own."""
    seeds, call = list(about["seeds"]), dict(about["call"])
    prompts = call.get("prompt")
    if isinstance(prompts, list | tuple) and prompts:
        shared = [prompt for prompt in prompts for _ in range(len(seeds) // len(prompts))]
    else:
        shared = []
    remark = ""
    if (about.get("schedule") or "").startswith("Auto("):
        seeds, shared = [seeds[0] + CALIBRATION_SEEDS, *seeds], [*shared[:1], *shared]
        remark = "  # the schedule learns from the first result"
    head = f"for seed in {seeds}:"
    if shared:
        head = f"for seed, prompt in zip({seeds}, {_literal(shared)}):"
        call.pop("prompt")
    arguments = [*(["prompt=prompt"] if shared else []), *_arguments(call)]
    return [
        f"{head}{remark}",
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
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if value is None or isinstance(value, str | bool | int | float):
        return repr(value)
    if isinstance(value, Mapping):
        inner = [f"{_literal(key)}: {_literal(each)}" for key, each in value.items()]
        return f"{{{', '.join(inner)}}}"
    if isinstance(value, list | tuple):
        return _bracketed(value)
    return _LEFT_OUT


def _bracketed(values: Sequence[Any]) -> str:
    inner = ", ".join(map(_literal, values))
    if isinstance(values, list):
        return f"[{inner}]"
    return f"({inner},)" if len(values) == 1 else f"({inner})"


def _one_line(text: Any) -> str:
    """For a comment: nothing in it may end the line."""
    return " ".join(str(text).split())
