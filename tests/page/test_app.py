"""The page without a browser: what its events call, and how it is served."""

from __future__ import annotations

import gc
import http.client
import ipaddress
import re
import socket
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from builders.cases import CASES
from diffusers import StableDiffusionPipeline
from PIL import Image

from deepcache_patch import Auto, DeepCacheHelper, Plan, UnsupportedModelError
from deepcache_patch.cli import ui as _command  # noqa: F401, before `phases` changes what it says with
from deepcache_patch.cli.main import main
from deepcache_patch.compare.grid import difference
from deepcache_patch.learning import auto
from deepcache_patch.measuring.generation import Timing
from deepcache_patch.settings.by_name import PARAMETERS, named_schedule

gradio = pytest.importorskip("gradio", reason="gradio is not installed: make test-ui")
from deepcache_patch.page import app as ui  # noqa: E402
from deepcache_patch.page import serving  # noqa: E402
from deepcache_patch.page.markup import figures, strip  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True, scope="module")
def _gradio_leaves_sockets_and_loops_open() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


#: What gradio calls a tab of a browser.
TAB, OTHER = "a", "b"


@cache
def page() -> ui.Page:
    return ui.Page(CASES["sd"].load())


@pytest.fixture(autouse=True)
def _forget() -> None:
    page().history.__init__()  # type: ignore[misc]


def values(of: ui.Page, **changed: Any) -> list[Any]:
    """Those that the fields have at first, but for some."""
    given = {name: field.value for name, field in of.fields.all.items()}
    small = {
        "schedule": "uniform",
        "interval": 3,
        "branch": 0,
        "num_inference_steps": 6,
        "height": 16,
        "width": 16,
        "prompt": "a fox",
    }
    given |= {name: value for name, value in small.items() if name in given}
    assert changed.keys() <= given.keys()
    return [*(given | changed).values()]


def preview(of: ui.Page, **changed: Any) -> str:
    return of.strip(None, *values(of, **changed))


def generated(of: ui.Page, **changed: Any) -> dict[str, Any]:
    """What the page shows after a run, by name."""
    names = ["number", "strip", "pictures", "difference", "factor", "figures", "python"]
    names += ["plain", "cached", "report", "table", "plot"]
    shown = of.generate(TAB, lambda *_: None, *values(of, **changed))
    return dict(zip(names, shown, strict=True))


def test_the_page_has_a_field_for_each_argument_that_the_pipeline_takes() -> None:
    call = ["num_inference_steps", "guidance_scale", "negative_prompt", "seed", "width", "height"]
    helper = ["schedule", "interval", "branch", "center", "power", "tolerance", "replay"]
    expected = ["prompt", *helper, *call]
    assert list(page().fields.all) == expected
    assert page().fields.all["schedule"].value == "noise-aware"
    fields = {name: page().fields.all[name] for name in ("interval", "branch")}
    assert {name: (field.value, field.step) for name, field in fields.items()} == {
        "interval": (2.2, 0.1),
        "branch": (-1, 1),
    }
    assert (fields["branch"].minimum, fields["branch"].maximum) == (-1, 8)
    assert fields["branch"].label == "Branch (-1 is fastest)"  # a longer one met its number
    assert page().fields.all["num_inference_steps"].value == 50
    assert (page().fields.all["width"].value, page().fields.all["height"].value) == (16, 16)
    names = [name for name in PARAMETERS if name != "default"]
    assert page().fields.all["schedule"].choices == [(name, name) for name in names]
    ddpm = ui.Page(CASES["ddpm"].load())
    assert isinstance(ddpm.blocks, gradio.Blocks)
    assert list(ddpm.fields.all) == [*helper, "num_inference_steps", "seed"]
    assert ddpm.fields.all["num_inference_steps"].value == 1000


def test_a_preview_is_the_plan_and_its_share_of_the_work() -> None:
    share = DeepCacheHelper(CASES["sd"].load()).branches[0].share
    assert share is not None
    marks = '<i class="full"></i><i></i><i></i>' * 2
    work = f"{(2 + 4 * share) / 6:.0%} of the U-Net&#x27;s work"
    assert preview(page()) == (
        f'<div class="strip" role="img" aria-label="plan: F··F··">{marks}</div>'
        f'<p class="faint">Planned: 2 of 6 steps in full; {work}</p>'
    )


def test_a_preview_goes_by_the_pipelines_noise_levels_and_forecasts_cost_nothing() -> None:
    default = {"schedule": "noise-aware", "interval": 2.5, "branch": -1}
    shown = preview(page(), **default, num_inference_steps=20)
    plan = DeepCacheHelper(CASES["sd"].load(), interval=2.5).plan(20)
    assert f'aria-label="plan: {plan}"' in shown
    assert shown.endswith("8 of 20 steps in full; 40% of the U-Net&#x27;s work</p>")
    shown = preview(page(), **default, num_inference_steps=6)
    few = "generations of 8 steps or fewer run in full"
    assert shown.endswith(f'<p class="faint">Planned: 6 of 6 steps in full; {few}</p>')


def test_the_fields_begin_anew_where_they_mean_something_else() -> None:
    def starts(schedule: str) -> list[Any]:
        interval, branch, *others = page().fields.of_schedule(schedule)
        assert all("value" not in each for each in others)
        return [interval["value"], interval["step"], branch["value"]]

    assert starts("noise-aware") == [2.2, 0.1, -1]
    assert starts("adaptive") == [1.5, 0.1, -1]
    assert starts("auto") == [2.2, 0.1, -1]
    for schedule in ("uniform", "centred"):
        assert starts(schedule) == [3, 1, 0]


def test_a_preview_says_what_is_wrong() -> None:
    wrong = preview(page(), schedule="centred", center=0, interval=1)
    assert wrong.startswith(
        '<p class="wrong" role="alert">there is no list of 6 full steps in 6 round step 0'
    )
    wrong = preview(page(), num_inference_steps=None, width=None)
    assert (
        wrong
        == '<p class="wrong" role="alert">give height and width together, or leave both empty</p>'
    )
    made_later = '<p class="faint">The plan is made while the picture is.</p>'
    assert preview(page(), schedule="adaptive") == made_later


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (2, "the first generation in each setting runs in full, to learn"),
        (3, "6 full steps, too few to learn from: as the default"),
    ],
)
def test_a_preview_of_auto_is_the_defaults_and_says_whether_it_learns(
    interval: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "FEW_FULL_STEPS", 8)
    given = {"interval": interval, "branch": -1, "num_inference_steps": 20}
    default = preview(page(), schedule="noise-aware", **given)
    shown = preview(page(), schedule="auto", **given)
    assert shown == default.replace("work</p>", f"work; {said}</p>") != default


@pytest.mark.parametrize("schedule", ["noise-aware", "auto", "uniform"])
@pytest.mark.parametrize(
    ("steps", "interval", "said"), [(15, 2, True), (16, 2, False), (12, 1, False), (8, 2, False)]
)
def test_a_preview_says_what_so_few_steps_do(
    schedule: str, steps: int, interval: float, said: bool
) -> None:
    # `print(helper)` and the command `plan` said so, but not the page.
    given = {"interval": interval, "branch": -1, "num_inference_steps": steps}
    shown = preview(page(), schedule=schedule, **given)
    told = (
        "; with 15 steps or fewer pictures move far from the plain ones: "
        "try the default with interval=1.5"
    )
    assert (told in shown) == said
    none = "Planned: 8 of 8 steps in full; generations of 8 steps or fewer run in full</p>"
    assert (none in shown) == (steps == 8 and schedule != "uniform")


@pytest.mark.filterwarnings("ignore:the generation has 8 steps and runs in full")
@pytest.mark.parametrize(
    ("schedule", "steps", "said"),
    [
        ("uniform", 12, "with 15 steps or fewer pictures move far from the plain ones"),
        ("noise-aware", 8, "generations of 8 steps or fewer run in full"),
        ("auto", 20, "nothing is learned at branch 0: as the default"),
    ],
)
def test_what_is_to_say_of_a_plan_stays_when_it_has_run(
    schedule: str, steps: int, said: str
) -> None:
    given = {"schedule": schedule, "interval": 4, "num_inference_steps": steps}
    assert f"; {said}" in preview(page(), **given)
    entered = page().fields.given(tuple(values(page(), **given)))
    made, kept = page().runner.run(**page().fields.asked(entered))
    moved = replace(made, psnr=(30.0,), ssim=(0.9,))
    for number, each in enumerate((made, moved), 1):
        page().history.add(entered, each, kept=kept)
        ran = page().strip(number, *values(page(), **given))
        assert "Ran: " in ran
        # Beside "no visible difference" it is not said that pictures move.
        assert (f"; {said}" in ran) == (each is moved or schedule != "uniform")


def test_generate_gives_both_pictures_and_the_figures() -> None:
    shown = generated(page(), seed=5.0)  # as a browser has it
    plain, cached = shown["pictures"]
    assert plain.size == cached.size == (16, 16)
    assert plain.tobytes() != cached.tobytes()
    told = shown["figures"]
    assert told.startswith(
        '<div class="figures" data-shown="1"><p title="“no visible difference”: every '
    )
    assert '">Verdict: <strong>no visible difference</strong></p><table>' in told
    assert '<tr><th scope="row">full calls</th><td>6</td><td>2</td></tr>' in told
    assert '<tr><th scope="row">shallow calls</th><td>0</td><td>4</td></tr>' in told
    assert "<caption>Try 1, timed once" in told
    assert 'aria-label="what ran: F··F··"' in shown["strip"]
    assert "Ran: 2 of 6 steps in full; " in shown["strip"]
    again = generated(page(), seed=5, interval=1)
    assert again["pictures"][0].tobytes() == plain.tobytes()
    # "Those of before" did not say that a speed may be of two moments, nor how to have new ones.
    before = "<caption>Try 2, timed once; the plain picture and its times are of an earlier run: "
    assert before in again["figures"]
    assert "<td>identical</td>" in again["figures"]


@pytest.mark.parametrize(("seconds", "said"), [(5.0, False), (4.9, True)])
def test_a_speed_that_the_work_does_not_allow_is_named(seconds: float, said: bool) -> None:
    generated(page(), seed=5)
    made = page().history.find(1)
    changed = replace(
        made.comparison,
        plain_times=(Timing(10.0, 11.0, 6),),
        times=(Timing(seconds, 5.0, 6),),
        work=0.5,  # at most 2×
    )
    told = figures(replace(made, comparison=changed))
    moved = replace(made, comparison=replace(changed, psnr=(30.0,)))
    assert "Verdict: <strong>details move</strong>" in figures(moved)
    assert ("; faster than the work allows: timings vary, or something" in told) == said


def test_the_difference_is_amplified_and_cut_off() -> None:
    shown = generated(page(), seed=5)
    plain, cached = shown["pictures"]
    assert shown["difference"] == difference(plain, cached, shown["factor"])
    black, grey = (Image.new("RGB", (1, 1), (level,) * 3) for level in (0, 40))
    assert difference(black, grey, 4).getpixel((0, 0)) == (160, 160, 160)
    assert difference(grey, black, 8).getpixel((0, 0)) == (255, 255, 255)
    assert page().amplified(1, 2) == difference(plain, cached, 2)
    assert page().amplified(None, 2) == gradio.skip()


def test_pictures_and_report_can_be_downloaded() -> None:
    shown = generated(page(), seed=5)
    files = [shown[name] for name in ("plain", "cached", "report")]
    assert all(file["interactive"] for file in files)
    paths = [Path(file["value"]) for file in files]
    assert [path.name for path in paths] == ["plain.png", "helper.png", "comparison.html"]
    saved = [Image.open(path).tobytes() for path in paths[:2]]
    assert saved == [picture.tobytes() for picture in shown["pictures"]]
    assert paths[2].read_text(encoding="utf-8").lower().startswith("<!doctype html>")


def test_settings_are_shown_as_python() -> None:
    script = generated(page(), seed=5, replay="reuse")["python"]
    assert 'DeepCacheHelper(pipe, schedule=Uniform(interval=3, branch=0), replay="reuse")' in script
    assert "for seed in [5]:" in script
    assert "        prompt='a fox'," in script


def test_each_try_is_a_row_and_a_point() -> None:
    assert not page().gallery.table.visible
    assert not page().gallery.plot.visible
    for interval in (3, 2, 1):
        shown = generated(page(), seed=5, interval=interval)
    assert shown["table"]["visible"]
    assert shown["plot"]["visible"]
    rows = shown["table"]["value"]
    assert [row[0] for row in rows] == [3, 2, 1]  # the last one first
    assert all('alt="picture of try' in row[1] for row in rows)
    for row, made in zip(rows, reversed([*page().history]), strict=True):
        most = made.comparison.work_speedup
        assert row[2] == f"{made.speedup:.2f}× (at most {most:.2f}×)"
    assert rows[0][3] == "identical"
    assert [row[3].endswith(" dB") for row in rows[1:]] == [True, True]
    assert rows[0][4] == "no visible difference"
    assert rows[1][5].endswith("interval 2, branch 0 · seed 5 · a fox")
    assert re.findall(r">(\d)</text></a>", shown["plot"]["value"]) == ["1", "2"]
    points = re.findall(r'data-try="(\d)" aria-label="(.*?)"', shown["plot"]["value"])
    assert (
        points
        == [  # identical pictures have no place on the axis
            (
                f"{each.number}",
                f"try {each.number}: speed by work {each.comparison.work_speedup:.2f}×, "
                f"{each.psnr:.2f} dB, uniform",
            )
            for each in [*page().history][:2]
        ]
    )


def test_the_plot_goes_by_work_unless_that_of_a_try_is_not_known() -> None:
    # It was of the measured speeds, which can be twice what the work allows.
    generated(page(), seed=5)
    made = page().history.find(1)
    assert page().gallery.of()[1]["value"].endswith('<p class="faint">speed by work</p>')
    unknown = replace(made.comparison, work=None)
    page().history.add(made.settings, unknown, kept=True)
    table, plot = (each["value"] for each in page().gallery.of())
    assert plot.endswith('<p class="faint">measured speed</p>')
    assert f'"try 1: measured speed {made.speedup:.2f}×, ' in plot
    assert table[0][2] == f"{made.speedup:.2f}×"


def test_a_point_makes_way_for_a_later_one_that_would_cover_it() -> None:
    # The later one lay over it, and no click reached it.
    generated(page(), seed=5)
    made = page().history.find(1)
    page().history.add(made.settings, made.comparison, kept=True)
    plot = page().gallery.of()[1]["value"]
    lines = re.findall(r'<line x1="(\S+)%" x2="(\S+)%" y1', plot)
    marks = re.findall(r'<circle cx="(\S+)%"', plot)
    places, drawn = zip(*lines, strict=True)
    assert (places[0], drawn) == (places[1], tuple(marks))
    assert places[1] == drawn[1]
    assert abs(float(drawn[0]) - float(places[0])) == 7.5


def test_a_try_that_is_brought_back_is_shown_as_it_was() -> None:
    first = generated(page(), seed=5, schedule="centred", center=2)
    generated(page(), seed=6, interval=2)
    names = list(page().fields.all)
    back = page().bring_back(page().history.find(1))
    fields, result = dict(zip(names, back, strict=False)), back[len(names) :]
    given = values(page(), seed=5, schedule="centred", center=2)
    assert [fields[name]["value"] for name in names] == given
    assert fields["center"]["visible"]
    assert not fields["tolerance"]["visible"]
    assert result == [*first.values()][:-2]
    assert page().strip(1, *given) == first["strip"]
    assert "Planned" in page().strip(2, *given)
    assert page().bring_back(None) == [gradio.skip()] * len(back)


def test_a_seed_of_minus_one_is_drawn_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcache_patch.page.fields.random.randint", lambda low, high: 77)
    shown = generated(page(), seed=-1)
    assert page().history.find(1).settings["seed"] == 77
    assert " · seed 77 · " in shown["table"]["value"][0][5]
    assert "for seed in [77]:" in shown["python"]
    assert "Ran" in page().strip(1, *values(page(), seed=-1))


def test_an_empty_prompt_is_asked_about_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(gradio, "Warning", said.append)
    monkeypatch.setattr(page().runner, "run", lambda *_, **__: pytest.fail("was run"))
    for prompt in ("", "  \n"):
        assert set(map(str, generated(page(), prompt=prompt).values())) == {str(gradio.skip())}
    question = "What is the picture to show? Write a prompt, or take an example."
    assert said == [question] * 2


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page says beside what it shows."""
    messages: list[str] = []
    monkeypatch.setattr(gradio, "Info", messages.append)
    return messages


STOPPED = "Stopped. No new pictures were made."
WAITS = "Another tab's pictures are made first. Then these are."


def test_stop_leaves_the_page_as_it_was(said: list[str]) -> None:
    assert page().busy(TAB) == [gradio.update(interactive=False), gradio.update(interactive=True)]
    assert page().stop(TAB) == gradio.update(value="Stopping …", interactive=False)
    assert set(map(str, generated(page()).values())) == {str(gradio.skip())}
    assert said == [STOPPED]
    assert len(page().history) == 0
    assert page().idle(TAB) == [
        gradio.update(interactive=True),
        gradio.update(value="Stop", interactive=False),
    ]
    page().stop(TAB)  # too late: it was over
    assert generated(page())["number"] == 1


def test_stop_is_of_one_tab_and_a_tab_that_waits_says_so(said: list[str]) -> None:
    # It was one flag for all: the Stop of one tab ended what another generated.
    page().busy(TAB)
    assert said == []

    def told(*_: Any) -> None:  # while the first tab generates
        if not said:
            page().busy(OTHER)
            page().stop(OTHER)

    assert page().generate(TAB, told, *values(page()))[0] == 1
    assert said == [WAITS]
    nothing = page().generate(OTHER, lambda *_: None, *values(page()))
    assert set(map(str, nothing)) == {str(gradio.skip())}
    assert said == [WAITS, STOPPED]
    page().idle(OTHER)
    page().busy(TAB)
    assert said == [WAITS, STOPPED]  # nobody is before it
    page().idle(TAB)


def test_a_tab_that_is_closed_ends_its_generation_and_nobody_waits_for_it(said: list[str]) -> None:
    page().busy(TAB)
    page().closed(TAB)
    page().busy(OTHER)
    assert said == []
    assert str(gradio.skip()) in map(str, page().generate(TAB, print, *values(page())))
    page().idle(OTHER)


def test_steps_are_told_by_half_and_number() -> None:
    bar: list[tuple[Any, str]] = []
    told = ui._told_on(lambda steps, desc: bar.append((steps, desc)))
    told("plain", 23, 50)
    told("helper", 12, 50)
    told("warm-up", 3, None)
    assert bar == [((23, 50), "plain"), ((12, 50), "helper"), ((3, None), "warm-up")]


def test_defaults_and_prompts_are_those_of_the_models_card(tmp_path: Path) -> None:
    CASES["sd"].load().save_pretrained(tmp_path)
    card = "---\ninference:\n  parameters:\n    guidance_scale: 25\n    num_inference_steps: 9\n"
    (tmp_path / "README.md").write_text(f"{card}widget:\n  - text: a fox\n---\n")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path)
    fields = ui.Page(pipe).fields.all
    scale, steps = fields["guidance_scale"], fields["num_inference_steps"]
    assert (scale.value, scale.maximum, steps.value) == (25, 25, 9)


def test_of_the_last_tries_alone_the_files_are_kept() -> None:
    files = [Path(generated(page(), seed=5)["report"]["value"])]
    folder = files[0].parent.parent
    made = page().history.find(1)
    for number in range(2, 10):
        files += [page().result._saved(replace(made, number=number))[-1]]
        page().result._saved(made)  # shown again and again
    assert [each.is_file() for each in files] == [True, False, *[True] * 7]
    assert {each.name for each in folder.iterdir()} == {"1", *map(str, range(3, 10))}
    assert page().result._saved(replace(made, number=2))[-1].is_file()  # and brought back


def test_files_are_there_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    generated(page(), seed=5)
    made = replace(page().history.find(1), number=70)

    def fail(_self: Any, _place: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(type(made.comparison), "save", fail)
        with pytest.raises(OSError, match="the disk is full"):
            page().result._saved(made)
    assert all(each.is_file() for each in page().result._saved(made))


@pytest.mark.parametrize("schedule", PARAMETERS)
@pytest.mark.parametrize("replay", ["extrapolate", "reuse"])
def test_every_schedule_and_replay_generates(schedule: str, replay: str) -> None:
    given = {"schedule": schedule, "replay": replay, "center": 3, "num_inference_steps": 9}
    assert "shallow calls" in generated(page(), **given)["figures"]


def test_only_the_fields_of_the_schedule_are_shown() -> None:
    names = ["interval", "branch", "center", "power", "tolerance", "replay"]

    def shown(schedule: str) -> list[str]:
        fields = page().fields.of_schedule(schedule)
        return [name for name, field in zip(names, fields, strict=True) if field["visible"]]

    assert shown("noise-aware") == shown("uniform") == ["interval", "branch", "replay"]
    assert shown("centred") == ["interval", "branch", "center", "power", "replay"]
    assert shown("auto") == ["interval", "branch"]
    assert shown("adaptive") == ["interval", "branch", "tolerance", "replay"]
    assert shown("calibrated") == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"branch": 99}, "branch 99 is out of range: "),
        ({"seed": None}, "seed must be a whole number of at least -1, not None"),
        ({"seed": -2}, "seed must be a whole number of at least -1, not -2"),
        (
            {"num_inference_steps": 2.5},
            "num_inference_steps must be a whole number of at least 1, ",
        ),
        ({"width": None}, "give height and width together, or leave both empty"),
        ({"width": 13}, "`height` and `width` have to be divisible by 8 but are 16 and 13."),
    ],
)
def test_an_error_is_a_line_on_the_page(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(gradio.Error) as error:
        generated(page(), **changed)
    assert error.value.message.startswith(message)
    assert not error.value.print_exception


def test_a_pipeline_that_fails_is_a_line_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory <here>\nand nine more lines")

    monkeypatch.setattr(page().runner, "run", fail)
    with pytest.raises(gradio.Error) as error:
        generated(page())
    message = "StableDiffusionPipeline failed: out of memory &lt;here&gt;"
    assert error.value.message == message


def test_a_calibrated_schedule_can_be_chosen() -> None:
    pipe, auto = CASES["sd"].load(), Auto()
    with DeepCacheHelper(pipe, schedule=auto):
        CASES["sd"].run(pipe, steps=12)
    with_file = ui.Page(pipe, schedule=auto.learned[0], schedule_file="mine/my.json")
    fields = with_file.fields.all
    assert fields["schedule"].choices[-1] == ("calibrated", "calibrated")
    assert (fields["schedule"].value, fields["num_inference_steps"].value) == ("calibrated", 12)
    given = [field.value for field in fields.values()]
    assert f'aria-label="plan: {auto.learned[0].entries}"' in with_file.strip(None, *given)
    shown = generated(with_file, schedule="calibrated", num_inference_steps=12)
    assert "shallow calls" in shown["figures"]
    loaded = "Calibrated.load('mine/my.json')"  # not of a schedule.json that is nowhere
    assert loaded in shown["python"]
    report = unescape(Path(shown["report"]["value"]).read_text(encoding="utf-8"))
    assert loaded in re.sub("<.*?>", "", report)
    generated(with_file)  # of another schedule
    made = [with_file.history.find(number) for number in (1, 2)]
    files = [each.comparison.about.get("schedule_file") for each in made]
    assert files == ["mine/my.json", None]
    wrong = preview(with_file, schedule="calibrated", num_inference_steps=7)
    assert "was calibrated for 12 steps, the generation has 7" in wrong


@pytest.mark.usefixtures("phases")
def test_the_command_says_where_the_schedule_was_read(
    ddpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, auto, file = CASES["ddpm"].load(), Auto(), str(tmp_path / "my.json")
    with DeepCacheHelper(pipe, schedule=auto):
        CASES["ddpm"].run(pipe, steps=12)
    auto.learned[0].save(file)
    given: list[Any] = []

    def opened(*_: Any, **options: Any) -> Any:
        given.append(options["schedule_file"])
        raise ValueError("seen")

    monkeypatch.setattr(ui, "Page", opened)
    for schedule in (file, "uniform"):
        command = ["ui", str(ddpm), "--device", "cpu", "--port", "0", "--schedule", schedule]
        assert main(command) == 2
    assert given == [file, None]


def test_the_buttons_change_before_anything_is_generated_and_again_after_it() -> None:
    # `busy` and `generate` were two events of one click: the one that returned at once, because
    # there was no prompt, was followed by `idle` before `busy` came.
    wired = page().blocks.fns
    by_name = {each.name: number for number, each in wired.items()}
    chain, number = [], wired[by_name["generate"]].trigger_after
    assert number is not None
    first = wired[number]
    buttons = [page()._button, page()._stop]
    assert (first.outputs, [event for _, event in first.targets]) == (buttons, ["click", "submit"])
    while number is not None:
        chain.append(wired[number])
        number = next((key for key, each in wired.items() if each.trigger_after == number), None)
    assert [each.outputs == buttons for each in chain] == [True, False, True]
    assert not any(each.trigger_only_on_success for each in chain)
    # After an error the browser runs no `then`: Generate stayed grey until the page was reloaded.
    last = [each for each in wired.values() if each.trigger_after == by_name["generate"]]
    assert [(each.outputs, each.trigger_only_on_failure) for each in last] == [
        (buttons, False),
        (buttons, True),
    ]


def test_branches_are_told_apart_in_a_strip() -> None:
    assert strip(Plan(["full", 0, 11]), "plan") == (
        '<div class="strip" role="img" aria-label="plan: F0[11]">'
        '<i class="full"></i><i>0</i><i>11</i></div>'
    )


def test_the_page_is_served_to_this_machine_until_it_is_closed() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving.Server(ui.Page(CASES["ddpm"].load()), "127.0.0.1", port) as server:
        assert server.address == f"http://127.0.0.1:{port}/"
        with urllib.request.urlopen(server.address) as answer:
            assert "<style>" in answer.read().decode()
        served = server._page.blocks
        assert not served.share
        assert not served.analytics_enabled
        assert ipaddress.ip_address(served.server_name).is_loopback
        with urllib.request.urlopen(f"{server.address}gradio_api/info") as answer:
            assert answer.read() == b'{"named_endpoints":{},"unnamed_endpoints":{}}'
    server.wait()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(server.address)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "ddpm"
    CASES["ddpm"].load().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_ctrl_c_ends_the_command(
    host: str,
    warned: bool,
    ddpm: Path,
    phases: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    def interrupt(_server: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serving.Server, "wait", interrupt)
    assert main(["ui", str(ddpm), "--device", "cpu", "--port", "0", "--host", host]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("http://")
    assert out.endswith("/ (Ctrl-C ends it)\n")
    assert phases == [f"loading {ddpm}"]
    assert err.rstrip() == warned * (
        "deepcache-patch ui: warning: whoever reaches 0.0.0.0 can use this page, without a password"
    )


@pytest.mark.parametrize(("host", "code"), [("127.0.0.1", 200), ("evil.example", 400)])
def test_the_page_is_served_under_this_machines_own_names_only(host: str, code: int) -> None:
    # A page of elsewhere could reach it under a name of its own, which it has resolve to here.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    with serving.Server(ui.Page(CASES["ddpm"].load()), "127.0.0.1", free) as served:
        port = int(served.address.rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/config", headers={"Host": f"{host}:{port}"})
        assert connection.getresponse().status == code
        connection.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "::1"], "--host ::1: give an IPv4 address, or a name"),
        (["--schedule", "./none"], "cannot read --schedule ./none: No such file or directory"),
        (
            ["--schedule", "dfault"],
            "Invalid value for '--schedule': there is no schedule 'dfault': did you mean "
            "'default'? There are default, noise-aware, uniform, centred, auto, adaptive, or a "
            "file that `calibrate` wrote (see --help)",
        ),
    ],
)
def test_what_cannot_be_served_is_said_before_a_model_is_loaded(
    options: list[str], said: str, capsys: Any
) -> None:
    assert main(["ui", "a/m", *options]) == 2
    assert capsys.readouterr().err == f"deepcache-patch ui: error: {said}\n"


@pytest.mark.parametrize(
    ("name", "chosen", "shown"),
    [
        ("default", "noise-aware", ["interval", "branch", "replay"]),
        ("adaptive", "adaptive", ["interval", "branch", "tolerance", "replay"]),
        ("auto", "auto", ["interval", "branch"]),
    ],
)
def test_the_page_begins_with_the_schedule_that_was_named(
    name: str, chosen: str, shown: list[str], ddpm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[ui.Page] = []

    def served(page: ui.Page, *_: Any) -> Any:
        pages.append(page)
        raise ValueError("seen")

    monkeypatch.setattr(serving, "Server", served)
    assert main(["ui", str(ddpm), "--device", "cpu", "--port", "0", "--schedule", name]) == 2
    fields = pages[0].fields
    assert fields.all["schedule"].value == chosen
    assert [each for each in fields.parameters if fields.all[each].visible] == shown
    made, interval = named_schedule(name), fields.all["interval"]
    assert (interval.value, fields.all["branch"].value) == (made.interval, made.branches[0])


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(capsys: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "a/m", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"deepcache-patch ui: error: cannot listen on 127.0.0.1, port {port}: Address already in "
        "use; choose another --port or --host\n"
    )


@pytest.mark.usefixtures("phases")
def test_a_pipeline_that_the_page_cannot_drive_is_one_line(tmp_path: Path, capsys: Any) -> None:
    CASES["sd-img2img"].load().save_pretrained(tmp_path)
    assert main(["ui", str(tmp_path), "--device", "cpu", "--port", "0"]) == 2
    assert capsys.readouterr().err == (
        "deepcache-patch ui: error: StableDiffusionImg2ImgPipeline needs image=…: a prompt and "
        "numbers are all that can be given here\n"
    )


def test_a_schedule_of_another_unet_is_refused() -> None:
    pipe, auto = CASES["ddpm"].load(), Auto()
    with DeepCacheHelper(pipe, schedule=auto):
        CASES["ddpm"].run(pipe, steps=12)
    with pytest.raises(ValueError, match="this calibrated schedule does not fit: unet is a UNet2D"):
        ui.Page(CASES["sd"].load(), schedule=auto.learned[0])
    with pytest.raises(UnsupportedModelError):
        ui.Page(CASES["sd-inpaint"].load())
