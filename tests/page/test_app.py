"""The page without a browser: what its events call, and how it is served."""

from __future__ import annotations

import gc
import http.client
import ipaddress
import socket
import urllib.request
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from builders.cases import CASES

from deepcache_patch import Auto, DeepCacheHelper, Plan, UnsupportedModelError
from deepcache_patch.cli.main import main
from deepcache_patch.settings.by_name import PARAMETERS

gradio = pytest.importorskip("gradio", reason="gradio is not installed: make test-ui")
from deepcache_patch.page import app as ui  # noqa: E402
from deepcache_patch.page.markup import strip  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True, scope="module")
def _gradio_leaves_sockets_and_loops_open() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@cache
def page() -> ui.Page:
    return ui.Page(CASES["sd"].load())


def values(of: ui.Page, **changed: Any) -> list[Any]:
    """Those that the fields have at first, but for some."""
    given = {name: field.value for name, field in of.settings.items()}
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


def test_the_page_has_a_field_for_each_argument_that_the_pipeline_takes() -> None:
    call = ["prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "seed"]
    helper = ["schedule", "interval", "branch", "center", "power", "tolerance"]
    expected = [*call, "width", "height", *helper, "replay"]
    assert list(page().settings) == expected
    assert page().settings["schedule"].value == "noise-aware"
    fields = {name: page().settings[name] for name in ("interval", "branch")}
    assert {name: (field.value, field.step) for name, field in fields.items()} == {
        "interval": (2.2, 0.1),
        "branch": (-1, 1),
    }
    assert (fields["branch"].minimum, fields["branch"].maximum) == (-1, 8)
    assert page().settings["num_inference_steps"].value == 50
    assert (page().settings["width"].value, page().settings["height"].value) == (16, 16)
    assert page().settings["schedule"].choices == [(name, name) for name in PARAMETERS]
    assert isinstance(ui.build_ui(CASES["ddpm"].load()), gradio.Blocks)
    ddpm = ui.Page(CASES["ddpm"].load())
    assert list(ddpm.settings) == ["num_inference_steps", "seed", *helper, "replay"]
    assert ddpm.settings["num_inference_steps"].value == 1000


def test_a_preview_is_the_plan_and_its_share_of_the_work() -> None:
    share = DeepCacheHelper(CASES["sd"].load()).branches[0].share
    assert share is not None
    marks = '<i class="full"></i><i></i><i></i>' * 2
    work = f"{(2 + 4 * share) / 6:.0%} of the U-Net&#x27;s work"
    assert page().preview(*values(page())) == (
        f'<div class="strip" role="img" aria-label="plan: F··F··">{marks}</div>'
        f'<p class="faint">2 of 6 steps in full; {work}</p>'
    )


def test_a_preview_goes_by_the_pipelines_noise_levels_and_forecasts_cost_nothing() -> None:
    default = {"schedule": "noise-aware", "interval": 2.5, "branch": -1}
    shown = page().preview(*values(page(), **default, num_inference_steps=20))
    plan = DeepCacheHelper(CASES["sd"].load(), interval=2.5).plan(20)
    assert f'aria-label="plan: {plan}"' in shown
    assert shown.endswith("8 of 20 steps in full; 40% of the U-Net&#x27;s work</p>")
    shown = page().preview(*values(page(), **default, num_inference_steps=6))
    assert shown.endswith('<p class="faint">6 of 6 steps in full</p>')


def test_the_fields_begin_anew_where_they_mean_something_else() -> None:
    def starts(schedule: str) -> list[Any]:
        interval, branch, *others = page().fields(schedule)
        assert all("value" not in each for each in others)
        return [(each["value"], each["step"]) for each in (interval, branch)]

    assert starts("noise-aware") == [(2.2, 0.1), (-1, 1)]
    assert starts("adaptive") == [(1.5, 0.1), (-1, 1)]
    for schedule in ("uniform", "centred", "auto"):
        assert starts(schedule) == [(3, 1), (0, 1)]


def test_a_preview_says_what_is_wrong() -> None:
    wrong = page().preview(*values(page(), schedule="centred", center=0, interval=1))
    assert wrong.startswith('<p class="wrong">there is no list of 6 full steps in 6 round step 0')
    wrong = page().preview(*values(page(), num_inference_steps=None, width=None))
    assert wrong == '<p class="wrong">give height and width together, or leave both empty</p>'
    made_later = '<p class="faint">The plan is made while the picture is.</p>'
    for schedule in ("auto", "adaptive"):
        assert page().preview(*values(page(), schedule=schedule)) == made_later


def test_generate_gives_both_pictures_and_the_figures() -> None:
    (plain, cached), told = page().generate(*values(page(), seed=5.0))  # as a browser has it
    assert plain.size == cached.size == (16, 16)
    assert plain.tobytes() != cached.tobytes()
    assert "<tr><th>full calls</th><td>6</td><td>2</td><td></td></tr>" in told
    assert "<tr><th>shallow calls</th><td>0</td><td>4</td><td></td></tr>" in told
    assert 'aria-label="plan: F··F··"' in told
    assert "<caption>" not in told
    (again, _), told = page().generate(*values(page(), seed=5, interval=1))
    assert again is not plain
    assert again.tobytes() == plain.tobytes()
    assert "<caption>The plain picture is the one from before.</caption>" in told
    assert "<td>identical</td>" in told


@pytest.mark.parametrize("schedule", PARAMETERS)
@pytest.mark.parametrize("replay", ["extrapolate", "reuse"])
def test_every_schedule_and_replay_generates(schedule: str, replay: str) -> None:
    given = values(page(), schedule=schedule, replay=replay, center=3, num_inference_steps=9)
    assert "shallow calls" in page().generate(*given)[1]


def test_only_the_fields_of_the_schedule_are_shown() -> None:
    names = ["interval", "branch", "center", "power", "tolerance", "replay"]

    def shown(schedule: str) -> list[str]:
        fields = page().fields(schedule)
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
        ({"seed": None}, "seed must be a whole number, not None"),
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
        page().generate(*values(page(), **changed))
    assert error.value.message.startswith(message)
    assert not error.value.print_exception


def test_a_pipeline_that_fails_is_a_line_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory <here>\nand nine more lines")

    monkeypatch.setattr(page().trials, "run", fail)
    with pytest.raises(gradio.Error) as error:
        page().generate(*values(page()))
    message = "StableDiffusionPipeline failed: out of memory &lt;here&gt;"
    assert error.value.message == message


def test_a_calibrated_schedule_can_be_chosen() -> None:
    pipe, auto = CASES["sd"].load(), Auto()
    with DeepCacheHelper(pipe, schedule=auto):
        CASES["sd"].run(pipe, steps=6)
    with_file = ui.Page(pipe, calibrated=auto.learned[0])
    assert with_file.settings["schedule"].choices[-1] == ("calibrated", "calibrated")
    given = values(with_file, schedule="calibrated")
    assert f'aria-label="plan: {auto.learned[0].entries}"' in with_file.preview(*given)
    assert "shallow calls" in with_file.generate(*given)[1]
    wrong = with_file.preview(*values(with_file, schedule="calibrated", num_inference_steps=7))
    assert "was calibrated for 6 steps, the generation has 7" in wrong


def test_branches_are_told_apart_in_a_strip() -> None:
    assert strip(Plan(["full", 0, 11])) == (
        '<div class="strip" role="img" aria-label="plan: F0[11]">'
        '<i class="full"></i><i>0</i><i>11</i></div>'
    )


def test_the_page_is_served_to_this_machine_until_it_is_closed() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ui.launch(CASES["ddpm"].load(), port=port) as server:
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
    host: str, warned: bool, ddpm: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupt(_server: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ui.Server, "wait", interrupt)
    assert main(["ui", str(ddpm), "--device", "cpu", "--port", "0", "--host", host]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("http://")
    assert out.endswith("/ (Ctrl-C ends it)\n")
    assert err.rstrip() == warned * (
        "deepcache-patch ui: warning: whoever reaches 0.0.0.0 can use this page, without a password"
    )


@pytest.mark.parametrize(("host", "code"), [("127.0.0.1", 200), ("evil.example", 400)])
def test_the_page_is_served_under_this_machines_own_names_only(host: str, code: int) -> None:
    # A page of elsewhere could reach it under a name of its own, which it has resolve to here.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    with ui.launch(CASES["ddpm"].load(), port=free) as served:
        port = int(served.address.rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/config", headers={"Host": f"{host}:{port}"})
        assert connection.getresponse().status == code
        connection.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "::1"], "--host ::1: give an IPv4 address, or a name"),
        (["--schedule", "auto"], "--schedule auto is chosen on the page: give a file here"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_model_is_loaded(
    options: list[str], said: str, capsys: Any
) -> None:
    assert main(["ui", "no-such-folder", *options]) == 2
    assert capsys.readouterr().err == f"deepcache-patch ui: error: {said}\n"


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(capsys: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", "./missing", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"deepcache-patch ui: error: cannot listen on 127.0.0.1, port {port}: Address already in "
        "use; choose another --port or --host\n"
    )


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
        CASES["ddpm"].run(pipe, steps=6)
    with pytest.raises(ValueError, match="this calibrated schedule does not fit: unet is a UNet2D"):
        ui.Page(CASES["sd"].load(), calibrated=auto.learned[0])
    with pytest.raises(UnsupportedModelError):
        ui.build_ui(CASES["sd-inpaint"].load())
