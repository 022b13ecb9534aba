"""A pipeline's life with a helper, as a hypothesis state machine: see `test_lifecycle`.

What happens to the pipeline is in `stories`; here stands what is done to the helper, and in which
order things may happen. What is asked of the U-Net besides is in `uses`.
"""

import copy
import pickle
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from conftest import layout, trace
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from builders.stories import (
    CHANGES,
    FAMILIES,
    MEDDLINGS,
    REPLAYS,
    SCHEDULES,
    WRAPS,
    Run,
    Site,
    expected,
    expected_layout,
    patched_parts,
    told,
    with_weights_of,
)
from builders.uses import Uses
from deepcache_patch import DeepCacheHelper, Uniform


class FailureError(Exception):
    """What fails in these generations."""


_ERRORS = st.sampled_from([FailureError, KeyboardInterrupt])


def _fail_in(unet: Any, where: str, at: int, error: type[BaseException]) -> Callable[[], None]:
    """Have call number `at` of a deep block or of a shallow step's last layer fail."""
    seen = {"deep": 0, "shallow": 0, "deep before": 0}

    def deep(_module, _args):
        seen["deep"] += 1
        if where == "deep" and seen["deep"] == at:
            raise error

    def last(_module, _args):
        seen["shallow"] += seen["deep"] == seen["deep before"]
        seen["deep before"] = seen["deep"]
        if where == "shallow" and seen["shallow"] == at:
            raise error

    hooks = [
        unet.mid_block.register_forward_pre_hook(deep),
        unet.conv_out.register_forward_pre_hook(last),
    ]
    return lambda: [hook.remove() for hook in hooks]


def is_clean(unet: torch.nn.Module) -> bool:
    """Whether nothing of this package is left in any module."""
    held = [value for module in unet.modules() for value in vars(module).values()]
    held += [each for value in held if isinstance(value, dict) for each in value.values()]
    modules = {type(value).__module__ for value in held}
    names = {getattr(value, "__module__", None) or "" for value in held if callable(value)}
    return not any(name.startswith("deepcache_patch") for name in modules | names)


class Lifecycle(Uses):
    """Any order of what people do with a helper and a pipeline.

    Attributes:
        name: The family.
        steps: Rules that were run, of all machines.
    """

    name: str
    steps = 0

    @initialize()
    def begin(self):
        self.family = FAMILIES[self.name]
        self.site = Site(self.family)
        self.story: tuple = ()
        self.settings: tuple[Any, str] = (SCHEDULES[0], REPLAYS[0])
        self.helper = DeepCacheHelper(self.site.pipe, schedule=Uniform())
        #: The settings that calls of the U-Net go by: the helper's, or those of a deleted one.
        self.in_force: tuple[Any, str] | None = None
        self.orphaned = False
        self.retired: list[torch.nn.Module] = []

    def teardown(self):
        if hasattr(self, "helper"):
            self.helper.disable()
            assert all(map(is_clean, self.parts()))

    def parts(self):
        return [*self.retired, *patched_parts(self.site.pipe)]

    def happens(self, name, *arguments):
        CHANGES[name](self.site, *arguments)
        self.story += ((name, *arguments),)

    def has(self, name, undone=None):
        """Whether something has happened, and was not undone since."""
        names = [entry[0] for entry in self.story]
        return name in names and undone not in names[len(names) - names[::-1].index(name) :]

    @property
    def wrapped(self):
        return bool(self.site.undo)

    @invariant()
    def counts(self):
        type(self).steps += 1

    @invariant()
    def knows_whether_it_is_enabled(self):
        if hasattr(self, "helper"):
            assert self.helper.enabled == (self.in_force is not None and not self.orphaned)

    # What is done to the helper.

    @rule()
    def enable(self):
        assert self.helper.enable() is self.helper
        assert all(map(is_clean, self.retired))
        self.in_force, self.orphaned, self.retired = self.settings, False, []

    @rule()
    def disable(self):
        before = layout(self.site.pipe.unet)
        was_plain = self.in_force is None
        self.helper.disable()
        self.in_force, self.orphaned = None, False
        assert [layout(each) for each in patched_parts(self.site.pipe)] == expected_layout(
            self.name, self.story
        )
        assert all(map(is_clean, self.parts()))
        if was_plain:
            assert layout(self.site.pipe.unet) == before

    @rule(call=st.data())
    def with_block(self, call):
        parts, was_enabled = patched_parts(self.site.pipe), self.in_force is not None
        self.disable()  # what is left on a ControlNet after its U-Net was replaced, too
        before = list(map(trace, parts))
        with self.helper:
            self.in_force = self.settings
            self.generate(call)
        self.in_force = None
        assert list(map(trace, parts)) == before
        if was_enabled:
            self.enable()

    @rule(schedule=st.sampled_from(SCHEDULES))
    def follow(self, schedule):
        self.helper.follow(schedule)
        self.settings = (schedule, self.settings[1])
        if self.in_force is not None and not self.orphaned:
            self.in_force = self.settings

    @rule(interval=st.integers(1, 4), branch=st.integers(0, 2))
    def set(self, interval, branch):
        self.helper.set(schedule="uniform", interval=interval, branch=branch)
        self.settings = (Uniform(interval, branch), self.settings[1])
        if self.in_force is not None and not self.orphaned:
            self.in_force = self.settings

    @rule(
        schedule=st.sampled_from(SCHEDULES), replay=st.sampled_from(REPLAYS), disable=st.booleans()
    )
    def another_helper(self, schedule, replay, disable):
        if disable:
            self.disable()
        else:
            self.retired = []  # nobody is left to tidy up there
            # Deleted while enabled, it stays in force.
            self.orphaned = self.in_force is not None
        self.settings = (schedule, replay)
        del self.helper
        self.helper = DeepCacheHelper(self.site.pipe, schedule=schedule, replay=replay)

    # Generations.

    def run(self, data):
        """What to generate; mostly with a helper in force, or little would be seen of it."""
        if self.in_force is None and data.draw(st.integers(0, 4), label="enabled"):
            self.enable()
        calls = {
            name: data.draw(st.sampled_from(values), label=name)
            for name, values in self.family.calls.items()
        }
        # With fewer than three, none is left at a strength of 0.4.
        steps, seed = data.draw(st.integers(3, 6), label="steps"), data.draw(st.integers(0, 1))
        shared = self.site.other is not None and data.draw(st.booleans(), label="shared")
        return Run(shared, (("steps", steps), ("seed", seed), *calls.items()), None, 0)

    def check(self, run, helper):
        picture = run.of(self.site, self.helper)
        wanted, after = expected(self.name, self.story, run, helper)
        assert torch.equal(picture, wanted)
        return after

    @rule(data=st.data())
    def generate(self, data):
        self.check(self.run(data), self.in_force)

    @rule(data=st.data())
    def generate_twice(self, data):
        run = self.run(data)
        self.check(run, self.in_force)
        self.check(run, self.in_force)

    @rule(data=st.data())
    def generate_paused(self, data):
        run = self.run(data)
        with self.helper.paused():
            # A helper that was deleted is nobody's to pause.
            self.check(run, self.in_force if self.orphaned else None)
        self.check(run, self.in_force)

    @precondition(
        lambda self: self.in_force is not None and not self.orphaned and self.family.has_callback
    )
    @rule(data=st.data(), meddling=st.sampled_from(sorted(MEDDLINGS)), at=st.integers(0, 3))
    def generate_and_meddle(self, data, meddling, at):
        run = self.run(data)._replace(meddling=meddling, at=at)
        schedule, enabled = self.check(run, self.in_force)
        self.settings = (schedule, self.settings[1])
        self.in_force = self.settings if enabled else None
        self.check(run._replace(meddling=None), self.in_force)

    @rule(data=st.data(), at=st.integers(1, 3), error=_ERRORS)
    def generate_and_fail_in_a_deep_block(self, data, at, error):
        self.fail(self.run(data), "deep", at, error)

    @rule(data=st.data(), at=st.integers(1, 3), error=_ERRORS)
    def generate_and_fail_in_a_shallow_step(self, data, at, error):
        self.fail(self.run(data), "shallow", at, error)

    @precondition(lambda self: self.family.has_callback)
    @rule(data=st.data(), at=st.integers(1, 6), error=_ERRORS)
    def generate_and_fail_in_a_callback(self, data, at, error):
        self.fail(self.run(data), "callback", at, error)

    def fail(self, run, where, at, error):
        pipe = self.site.other if run.shared else self.site.pipe
        before = list(map(trace, self.parts()))
        call, undo = dict(run.call), lambda: None
        if where != "callback":
            undo = _fail_in(pipe.unet, where, at, error)
        else:

            def fail(_pipe, step, _timestep, tensors):
                if step + 1 == at:
                    raise error
                return tensors

            call["callback_on_step_end"] = fail
        with suppress(error):
            self.family.case.run(pipe, **call)
        undo()
        assert list(map(trace, self.parts())) == before
        self.check(run, self.in_force)

    # What happens to the pipeline.

    @rule(data=st.data())
    def another_scheduler(self, data):
        self.happens("scheduler", data.draw(st.sampled_from(self.family.schedulers)))

    @precondition(lambda self: not self.wrapped and not self.has("load LoRA", "unload LoRA"))
    @rule(seed=st.integers(1, 2))
    def another_unet(self, seed):
        if not self.orphaned:  # nobody is left to tidy up after a helper that was deleted
            self.retired.append(self.site.pipe.unet)
        self.site.other = None
        self.happens("unet", seed)
        if self.in_force is not None:
            # Calls of the new one are plain until `enable` is called once more.
            self.in_force, self.orphaned = None, False

    @rule()
    def share(self):
        # The other's noise levels are read off a table by whoever does not know its scheduler: for
        # this one, they are the same to the last bit.
        self.happens("share", "ddim")

    @precondition(lambda self: "lora" in self.family.changes and not self.wrapped)
    @rule(seed=st.integers(1, 2))
    def load_or_unload_lora(self, seed):
        if self.has("load LoRA", "unload LoRA"):
            self.happens("unload LoRA")
        else:
            self.happens("load LoRA", seed)

    @precondition(lambda self: "freeu" in self.family.changes)
    @rule()
    def toggle_freeu(self):
        self.happens("no FreeU" if self.has("FreeU", "no FreeU") else "FreeU")

    @rule(back=st.booleans())
    def cast(self, back):
        self.happens("dtype", torch.float32 if back else self.family.dtype)

    @precondition(lambda self: not self.has("compile"))
    @rule()
    def compile(self):
        self.happens("compile")

    @rule(kind=st.sampled_from(WRAPS))
    def wrap_or_unwrap(self, kind):
        put = list(self.site.undo)
        if kind not in put:
            self.happens("wrap", kind)
        elif kind != "accelerate" or {"forward", "wrapt"}.isdisjoint(put[put.index(kind) :]):
            self.happens("unwrap", kind)
        # Whoever has found accelerate's forward will put it back, and without its hook it cannot
        # run, with a helper or without one.

    # Copies, which are plain.

    def check_copy(self, pipe, data):
        run = self.run(data)._replace(shared=False)
        assert all(map(is_clean, patched_parts(pipe)))
        wanted = run.of(with_weights_of(pipe, told(self.family, self.story)), None)
        copied = Site(self.family)
        copied.pipe = pipe
        assert torch.equal(run.of(copied, None), wanted)

    @precondition(lambda self: not self.wrapped)
    @rule(data=st.data())
    def deepcopy(self, data):
        self.check_copy(copy.deepcopy(self.site.pipe), data)

    @precondition(lambda self: not self.wrapped)
    @rule(data=st.data())
    def pickled(self, data):
        # Only the U-Net: transformers puts hooks into text encoders that cannot be pickled.
        pipe = told(self.family, self.story).pipe
        pipe.unet = pickle.loads(pickle.dumps(self.site.pipe.unet))
        self.check_copy(pipe, data)

    @precondition(
        lambda self: (
            not (
                self.wrapped
                or self.has("load LoRA", "unload LoRA")
                or self.has("FreeU", "no FreeU")
                or self.site.pipe.unet.dtype != torch.float32
            )
        )
    )
    @rule(data=st.data())
    def saved(self, data):
        with tempfile.TemporaryDirectory() as folder:
            self.site.pipe.save_pretrained(folder)
            pipe = type(self.site.pipe).from_pretrained(folder, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        self.check_copy(pipe, data)
