"""The page of `deepcache-patch ui`: what stands where, and what its events do. Made of gradio,
which is an extra. The settings are in `fields`, what came of them in `result`, what was tried in
`gallery`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from threading import Event
from typing import Any

from ..compare.contestant import few_steps
from ..compare.grid import difference
from ..compare.saving import short_name
from ..errors import DeepCacheError, first_line
from ..learning.calibrated_schedule import Calibrated
from ..measuring.similarity import require_metrics
from ..schedules.remarks import own_remarks_on, remarks_on
from ..settings.by_name import DEFAULT
from .fields import Fields
from .gallery import Gallery
from .history import History, Try
from .markup import planned, ran, wrong
from .result import ResultView
from .runner import OnStep, Runner
from .watch import StoppedError


def require_gradio() -> None:
    """Raises early, before a model is loaded, what `Page` would raise late.

    Raises:
        ImportError: gradio or scikit-image is not installed.
    """
    gradio()
    require_metrics()


class Page:
    """The page, and what its events call; nothing is served yet.

    Args:
        pipe: A pipeline that makes a picture of a prompt, or of nothing.
        schedule: That it begins with: a name, or one that can be chosen beside those with a name.
        schedule_file: Where a schedule without a name was read, as Python is to name it.

    Attributes:
        blocks: The `gradio.Blocks`.
        runner: What makes the pictures.
        history: What has been tried; all who look at the page see the same one.
        fields: The settings.

    Raises:
        ImportError: gradio is not installed.
        UnsupportedModelError: The page cannot drive this pipeline.
        InvalidSettingError: The schedule is of another U-Net or scheduler.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        schedule: Calibrated | str = DEFAULT,
        schedule_file: str | None = None,
    ) -> None:
        self._gr = gradio()
        self.runner = Runner(pipe)
        self.history = History()
        if not isinstance(schedule, str):
            schedule.check(pipe.unet, pipe.scheduler)
        self._stops: dict[str, Event] = {}  # of each tab that generates, or waits for its turn
        self.fields = Fields(self._gr, self.runner, schedule, schedule_file)
        self.blocks = self._laid_out()

    def close(self) -> None:
        """Ends a try that is under way, and deletes what was written."""
        self.runner.close()
        self.result.close()

    # --- what the events call ---------------------------------------------------------------------

    def strip(self, shown: int | None, *values: Any) -> str:
        """The plan of the settings as HTML, or what is wrong with them.

        Args:
            shown: The number of the try that is shown: as long as the settings are those that it
                was made with, its plan is the one that ran.
            values: The values of the fields.
        """
        given = self.fields.given(values)
        made = self.history.find(shown)
        if made is not None and made.was_made_with(given):
            return self._ran(made)
        try:
            schedule, call = self.fields.schedule(given), self.fields.call(given)
            plan = self.runner.plan(schedule, call.get("num_inference_steps"))
            return planned(plan, self.runner.shares, remarks_on(schedule, plan) if plan else [])
        except DeepCacheError as error:
            return wrong(first_line(error))

    def generate(self, tab: str, told: OnStep, *values: Any) -> list[Any]:
        """Runs the settings of a tab, and returns what all its outputs show then.

        Raises:
            gradio.Error: With what is wrong, in one line.
        """
        given = self.fields.given(values)
        if not (given.get("prompt", "-") or "").strip():
            self._gr.Warning("What is the picture to show? Write a prompt, or take an example.")
            return self._nothing_new()
        stop = self._stops.setdefault(tab, Event())
        with self._said():
            given["seed"] = self.fields.seed(given)
            try:
                made, kept = self.runner.run(**self.fields.asked(given), told=told, stop=stop)
            except StoppedError:
                self._gr.Info("Stopped. No new pictures were made.")
                return self._nothing_new()
            finally:
                self._stops.pop(tab, None)
            return [*self._shown(self.history.add(given, made, kept=kept)), *self.gallery.of()]

    def bring_back(self, made: Try | None) -> list[Any]:
        """What the fields and the result show of a try; nothing changes if there is none."""
        if made is None:
            return [self._gr.skip()] * (len(self.fields.all) + len(self._shows))
        return [*self.fields.of_settings(made.settings), *self._shown(made)]

    def amplified(self, shown: int | None, factor: float) -> Any:
        """The difference of the pictures that are shown."""
        made = self.history.find(shown)
        if made is None:
            return self._gr.skip()
        return difference(*made.pictures, factor)

    def busy(self, tab: str) -> list[Any]:
        """The buttons of a tab while its pictures are made, or wait for those of another."""
        if any(tab != other and not stop.is_set() for other, stop in [*self._stops.items()]):
            self._gr.Info("Another tab's pictures are made first. Then these are.")
        self._stops.setdefault(tab, Event())
        return [self._gr.update(interactive=False), self._gr.update(interactive=True)]

    def closed(self, tab: str) -> None:
        """Ends what the tab generates or waits for."""
        if tab in self._stops:
            self._stops[tab].set()

    def stop(self, tab: str) -> Any:
        """The same, by the button, which says so until it is over."""
        self.closed(tab)
        return self._gr.update(value="Stopping …", interactive=False)

    def idle(self, tab: str) -> list[Any]:
        """The buttons when it is done, whether it was made, stopped or failed."""
        self._stops.pop(tab, None)
        return [self._gr.update(interactive=True), self._gr.update(value="Stop", interactive=False)]

    def _shown(self, made: Try) -> list[Any]:
        return [made.number, self._ran(made), *self.result.of(made)]

    def _ran(self, made: Try) -> str:
        schedule, comparison = self.fields.schedule(made.settings), made.comparison
        own = own_remarks_on(schedule, comparison.plan, is_past=True)
        return ran(comparison, [*own, *few_steps(comparison, comparison.plan)])

    def _nothing_new(self) -> list[Any]:
        return [self._gr.skip()] * (len(self._shows) + len(self.gallery.all))

    @contextmanager
    def _said(self) -> Iterator[None]:
        """What is wrong is a message on the page, and no stack trace anywhere."""
        try:
            yield
        except Exception as error:  # whatever pipeline, scheduler and device raise together
            told = first_line(error)
            if not isinstance(error, DeepCacheError | ValueError | TypeError):
                told = f"{type(self.runner.pipe).__name__} failed: {told}"
            raise self._gr.Error(escape(told), print_exception=False) from error

    # --- the layout -------------------------------------------------------------------------------

    def _laid_out(self) -> Any:
        gr, name = self._gr, type(self.runner.pipe).__name__
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
                    self.result = ResultView(gr)
                with gr.Column(scale=4, min_width=280):
                    self.fields.add_helper()
                    self.fields.add_call()
            self.gallery = Gallery(gr, self.history)
            shown = gr.State(None)
            self._shows = [shown, strip, *self.result.all]
            self._wire(blocks)
        return blocks

    def _title(self) -> str:
        pipe = self.runner.pipe
        name = str(getattr(pipe, "name_or_path", "") or type(pipe).__name__)
        scheduler = type(pipe.scheduler).__name__.removesuffix("Scheduler")
        dtype = str(pipe.dtype).removeprefix("torch.")
        about = f"{type(pipe).__name__}, {scheduler}, {dtype} on {pipe.device}"
        return f"## {escape(short_name(name))} with and without the helper\n{about}"

    def _wire(self, blocks: Any) -> None:
        gr, fields = self._gr, self.fields.all
        inputs, shown, strip = list(fields.values()), self._shows[0], self._shows[1]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        aside: dict[str, Any] = {**quiet, "queue": False}
        progress = gr.Progress()

        def generate(tab: Any, bar: Any = progress, *values: Any) -> list[Any]:
            return self.generate(tab.session_hash, _told_on(bar), *values)

        def of_tab(function: Callable[[str], Any]) -> Callable[..., Any]:
            def called(tab: Any) -> Any:
                return function(tab.session_hash)

            called.__annotations__["tab"] = gr.Request
            return called

        def selected(event: Any) -> list[Any]:
            return self.bring_back(self.history.find(int(event.row_value[0])))

        # That is how gradio knows what to give; it is not there when the annotations are written.
        generate.__annotations__["tab"] = gr.Request
        selected.__annotations__["event"] = gr.SelectData

        buttons = [self._button, self._stop]
        starts = [self._button.click, *([fields["prompt"].submit] if "prompt" in fields else [])]
        # In a queue of its own: what is said outside of any does not reach the browser. One after
        # the other: a `generate` that returns at once would have `idle` overtaken by `busy`.
        begun = gr.on(starts, of_tab(self.busy), None, buttons, concurrency_limit=None, **quiet)
        made = begun.then(
            generate,
            inputs,
            [*self._shows, *self.gallery.all],
            show_progress_on=[self.result.pictures, self.result.residue],
            concurrency_limit=1,
            trigger_mode="once",
            api_visibility="private",
        )
        for done in (made.then, made.failure):  # after an error the browser runs no `then`
            done(of_tab(self.idle), None, buttons, **aside)
        # Not `cancels=`, which would leave the pipeline running behind the page's back.
        self._stop.click(of_tab(self.stop), None, self._stop, **aside)
        blocks.unload(of_tab(self.closed))

        back = [*inputs, *self._shows]
        for shown_in in self.gallery.all:
            chosen = shown_in.select(selected, None, back, **aside)
            chosen.then(None, js="() => showResult()", **aside)
        factor, residue = self.result.factor, self.result.residue
        factor.input(self.amplified, [shown, factor], residue, **aside)
        # Of a person only: a try that is brought back has values of its own.
        parameters = [fields[name] for name in self.fields.parameters]
        fields["schedule"].input(self.fields.of_schedule, fields["schedule"], parameters, **aside)
        changes = [blocks.load, *(each.change for each in inputs)]
        always: dict[str, Any] = {"trigger_mode": "always_last", **aside}
        gr.on(changes, self.strip, [shown, *inputs], strip, **always)
        blocks.load(self.gallery.of, None, self.gallery.all, **aside)


def _told_on(bar: Callable[..., Any]) -> OnStep:
    """Steps as gradio's progress: "plain - 46.0%", and in the corner "23/50 steps"."""

    def told(label: str, step: int, steps: int | None) -> None:
        bar((step, steps), desc=label)

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
