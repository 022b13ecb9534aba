"""What people do with a U-Net beside generating pictures, as rules of the machine in `lifecycle`.

They count a layer's calls, change the prompt midway, ask the U-Net something outside of a loop,
trace it, and leave guidance out of some steps. Each rule says what has to come of it.
"""

import copy
import functools
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from builders.kinds_of_calls import calls_of, copied, kinds_of_calls
from builders.kinds_of_calls import told as said_in
from builders.stories import FAMILIES, SCHEDULES, told
from deepcache_patch import Centred, DeepCacheHelper, Uniform
from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.cutting.features import Recorder, StandIn, first_tensor

#: Layers that are left out at branch 0 or beyond, or never.
_COUNTED: dict[str, Callable[[Any], torch.nn.Module]] = {
    "the middle block": lambda unet: unet.mid_block,
    "a layer of it": lambda unet: unet.mid_block.resnets[0],
    "the deepest block of the way down": lambda unet: unet.down_blocks[-1],
    "the last layer": lambda unet: unet.conv_out,
}


def _by_forward(module: torch.nn.Module, seen: list) -> Callable[[], None]:
    """Have the module's calls counted by a `forward` of its own; returns what undoes it."""
    present, inner = vars(module).get("forward"), module.forward

    def counting(*args, **kwargs):
        seen.append(1)
        return inner(*args, **kwargs)

    def undo():
        del module.forward
        if present is not None:
            module.forward = present

    module.forward = counting
    return undo


def _by_class(module: torch.nn.Module, seen: list) -> Callable[[], None]:
    """Have them counted by another class that the module has from now on."""
    kind = type(module)

    def forward(self, *args, **kwargs):
        seen.append(1)
        return kind.forward(self, *args, **kwargs)

    def undo():
        module.__class__ = kind

    module.__class__ = type(f"Counting{kind.__name__}", (kind,), {"forward": forward})
    return undo


#: Schedules by which only full calls record.
_PLAIN = [each for each in SCHEDULES if isinstance(each, Uniform | Centred)]

_COUNTERS = {"by its forward": _by_forward, "by its class": _by_class}


@contextmanager
def counting(unet: Any, which: str, how: str):
    """Counts the calls of a layer in the `with` block."""
    seen: list = []
    undo = _COUNTERS[how](_COUNTED[which](unet), seen)
    try:
        yield seen
    finally:
        undo()


@functools.cache
def _first_call(family: str) -> dict[str, Any]:
    """What the U-Net of a fresh pipeline is called with first, without guidance if it can be."""
    case = FAMILIES[family].case
    pipe = case.load()
    return calls_of(pipe.unet, lambda: case.run(pipe, steps=3))[0]


def arguments_of(family: str, unet: Any, *, seed: int = 0) -> dict[str, Any]:
    """Arguments of a call like those that the pipeline makes, but with other values."""
    generator = torch.Generator().manual_seed(seed)

    def new(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
            return noise.to(unet.dtype)
        if isinstance(value, dict):
            return {name: new(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(new, value))
        return copied(value)

    found = {name: new(value) for name, value in _first_call(family).items()}
    return found | {"timestep": torch.tensor(501)}


def what_may_come(unet: Any, arguments: list[dict[str, Any]]) -> list[torch.Tensor]:
    """The last call's output in full, and with each feature that any of the calls recorded."""
    anatomy = dissect(unet)
    outputs, last = [first_tensor(unet(**arguments[-1]))], arguments[-1]
    for branch in (0, 1):
        for recording in arguments:
            stand_in, recorder = StandIn(), Recorder()
            with anatomy.cut(None, stand_in, {branch: recorder}).applied():
                unet(**recording)
            stand_in.feature = recorder.take()
            with anatomy.cut(branch, stand_in, {}).applied():
                outputs.append(first_tensor(unet(**anatomy.trimmed(branch, last) or last)))
    return outputs


class Uses(RuleBasedStateMachine):
    """Rules beside the generations; what they need of the machine stands in `Lifecycle`."""

    name: str

    @rule(
        data=st.data(),
        which=st.sampled_from(sorted(_COUNTED)),
        how=st.sampled_from(sorted(_COUNTERS)),
    )
    def count_the_calls_of_a_layer(self, data, which, how):
        """Whoever counts sees each step, as without a helper."""
        run = self.run(data)
        pipe = self.site.other if run.shared else self.site.pipe
        plain = told(self.family, self.story)
        its = plain.other if run.shared else plain.pipe
        with counting(its.unet, which, how) as wanted:
            picture = run.of(plain, None)
        with counting(pipe.unet, which, how) as seen, said_in():
            counted = run.of(self.site, None)
        assert len(seen) == len(wanted)
        if which != "the last layer" or self.in_force is None:  # that one runs on each step
            assert torch.equal(counted, picture)
        self.check(run, self.in_force)  # nobody counts any more

    @precondition(lambda self: self.family.has_callback and self.name != "ddpm")
    @rule(data=st.data(), at=st.integers(2, 4))
    def change_the_prompt_midway(self, data, at):
        """The step that gets it first is full."""
        run = self.run(data)
        pipe = self.site.other if run.shared else self.site.pipe
        changed = []

        def change(_pipe, step, _timestep, tensors):
            if step != at:
                return {}
            changed.append(len(kinds))
            return {"prompt_embeds": 1.5 * tensors["prompt_embeds"]}

        asked: dict[str, Any] = {
            "callback_on_step_end": change,
            "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
        }
        with kinds_of_calls(pipe.unet) as kinds, said_in():
            self.family.case.run(pipe, **dict(run.call), **asked)
        if changed and changed[0] < len(kinds):
            assert kinds[changed[0]] == "F"
        self.check(run, self.in_force)

    @precondition(lambda self: not self.orphaned)
    @rule(data=st.data(), amid=st.booleans(), seed=st.integers(1, 3))
    def ask_the_unet_out_of_a_loop(self, data, amid, seed):
        """What is asked beside a picture is answered as by the plain U-Net."""
        run, unet = self.run(data)._replace(shared=False), self.site.pipe.unet
        steps = self._timesteps(dict(run.call)["steps"])
        levels = [each for each in (947, 501, 333, 87) if each not in steps]
        given = arguments_of(self.name, unet, seed=seed)
        if amid:  # residuals of nobody's would have its ControlNet run whole from then on
            given = {name: value for name, value in given.items() if "residual" not in name}
        asked = [given | {"timestep": torch.tensor(each)} for each in levels]

        def ask():
            with torch.no_grad():
                return [first_tensor(unet(**copied_all(each))) for each in asked]

        with self.helper.paused():
            wanted = ask()
        call, answers = dict(run.call), []
        if amid and self.family.has_callback:

            def ask_amid(_pipe, step, _timestep, _tensors):
                if step == 1:
                    answers.extend(ask())
                return {}

            call["callback_on_step_end"] = ask_amid
        with said_in():
            self.family.case.run(self.site.pipe, **call)
            answers = answers or ask()
        assert all(map(torch.equal, answers, wanted))
        self.helper.reset()  # a loop of one's own ends
        self.check(run, self.in_force)

    def _timesteps(self, steps: int) -> list[float]:
        # Of a copy: a scheduler that was just changed has none before the first loop.
        scheduler = copy.deepcopy(self.site.pipe.scheduler)
        scheduler.set_timesteps(steps)
        return scheduler.timesteps.tolist()

    @precondition(lambda self: not (self.orphaned or self.wrapped or self.has("compile")))
    @rule(data=st.data(), seed=st.integers(1, 2))
    def trace_the_unet(self, data, seed):
        """A trace is of the plain U-Net, even straight after a shallow step."""
        run, unet = self.run(data)._replace(shared=False), self.site.pipe.unet
        first, second = (arguments_of(self.name, unet, seed=each) for each in (seed, seed + 1))
        names = [name for name, value in first.items() if isinstance(value, torch.Tensor)]
        rest = {name: value for name, value in first.items() if name not in names}
        rest["return_dict"] = False

        class ByPosition(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.unet = unet

            def forward(self, *tensors):
                return self.unet(**dict(zip(names, tensors, strict=True)), **rest)[0]

        with torch.no_grad(), self.helper.paused():
            wanted = ByPosition()(*(second[name] for name in names))
        self.check(run, self.in_force)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(
                ByPosition(), tuple(first[name] for name in names), check_trace=False
            )
        with torch.no_grad():
            assert torch.equal(traced(*(second[name] for name in names)), wanted)
        self.check(run, self.in_force)

    @precondition(lambda self: self.name in ("sd", "sd-img2img", "sdxl"))
    @rule(
        data=st.data(),
        asked=st.lists(st.sampled_from(["u", "c", "uc"]), min_size=4, max_size=6),
    )
    def leave_guidance_out_of_some_steps(self, data, asked):
        """In a loop whose steps call the U-Net once or twice, no call gets another's feature."""
        enabled, pipe = self.in_force is not None, self.site.pipe
        schedule = data.draw(st.sampled_from(_PLAIN), label="schedule")
        self.disable()
        pipe.scheduler.set_timesteps(len(asked))
        timesteps = pipe.scheduler.timesteps
        made = {each: arguments_of(self.name, pipe.unet, seed=ord(each)) for each in "uc"}
        calls: dict[str, list[dict[str, Any]]] = {"u": [], "c": []}
        outputs: list[tuple[str, int, torch.Tensor]] = []
        with DeepCacheHelper(pipe, schedule=schedule, replay="reuse"), torch.no_grad(), said_in():
            for step, which in enumerate(asked):
                sample = arguments_of(self.name, pipe.unet, seed=step)["sample"]
                for each in which:
                    arguments = made[each] | {"sample": sample, "timestep": timesteps[step]}
                    calls[each].append(arguments)
                    output = first_tensor(pipe.unet(**arguments))
                    outputs.append((each, len(calls[each]), output))
        with torch.no_grad():
            for each, count, output in outputs:
                possible = what_may_come(pipe.unet, calls[each][:count])
                assert any(torch.equal(output, one) for one in possible)
        if enabled:
            self.enable()


def copied_all(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: copied_all(value) if isinstance(value, dict) else copied(value)
        for name, value in arguments.items()
    }
