"""Threads and asyncio tasks that generate at once through one U-Net."""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from builders.cases import CASES as PLAIN_CASES
from builders.marks import mostly_slow
from builders.schedulers import with_scheduler
from builders.unets import inputs2d_condition, unet2d_condition
from conftest import layout
from zoo import CASES as ZOO_CASES

from deepcache_patch import AlreadyEnabledError, DeepCacheHelper, Uniform
from deepcache_patch.patching.call import CALL, CallPatch
from deepcache_patch.patching.patch import installed_patch

SCHEDULERS = ("ddim", "euler", "heun", "dpm-multistep")

CASES = {
    "sd": PLAIN_CASES["sd"],
    "sd-img2img": PLAIN_CASES["sd-img2img"],
    "sd-controlnet": ZOO_CASES["sd-controlnet"],
}

#: A thread that waits longer than this for another waits for ever.
PATIENCE = 300


class Request(NamedTuple):
    """One generation: who makes it, how, and whether the helper is paused for it."""

    pipe: int
    seed: int
    steps: int
    paused: bool


def pipelines(case: Any, count: int = len(SCHEDULERS)) -> list[Any]:
    """Pipelines with schedulers of their own and the first one's U-Net and ControlNet.

    The rest is their own, too: two threads must not use a tokenizer at once.
    """
    pipes = [with_scheduler(case.load(), name) for name in SCHEDULERS[:count]]
    for pipe in pipes[1:]:
        pipe.unet = pipes[0].unet
        if hasattr(pipe, "controlnet"):
            pipe.controlnet = pipes[0].controlnet
    return pipes


def requests(count: int) -> list[Request]:
    """So many, in turn for each pipeline, with each combination of the rest."""
    many = len(SCHEDULERS)
    return [
        Request(i % many, seed=i // many % 3, steps=3 + i % 5, paused=i // many % 2 == 1)
        for i in range(count)
    ]


def served(case: Any, pipes: Sequence[Any], helper: DeepCacheHelper, request: Request) -> Any:
    with helper.paused() if request.paused else contextlib.nullcontext():
        return case.run(pipes[request.pipe], steps=request.steps, seed=request.seed)


def in_threads(*functions: Callable[[], Any]) -> None:
    """Runs each in a thread of its own; raises what they raise, or if one is stuck."""
    pool = ThreadPoolExecutor(len(functions))
    try:
        for future in [pool.submit(function) for function in functions]:
            future.result(timeout=PATIENCE)
    finally:
        pool.shutdown(wait=False)


@pytest.fixture
def hasty():
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 1000)
    yield
    sys.setswitchinterval(before)


def assert_served_as_alone(case: Any, count: int) -> None:
    """Generations of four threads at once are those of one thread."""
    pipes, asked = pipelines(case), requests(count)
    with DeepCacheHelper(pipes[0], schedule=Uniform()) as helper:
        alone = {each: served(case, pipes, helper, each) for each in set(asked)}
        counted = helper.stats
    assert counted.shallow_calls > 0
    results: dict[int, list[Any]] = {}

    def work(pipe: int) -> None:
        mine = [each for each in asked if each.pipe == pipe]
        results[pipe] = [(each, served(case, pipes, helper, each)) for each in mine]

    pipes = pipelines(case)
    plain = layout(pipes[0].unet)
    helper = DeepCacheHelper(pipes[0], schedule=Uniform()).enable()
    in_threads(*(lambda pipe=pipe: work(pipe) for pipe in range(len(SCHEDULERS))))
    helper.disable()
    made = [pair for pairs in results.values() for pair in pairs]
    assert len(made) == count
    assert [request for request, picture in made if not torch.equal(picture, alone[request])] == []
    assert layout(pipes[0].unet) == plain
    # A cut ControlNet or U-Net of another thread would have shown in the counts, too.
    whole, left_over = divmod(count, len(set(asked)))
    if not left_over:
        stats = helper.stats
        assert stats.full_calls == whole * counted.full_calls
        assert stats.shallow_calls == whole * counted.shallow_calls


@pytest.mark.parametrize("name", mostly_slow(CASES, ["sd"]))
def test_threads_that_share_a_unet_make_the_pictures_of_one(name, hasty):
    assert_served_as_alone(CASES[name], 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_hundred_generations_of_four_threads(name, hasty):
    assert_served_as_alone(CASES[name], 200)


def test_a_pause_is_of_the_thread_that_asked_for_it():
    # It was everybody's: while one request of a server was paused, all ran in full.
    case = CASES["sd"]
    pipes = pipelines(case, 2)
    plain = case.run(pipes[0])
    with DeepCacheHelper(pipes[0], schedule=Uniform()) as helper:
        cached = [case.run(pipe) for pipe in pipes]
        before, pictures = helper.stats, []
        with helper.paused():
            in_threads(lambda: pictures.append(case.run(pipes[1])))
            pictures.append(case.run(pipes[0]))
    assert torch.equal(pictures[0], cached[1])
    assert torch.equal(pictures[1], plain)
    assert helper.stats.shallow_calls - before.shallow_calls == 3


def test_the_end_of_a_pause_leaves_other_threads_generations_alone():
    # Whoever came back from a pause made all threads begin anew, with a full step.
    unet, timesteps = unet2d_condition(), torch.tensor([900, 700, 500])
    with DeepCacheHelper(unet, schedule=Uniform(10)) as helper, torch.no_grad():
        for timestep in timesteps:
            unet(**inputs2d_condition() | {"timestep": timestep})

            def pause():
                with helper.paused(), torch.no_grad():
                    unet(**inputs2d_condition() | {"timestep": torch.tensor([300])[0]})

            in_threads(pause)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (1, 2)


def test_a_server_switches_for_each_request():
    # Four pipelines, three at work; a request waits for a pipeline, is paused or not, and runs in a
    # thread of asyncio's.
    case, pipes, asked = CASES["sd"], pipelines(CASES["sd"]), requests(8)
    with DeepCacheHelper(pipes[0], schedule=Uniform()) as helper:
        alone = {each: served(case, pipes, helper, each) for each in set(asked)}

    async def answer(request, locks, workers):
        async with workers, locks[request.pipe]:
            with helper.paused() if request.paused else contextlib.nullcontext():
                await asyncio.sleep(0)  # the other tasks run meanwhile
                picture = await asyncio.to_thread(
                    case.run, pipes[request.pipe], steps=request.steps, seed=request.seed
                )
        return torch.equal(picture, alone[request])

    async def server():
        locks, workers = [asyncio.Lock() for _ in pipes], asyncio.Semaphore(3)
        answers = (answer(each, locks, workers) for each in asked)
        return await asyncio.wait_for(asyncio.gather(*answers), PATIENCE)

    with helper:
        assert asyncio.run(server()) == [True] * len(asked)


def test_two_threads_cannot_both_enable_a_helper_on_one_unet(hasty):
    # Both looked whether the U-Net was free before either had patched it.
    unet = unet2d_condition()
    plain = layout(unet)
    for _ in range(25):
        helpers, together, won = (
            [DeepCacheHelper(unet, schedule=Uniform()) for _ in range(2)],
            threading.Barrier(2),
            [],
        )

        def enable(helper, together=together, won=won):
            together.wait(PATIENCE)
            with contextlib.suppress(AlreadyEnabledError):
                won.append(helper.enable())

        in_threads(*(lambda helper=helper: enable(helper) for helper in helpers))
        assert len(won) == 1
        assert [helper.enabled for helper in helpers].count(True) == 1
        won[0].disable()
        assert layout(unet) == plain


def test_a_unet_that_another_thread_has_cut_is_looked_at_when_it_is_whole():
    # A second helper, made while a shallow call was under way, found no U-Net, or fewer branches.
    unet, inside, go_on = unet2d_condition(), threading.Event(), threading.Event()
    helper, told = DeepCacheHelper(unet, schedule=Uniform()).enable(), []

    def call():
        with torch.no_grad():
            for timestep in torch.tensor([900, 700]):
                if timestep == 700:
                    unet.conv_out.register_forward_pre_hook(wait)
                unet(**inputs2d_condition() | {"timestep": timestep})

    def wait(_module, _args):
        inside.set()
        assert go_on.wait(PATIENCE)

    def look():
        assert inside.wait(PATIENCE)
        threading.Timer(0.2, go_on.set).start()
        told.append(len(DeepCacheHelper(unet, schedule=Uniform(branch=8)).branches))

    in_threads(call, look)
    assert helper.stats.shallow_calls == 1
    assert told == [9]
    helper.disable()


def test_a_controlnets_call_that_waited_goes_to_whom_it_belongs_to_by_then(monkeypatch):
    # It ran past what somebody else had put round the ControlNet meanwhile.
    pipe, waits = ZOO_CASES["sd-controlnet"].load(), threading.Event()
    helper, seen, outputs = DeepCacheHelper(pipe, schedule=Uniform()).enable(), [], []
    (controlnet,) = helper._attachment.controlnets
    arguments = inputs2d_condition()
    arguments["controlnet_cond"] = torch.rand(len(arguments["sample"]), 3, 16, 16)

    def call():
        with torch.no_grad():
            outputs.append(pipe.controlnet(**arguments, return_dict=False)[0])

    def locate(*_):
        waits.set()  # the next thing is the lock

    def other(original, args, kwargs):
        seen.append(kwargs.keys())
        return original(*args, **kwargs)

    def switch():
        with controlnet._lock:
            taken.set()
            assert waits.wait(PATIENCE)
            helper.disable()
            CallPatch(pipe.controlnet, list, installer=None).install(other)

    taken = threading.Event()
    monkeypatch.setattr(controlnet, "_current", lambda: controlnet._anatomy)
    monkeypatch.setattr(controlnet, "_branch", locate)
    in_threads(switch, lambda: taken.wait(PATIENCE) and call())
    assert seen == [{*arguments, "return_dict"}]
    call()
    assert all(map(torch.equal, *outputs))


def test_a_pause_is_left_where_it_was_entered():
    # As a web framework does with a dependency that yields: torn down in another worker.
    pause = DeepCacheHelper(unet2d_condition(), schedule=Uniform()).paused()
    in_threads(pause.__enter__)
    with pytest.raises(RuntimeError, match="entered in another thread or asyncio task"):
        pause.__exit__(None, None, None)


def test_enable_waits_for_a_call_that_is_under_way():
    unet, inside, go_on = unet2d_condition(), threading.Event(), threading.Event()
    arguments = inputs2d_condition()
    with torch.no_grad():
        plain = unet(**arguments).sample
    outputs: list[Any] = []

    def call():
        def wait(_module, _args):
            inside.set()
            assert go_on.wait(PATIENCE)

        handle = unet.down_blocks[0].register_forward_pre_hook(wait)
        with torch.no_grad():
            outputs.append(unet(**arguments).sample)
        handle.remove()

    def enable():
        assert inside.wait(PATIENCE)
        helper.enable()
        outputs.append("enabled")

    def release():
        assert inside.wait(PATIENCE)
        while helper._attachment is None and not installed_patch(unet, CALL):
            time.sleep(1e-3)
        assert outputs == []
        go_on.set()

    helper = DeepCacheHelper(unet, schedule=Uniform())
    in_threads(call, enable, release)
    assert torch.equal(outputs[0], plain)
    assert outputs[1] == "enabled"
    helper.disable()


@pytest.mark.parametrize("interval", mostly_slow([1, 3], [3]))
@pytest.mark.parametrize("name", mostly_slow(["sd", "sd-img2img"], ["sd-img2img"]))
def test_switching_while_others_generate_breaks_nothing(name, interval, hasty):
    # A call that began before `enable` takes no turns: another thread cut the U-Net under it.
    case = CASES[name]
    pipes = pipelines(case, 3)
    plain = layout(pipes[0].unet)
    expected = [case.run(pipe) for pipe in pipes]
    helper, done = DeepCacheHelper(pipes[0], schedule=Uniform(interval)), threading.Event()

    def generate(number):
        for _ in range(2):
            picture = case.run(pipes[number])
            assert torch.isfinite(picture).all()
            # With nothing but full steps, it does not matter when the helper was on.
            assert interval > 1 or torch.equal(picture, expected[number])

    def switch():
        while not done.is_set():
            helper.enable()
            with helper.paused():
                helper.reset()
            helper.disable()
            time.sleep(1e-3)  # or it may take every turn, as no program does that also generates

    switching = threading.Thread(target=switch)
    switching.start()
    try:
        in_threads(*(lambda number=number: generate(number) for number in range(len(pipes))))
    finally:
        done.set()
        switching.join(PATIENCE)
    assert not switching.is_alive()
    assert layout(pipes[0].unet) == plain
    assert all(map(torch.equal, [case.run(pipe) for pipe in pipes], expected))
