"""Servers that give each request a shell of its own round one pipeline: a shallow copy, or one of
`from_pipe`, with a scheduler of its own and the same U-Net.

So does diffusers' example of an asynchronous server. One helper is enabled, of the shared pipeline.
"""

import copy
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from builders.cases import CASES
from builders.marks import mostly_slow
from builders.schedulers import with_scheduler
from conftest import layout
from diffusers import StableDiffusionImg2ImgPipeline

from deepcache_patch import OUTPUT, DeepCacheHelper, Uniform, UnsupportedModelError

#: A thread that waits longer than this for another waits for ever.
PATIENCE = 300


class Locked:
    """A tokenizer that one thread uses at a time; its methods write to it, too."""

    def __init__(self, inner: Any, lock: threading.Lock) -> None:
        self._inner, self._lock = inner, lock

    def __getattr__(self, name: str) -> Any:
        found = getattr(vars(self)["_inner"], name)
        return functools.partial(self._locked, found) if callable(found) else found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._locked(self._inner, *args, **kwargs)

    def _locked(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return function(*args, **kwargs)


class RequestScoped:
    """Stands for a pipeline before its requests, and copies what they write to.

    It has some of the pipeline's parts itself, and a list of all of them.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.unet, self.vae, self.components = pipe.unet, pipe.vae, pipe.components
        self._lock = threading.Lock()

    def shell(self) -> Any:
        """What one request runs."""
        shell = copy.copy(self.pipe)
        shell.scheduler = type(shell.scheduler).from_config(shell.scheduler.config)
        shell.tokenizer = Locked(shell.tokenizer, self._lock)
        return shell


class Forwarding(RequestScoped):
    """Has whatever the pipeline has."""

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["pipe"], name)


class Request(NamedTuple):
    """What differs between those who ask."""

    seed: int
    steps: int
    prompt: str


REQUESTS = [
    Request(seed=number % 5, steps=3 + number % 4, prompt=f"a circle of {number % 3}")
    for number in range(6)
]


def served(case: Any, pipe: Any, request: Request) -> Any:
    return case.run(pipe, steps=request.steps, seed=request.seed, prompt=request.prompt)


def at_once(function: Any, requests: list[Any], threads: int = 4) -> list[Any]:
    """What the function makes of each, in threads; raises what it raises, or if one is stuck."""
    pool = ThreadPoolExecutor(threads)
    try:
        futures = [pool.submit(function, request) for request in requests]
        return [each.result(timeout=PATIENCE) for each in futures]
    finally:
        pool.shutdown(wait=False)


def alone(load: Any, run: Any, schedule: Any) -> tuple[list[Any], list[int]]:
    """The pictures of requests that have a pipeline, and a helper, for each; the counts in all.

    Args:
        load: Gives a fresh pipeline and what gives its shells.
        run: Serves a request through a shell.
        schedule: Of the helpers.
    """
    pictures, counts = [], torch.zeros(3, dtype=torch.int64)
    for request in REQUESTS:
        pipe, shell = load()
        with DeepCacheHelper(pipe, schedule=schedule) as helper:
            pictures.append(run(shell(), request))
        stats = helper.stats
        counts += torch.tensor([stats.generations, stats.full_calls, stats.shallow_calls])
    return pictures, counts.tolist()


def assert_served_as_alone(load: Any, run: Any, schedule: Any) -> None:
    """Requests at once, each through a shell of its own, get what each gets alone; see `alone`."""
    plain = [run(load()[1](), request) for request in REQUESTS]
    expected, counts = alone(load, run, schedule)
    pipe, shell = load()
    before, helper = layout(pipe.unet), DeepCacheHelper(pipe, schedule=schedule).enable()
    pictures = at_once(lambda request: run(shell(), request), REQUESTS)
    stats = helper.stats
    helper.disable()
    assert all(map(torch.equal, pictures, expected))
    assert [stats.generations, stats.full_calls, stats.shallow_calls] == counts
    assert counts[2] > 0
    assert not any(map(torch.equal, expected, plain))
    pictures = at_once(lambda request: run(shell(), request), REQUESTS)
    assert all(map(torch.equal, pictures, plain))
    assert layout(pipe.unet) == before


@pytest.mark.parametrize(
    ("scheduler", "branch"),
    mostly_slow([("ddim", 0), ("heun", OUTPUT)], 1),
    ids=["ddim-cut", "heun-output"],
)
def test_requests_at_once_get_the_pictures_that_each_gets_alone(scheduler, branch):
    case = CASES["sd"]

    def load() -> Any:
        pipe = with_scheduler(case.load(), scheduler)
        return pipe, RequestScoped(pipe).shell

    assert_served_as_alone(load, functools.partial(served, case), Uniform(3, branch))


@pytest.mark.slow
def test_requests_through_shells_of_from_pipe_get_the_pictures_that_each_gets_alone():
    def load() -> Any:
        pipe = CASES["sd"].load()
        words = Locked(pipe.tokenizer, threading.Lock())

        def shell() -> Any:
            scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
            made = StableDiffusionImg2ImgPipeline.from_pipe(pipe, scheduler=scheduler)
            made.tokenizer = words
            made.set_progress_bar_config(disable=True)
            assert made.unet is pipe.unet
            return made

        return pipe, shell

    assert_served_as_alone(load, functools.partial(served, CASES["sd-img2img"]), Uniform(3))


def test_a_request_that_fails_leaves_the_others_alone():
    case = CASES["sd"]
    pipe = case.load()
    shells = RequestScoped(pipe)
    with DeepCacheHelper(pipe, schedule=Uniform(3)):
        expected = [served(case, shells.shell(), request) for request in REQUESTS]

    def stop(_pipe: Any, step: int, _timestep: Any, kwargs: Any) -> Any:
        if step == 1:
            raise InterruptedError
        return kwargs

    def serve(request: Request | None) -> Any:
        if request is not None:
            return served(case, shells.shell(), request)
        with pytest.raises(InterruptedError):
            case.run(shells.shell(), callback_on_step_end=stop)
        return None

    with DeepCacheHelper(pipe, schedule=Uniform(3)):
        mixed = at_once(serve, [each for request in REQUESTS for each in (None, request)])
    assert all(map(torch.equal, mixed[1::2], expected))


def test_no_shell_is_kept_alive_and_nothing_is_held_after_the_requests():
    case = CASES["sd"]
    pipe = case.load()
    shells = RequestScoped(pipe)
    with DeepCacheHelper(pipe, schedule=Uniform(3)) as helper:
        at_once(lambda request: served(case, shells.shell(), request), REQUESTS[:4])
        sessions = helper._attachment.unets[0]._sessions
        assert sum(each.cache.nbytes for each in sessions) == 0


def test_of_what_stands_for_a_pipeline_the_error_names_the_pipeline_in_it():
    pipe = CASES["sd"].load()
    with pytest.raises(UnsupportedModelError) as refused:
        DeepCacheHelper(RequestScoped(pipe))
    assert str(refused.value) == (
        "DeepCacheHelper takes a diffusers pipeline or a U-Net, not RequestScoped: give it the "
        "pipeline inside, DeepCacheHelper(pipe.pipe)"
    )


def test_what_has_all_that_a_pipeline_has_is_taken_for_it():
    case = CASES["sd"]
    pipe = case.load()
    shells = Forwarding(pipe)
    with DeepCacheHelper(pipe, schedule=Uniform(3)):
        expected = served(case, shells.shell(), REQUESTS[0])
    with DeepCacheHelper(shells, schedule=Uniform(3)) as helper:
        assert torch.equal(served(case, shells.shell(), REQUESTS[0]), expected)
        assert helper.plan(6) == DeepCacheHelper(pipe, schedule=Uniform(3)).plan(6)
        assert pipe.unet._compiled_call_impl is not None
    assert pipe.unet._compiled_call_impl is None
