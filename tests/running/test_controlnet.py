"""A ControlNet runs only what a shallow call of the U-Net uses, and no picture shows it."""

import copy
import functools
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from builders.changes import FULL, SHALLOW, STEPS
from builders.marks import mostly_slow
from builders.unets import inputs2d_condition, unet2d_condition
from conftest import counted_calls, trace
from zoo import CASES

from deepcache_patch import DeepCacheHelper, Uniform
from deepcache_patch.cutting.anatomy import dissect, dissect_controlnet, is_controlnet
from deepcache_patch.running.controlnet import AttachedControlNet

# Of each kind of ControlNet, one or more to a pipeline.
QUICK = ("sd-controlnet", "hunyuandit-controlnet", "blip-controlnet")
CONTROLLED = {
    "sd-controlnet": "controlnet_mid_block",
    "sd-controlnet-two": "nets.1.controlnet_mid_block",
    "sd-controlnet-inpaint": "controlnet_mid_block",
    "sdxl-controlnet-img2img": "controlnet_mid_block",
    "sdxl-controlnet-union": "controlnet_mid_block",
    "blip-controlnet": "controlnet_mid_block",
    "sd-controlnet-pag": "controlnet_mid_block",
    "animatediff-controlnet": "controlnet_mid_block",
    "animatediff-sparse-controlnet": "controlnet_mid_block",
    "hunyuandit-controlnet": "controlnet_blocks.2",  # the deepest
}


def uncut(monkeypatch):
    monkeypatch.setattr(AttachedControlNet, "_branch", lambda *_: None)


@pytest.mark.parametrize("name", mostly_slow(CONTROLLED, QUICK))
def test_the_pictures_are_those_with_a_whole_controlnet(name, monkeypatch):
    case = CASES[name]
    pipe = case.load()
    before = trace(pipe.controlnet)
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        picture = case.run(pipe, steps=8)
        shallow = helper.stats.shallow_calls
    assert shallow >= 3
    assert trace(pipe.controlnet) == before
    uncut(monkeypatch)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        assert torch.equal(case.run(pipe, steps=8), picture)


@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize("name", mostly_slow(CONTROLLED, QUICK))
def test_the_deepest_part_runs_on_full_steps_only(name, branch):
    case = CASES[name]
    pipe = case.load()
    with (
        counted_calls(pipe.controlnet) as calls,
        DeepCacheHelper(pipe, schedule=Uniform(branch=branch)) as helper,
    ):
        case.run(pipe, steps=8)
    assert calls[CONTROLLED[name]] == helper.stats.full_calls
    assert calls[""] == helper.stats.full_calls + helper.stats.shallow_calls


def test_at_the_deepest_branch_a_controlnet_is_whole(monkeypatch):
    # The middle block's residual is added after the feature that is replayed there.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    deepest = dissect(pipe.unet).branches[-1]
    with DeepCacheHelper(pipe, schedule=Uniform(branch=deepest)) as helper:
        with counted_calls(pipe.controlnet) as calls:
            picture = case.run(pipe, steps=8)
        assert helper.stats.shallow_calls == 5
    assert calls["controlnet_mid_block"] == 8
    uncut(monkeypatch)
    with DeepCacheHelper(pipe, schedule=Uniform(branch=deepest)):
        assert torch.equal(case.run(pipe, steps=8), picture)


def test_guess_mode_is_not_cut():
    # It scales the residuals by how many there are.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    with (
        counted_calls(pipe.controlnet) as calls,
        DeepCacheHelper(pipe, schedule=Uniform()) as helper,
    ):
        case.run(pipe, steps=8, guess_mode=True)
    assert calls["mid_block"] == 8
    assert helper.stats.shallow_calls == 5


def test_paused_and_disabled_a_controlnet_is_whole():
    case = CASES["sd-controlnet"]
    pipe = case.load()
    helper = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    with counted_calls(pipe.controlnet) as calls, helper.paused():
        case.run(pipe, steps=8)
    assert calls["mid_block"] == 8
    helper.disable()
    with counted_calls(pipe.controlnet) as calls:
        case.run(pipe, steps=8)
    assert calls["mid_block"] == 8


def test_a_replaced_controlnet_runs_whole_until_it_is_attached():
    case = CASES["sd-controlnet"]
    pipe, other = case.load(), case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        expected = case.run(pipe, steps=8)
        pipe.controlnet = other.controlnet
        with counted_calls(pipe.controlnet) as calls:
            assert torch.equal(case.run(pipe, steps=8), expected)
        assert calls["mid_block"] == 8
        helper.disable()
        helper.enable()
        with counted_calls(pipe.controlnet) as calls:
            assert torch.equal(case.run(pipe, steps=8), expected)
        assert calls["mid_block"] == 3


def test_a_controlnet_of_another_depth_is_not_cut():
    pipe = CASES["sd-controlnet"].load()
    anatomy = dissect_controlnet(pipe.controlnet)
    assert anatomy.num_skips == dissect(pipe.unet).num_skips
    pipe.controlnet.controlnet_down_blocks.append(torch.nn.Identity())
    assert not anatomy.is_current
    assert dissect_controlnet(pipe.controlnet).num_skips == -1


def test_what_is_no_controlnet_is_not_taken_for_one():
    for model in (unet2d_condition(), torch.nn.Linear(1, 1), torch.nn.ModuleList(), None):
        assert not is_controlnet(model)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("size", [(8, 8), (9, 11)], ids=["8x8", "9x11"])
def test_a_cut_controlnet_makes_the_first_residuals(size):
    pipe = CASES["sd-controlnet"].load()
    controlnet = pipe.controlnet
    factor = 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)
    arguments = inputs2d_condition(size=size) | {
        "controlnet_cond": torch.rand(2, 3, *(factor * side for side in size)),
        "return_dict": False,
    }
    whole, _ = controlnet(**arguments)
    anatomy = dissect_controlnet(controlnet)
    assert len(whole) == anatomy.num_skips
    for branch in range(anatomy.num_skips - 1):
        with anatomy.cut(branch).applied():
            residuals, middle = controlnet(**arguments)
        assert len(residuals) == branch + 1
        assert all(map(torch.equal, residuals, whole))
        assert middle.count_nonzero() == 0


def test_a_controlnet_that_cannot_be_dissected_runs_whole():
    case = CASES["sd-controlnet"]
    pipe = case.load()
    pipe.controlnet.down_blocks[0].more = torch.nn.ModuleList([torch.nn.Identity()] * 7)
    with (
        counted_calls(pipe.controlnet) as calls,
        DeepCacheHelper(pipe, schedule=Uniform()) as helper,
    ):
        case.run(pipe, steps=8)
    assert calls["mid_block"] == 8
    assert helper.stats.shallow_calls == 5


def sharing(pipe):
    """Another pipeline with the same networks, for another thread."""
    # A tokenizer keeps its padding while it reads: two threads may not share one.
    own = {name: copy.deepcopy(getattr(pipe, name)) for name in ("scheduler", "tokenizer")}
    other = type(pipe)(**{**pipe.components, **own})
    other.set_progress_bar_config(disable=True)
    return other


def test_threads_may_share_unet_and_controlnet():
    # One thread looked at the ControlNet while the other one's call had it cut, and took what was
    # left of it for all.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    other = sharing(pipe)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        expected = [case.run(pipe, steps=8, seed=seed) for seed in range(4)]
    pipe.controlnet.controlnet_cond_embedding.register_forward_hook(lambda *_: time.sleep(0.01))
    with DeepCacheHelper(pipe, schedule=Uniform()), ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(functools.partial(_runs, case, each, seeds))
            for each, seeds in ((pipe, (0, 1)), (other, (2, 3)))
        ]
        pictures = [picture for future in futures for picture in future.result()]
    assert all(map(torch.equal, pictures, expected))
    assert len(pictures) == 4


def _runs(case, pipe, seeds):
    return [case.run(pipe, steps=8, seed=seed) for seed in seeds]


def test_nobody_keeps_the_residuals_of_a_cut_call(monkeypatch):
    # Those of four calls, 5 MiB each for SD 1.5, stayed with the helper for the next ones.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    given = []
    call = AttachedControlNet._call

    def watched(self, original, args, kwargs):
        # The pipeline itself holds those of the last step until it has the next.
        assert not [each for earlier in given[:-1] for each in earlier if each() is not None]
        output = call(self, original, args, kwargs)
        given.append([weakref.ref(each) for each in output[0]])
        return output

    monkeypatch.setattr(AttachedControlNet, "_call", watched)
    with DeepCacheHelper(pipe, schedule=Uniform(5), replay="reuse") as helper:
        case.run(pipe)
    assert helper.stats.shallow_calls > 0
    assert len(given) == helper.stats.shallow_calls + helper.stats.full_calls


CONTROLS = [
    ("sd-controlnet", 0, {}, FULL),
    ("sd-controlnet", 4, {}, FULL),
    # In guess mode the scale of a residual depends on how many there are: it always runs in full.
    ("sd-controlnet", 4, {"guess_mode": True}, STEPS),
    ("sd-controlnet", 0, {"guess_mode": True, "guidance_scale": 1.0}, STEPS),
    ("sd-controlnet", 4, {"control_guidance_start": 0.3}, FULL),
    ("sd-controlnet", 0, {"control_guidance_end": 0.5}, FULL),
    ("sd-controlnet-two", 3, {"control_guidance_start": [0.0, 0.4]}, FULL),
    ("sd-controlnet-two", 0, {"control_guidance_end": [0.5, 1.0]}, FULL),
    ("sdxl-controlnet", 4, {"guess_mode": True}, STEPS),
    ("sdxl-controlnet", 0, {"control_guidance_start": 0.2, "control_guidance_end": 0.7}, FULL),
]


@pytest.mark.parametrize(
    ("name", "branch", "overrides", "in_full"),
    mostly_slow(
        [pytest.param(*row, id="-".join([row[0], str(row[1]), *row[2]])) for row in CONTROLS],
        [
            *("sd-controlnet-4", "sd-controlnet-0-guess_mode-guidance_scale"),
        ],
    ),
)
def test_a_cut_controlnet_gives_what_a_whole_one_does(name, branch, overrides, in_full):
    case = CASES[name]
    run = functools.partial(case.run, steps=STEPS, **overrides)
    pipe = case.load()
    traces = trace(pipe.unet), trace(pipe.controlnet)
    with DeepCacheHelper(pipe, schedule=Uniform(1, branch=branch)):
        exact = run(pipe)
    assert torch.equal(exact, run(pipe))
    # A helper of the bare U-Net knows of no ControlNet, and leaves it whole; nor of a scheduler.
    with DeepCacheHelper(pipe.unet, schedule=Uniform(branch=branch), replay="reuse"):
        expected = run(pipe)
    assert not torch.equal(expected, exact)

    middle = "nets.0.mid_block" if name == "sd-controlnet-two" else "mid_block"
    with DeepCacheHelper(pipe, schedule=Uniform(branch=branch), replay="reuse") as helper:
        case.run(pipe, steps=7, seed=1)
        with counted_calls(pipe.controlnet) as calls:
            assert torch.equal(run(pipe), expected)
    assert calls[middle] == in_full
    assert helper.stats.shallow_calls == 4 + SHALLOW
    assert (trace(pipe.unet), trace(pipe.controlnet)) == traces


def test_guess_mode_waits_until_no_other_thread_has_the_controlnet_cut():
    case = CASES["sd-controlnet"]
    pipe = case.load()
    other = sharing(pipe)
    net, whole = pipe.controlnet, len(pipe.controlnet.down_blocks)
    may_go, is_cut, is_over = threading.Event(), threading.Event(), threading.Event()

    def between_steps(_pipe, _step, _timestep, inputs):
        may_go.wait(30)  # the next call is the first that is cut
        return inputs

    def first_layer(*_):
        if len(net.down_blocks) < whole:
            is_cut.set()
            is_over.wait(30)
        elif threading.current_thread().name == "guess" and not may_go.is_set():
            may_go.set()
            is_cut.wait(0.5)  # in vain, if that call waits for this one

    def guess():
        threading.current_thread().name = "guess"
        try:
            return case.run(pipe, steps=1, guess_mode=True)
        finally:
            is_over.set()

    with DeepCacheHelper(pipe, schedule=Uniform()):
        alone = case.run(pipe, steps=1, guess_mode=True)
        net.conv_in.register_forward_pre_hook(first_layer)
        with ThreadPoolExecutor(2) as pool:
            normal = pool.submit(case.run, other, steps=2, callback_on_step_end=between_steps)
            guessed = pool.submit(guess)
            assert torch.equal(guessed.result(), alone)
            normal.result()
    assert is_cut.is_set()
