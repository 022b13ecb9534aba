"""What other libraries put round a U-Net, its layers or a ControlNet: in force with a helper.

Each patch is installed and removed before or after the helper. At every stage the picture is that
of a pipeline of its own where the patch was installed first, and what is left on the modules is
what the patch alone leaves.
"""

import copy
import functools
import itertools
import pickle
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import diffusers
import pytest
import tomesd
import torch
import wrapt
from accelerate import cpu_offload_with_hook
from accelerate.hooks import (
    AlignDevicesHook,
    ModelHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from builders.cases import CASES as TINY
from builders.unets import inputs2d_condition, seeded, unet2d_condition
from conftest import layout, trace
from DeepCache import DeepCacheSDHelper
from diffusers.hooks import (
    HookRegistry,
    PyramidAttentionBroadcastConfig,
    apply_pyramid_attention_broadcast,
)
from diffusers.hooks import ModelHook as DiffusersHook
from peft import LoraConfig
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from zoo import CASES as ZOO

from deepcache_patch import FULL, Adaptive, DeepCacheHelper, DeepCacheWarning, UnsupportedModelError

CASES = {**TINY, **ZOO}
STEPS = 5

#: What a helper adds while it is enabled.
OURS = {"_compiled_call_impl", "compile"}

pytestmark = pytest.mark.filterwarnings(
    "ignore:Already found a `peft_config`:UserWarning",
    "ignore:Adapter .* cannot be unmerged:UserWarning",
)

Remove = Callable[[], Any]
Install = Callable[[nn.Module, Callable[[], Any]], Remove]


def dimmed(output: Any) -> Any:
    """What a denoiser returned, in every form that it may have, times 0.9."""
    if isinstance(output, torch.Tensor):
        return output * 0.9
    if isinstance(output, list | tuple):
        return type(output)(map(dimmed, output))
    return type(output)(**{name: dimmed(value) for name, value in output.items()})


# --- patches ------------------------------------------------------------------------------------
# `install(model, seen)` returns what removes it. Unless it says otherwise it changes the output,
# and calls `seen` when it does.


def _dims(forward: Callable[..., Any], seen: Callable[[], Any]) -> Callable[..., Any]:
    def dim(*args: Any, **kwargs: Any) -> Any:
        seen()
        return dimmed(forward(*args, **kwargs))

    return dim


def _put_back(model: nn.Module, forward: Any) -> Remove:
    """Put it on the instance; what removes it restores what was there, or that nothing was."""
    own = vars(model).get("forward")
    model.forward = forward

    def remove() -> None:
        if own is None:
            del model.forward
        else:
            model.forward = own

    return remove


def closure(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    return _put_back(model, _dims(model.forward, seen))


def saved(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    """As most do it: the old one, bound, is left on the instance."""
    old = model.forward
    model.forward = functools.wraps(old)(_dims(old, seen))
    return lambda: setattr(model, "forward", old)


def partial(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    def dim(forward: Any, *args: Any, **kwargs: Any) -> Any:
        seen()
        return dimmed(forward(*args, **kwargs))

    return _put_back(model, functools.partial(dim, model.forward))


def method(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    old = model.forward

    def dim(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _dims(old, seen)(*args, **kwargs)

    return _put_back(model, types.MethodType(dim, model))


def mocked(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    patcher = mock.patch.object(model, "forward", side_effect=_dims(model.forward, seen))
    patcher.start()
    return patcher.stop


def _wrapper(seen: Callable[[], Any]) -> Callable[..., Any]:
    return lambda wrapped, _instance, args, kwargs: _dims(wrapped, seen)(*args, **kwargs)


def wrapped(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    wrapt.wrap_function_wrapper(model, "forward", _wrapper(seen))
    return lambda: setattr(model, "forward", model.forward.__wrapped__)


def function_wrapper(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    return _put_back(model, wrapt.FunctionWrapper(model.forward, _wrapper(seen)))


def _of_class(name: str, plainly: bool, model: nn.Module, seen: Callable[[], Any]) -> Remove:
    cls = next(each for each in type(model).__mro__ if name in vars(each))
    forward = vars(cls)[name]

    def dim(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is not model:
            return forward(self, *args, **kwargs)
        seen()
        return dimmed(forward(self, *args, **kwargs))

    setattr(cls, name, dim if plainly else functools.wraps(forward)(dim))
    return lambda: setattr(cls, name, forward)


class Dim(ModelHook):
    """accelerate's."""

    def __init__(self, seen: Callable[[], Any]) -> None:
        self.seen = seen

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen()
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        return dimmed(output)


def accelerate_hook(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    add_hook_to_module(model, Dim(seen))
    return lambda: remove_hook_from_module(model)


def accelerate_sequence(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    add_hook_to_module(model, Dim(seen))
    add_hook_to_module(model, Dim(lambda: None), append=True)
    return lambda: remove_hook_from_module(model)


def accelerate_aligned(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    class Counted(AlignDevicesHook):
        def pre_forward(self, *args: Any, **kwargs: Any) -> Any:
            seen()
            return super().pre_forward(*args, **kwargs)

    add_hook_to_module(model, Counted(torch.device("cpu"), io_same_device=True))
    return lambda: remove_hook_from_module(model)


def accelerate_offload(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    _, hook = cpu_offload_with_hook(model, "cpu")
    add_hook_to_module(model, Dim(seen), append=True)
    return lambda: (hook.offload(), hook.remove())


def accelerate_on_blocks(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    for block in _blocks(model):
        add_hook_to_module(block, Dim(seen))
    return lambda: remove_hook_from_module(model, recurse=True)


class DiffusersDim(DiffusersHook):
    def __init__(self, seen: Callable[[], Any]) -> None:
        super().__init__()
        self.seen = seen

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen()
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        return dimmed(output)


class DiffusersForward(DiffusersHook):
    def __init__(self, seen: Callable[[], Any]) -> None:
        super().__init__()
        self.seen = seen

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return _dims(self.fn_ref.original_forward, self.seen)(*args, **kwargs)


def _registered(hook: Any, modules: Callable, model: nn.Module, seen: Any) -> Remove:
    found, name = list(modules(model)), f"dim-{id(seen)}"
    for module in found:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook(seen), name)
    return lambda: [module._diffusers_hook.remove_hook(name, recurse=False) for module in found]


def layerwise_casting(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    return None  # diffusers does not take it back


def _ranges() -> dict[str, Any]:
    return {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (-1, 1001),
        "current_timestep_callback": lambda: 500,
    }


def attention_broadcast(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    names = ("attentions.*attn1",)
    config = PyramidAttentionBroadcastConfig(**_ranges(), spatial_attention_block_identifiers=names)
    apply_pyramid_attention_broadcast(model, config)
    registry = HookRegistry.check_if_exists_or_initialize(model)
    return lambda: registry.remove_hook("pyramid_attention_broadcast", recurse=True)


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [*model.down_blocks, model.mid_block, *getattr(model, "up_blocks", ())]


def _resnets(model: nn.Module) -> list[nn.Module]:
    return [layer for block in _blocks(model) for layer in block.resnets]


def block_closures(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    undo = [closure(block, seen) for block in _blocks(model)]
    return lambda: [remove() for remove in undo]


def hooks(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        seen()
        return args, kwargs

    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(
            lambda _module, _args, _kwargs, output: dimmed(output),
            with_kwargs=True,
            always_call=True,
        ),
        model.register_forward_hook(lambda *_: None, prepend=True),
    ]
    return lambda: [handle.remove() for handle in handles]


def hooks_inside(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    def after(_module: Any, _args: Any, output: Any) -> Any:
        seen()
        return dimmed(output)

    handles = [layer.register_forward_hook(after) for layer in _resnets(model)]
    return lambda: [handle.remove() for handle in handles]


def global_hook(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    def after(module: Any, _args: Any, output: Any) -> Any:
        if module is model:
            seen()
            return dimmed(output)
        return None

    return torch_module.register_module_forward_hook(after).remove


class Larger(nn.Module):
    def __init__(self, seen: Callable[[], Any]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.seen()
        return weight * 1.1


def parametrized(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    layers = [model.conv_in, model.mid_block.resnets[0].conv1]
    for layer, told in zip(layers, (seen, lambda: None), strict=True):
        # Unsafe only spares the call that looks at the shape.
        parametrize.register_parametrization(layer, "weight", Larger(told), unsafe=True)
    return lambda: [
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        for layer in layers
    ]


def adapter(model: nn.Module, seen: Callable[[], Any], *, fused: bool = False) -> Remove:
    targets = ["to_q", "conv1", "conv_in"]
    name = f"style{len(getattr(model, 'peft_config', {}))}"
    with seeded(1):
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        model.add_adapter(config, adapter_name=name)
    if fused:
        model.fuse_lora(adapter_names=[name])

    def remove() -> None:
        if fused:
            model.unfuse_lora()
        model.unload_lora()

    return remove


def switched_adapters(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    remove = adapter(model, seen)
    adapter(model, seen)
    model.set_adapters(["style0", "style1"], [0.5, 0.3])
    model.disable_lora()
    model.enable_lora()
    return remove


def merged_tokens(model: nn.Module, seen: Callable[[], Any]) -> Remove:
    tomesd.apply_patch(model, ratio=0.5, max_downsample=2, use_rand=False)
    return lambda: tomesd.remove_patch(model)


class Other(NamedTuple):
    """Somebody else's patch of a model."""

    install: Install
    #: Whether it is called once in every call of the model.
    counts: bool = True
    #: Whether pictures differ with it.
    shows: bool = True
    #: Whether it can be removed at all, and leaves the picture then that was before.
    removable: bool = True
    exact: bool = True
    #: Whether it replaces `forward` of the model, and gives back what was there when it came.
    stacks: bool = True
    #: Whether it notes things on the model at each call.
    notes: bool = False
    #: Whether it is for text-guided U-Nets only.
    attention: bool = False


OTHERS: dict[str, Other] = {
    "closure": Other(closure),
    "saved-closure": Other(saved),
    "partial": Other(partial),
    "method": Other(method),
    "mock": Other(mocked),
    "wrapt-function": Other(wrapped),
    "wrapt-function-set": Other(function_wrapper),
    "class-forward": Other(functools.partial(_of_class, "forward", True)),
    "class-forward-wraps": Other(functools.partial(_of_class, "forward", False)),
    "class-call": Other(functools.partial(_of_class, "__call__", False)),
    "accelerate": Other(accelerate_hook),
    "accelerate-sequence": Other(accelerate_sequence),
    "accelerate-align": Other(accelerate_aligned, shows=False),
    "accelerate-offload": Other(accelerate_offload),
    "accelerate-on-blocks": Other(accelerate_on_blocks, counts=False),
    "diffusers-hook": Other(functools.partial(_registered, DiffusersDim, lambda model: [model])),
    "diffusers-new-forward": Other(
        functools.partial(_registered, DiffusersForward, lambda model: [model])
    ),
    "diffusers-on-resnets": Other(
        functools.partial(_registered, DiffusersForward, _resnets), counts=False
    ),
    "layerwise-casting": Other(layerwise_casting, counts=False, removable=False),
    "attention-broadcast": Other(attention_broadcast, counts=False, attention=True),
    "blocks": Other(block_closures, counts=False),
    "torch-hooks": Other(hooks, stacks=False),
    "torch-hooks-inside": Other(hooks_inside, counts=False, stacks=False),
    "torch-global-hook": Other(global_hook, stacks=False),
    "parametrized": Other(parametrized, stacks=False),
    "adapter": Other(adapter, counts=False, stacks=False, attention=True),
    "adapters": Other(switched_adapters, counts=False, stacks=False, attention=True),
    "adapter-fused": Other(
        functools.partial(adapter, fused=True),
        counts=False,
        exact=False,
        stacks=False,
        attention=True,
    ),
    "tomesd": Other(merged_tokens, counts=False, stacks=False, notes=True, attention=True),
}


# --- what is right ------------------------------------------------------------------------------


def denoisers(pipe: Any) -> list[nn.Module]:
    found = (pipe.components.get(name) for name in ("controlnet", "unet"))
    return [each for each in found if each is not None]


def assert_same(run: tuple[torch.Tensor, int], picture: torch.Tensor, seen: int) -> None:
    assert torch.equal(run[0], picture)
    assert run[1] == seen


class Alone(NamedTuple):
    """What a pipeline does in one state of the other patch: without a helper, and with one."""

    plain: torch.Tensor
    helped: torch.Tensor
    seen_plain: int
    seen_helped: int
    layouts: list[list[tuple]]


class Patched:
    """A pipeline, and one other patch of one of its models."""

    def __init__(self, case: str, part: str, other: str) -> None:
        self.case, self.other = CASES[case], OTHERS[other]
        self.pipe = self.case.load()
        self.model = self.pipe.components[part]
        self.seen = 0
        self.remove_other: Remove | None = None

    def install(self) -> None:
        self.remove_other = self.other.install(self.model, self._see)

    def remove(self) -> None:
        self.remove_other()

    def _see(self) -> None:
        self.seen += 1

    def run(self, **overrides: Any) -> tuple[torch.Tensor, int]:
        self._start_anew()
        self.seen = 0
        picture = self.case.run(self.pipe, steps=STEPS, **overrides)
        self._start_anew()
        return picture, self.seen

    def _start_anew(self) -> None:
        # diffusers' caches count calls until somebody resets them.
        for module in self.model.modules():
            if "_diffusers_hook" in vars(module):
                module._diffusers_hook.reset_stateful_hooks(recurse=False)

    def layouts(self) -> list[list[tuple]]:
        return [layout(model) for model in denoisers(self.pipe)]


@functools.cache
def alone(case: str, part: str, other: str) -> dict[str, Alone]:
    """By the state of the other patch, in a pipeline where the helper always comes last."""
    patched = Patched(case, part, other)
    states = {"absent": lambda: None, "installed": patched.install}
    if patched.other.removable:
        states["removed"] = patched.remove
    found: dict[str, Alone] = {}
    try:
        for state, change in states.items():
            change()
            plain, seen = patched.run()
            layouts = patched.layouts()
            with DeepCacheHelper(patched.pipe) as helper:
                helped, seen_helped = patched.run()
            assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 3)
            found[state] = Alone(plain, helped, seen, seen_helped, layouts)
    finally:
        if len(found) == 2 and patched.other.removable:
            patched.remove()  # a patch of a class would stay in force
    return found


ORDERS = {
    "other-first-and-last": ("install", "enable", "disable", "remove"),
    "other-first-ours-last": ("install", "enable", "remove", "disable"),
    "ours-first-other-last": ("enable", "install", "disable", "remove"),
    "ours-first-and-last": ("enable", "install", "remove", "disable"),
}


QUICK_ROWS = {
    ("sd", "unet", "closure", "ours-first-and-last"),
    ("sd", "unet", "closure", "ours-first-other-last"),
    ("sd", "unet", "accelerate", "other-first-ours-last"),
    ("sd", "unet", "class-forward", "other-first-and-last"),
    ("sd-controlnet", "controlnet", "closure", "ours-first-other-last"),
}


def _runs() -> Iterator[Any]:
    elsewhere = {
        ("sdxl", "unet"): ("closure", "accelerate", "adapter-fused"),
        ("sd-controlnet", "unet"): ("accelerate-on-blocks", "class-forward"),
        ("sd-controlnet", "controlnet"): ("closure", "accelerate", "blocks", "diffusers-hook"),
        ("ddpm", "unet"): ("torch-hooks", "parametrized"),
        ("text-to-video", "unet"): ("diffusers-on-resnets", "wrapt-function"),
    }
    chosen = {("sd", "unet"): tuple(OTHERS), **elsewhere}
    for place, others in chosen.items():
        for other, order in itertools.product(others, ORDERS):
            quick = (*place, other, order) in QUICK_ROWS
            marks = () if quick else pytest.mark.slow
            row = (*place, other, ORDERS[order])
            yield pytest.param(*row, id="-".join((*place, other, order)), marks=marks)


# A class whose `forward` was replaced by one of `*args, **kwargs` was no U-Net to `enable`.
@pytest.mark.parametrize(("case", "part", "other", "order"), list(_runs()))
def test_every_order_of_coming_and_going_is_right_at_each_stage(case, part, other, order):
    if not OTHERS[other].removable:
        order = tuple(step for step in order if step != "remove")
    right = alone(case, part, other)
    patched = Patched(case, part, other)
    helper = DeepCacheHelper(patched.pipe)
    actions = {
        "install": patched.install,
        "remove": patched.remove,
        "enable": helper.enable,
        "disable": helper.disable,
    }
    state, done, traces = "absent", [], []
    try:
        for action in order:
            traces.append([trace(model) for model in denoisers(patched.pipe)])
            actions[action]()
            done.append(action)
            state = {"install": "installed", "remove": "removed"}.get(action, state)
            expected = right[state]
            if helper.enabled:
                assert_same(patched.run(), expected.helped, expected.seen_helped)
                with helper.paused():
                    assert_same(patched.run(), expected.plain, expected.seen_plain)
                for model in denoisers(patched.pipe):
                    assert vars(model).keys() >= OURS
            else:
                if done[-2:] == ["enable", "disable"] and not patched.other.notes:
                    assert [trace(model) for model in denoisers(patched.pipe)] == traces[-2]
                assert_same(patched.run(), expected.plain, expected.seen_plain)
                assert patched.layouts() == expected.layouts
    finally:
        if done.count("install") > done.count("remove") and patched.other.removable:
            patched.remove()


def _slowly(names: Any, quick: Any) -> list[Any]:
    marks = {True: (), False: pytest.mark.slow}
    return [
        pytest.param(name, id=getattr(name, "__name__", str(name)), marks=marks[name in quick])
        for name in names
    ]


QUICK = ("closure",)


@pytest.mark.parametrize("other", _slowly(OTHERS, QUICK))
def test_a_patch_sees_every_call_and_shows(other):
    patch, right = OTHERS[other], alone("sd", "unet", other)
    absent, installed = right["absent"], right["installed"]
    assert torch.equal(installed.plain, absent.plain) is not patch.shows
    assert torch.equal(installed.helped, absent.helped) is not patch.shows
    assert not torch.equal(installed.plain, installed.helped)
    if patch.counts:
        assert installed.seen_plain == installed.seen_helped == STEPS
    elif installed.seen_plain:  # of inner layers, those that a shallow call leaves out see none
        assert 2 * installed.seen_plain // STEPS < installed.seen_helped < installed.seen_plain
    if patch.removable and patch.exact:
        assert torch.equal(right["removed"].plain, absent.plain)
        assert torch.equal(right["removed"].helped, absent.helped)


@pytest.mark.parametrize("first", ["other", "ours"])
@pytest.mark.parametrize("other", _slowly(OTHERS, QUICK))
def test_interval_1_is_the_pipeline_with_the_patch_alone(other, first):
    expected = alone("sd", "unet", other)["installed"]
    patched = Patched("sd", "unet", other)
    helper = DeepCacheHelper(patched.pipe, interval=1)
    if first == "ours":
        helper.enable()
    patched.install()
    try:
        helper.enable()
        assert_same(patched.run(), expected.plain, expected.seen_plain)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (STEPS, 0)
    finally:
        if patched.other.removable:
            patched.remove()


# --- two others and ours --------------------------------------------------------------------------


@torch.no_grad()
def loop(unet: nn.Module) -> torch.Tensor:
    inputs = inputs2d_condition(batch=1)
    sample, text = inputs["sample"], inputs["encoder_hidden_states"]
    for timestep in torch.tensor([900, 600, 300]):
        sample = sample - 0.3 * unet(sample, timestep, encoder_hidden_states=text).sample
    return sample


def small() -> nn.Module:
    return unet2d_condition(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)


def interleavings(nested: bool) -> list[tuple[str, ...]]:
    """All orders of installing and removing "a", "b" and ours."""
    events = ["+a", "-a", "+b", "-b", "+ours", "-ours"]
    found = []
    for order in itertools.permutations(events):
        at = {event: number for number, event in enumerate(order)}
        if not all(at[f"+{name}"] < at[f"-{name}"] for name in ("a", "b", "ours")):
            continue
        overlap = at["+a"] < at["+b"] < at["-a"] < at["-b"]
        overlap |= at["+b"] < at["+a"] < at["-b"] < at["-a"]
        if not (nested and overlap):
            found.append(order)
    return found


ONE_LIST = [("diffusers-new-forward", "diffusers-hook")]
PAIRS = [
    ("closure", "torch-hooks"),
    ("accelerate", "diffusers-hook"),
    ("closure", "closure"),
    ("accelerate", "torch-hooks"),
    ("adapter", "accelerate"),
    ("parametrized", "torch-hooks-inside"),
    ("wrapt-function", "class-forward"),
    ("diffusers-new-forward", "diffusers-hook"),
    ("blocks", "accelerate-on-blocks"),
    ("tomesd", "saved-closure"),
]


class Stage(NamedTuple):
    """A picture, who saw the calls, and, while no helper is enabled, what is on the modules."""

    picture: torch.Tensor
    seen: list[str]
    left: Any


def _tell(kinds: tuple[str, str], order: tuple[str, ...]) -> Iterator[Stage]:
    """Go through an order."""
    unet, seen = small(), []
    helper = DeepCacheHelper(unet, interval=3)
    removals: dict[str, Remove] = {}
    try:
        for event in order:
            sign, name = event[0], event[1:]
            if name == "ours":
                helper.enable() if sign == "+" else helper.disable()
            elif sign == "+":
                kind = kinds["ab".index(name)]
                removals[name] = OTHERS[kind].install(unet, functools.partial(seen.append, name))
            else:
                removals.pop(name)()
            seen.clear()
            helper.reset()
            yield Stage(loop(unet), list(seen), None if helper.enabled else layout(unet))
    finally:
        for remove in reversed(removals.values()):
            remove()


@pytest.mark.parametrize(
    ("kinds", "every"),
    [
        pytest.param(PAIRS[0], 20, id="some"),
        *(pytest.param(pair, 1, id="+".join(pair), marks=pytest.mark.slow) for pair in PAIRS),
    ],
)
def test_two_patches_and_a_helper_come_and_go_in_any_order(kinds, every):
    # Two that replace the same forward, and put back what they found, break each other when they
    # do not go in reverse order: such orders are left out. diffusers keeps a list of its own.
    nested = all(OTHERS[kind].stacks for kind in kinds) and kinds not in ONE_LIST
    plains: dict[tuple[str, ...], list[Stage]] = {}
    helped: dict[tuple[str, ...], torch.Tensor] = {}
    for order in interleavings(nested)[::every]:
        others = tuple(event for event in order if event[1:] != "ours")
        if others not in plains:
            plains[others] = list(_tell(kinds, others))
        for number, stage in enumerate(_tell(kinds, order)):
            state = tuple(event for event in order[: number + 1] if event in others)
            expected = plains[others][len(state) - 1] if state else Stage(loop(small()), [], None)
            if stage.left is not None:
                assert torch.equal(stage.picture, expected.picture), (order, number)
                assert stage.seen == expected.seen, (order, number)
                assert not state or stage.left == expected.left, (order, number)
                continue
            assert not torch.equal(stage.picture, expected.picture), (order, number)
            # Whenever the helper came: the same others in the same order give the same picture.
            assert torch.equal(helped.setdefault(state, stage.picture), stage.picture)


# --- within a generation --------------------------------------------------------------------------


class Written:
    """A schedule that is written down."""

    def __init__(self, *plan: Any) -> None:
        self.written = plan
        self.branches = (0,)

    def plan(self, num_steps: int) -> list[Any]:
        assert num_steps == len(self.written)
        return list(self.written)


def at_step(number: int, *actions: Callable[[], Any]) -> dict[str, Any]:
    """What a pipeline is called with for something to happen when a step has ended."""

    def act(_pipe: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == number:
            for action in actions:
                action()
        return kwargs

    return {"callback_on_step_end": act}


WITHIN = ["closure", "accelerate", "diffusers-hook", "torch-hooks", "wrapt-function", "mock"]


@pytest.mark.parametrize("last", _slowly(range(3), (1,)))
@pytest.mark.parametrize("kind", _slowly(WITHIN, WITHIN[:1]))
def test_a_patch_may_come_or_go_within_a_generation(kind, last):
    # The reference is one closure, there from the beginning, that begins or ends to dim.
    case = TINY["sd"]

    def gated(helped: bool, begins: bool) -> torch.Tensor:
        pipe = case.load()
        forward, dims = pipe.unet.forward, [not begins]
        pipe.unet.forward = lambda *args, **kwargs: (
            dimmed(forward(*args, **kwargs)) if dims[0] else forward(*args, **kwargs)
        )
        with DeepCacheHelper(pipe, interval=3 if helped else 1):
            flip = functools.partial(dims.__setitem__, 0, begins)
            return case.run(pipe, steps=STEPS, **at_step(last, flip))

    for helped in (True, False):
        patched = Patched("sd", "unet", kind)
        with DeepCacheHelper(patched.pipe, interval=3 if helped else 1):
            picture, seen = patched.run(**at_step(last, patched.install))
            assert seen == STEPS - last - 1
            assert torch.equal(picture, gated(helped, True))
            picture, seen = patched.run(**at_step(last, patched.remove))
            assert seen == last + 1
            assert torch.equal(picture, gated(helped, False))


@pytest.mark.parametrize("kind", _slowly(WITHIN, WITHIN[:1]))
def test_a_helper_may_come_or_go_within_a_generation_of_a_patched_pipeline(kind):
    patched = Patched("sd", "unet", kind)
    patched.install()
    unet = patched.pipe.unet
    left = layout(unet)
    helper = DeepCacheHelper(patched.pipe, interval=3, replay="reuse")
    picture, seen = patched.run(**at_step(0, helper.enable))
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 2)
    again, seen_again = patched.run(**at_step(1, helper.disable))
    assert layout(unet) == left
    assert seen == seen_again == STEPS

    # Where it comes in, a generation begins, as in image-to-image.
    plans = [(FULL, FULL, 0, 0, FULL), (FULL, 0, FULL, FULL, FULL)]
    for plan, expected in zip(plans, (picture, again), strict=True):
        fresh = Patched("sd", "unet", kind)
        fresh.install()
        with DeepCacheHelper(fresh.pipe, schedule=Written(*plan), replay="reuse"):
            assert torch.equal(fresh.run()[0], expected)


# --- copies ---------------------------------------------------------------------------------------

COPIED = ["method", "accelerate", "diffusers-hook", "parametrized", "adapter", "torch-hooks"]


@pytest.mark.parametrize("kind", _slowly(COPIED, COPIED[:1]))
def test_a_copy_of_a_pipeline_with_both_is_one_with_the_patch_alone(kind):
    patched = Patched("sd", "unet", kind)
    patched.install()
    expected = layout(copy.deepcopy(patched.pipe).unet)
    plain = patched.case.run(copy.deepcopy(patched.pipe))
    with DeepCacheHelper(patched.pipe) as helper:
        patched.run()
        before = helper.stats
        copied = copy.deepcopy(patched.pipe)
        assert torch.equal(patched.case.run(copied), plain)
        assert helper.stats == before
    # Its own `compile`, that of the class, is all that it has more.
    assert vars(copied.unet).pop("compile") == copied.unet.compile
    assert layout(copied.unet) == expected


def test_a_pickled_unet_with_both_is_one_with_the_patch_alone():
    # Of the patches here only an adapter can be pickled at all.
    unet = small()
    adapter(unet, lambda: None)
    plain = loop(unet)
    with DeepCacheHelper(unet):
        helped = loop(unet)
        again = pickle.loads(pickle.dumps(unet))
    assert not torch.equal(helped, plain)
    assert torch.equal(loop(again), plain)


@pytest.mark.parametrize("kind", _slowly(COPIED, []))
def test_what_is_saved_with_both_is_what_is_saved_with_the_patch_alone(kind, tmp_path):
    patched = Patched("sd", "unet", kind)
    patched.install()
    pipe = patched.pipe
    patched.run()  # the tokenizer saves how it was called
    pipe.save_pretrained(tmp_path / "alone")
    with DeepCacheHelper(pipe):
        patched.run()
        pipe.save_pretrained(tmp_path / "both")
    folders = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "alone", tmp_path / "both")
    ]
    assert len(folders[0]) > 8
    assert folders[0] == folders[1]


# --- patches that run a U-Net more than once in a call --------------------------------------------


SETTINGS: list[dict[str, Any]] = [
    {"schedule": "auto"},
    {"schedule": Adaptive(0.9)},
    {"branch": 3},
]


def halves(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The two halves of guidance one after the other, to save memory."""

    def split(sample: Any, timestep: Any, encoder_hidden_states: Any, **kwargs: Any) -> Any:
        pairs = zip(sample.chunk(2), encoder_hidden_states.chunk(2), strict=True)
        return (torch.cat([forward(half, timestep, text, **kwargs)[0] for half, text in pairs]),)

    return split


def tiles(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Two overlapping views, as a patch for large pictures takes them."""

    def views(sample: Any, *args: Any, **kwargs: Any) -> Any:
        left, right = (forward(view, *args, **kwargs)[0] for view in (sample, sample.flip(-1)))
        return ((left + right.flip(-1)) / 2,)

    return views


@pytest.mark.parametrize("first", _slowly(["other", "ours"], ["ours"]))
@pytest.mark.parametrize(
    "settings",
    [{}, *(pytest.param(each, marks=pytest.mark.slow) for each in SETTINGS)],
    ids=str,
)
@pytest.mark.parametrize("several", _slowly([halves, tiles], [halves]))
def test_a_forward_that_runs_the_unet_several_times_runs_in_full(several, settings, first):
    # Of the features that were recorded in one call only the last was kept, and replayed in all of
    # them: the second half's for the first one, too. The pictures were wrong, and nobody was told.
    case = TINY["sd"]
    pipe = case.load()
    bare, old = case.run(pipe), pipe.unet.forward
    pipe.unet.forward = several(old)
    plain = case.run(pipe)
    del pipe.unet.forward

    helper = DeepCacheHelper(pipe, **settings)
    if first == "ours":
        helper.enable()
    pipe.unet.forward = several(old)
    helper.enable()
    with pytest.warns(DeepCacheWarning, match="its layers were run more than once in it"):
        assert torch.equal(case.run(pipe), plain)
    assert torch.equal(case.run(pipe), plain)  # and does not say so again
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2 * STEPS, 0)

    del pipe.unet.forward
    for _ in range(2):
        picture = case.run(pipe)
    assert helper.stats.shallow_calls > 0
    assert not torch.equal(picture, bare)
    helper.disable()
    assert torch.equal(case.run(pipe), bare)


def test_a_call_that_runs_the_unet_several_times_disproves_no_cut():
    # A U-Net of somebody's own class is cut once a call has proved that it can be. The proof was
    # tried in a call of two runs, too, whose features differ: it failed, for good.
    unet, calls = small(), torch.tensor([900, 600, 300])
    unet.__class__ = type("OwnUNet", (type(unet),), {})
    helper = DeepCacheHelper(unet).enable()

    @torch.no_grad()
    def loop() -> None:
        for timestep in calls:
            unet(**(inputs2d_condition() | {"timestep": timestep, "return_dict": False}))

    unet.forward = halves(unet.forward)
    with pytest.warns(DeepCacheWarning, match="more than once"):
        loop()
    del unet.forward
    loop()
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4, 2)


@pytest.mark.xfail(
    strict=True,
    raises=(AssertionError, RuntimeError),
    reason="a shallow call whose feature was recorded when the U-Net ran once in a call replays it "
    "in every run: the stand-in does not count how often it is asked",
)
@pytest.mark.slow
@pytest.mark.parametrize("several", [halves, tiles])
def test_a_forward_that_begins_to_run_the_unet_several_times_runs_in_full_from_then_on(several):
    def picture(interval: int) -> torch.Tensor:
        pipe = TINY["sd"].load()
        change = functools.partial(setattr, pipe.unet, "forward", several(pipe.unet.forward))
        with DeepCacheHelper(pipe, interval=interval):
            return TINY["sd"].run(pipe, steps=3, **at_step(0, change))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeepCacheWarning)
        assert torch.equal(picture(3), picture(1))


@pytest.mark.slow
def test_a_forward_that_runs_the_unet_several_times_is_noticed_when_compiled():
    unet = small()
    unet.forward = halves(unet.forward)
    unet.compile(backend="eager", fullgraph=True)
    helper = DeepCacheHelper(unet).enable()

    @torch.no_grad()
    def calls() -> None:
        for timestep in torch.tensor([900, 600, 300]):
            unet(**(inputs2d_condition() | {"timestep": timestep, "return_dict": False}))

    with pytest.warns(DeepCacheWarning, match="more than once"):
        calls()
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (3, 0)


# --- another DeepCache, and a proxy ---------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(("theirs", "ours"), id="theirs-ours", marks=pytest.mark.slow),
        pytest.param(("ours", "theirs"), id="ours-theirs"),
    ],
)
def test_beside_the_helper_of_the_deepcache_package_ours_runs_in_full(order):
    # Each replayed what the other one had replayed: the pictures were neither's.
    case, steps = TINY["sd"], 7
    pipe = case.load()
    plain = case.run(pipe, steps=steps)
    ours, theirs = DeepCacheHelper(pipe, interval=3), DeepCacheSDHelper(pipe=pipe)
    with ours:
        with_ours = case.run(pipe, steps=steps)
    theirs.set_params(cache_interval=2, cache_branch_id=0)
    theirs.enable()
    with_theirs = case.run(pipe, steps=steps)
    theirs.disable()
    assert not torch.equal(with_ours, with_theirs)

    for name in order:
        {"theirs": theirs, "ours": ours}[name].enable()
    # Theirs takes its interval up where the last picture has left it.
    theirs.start_timestep = None
    with pytest.warns(DeepCacheWarning, match="DeepCacheSDHelper of the DeepCache package") as told:
        assert torch.equal(case.run(pipe, steps=steps), with_theirs)
    assert len(told) == 1
    assert (ours.stats.full_calls, ours.stats.shallow_calls) == (steps, 0)
    theirs.disable()
    assert torch.equal(case.run(pipe, steps=steps), with_ours)
    ours.disable()
    assert torch.equal(case.run(pipe, steps=steps), plain)


@pytest.mark.parametrize("part", _slowly(["unet", "controlnet"], ["unet"]))
@pytest.mark.parametrize("first", _slowly(["other", "ours"], ["other"]))
def test_a_proxy_in_the_place_of_a_model_is_taken_for_it(part, first):
    # `type(proxy)` has no `forward`: enable and disable raised an AttributeError.
    case = CASES["sd-controlnet"]
    pipe = case.load()
    plain, models = case.run(pipe), denoisers(pipe)
    before = [trace(model) for model in models]
    with DeepCacheHelper(pipe):
        expected = case.run(pipe)
    helper = DeepCacheHelper(pipe)
    if first == "ours":
        helper.enable()
    seen = []

    class Proxy(wrapt.CallableObjectProxy):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(1)
            return self.__wrapped__(*args, **kwargs)

    model = getattr(pipe, part)
    setattr(pipe, part, Proxy(model))
    helper.enable()
    assert helper.enabled
    assert torch.equal(case.run(pipe), expected)
    assert len(seen) == STEPS
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 3)
    helper.disable()
    assert [trace(each) for each in models] == before
    assert torch.equal(case.run(pipe), plain)


def test_a_proxy_that_goes_while_enabled_leaves_the_model_patched_until_disable():
    case = TINY["sd"]
    pipe = case.load()
    plain, unet = case.run(pipe), pipe.unet
    before = trace(unet)
    pipe.unet = wrapt.CallableObjectProxy(unet)
    helper = DeepCacheHelper(pipe).enable()
    pipe.unet = unet
    assert not torch.equal(case.run(pipe), plain)
    helper.disable()
    assert trace(unet) == before
    assert torch.equal(case.run(pipe), plain)


def test_a_patch_of_a_class_that_hides_its_arguments_for_good_is_refused(monkeypatch):
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("not called")

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", forward)
    with pytest.raises(UnsupportedModelError):
        DeepCacheHelper(small())
