"""Which calls are in a block of `helper.generation(...)`: generators, tasks, order of leaving."""

import asyncio
import gc
import warnings
import weakref
from contextlib import ExitStack, asynccontextmanager, contextmanager

import pytest
import torch
from builders.declared_loops import SIGMAS, called, ddim, noise
from builders.loops import held_bytes
from builders.unets import unet2d

from deepcache_patch import (
    FULL,
    DeepCacheHelper,
    DeepCacheWarning,
    Explicit,
    NoiseAware,
    Uniform,
)
from deepcache_patch.schedules.guide import PlannedGuide

pytestmark = pytest.mark.usefixtures("no_grad")

TIMESTEPS = (900, 700, 400, 100)


@pytest.fixture
def unet():
    return unet2d()


@pytest.fixture
def helper(unet):
    with DeepCacheHelper(unet, schedule=Uniform(2), replay="reuse") as helper:
        yield helper


def loop(unet, start=0.0):
    """The samples of an ordinary loop, one by one."""
    sample = noise() + start
    for timestep in TIMESTEPS:
        sample = sample - 0.1 * unet(sample, timestep).sample
        yield sample


def drawing(helper, unet, start=0.0):
    """A generator with a block of its own."""
    with helper.generation(**SIGMAS):
        yield from loop(unet, start)


def last(samples):
    *_, found = samples
    return found


# Generators.


def test_generators_that_take_turns_draw_what_each_draws_alone(helper, unet):
    alone = [last(drawing(helper, unet, start)) for start in (0.0, 1.0)]
    generators = [drawing(helper, unet, start) for start in (0.0, 1.0)]
    together = list(zip(*generators, strict=True))[-1]
    assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))
    assert helper.stats.generations == 4
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (8, 8)
    assert helper._attachment._declarations.current() is None


@pytest.mark.parametrize("first", [0, 1])
def test_generators_may_end_in_any_order(helper, unet, first):
    alone = [last(drawing(helper, unet, start)) for start in (0.0, 1.0)]
    generators = [drawing(helper, unet, start) for start in (0.0, 1.0)]
    for each in generators:
        next(each)
    found = {place: last(generators[place]) for place in (first, 1 - first)}
    assert all(torch.equal(found[place], alone[place]) for place in (0, 1))
    assert held_bytes(helper) == 0


def test_a_generator_that_waits_leaves_the_loops_of_others_alone(helper, unet):
    alone = last(loop(unet))
    helper.reset()
    waiting = drawing(helper, unet, 1.0)
    next(waiting)
    assert torch.equal(last(loop(unet)), alone)
    waiting.close()
    assert helper.stats.generations == 3


def test_what_a_generator_calls_is_of_its_block_however_deep(helper, unet):
    def outer():
        with ExitStack() as stack:
            stack.enter_context(helper.generation(**SIGMAS))
            for timestep in TIMESTEPS[:3]:
                yield list(map(unet, [noise()], [timestep]))

    for _ in outer():
        assert held_bytes(helper) > 0
    assert held_bytes(helper) == 0
    assert helper.stats.generations == 1


def test_context_managers_of_ones_own_are_of_those_who_enter_them(helper, unet):
    @contextmanager
    def declared():
        with helper.generation(**SIGMAS):
            yield

    with declared():
        last(loop(unet))
        assert len(helper._attachment._declarations.current().sessions) == 1

    @asynccontextmanager
    async def declared_later():
        with declared():
            yield

    async def request():
        async with declared_later():
            last(loop(unet))
            assert len(helper._attachment._declarations.current().sessions) == 1

    asyncio.run(request())

    @helper.generation(**SIGMAS)
    def decorated():
        assert helper._attachment._declarations.current() is not None

    def generator():
        decorated()
        with declared():
            yield helper._attachment._declarations.current()

    assert [each is not None for each in generator()] == [True]
    assert helper.stats.generations == 2


def test_a_block_that_no_call_comes_to_says_so(helper, unet):
    def entered():
        with helper.generation(**SIGMAS):
            yield

    generator = entered()
    next(generator)
    last(loop(unet))
    with pytest.warns(DeepCacheWarning, match="entered in a generator, and no call") as said:
        assert next(generator, None) is None
    assert len(said) == 1


def test_asynchronous_generators_are_refused(helper, unet):
    async def drawing():
        with helper.generation(**SIGMAS):
            yield

    async def request():
        async for _ in drawing():
            last(loop(unet))

    with pytest.raises(RuntimeError, match=r"asynchronous generator drawing, .*enter it round"):
        asyncio.run(request())
    assert helper._attachment._declarations.current() is None


# One block, entered several times.


def test_what_was_declared_once_may_be_drawn_by_again_and_again(helper, unet):
    block = helper.generation(**SIGMAS)
    pictures = []
    for _ in range(3):
        with block:
            pictures.append(last(loop(unet)))
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0], pictures[2])
    assert helper.stats.generations == 3
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (6, 6)
    assert held_bytes(helper) == 0


def test_so_it_may_after_an_error(helper, unet):
    block = helper.generation(**SIGMAS)
    with pytest.raises(RuntimeError), block:
        unet(torch.zeros(1, 7, 8, 8), TIMESTEPS[0])
    with block:
        last(loop(unet))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 2)


def test_a_block_that_is_open_is_not_entered_again(helper, unet):
    block = helper.generation(**SIGMAS)
    with block:
        with pytest.raises(RuntimeError) as caught, block:
            pass
        assert str(caught.value) == (
            "this generation() is entered already, and each block is one loop: call generation() "
            "once more for a loop within it, or in another thread or task"
        )
        last(loop(unet))  # which is led as before
    assert helper.stats.generations == 1
    assert helper._attachment._declarations.declared.get() is None


def test_each_call_of_a_decorated_function_is_a_generation(helper, unet):
    @helper.generation(**SIGMAS)
    def draw(within=0):
        samples = loop(unet)
        next(samples)
        if within:  # its own goes on afterwards
            draw(within - 1)
        return last(samples)

    assert torch.equal(draw(), draw())
    assert helper.stats.generations == 2
    alone = last(drawing(helper, unet))
    assert torch.equal(draw(within=2), alone)
    assert helper.stats.generations == 2 + 1 + 3
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (12, 12)


def test_a_block_of_a_helper_that_was_disabled_since_is_not_entered(helper, unet):
    block = helper.generation(**SIGMAS)
    helper.disable()
    with pytest.raises(RuntimeError, match=r"call enable\(\) before"), block:
        pass
    helper.enable()
    with block:
        last(loop(unet))
    assert helper.stats.shallow_calls == 2


# The order in which blocks are left.


def test_blocks_may_be_left_in_any_order(helper, unet):
    first, second = helper.generation(**SIGMAS), helper.generation(**SIGMAS)
    declarations = helper._attachment._declarations
    first.__enter__()
    outer = declarations.current()
    second.__enter__()
    inner = declarations.current()
    first.__exit__(None, None, None)
    assert (outer.over, declarations.current()) == (True, inner)
    second.__exit__(None, None, None)
    assert declarations.declared.get() is None


def test_blocks_that_overlap_for_ever_leave_nothing_behind(helper):
    before = helper.generation(**SIGMAS)
    before.__enter__()
    first = weakref.ref(helper._attachment._declarations.current())
    for _ in range(4):
        after = helper.generation(**SIGMAS)
        after.__enter__()
        before.__exit__(None, None, None)
        before = after
    gc.collect()
    assert first() is None
    before.__exit__(None, None, None)


def test_a_block_that_is_over_holds_nothing_of_what_it_was_given(helper, unet):
    scheduler = ddim()
    with helper.generation(scheduler=scheduler):
        declared = helper._attachment._declarations.current()
        unet(noise(), scheduler.timesteps[0])
    known = weakref.ref(scheduler)
    del scheduler
    gc.collect()
    assert known() is None
    assert declared.over


def test_an_error_of_a_guide_at_the_end_loses_no_block(unet):
    class Failing:
        own_replay = True

        def begin(self, context, replay):
            found = PlannedGuide(Explicit([0] * context.num_steps), replay, context)
            found.finish = self.fail
            return found

        def fail(self):
            raise ValueError("finish")

    with DeepCacheHelper(unet, schedule=Failing()) as helper:
        declarations = helper._attachment._declarations
        with helper.generation(**SIGMAS):
            outer = declarations.current()
            with pytest.raises(ValueError, match="finish"):
                called(helper, unet, TIMESTEPS, **SIGMAS)
            assert declarations.current() is outer
            assert held_bytes(helper) == 0


# Tasks.


def test_of_two_tasks_in_one_block_the_second_runs_plainly(helper, unet):
    with helper.generation(**SIGMAS):
        alone = last(loop(unet))

    async def draw(start):
        samples = []
        for sample in loop(unet, start):
            samples.append(sample)
            await asyncio.sleep(0)
        return samples[-1]

    async def requests():
        with helper.generation(**SIGMAS):
            return await asyncio.gather(draw(0.0), draw(1.0))

    with pytest.warns(DeepCacheWarning) as said:
        first, second = asyncio.run(requests())
    assert [str(each.message) for each in said] == [
        "a U-Net call runs in full: it is of another asyncio task than the loop whose block of "
        "generation() it is in: enter a block in each task"
    ]
    helper.disable()
    assert torch.equal(first, alone)
    assert torch.equal(second, last(loop(unet, 1.0)))


def test_tasks_that_follow_each_other_are_of_one_loop(helper, unet):
    async def step(timestep):
        await asyncio.sleep(0)
        return unet(noise(), timestep).sample

    async def request():
        for timestep in TIMESTEPS:
            await asyncio.create_task(step(timestep))

    with helper.generation(**SIGMAS):
        asyncio.run(request())
    assert helper.stats.generations == 1
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 2)


# Calls that were not seen, or have no step.


def test_calls_that_were_missed_before_the_first_one_end_a_generation_by_order(helper, unet):
    with helper.generation(**SIGMAS):
        helper.disable()
        unet(noise(), 900)
        helper.enable()
        with pytest.warns(DeepCacheWarning, match="disabled within the block"):
            unet(noise(), 700)
        unet(noise(), 400)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 0)


def mapped(unet, timestep):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        torch.func.vmap(lambda each: unet(each[None], timestep).sample[0])(noise())


def test_calls_that_torch_func_maps_are_counted(helper, unet):
    levels = []

    class Listening(NoiseAware):
        def plan_for(self, context):
            levels.append(len(context.levels))
            return [FULL] + [0] * (context.num_steps - 1)

    helper.follow(Listening())
    with helper.generation(**SIGMAS):
        unet(noise(), 900)
        mapped(unet, 700)
        unet(noise(), 400)
    assert levels == [4, 2]


def test_calls_of_unknown_timesteps_end_a_generation_by_order(helper, unet):
    with helper.generation(**SIGMAS):
        unet(noise(), 900)
        mapped(unet, torch.tensor(700))
        with pytest.warns(DeepCacheWarning, match="timestep cannot be read"):
            unet(noise(), 400)
    timesteps = torch.tensor(TIMESTEPS)
    with helper.generation(timesteps=timesteps):  # whose entries are known one by one
        unet(noise(), timesteps[0])
        mapped(unet, timesteps[1])
        unet(noise(), timesteps[2])
        unet(noise(), timesteps[3])
    assert helper.stats.shallow_calls == 1
