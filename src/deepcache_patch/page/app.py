"""The page of `deepcache-patch ui`: what stands where, and what its events do. Made of gradio,
which is an extra. The settings are in `fields`, what came of them in `result`, what was tried in
`gallery`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

from ..compare.paste import python_of
from ..errors import DeepCacheError, first_line
from ..learning.calibrated_schedule import Calibrated
from ..measuring.similarity import require_metrics
from .card import card_of
from .fields import Fields
from .gallery import Gallery
from .markup import planned, ran, wrong
from .memory import Memory, Try
from .result import Result, difference
from .trial import Told, Trials
from .watch import StoppedError


def require_gradio() -> None:
    """Raises early, before a model is loaded, what `build_ui` would raise late.

    Raises:
        ImportError: gradio or scikit-image is not installed.
    """
    gradio()
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


class Page:
    """The page, and what its events call.

    Attributes:
        blocks: The `gradio.Blocks`.
        trials: What makes the pictures.
        memory: What has been tried; all who look at the page see the same one.
        fields: The settings.
    """

    def __init__(self, pipe: Any, *, calibrated: Calibrated | None = None) -> None:
        self._gr = gradio()
        self._pipe = pipe
        self.trials = Trials(pipe)
        self.memory = Memory()
        if calibrated is not None:
            calibrated.check(pipe.unet, pipe.scheduler)
        self.fields = Fields(self._gr, self.trials, pipe, card_of(pipe), calibrated)
        self.blocks = self._laid_out()

    def close(self) -> None:
        """Ends a trial that is under way, and deletes what was written."""
        self.trials.watch.close()
        self.result.close()

    # --- what the events call ---------------------------------------------------------------------

    def strip(self, shown: int | None, *values: Any) -> str:
        """The plan of the settings as HTML, or what is wrong with them.

        Args:
            shown: The number of the try that is shown: as long as the settings are those that it
                was made with, its plan is the one that ran.
            values: Of the fields.
        """
        given = self.fields.given(values)
        made = self.memory.find(shown)
        if made is not None and made.was_made_with(given):
            return ran(made.trial.comparison)
        try:
            schedule = self.fields.schedule(given)
            steps = self.fields.call(given).get("num_inference_steps")
            return planned(self.trials.plan(schedule, steps), self.trials.shares)
        except DeepCacheError as error:
            return wrong(first_line(error))

    def generate(self, told: Told, *values: Any) -> list[Any]:
        """Runs the settings, and returns what all outputs show then.

        Raises:
            gradio.Error: With what is wrong, in one line.
        """
        given = self.fields.given(values)
        if not (given.get("prompt", "-") or "").strip():
            self._gr.Warning("What is the picture to show? Write a prompt, or take an example.")
            return self._nothing_new()
        self.trials.watch.resume()  # a Stop that came after the last one was over
        with self._said():
            schedule, call = self.fields.schedule(given), self.fields.call(given)
            given["seed"] = self.fields.seed(given)
            replay = self.fields.replay(given)
            try:
                trial = self.trials.run(
                    call, seed=given["seed"], schedule=schedule, replay=replay, told=told
                )
            except StoppedError:
                self._gr.Info("Stopped. The pictures are those of before.")
                return self._nothing_new()
            return [*self._shown(self.memory.add(given, trial)), *self.gallery.of()]

    def bring_back(self, made: Try | None) -> list[Any]:
        """What the fields and the result show of a try; nothing changes if there is none."""
        if made is None:
            return [self._gr.skip()] * (len(self.fields.all) + len(self._shows))
        return [*self.fields.of_settings(made.settings), *self._shown(made)]

    def amplified(self, shown: int | None, factor: float) -> Any:
        """The difference of the pictures that are shown."""
        made = self.memory.find(shown)
        if made is None:
            return self._gr.skip()
        return difference(made.trial.plain, made.trial.cached, factor)

    def busy(self) -> list[Any]:
        """The buttons while a picture is made."""
        return [self._gr.update(interactive=False), self._gr.update(interactive=True)]

    def stop(self) -> Any:
        """Ends the trial that is under way; the button says so until it has."""
        self.trials.watch.stop()
        return self._gr.update(value="Stopping …", interactive=False)

    def idle(self) -> list[Any]:
        """The buttons when it is done, whether it was made, stopped or failed."""
        self.trials.watch.resume()
        return [self._gr.update(interactive=True), self._gr.update(value="Stop", interactive=False)]

    def _shown(self, made: Try) -> list[Any]:
        return [made.number, ran(made.trial.comparison), *self.result.of(made)]

    def _nothing_new(self) -> list[Any]:
        return [self._gr.skip()] * (len(self._shows) + len(self.gallery.all))

    @contextmanager
    def _said(self) -> Iterator[None]:
        """What is wrong is a message on the page, and no stack trace anywhere."""
        try:
            yield
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
            self.fields.add_prompt()
            with gr.Row():
                self._button = gr.Button("Generate both pictures", variant="primary", scale=4)
                self._stop = gr.Button("Stop", variant="stop", interactive=False, min_width=120)
            # In the order of a narrow page: what comes of the settings stands before them.
            with gr.Row():
                with gr.Column(scale=6, min_width=280):
                    strip = gr.HTML(elem_id="strip")
                    self.result = Result(gr, lambda made: python_of(made.trial.comparison.about))
                with gr.Column(scale=4, min_width=280):
                    self.fields.add_helper()
                    self.fields.add_call()
            self.gallery = Gallery(gr, self.memory)
            shown = gr.State(None)
            self._shows = [shown, strip, *self.result.all]
            self._wire(blocks)
        return blocks

    def _title(self) -> str:
        pipe = self._pipe
        name = str(getattr(pipe, "name_or_path", "") or type(pipe).__name__)
        short = Path(name).resolve().name if Path(name).is_dir() else name
        scheduler = type(pipe.scheduler).__name__.removesuffix("Scheduler")
        dtype = str(pipe.dtype).removeprefix("torch.")
        about = f"{type(pipe).__name__}, {scheduler}, {dtype} on {pipe.device}"
        return f"## {escape(short)} with and without DeepCache\n{about}"

    def _wire(self, blocks: Any) -> None:
        gr, fields = self._gr, self.fields.all
        inputs, shown, strip = list(fields.values()), self._shows[0], self._shows[1]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        aside: dict[str, Any] = {**quiet, "queue": False}
        progress = gr.Progress()

        def generate(bar: Any = progress, *values: Any) -> list[Any]:
            return self.generate(_told_on(bar), *values)

        def selected(event: Any) -> list[Any]:
            return self.bring_back(self.memory.find(int(event.row_value[0])))

        def brushed(event: Any) -> list[Any]:
            return self.bring_back(self.memory.within(*event.index))

        # That is how gradio knows what to give; it is not there when the annotations are written.
        for function in (selected, brushed):
            function.__annotations__["event"] = gr.SelectData

        buttons = [self._button, self._stop]
        starts = [self._button.click, *([fields["prompt"].submit] if "prompt" in fields else [])]
        gr.on(starts, self.busy, None, buttons, **aside)
        gr.on(
            starts,
            generate,
            inputs,
            [*self._shows, *self.gallery.all],
            show_progress_on=self.result.pictures,
            concurrency_limit=1,
            trigger_mode="once",
            api_visibility="private",
        ).then(self.idle, None, buttons, **aside)
        # Not `cancels=`, which would leave the pipeline running behind the page's back.
        self._stop.click(self.stop, None, self._stop, **aside)

        back = [*inputs, *self._shows]
        self.gallery.table.select(selected, None, back, **aside)
        self.gallery.plot.select(brushed, None, back, **aside)
        factor, residue = self.result.factor, self.result.residue
        factor.input(self.amplified, [shown, factor], residue, **aside)
        # Of a person only: a try that is brought back has values of its own.
        parameters = [fields[name] for name in self.fields.parameters]
        fields["schedule"].input(self.fields.of_schedule, fields["schedule"], parameters, **aside)
        changes = [blocks.load, *(each.change for each in inputs)]
        always: dict[str, Any] = {"trigger_mode": "always_last", **aside}
        gr.on(changes, self.strip, [shown, *inputs], strip, **always)
        blocks.load(self.gallery.of, None, self.gallery.all, **aside)


def _told_on(bar: Callable[..., Any]) -> Told:
    """Steps as gradio's progress: "plain 23/50"."""

    def told(label: str, step: int, steps: int | None) -> None:
        name = "DeepCache" if label == "cached" else label
        bar(step / steps if steps else 0, desc=f"{name} {step}/{steps or '?'}")

    return told


def gradio() -> Any:
    """The module.

    Raises:
        ImportError: gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and later
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the page needs gradio: pip install 'deepcache-patch[ui]'") from error
    return gradio
