"""The settings on the page: a field for each argument of the call and for each setting of the
helper, and what their values mean. Made of gradio.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Final

from ..errors import InvalidSettingError
from ..learning.calibrated_schedule import Calibrated
from ..schedules.plans import OUTPUT
from ..settings.by_name import DEFAULT, NOISE_AWARE, PARAMETERS, branch_of, named_schedule
from ..settings.preview import num_steps
from .card import card_of
from .runner import Runner

#: How the choice is called that stands for a file.
FILE: Final = "calibrated"

#: The seed that stands for one to be drawn.
DRAWN: Final = -1
_LARGEST_SEED: Final = 999_999

#: Up to where the page counts, unless the model asks for more by itself.
_MOST_STEPS: Final = 150
_MOST_GUIDANCE: Final = 20


class Fields:
    """The fields, and what their values mean.

    Args:
        gr: The module gradio.
        runner: What makes the pictures.
        schedule: That they begin with; one without a name can be chosen beside those that have one.
        schedule_file: Where one without a name was read.

    Attributes:
        all: The components by name, in the order in which their values are given.
        parameters: Those of them that some schedules have, and the replay.
    """

    def __init__(
        self,
        gr: Any,
        runner: Runner,
        schedule: Calibrated | str,
        schedule_file: str | None = None,
    ) -> None:
        self.all: dict[str, Any] = {}
        names = list(dict.fromkeys(name for each in PARAMETERS.values() for name in each))
        self.parameters = [*names, "replay"]
        self._gr, self._runner = gr, runner
        self._card = card_of(runner.pipe)
        self._calibrated = None if isinstance(schedule, str) else schedule
        self._file = schedule_file
        self._begin = schedule if isinstance(schedule, str) else FILE
        if schedule == DEFAULT:
            self._begin = NOISE_AWARE  # the name by which it can be chosen

    # --- what the values mean ---------------------------------------------------------------------

    def given(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """The values by name, whole numbers as such: a browser knows no other kind than floats."""
        return dict(zip(self.all, map(_number, values), strict=True))

    def schedule(self, given: Mapping[str, Any]) -> Any:
        """The schedule that is meant.

        Raises:
            InvalidSettingError: A parameter is out of range.
        """
        name = given["schedule"]
        if name == FILE and self._calibrated is not None:
            return self._calibrated
        return self._runner.schedule(name, **{key: given[key] for key in PARAMETERS.get(name, ())})

    def asked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the values ask for, as `Runner.run` takes it; the seed has been drawn.

        Raises:
            InvalidSettingError: As `schedule` and `call` say.
        """
        schedule, call = self.schedule(given), self.call(given)
        replay = given["replay"] if _has_replay(given["schedule"]) else None
        asked = {"call": call, "seed": given["seed"], "schedule": schedule, "replay": replay}
        return asked | ({"schedule_file": self._file} if schedule is self._calibrated else {})

    def call(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the pipeline; an empty field leaves one to it.

        Raises:
            InvalidSettingError: A number is no whole one, or too small, or one of two is missing.
        """
        whole = ("num_inference_steps", "height", "width")
        names = ("prompt", "negative_prompt", "guidance_scale", *whole)
        call = {name: given[name] for name in names if given.get(name) not in (None, "")}
        if "prompt" in given:
            call["prompt"] = given["prompt"] or ""
        call |= {name: _whole(name, call[name], least=1) for name in whole if name in call}
        if ("height" in call) != ("width" in call):
            raise InvalidSettingError("give height and width together, or leave both empty")
        return call

    def seed(self, given: Mapping[str, Any]) -> int:
        """The seed, drawn if it is -1.

        Raises:
            InvalidSettingError: It is no whole number of at least -1.
        """
        seed = _whole("seed", given["seed"], least=DRAWN)
        return draw() if seed == DRAWN else seed

    # --- what the fields show ---------------------------------------------------------------------

    def of_schedule(self, schedule: str) -> list[Any]:
        """For each of `parameters`: whether this schedule has it, and where it begins."""
        return [self._gr.update(**each) for each in self._begun(schedule).values()]

    def of_settings(self, settings: Mapping[str, Any]) -> list[Any]:
        """For each of `all`: the value in the settings."""
        begun = self._begun(settings["schedule"])
        return [
            self._gr.update(**begun.get(name, {}) | {"value": settings[name]}) for name in self.all
        ]

    def _begun(self, schedule: str) -> dict[str, dict[str, Any]]:
        names = PARAMETERS.get(schedule, ())
        begun: dict[str, Any] = {name: {"visible": name in names} for name in self.parameters}
        begun["replay"]["visible"] = _has_replay(schedule)
        if names:  # two of them mean something else to each schedule
            made = named_schedule(schedule)
            step = 1 if isinstance(made.interval, int) else 0.1
            begun["interval"] |= {"value": made.interval, "step": step}
            begun["branch"] |= {"value": branch_of(made)}
        return begun

    # --- the layout -------------------------------------------------------------------------------

    def add_prompt(self) -> None:
        """The prompt, if the pipeline takes one, and such as the model knows."""
        if "prompt" not in self._runner.accepted:
            return
        # One line that grows: in a field of several lines, Enter would begin a new one.
        self.all["prompt"] = self._gr.Textbox(
            label="Prompt",
            lines=1,
            max_lines=4,
            placeholder="what the picture shows; Enter generates",
            elem_id="prompt",
        )
        if self._card.prompts:
            prompts = [[prompt] for prompt in self._card.prompts]
            self._gr.Examples(
                prompts, self.all["prompt"], label="Prompts to try", api_visibility="private"
            )

    def add_call(self) -> None:
        """The other arguments of the call."""
        gr, accepted, add = self._gr, self._runner.accepted, self.all
        with gr.Group():
            if "num_inference_steps" in accepted:
                steps = self._steps()
                most = max(_MOST_STEPS, steps)
                add["num_inference_steps"] = gr.Slider(1, most, value=steps, step=1, label="Steps")
            if "guidance_scale" in accepted:
                scale = self._default("guidance_scale", 7.5)
                most = max(_MOST_GUIDANCE, scale)
                add["guidance_scale"] = gr.Slider(
                    0, most, value=scale, step=0.1, label="Guidance scale"
                )
            if "negative_prompt" in accepted:
                add["negative_prompt"] = gr.Textbox(label="Negative prompt")
        with gr.Row():
            add["seed"] = gr.Number(
                value=0, precision=0, minimum=DRAWN, label="Seed (-1: any)", min_width=90
            )
            die = gr.Button("⚄ Draw a seed", min_width=90, elem_id="die")
            die.click(draw, None, add["seed"], queue=False, api_visibility="private")
        if {"height", "width"} <= accepted.keys():
            with gr.Row():
                for side in ("width", "height"):
                    value = self._default(side, _own_size(self._runner.pipe))
                    label = side.capitalize()
                    add[side] = gr.Number(value=value, precision=0, label=label, min_width=90)

    def add_helper(self) -> None:
        """The settings of the helper."""
        gr, add = self._gr, self.all
        most = max(_MOST_STEPS, self._default("num_inference_steps", 0))
        choices = [name for name in PARAMETERS if name != DEFAULT]
        choices += [] if self._calibrated is None else [FILE]
        begun = self._begun(self._begin)
        deepest = len(self._runner.shares) - 1
        ranges: dict[str, tuple[str, float, float, float, float]] = {
            "interval": ("Interval: one full step in", 1, 20, 3, 1),
            "branch": ("Branch (-1 is fastest)", OUTPUT, deepest, 0, 1),
            "center": ("Center: where full steps are densest", 0, most, 15, 1),
            "power": ("Power: how uneven", 1.1, 10, 1.4, 0.1),
            "tolerance": ("Tolerance: error between full steps", 0, 0.2, 0.03, 0.005),
        }
        with gr.Group():
            add["schedule"] = gr.Dropdown(choices, value=self._begin, label="Schedule")
            for name, (label, low, high, value, step) in ranges.items():
                movable = name != "branch" or deepest > 0
                given = {"value": value, "step": step} | begun[name]
                add[name] = gr.Slider(low, high, label=label, interactive=movable, **given)
            add["replay"] = gr.Radio(
                ["extrapolate", "reuse"],
                value="extrapolate",
                label="Replay between full steps",
                **begun["replay"],
            )

    def _steps(self) -> Any:
        """How many steps the page begins with: as many as the file is for, if there is one."""
        made = len(self._calibrated.entries) if self._calibrated is not None else 0
        for steps in (made, (made + 1) // 2):  # those of second order make 2n - 1 of n
            if made and num_steps(self._runner.pipe, steps) == made:
                return steps
        return self._default("num_inference_steps", 50)

    def _default(self, name: str, otherwise: Any) -> Any:
        """What the model's card says, or else the pipeline's own, where that is a number."""
        default = self._card.defaults.get(name, self._runner.accepted.get(name))
        return default if isinstance(default, int | float) else otherwise


def draw() -> int:
    """A seed by chance."""
    return random.randint(0, _LARGEST_SEED)


def _has_replay(schedule: str) -> bool:
    return schedule not in ("auto", FILE)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole(name: str, value: Any, *, least: int) -> int:
    number = _number(value)
    if not isinstance(number, int) or number < least:
        what = f"a whole number of at least {least}"
        raise InvalidSettingError(f"{name} must be {what}, not {value!r}")
    return number


def _own_size(pipe: Any) -> int | None:
    """The side of the pictures that the pipeline makes by itself, where it can be told."""
    side = getattr(pipe.unet.config, "sample_size", None)
    factor = getattr(pipe, "vae_scale_factor", None)
    return side * factor if isinstance(side, int) and isinstance(factor, int) else None
