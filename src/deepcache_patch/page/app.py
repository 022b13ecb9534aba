"""The page of `deepcache-patch ui`: settings on one side, both pictures on the other. Made of
gradio, which is an extra; what a picture takes is in `trial`, what a setting means in `settings`.
"""

from __future__ import annotations

import ipaddress
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ..errors import DeepCacheError, InvalidSettingError, first_line
from ..learning.calibrated_schedule import Calibrated
from ..measuring.similarity import require_metrics
from ..schedules.plans import FULL, OUTPUT, Plan
from ..settings.by_name import PARAMETERS
from .markup import CSS, KEYS, figures, strip
from .trial import StoppedError, Trials

#: How the choice is called that stands for a file.
_FILE: Final = "calibrated"

#: Where the fields begin that mean something else to each schedule: value and step.
_STARTS: Final = {
    "noise-aware": {"interval": (2.2, 0.1), "branch": (OUTPUT, 1)},
    "auto": {"interval": (2.2, 0.1), "branch": (OUTPUT, 1)},
    "adaptive": {"interval": (1.5, 0.1), "branch": (OUTPUT, 1)},
}
_USUAL_STARTS: Final = {"interval": (3, 1), "branch": (0, 1)}

#: Up to where the page counts, unless the pipeline makes more by itself.
_MOST_STEPS: Final = 150


def require_gradio() -> None:
    """Raises early, before a model is loaded, what `build_ui` would raise late.

    Raises:
        ImportError: gradio or scikit-image is not installed.
    """
    _gradio()
    require_metrics()


def build_ui(pipe: Any, *, calibrated: Calibrated | None = None) -> Any:
    """Returns the page for a pipeline, a `gradio.Blocks`; nothing is served yet.

    Args:
        pipe: A pipeline that makes a picture of a prompt, or of nothing.
        calibrated: A schedule that can be chosen beside those that the page knows by name.

    Raises:
        ImportError: gradio is not installed.
        UnsupportedModelError: The page cannot drive this pipeline.
        InvalidSettingError: `calibrated` is of another U-Net or scheduler.
    """
    return Page(pipe, calibrated=calibrated).blocks


def launch(
    pipe: Any, *, host: str = "127.0.0.1", port: int = 7860, calibrated: Calibrated | None = None
) -> Server:
    """Serves the page, to this machine only unless `host` says otherwise, and returns at once.

    Args:
        pipe: As for `build_ui`.
        host: Address to listen on. There is no password.
        port: TCP port, 1 to 65535.
        calibrated: As for `build_ui`.

    Raises:
        ImportError, UnsupportedModelError, InvalidSettingError: As `build_ui` does.
        OSError: The port is taken.
    """
    return Server(Page(pipe, calibrated=calibrated), host, port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _only_as(host: str) -> list[Any]:
    """What refuses calls under another name, as long as only this machine is served."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    if not is_loopback(host):
        return []
    return [Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", host])]


class Server:
    """A page that is served until `close`, or until the end of a `with` block.

    Attributes:
        address: Of the page.
    """

    def __init__(self, page: Page, host: str, port: int) -> None:
        gr = _gradio()
        self._page = page
        plain = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        page.blocks.queue(default_concurrency_limit=1)
        _, self.address, _ = page.blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            max_file_size="1kb",  # nothing is uploaded here
            # Or a page of elsewhere could reach this one under a name of its own (DNS rebinding).
            app_kwargs={"middleware": _only_as(host)},
            theme=gr.themes.Default(primary_hue="blue", **plain),  # no fonts of other sites
            # `css=` would rewrite the selectors.
            head=f"<style>{CSS}</style><script>{KEYS}</script>",
        )

    def wait(self) -> None:
        """Returns when the page is closed; raises `KeyboardInterrupt` on Ctrl-C."""
        while self._page.blocks.is_running:
            time.sleep(0.2)

    def close(self) -> None:
        """Ends a generation that is under way, and the server."""
        self._page.trials.stop()
        self._page.blocks.close(verbose=False)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Page:
    """The page, and what its events call.

    Attributes:
        blocks: The `gradio.Blocks`.
        trials: What makes the pictures.
        settings: The components of the settings by name, in the order of the functions' arguments.
    """

    def __init__(self, pipe: Any, *, calibrated: Calibrated | None = None) -> None:
        self._gr = _gradio()
        self.trials = Trials(pipe)
        self._pipe = pipe
        self._calibrated = calibrated
        if calibrated is not None:
            calibrated.check(pipe.unet, pipe.scheduler)
        self.settings: dict[str, Any] = {}
        self.blocks = self._laid_out()

    # --- what the events call ---------------------------------------------------------------------

    def preview(self, *values: Any) -> str:
        """The strip of the settings, as HTML, or what is wrong with them."""
        given = self._given(values)
        try:
            schedule = self._schedule(given)
            plan = self.trials.plan(schedule, self._call(given).get("num_inference_steps"))
        except DeepCacheError as error:
            return f'<p class="wrong">{escape(first_line(error))}</p>'
        if plan is None:
            return '<p class="faint">The plan is made while the picture is.</p>'
        return strip(plan) + f'<p class="faint">{escape(self._described(plan))}</p>'

    def generate(self, *values: Any) -> tuple[Any, str]:
        """Both pictures and the figures.

        Raises:
            gradio.Error: With what is wrong, in one line.
        """
        given = self._given(values)
        with self._told():
            replay = given["replay"] if _has_replay(given["schedule"]) else None
            schedule = self._schedule(given)
            seed = _whole("seed", given["seed"])
            trial = self.trials.run(self._call(given), seed=seed, schedule=schedule, replay=replay)
        return (trial.plain, trial.cached), figures(trial)

    def fields(self, schedule: str) -> list[Any]:
        """Which of the schedule's parameters are shown."""
        names = PARAMETERS.get(schedule, ())
        shown = {name: name in names for name in self._parameters}
        shown["replay"] = _has_replay(schedule)
        updates: dict[str, dict[str, Any]] = {
            name: {"visible": visible} for name, visible in shown.items()
        }
        for name, (value, step) in _STARTS.get(schedule, _USUAL_STARTS).items():
            updates[name] |= {"value": value, "step": step}
        return [self._gr.update(**update) for update in updates.values()]

    # --- from the fields to the library -----------------------------------------------------------

    @property
    def _parameters(self) -> list[str]:
        return list(dict.fromkeys(name for names in PARAMETERS.values() for name in names))

    def _given(self, values: tuple[Any, ...]) -> dict[str, Any]:
        return dict(zip(self.settings, values, strict=True))

    def _schedule(self, given: dict[str, Any]) -> Any:
        name = given["schedule"]
        if name == _FILE and self._calibrated is not None:
            return self._calibrated
        parameters = {key: _number(given[key]) for key in PARAMETERS.get(name, ())}
        return self.trials.schedule(name, **parameters)

    def _call(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the pipeline; an empty field leaves one to it."""
        whole = ("num_inference_steps", "height", "width")
        names = ("prompt", "negative_prompt", "guidance_scale", *whole)
        call = {name: given[name] for name in names if given.get(name) not in (None, "")}
        if "prompt" in given:
            call["prompt"] = given["prompt"] or ""
        call |= {name: _whole(name, call[name], least=1) for name in whole if name in call}
        if ("height" in call) != ("width" in call):
            raise InvalidSettingError("give height and width together, or leave both empty")
        return call

    def _described(self, plan: Plan) -> str:
        count = len(plan.full_steps)
        said = f"{count} of {len(plan)} steps in full"
        share_of: dict[Any, float | None] = {
            FULL: 1.0,
            OUTPUT: 0.0,
            **dict(enumerate(self.trials.shares)),
        }
        shares = [share_of[entry] for entry in plan]
        if None not in shares and count < len(plan):
            work = sum(share for share in shares if share is not None) / len(plan)
            said += f"; {work:.0%} of the U-Net's work"
        return said

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What is wrong is a message on the page, and no stack trace anywhere."""
        try:
            yield
        except StoppedError:
            raise self._gr.Error("the page was closed", print_exception=False) from None
        except (DeepCacheError, ValueError, TypeError) as error:
            raise self._gr.Error(escape(first_line(error)), print_exception=False) from error
        except Exception as error:  # whatever pipeline, scheduler and device raise together
            name = type(self._pipe).__name__
            told = f"{name} failed: {first_line(error)}"
            raise self._gr.Error(escape(told), print_exception=False) from error

    # --- the layout -------------------------------------------------------------------------------

    def _laid_out(self) -> Any:
        gr, name = self._gr, type(self._pipe).__name__
        with gr.Blocks(
            title=f"DeepCache · {name}",
            analytics_enabled=False,
            fill_width=True,
            delete_cache=(3600, 3600),
        ) as blocks:
            gr.Markdown(self._title())
            with gr.Row():
                with gr.Column(scale=4, min_width=280):
                    self._add_call()
                    self._add_helper()
                with gr.Column(scale=6, min_width=280):
                    planned = gr.HTML(elem_id="planned")
                    button = gr.Button("Generate both pictures", variant="primary")
                    pictures = gr.ImageSlider(
                        label="plain (left) and DeepCache (right)",
                        format="png",
                        type="pil",
                        interactive=False,
                        elem_id="pictures",
                    )
                    told = gr.HTML(elem_id="figures")
            self._wire(blocks, button, planned, pictures, told)
        return blocks

    def _title(self) -> str:
        pipe = self._pipe
        name = str(getattr(pipe, "name_or_path", "") or type(pipe).__name__)
        short = Path(name).resolve().name if Path(name).is_dir() else name
        scheduler = type(pipe.scheduler).__name__.removesuffix("Scheduler")
        dtype = str(pipe.dtype).removeprefix("torch.")
        about = f"{type(pipe).__name__}, {scheduler}, {dtype} on {pipe.device}"
        return f"## {escape(short)} with and without DeepCache\n{about}"

    def _add_call(self) -> None:
        gr, accepted, add = self._gr, self.trials.accepted, self.settings
        if "prompt" in accepted:
            add["prompt"] = gr.Textbox(
                label="Prompt", lines=2, placeholder="what the picture shows"
            )
        if "negative_prompt" in accepted:
            add["negative_prompt"] = gr.Textbox(label="Negative prompt")
        with gr.Group():
            if "num_inference_steps" in accepted:
                steps = self._default("num_inference_steps", 50)
                most = max(_MOST_STEPS, steps)
                add["num_inference_steps"] = gr.Slider(1, most, value=steps, step=1, label="Steps")
            if "guidance_scale" in accepted:
                scale = self._default("guidance_scale", 7.5)
                label = "Guidance scale"
                add["guidance_scale"] = gr.Slider(0, 20, value=scale, step=0.1, label=label)
        with gr.Row():
            add["seed"] = gr.Number(value=0, precision=0, label="Seed", min_width=80)
            if {"height", "width"} <= accepted.keys():
                size = _own_size(self._pipe)
                for side in ("width", "height"):
                    label = side.capitalize()
                    add[side] = gr.Number(value=size, precision=0, label=label, min_width=80)

    def _add_helper(self) -> None:
        gr, add = self._gr, self.settings
        most = max(_MOST_STEPS, self._default("num_inference_steps", 0))
        choices = [*PARAMETERS, *([_FILE] if self._calibrated is not None else [])]
        shown = PARAMETERS["noise-aware"]
        (interval, by), (branch, _) = _STARTS["noise-aware"].values()
        deepest = len(self.trials.shares) - 1
        ranges: dict[str, tuple[str, float, float, float, float]] = {
            "interval": ("Interval: one full step in", 1, 20, interval, by),
            "branch": ("Branch: -1, above the output, is fastest", OUTPUT, deepest, branch, 1),
            "center": ("Center: where full steps are densest", 0, most, 15, 1),
            "power": ("Power: how uneven", 1.1, 10, 1.4, 0.1),
            "tolerance": ("Tolerance: error between full steps", 0, 0.2, 0.03, 0.005),
        }
        with gr.Group():
            add["schedule"] = gr.Dropdown(choices, value="noise-aware", label="Schedule")
            for name in self._parameters:
                label, low, high, value, step = ranges[name]
                add[name] = gr.Slider(
                    low,
                    high,
                    value=value,
                    step=step,
                    label=label,
                    visible=name in shown,
                    interactive=name != "branch" or deepest > 0,
                )
            add["replay"] = gr.Radio(
                ["extrapolate", "reuse"], value="extrapolate", label="Replay between full steps"
            )

    def _default(self, name: str, otherwise: Any) -> Any:
        """The pipeline's own, where it is a number."""
        default = self.trials.accepted.get(name)
        return default if isinstance(default, int | float) else otherwise

    def _wire(self, blocks: Any, button: Any, planned: Any, pictures: Any, told: Any) -> None:
        inputs = list(self.settings.values())
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        button.click(
            self.generate, inputs, [pictures, told], concurrency_limit=1, api_visibility="private"
        )
        shown = [self.settings[name] for name in (*self._parameters, "replay")]
        self.settings["schedule"].change(
            self.fields, self.settings["schedule"], shown, queue=False, **hidden
        )
        self._gr.on(
            [blocks.load, *(each.change for each in inputs)],
            self.preview,
            inputs,
            planned,
            queue=False,
            trigger_mode="always_last",
            **hidden,
        )


def _has_replay(schedule: str) -> bool:
    return schedule not in ("auto", _FILE)


def _number(value: Any) -> Any:
    """A whole number as one: a browser knows no other kind than floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole(name: str, value: Any, *, least: int | None = None) -> int:
    number = _number(value)
    if not isinstance(number, int) or (least is not None and number < least):
        what = "a whole number" if least is None else f"a whole number of at least {least}"
        raise InvalidSettingError(f"{name} must be {what}, not {value!r}")
    return number


def _own_size(pipe: Any) -> int | None:
    """The side of the pictures that the pipeline makes by itself, where it can be told."""
    side = getattr(pipe.unet.config, "sample_size", None)
    factor = getattr(pipe, "vae_scale_factor", None)
    return side * factor if isinstance(side, int) and isinstance(factor, int) else None


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and later
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install 'deepcache-patch[ui]'") from error
    return gradio
