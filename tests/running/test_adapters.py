"""What plugs into a U-Net, changed between generations while a helper is enabled.

A *story* is a list of changes to a pipeline. After each of them, the pipeline whose helper has been
enabled from the start generates what one does that took the changes without, and has a fresh one.
"""

import abc
import copy
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import tomesd
import torch
from builders.adapters import lora
from builders.cases import EDIT, PAINT, PROMPT, make_case, picture, run_pipeline
from builders.parts import UNCHECKED, sd_parts, sdxl_parts
from builders.schedulers import with_scheduler
from builders.unets import inputs2d_condition, seeded, unet2d_condition
from conftest import assert_exact_at_every_branch, counted_calls, layout, trace
from diffusers import (
    MultiAdapter,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLImg2ImgPipeline,
    T2IAdapter,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from zoo import CASES
from zoo.control import HINT, controlnet

from deepcache_patch import AlreadyEnabledError, DeepCacheHelper, DeepCacheWarning, Extrapolate

SD, SDXL = CASES["sd"], CASES["sdxl"]


def slowly(row, name):
    """A row of parameters; those of SDXL, but for its adapter's, are marked slow."""
    slow = name.startswith("sdxl") and name != "sdxl-adapter"
    return pytest.param(*row, id=name, marks=[pytest.mark.slow] if slow else [])


BOTH = [slowly([case], case.name) for case in (SD, SDXL)]

# What peft says when a second adapter is loaded.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")

#: With the default interval 3, these are 0 and 3 in full, and three shallow ones.
STEPS, FULL, SHALLOW = 5, 2, 3


class Change(NamedTuple):
    """One change to a pipeline, and what its generations are called with from then on."""

    name: str
    make: Callable[[Any], Any]
    overrides: Mapping[str, Any] = {}


def tell(case, story, **settings):
    """Run a story; return the plain pictures, one for each change."""
    pipe, fresh = case.load(), case.load()
    helper = DeepCacheHelper(pipe, **settings).enable()
    plains = []
    for change in story:
        change.make(fresh)
        run = functools.partial(case.run, steps=STEPS, **change.overrides)
        plains.append(run(fresh))
        with DeepCacheHelper(fresh, **settings) as its:
            expected = run(fresh)
        assert (its.stats.full_calls, its.stats.shallow_calls) == (FULL, SHALLOW), change.name
        assert not torch.equal(expected, plains[-1]), change.name

        change.make(pipe)
        before = helper.stats
        assert torch.equal(run(pipe), expected), change.name
        assert helper.stats.full_calls - before.full_calls == FULL, change.name
        assert helper.stats.shallow_calls - before.shallow_calls == SHALLOW, change.name
    assert helper.enabled
    helper.disable()
    assert torch.equal(run(pipe), plains[-1])
    assert layout(case.unet(pipe)) == layout(case.unet(fresh))
    return plains


def all_differ(pictures):
    return not any(torch.equal(*pair) for pair in itertools.combinations(pictures, 2))


# --- LoRA ---------------------------------------------------------------------------------------


def load(name, *, seed):
    return lambda pipe: pipe.load_lora_weights(lora(pipe.unet, seed=seed), adapter_name=name)


LORA = [
    Change("plain", lambda pipe: None),
    Change("load", load("style", seed=1)),
    Change("scale", lambda pipe: None, {"cross_attention_kwargs": {"scale": 0.3}}),
    Change("weaken", lambda pipe: pipe.set_adapters("style", 0.5)),
    Change("load-second", load("detail", seed=2)),
    Change("both", lambda pipe: pipe.set_adapters(["style", "detail"], [0.5, 0.7])),
    Change("disable", lambda pipe: pipe.disable_lora()),
    Change("enable", lambda pipe: pipe.enable_lora()),
    Change("delete", lambda pipe: pipe.delete_adapters("detail")),
    Change("fuse", lambda pipe: pipe.fuse_lora(lora_scale=0.8)),
    Change("unfuse", lambda pipe: pipe.unfuse_lora()),
    Change("unload", lambda pipe: pipe.unload_lora_weights()),
]


@pytest.mark.parametrize("case", BOTH)
def test_a_lora_is_loaded_scaled_fused_and_unloaded_while_enabled(case):
    plains = dict(zip([change.name for change in LORA], tell(case, LORA), strict=True))
    shown = ("plain", "load", "scale", "weaken", "both", "fuse")
    assert all_differ([plains[name] for name in shown])
    assert torch.equal(plains["disable"], plains["plain"])
    assert torch.equal(plains["enable"], plains["both"])


@pytest.mark.parametrize("fused", [False, True], ids=["loaded", "fused"])
def test_a_unet_with_a_lora_is_exact_at_every_branch(fused, no_grad):
    pipe = SD.load()
    load("style", seed=1)(pipe)
    if fused:
        pipe.fuse_lora()
    assert_exact_at_every_branch(pipe.unet, inputs2d_condition)


def test_a_lora_of_a_second_pipeline_on_the_unet_is_that_of_the_first():
    # Both have the same U-Net, so both have its adapters.
    pipe = SD.load()
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    fresh = SD.load()
    load("style", seed=1)(fresh)
    with DeepCacheHelper(fresh):
        expected = SD.run(fresh, steps=STEPS)
    with DeepCacheHelper(pipe):
        SD.run(pipe, steps=STEPS)
        load("style", seed=1)(other)
        assert torch.equal(SD.run(pipe, steps=STEPS), expected)


# --- FreeU and fused projections ----------------------------------------------------------------


FREEU = [
    Change("plain", lambda pipe: None),
    Change("on", lambda pipe: pipe.enable_freeu(s1=0.5, s2=0.4, b1=1.4, b2=1.6)),
    Change("off", lambda pipe: pipe.disable_freeu()),
]


# FreeU is in the two deepest up blocks: branch 0 leaves them out, 4 is cut inside the second.
@pytest.mark.parametrize(
    ("case", "branch"),
    [
        slowly((case, branch), f"{case.name}-{branch}")
        for case, branch in ((SD, 0), (SD, 4), (SDXL, 4))
    ],
)
def test_freeu_is_switched_on_and_off_while_enabled(case, branch):
    plain, on, off = tell(case, FREEU, branch=branch)
    assert not torch.equal(on, plain)
    assert torch.equal(off, plain)


def test_freeu_is_exact_at_every_branch(no_grad):
    # It scales hidden states in place: a recorded tensor that is not a copy is scaled again at
    # each replay.
    unet = unet2d_condition()
    unet.enable_freeu(s1=0.5, s2=0.4, b1=1.4, b2=1.6)
    assert_exact_at_every_branch(unet, inputs2d_condition)


@pytest.mark.parametrize("case", BOTH)
def test_projections_are_fused_and_unfused_while_enabled(case):
    story = [
        Change("plain", lambda pipe: None),
        Change("fuse", lambda pipe: pipe.fuse_qkv_projections(vae=False)),
        Change("unfuse", lambda pipe: pipe.unfuse_qkv_projections(vae=False)),
    ]
    plain, _fused, unfused = tell(case, story)
    assert torch.equal(unfused, plain)


def test_fused_projections_are_used_by_shallow_steps():
    pipe = SD.load()
    with DeepCacheHelper(pipe) as helper:
        SD.run(pipe, steps=STEPS)
        pipe.fuse_qkv_projections(vae=False)
        with counted_calls(pipe.unet) as calls:
            SD.run(pipe, steps=STEPS)
    fused = {name: count for name, count in calls.items() if name.endswith("to_qkv")}
    assert set(fused.values()) == {FULL, FULL + SHALLOW}
    assert helper.stats.shallow_calls == 2 * SHALLOW


# --- attention processors -----------------------------------------------------------------------


class Halved(AttnProcessor, abc.ABC):
    """Only computes, with a number of its own."""

    def __init__(self, scale=0.5):
        super().__init__()
        self.scale = scale

    @torch.no_grad()  # a wrapper round the function, which holds that function
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs) * self.scale


class HalvedModule(torch.nn.Module):
    """The same as a module, with a weight."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(1, 1)
        self.scale = 0.5

    def forward(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        states = AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask)
        return states * self.scale


def halved(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, *, scale=0.5):
    states = AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask)
    return states * scale


@pytest.mark.parametrize(
    "processor",
    [Halved, HalvedModule, lambda: halved, lambda: functools.partial(halved, scale=0.5)],
    ids=["class", "module", "function", "partial"],
)
def test_a_processor_that_only_computes_goes_on_being_accelerated(processor):
    story = [
        Change("plain", lambda pipe: None),
        Change("halved", lambda pipe: pipe.unet.set_attn_processor(processor())),
        Change("default", lambda pipe: pipe.unet.set_attn_processor(AttnProcessor())),
    ]
    plain, changed, _default = tell(SD, story)
    assert not torch.equal(plain, changed)


class Maps:
    """Somebody's store of attention maps, with every way to fill it."""

    def __init__(self):
        self.maps = []

    def put(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = attn.to_q(hidden_states), attn.to_k(context)
        scores = attn.get_attention_scores(
            attn.head_to_batch_dim(query), attn.head_to_batch_dim(key), attention_mask
        )
        self.maps.append(scores)
        return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask)

    def as_own_class(self):
        class Keeping:
            def __init__(self, store):
                self.store = store

            def __call__(self, attn, hidden_states, encoder_hidden_states=None, **options):
                return self.store.put(attn, hidden_states, encoder_hidden_states)

        return Keeping(self)

    def as_subclass(self):
        class Keeping(AttnProcessor2_0):
            def __init__(self, maps):
                super().__init__()
                self.maps = maps

            def __call__(self, attn, hidden_states, encoder_hidden_states=None, **options):
                self.maps.append(hidden_states)
                return super().__call__(attn, hidden_states, encoder_hidden_states)

        return Keeping(self.maps)

    def as_module(self):
        class Keeping(torch.nn.Module):
            def __init__(self, store):
                super().__init__()
                self.store = store

            def forward(self, attn, hidden_states, encoder_hidden_states=None, **options):
                return self.store.put(attn, hidden_states, encoder_hidden_states)

        return Keeping(self)

    def as_slots(self):
        class Keeping:
            __slots__ = ("store",)

            def __call__(self, attn, hidden_states, encoder_hidden_states=None, **options):
                return self.store.put(attn, hidden_states, encoder_hidden_states)

        processor = Keeping()
        processor.store = self
        return processor

    def as_class_attribute(self):
        class Keeping:
            store = self

            def __call__(self, attn, hidden_states, encoder_hidden_states=None, **options):
                return self.store.put(attn, hidden_states, encoder_hidden_states)

        return Keeping()

    def as_class_in_a_closure(self):
        store = self

        class Keeping:
            def __call__(self, attn, hidden_states, encoder_hidden_states=None, **options):
                return store.put(attn, hidden_states, encoder_hidden_states)

        return Keeping()

    def as_closure(self):
        def keeping(attn, hidden_states, encoder_hidden_states=None, **options):
            return self.put(attn, hidden_states, encoder_hidden_states)

        return keeping

    def as_method(self):
        return self.put

    def as_default(self):
        def keeping(attn, hidden_states, encoder_hidden_states=None, *, store=self, **options):
            return store.put(attn, hidden_states, encoder_hidden_states)

        return keeping

    def as_partial(self):
        return functools.partial(Maps.put, self)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("as_own_class", "Keeping"),
        ("as_subclass", "Keeping"),
        ("as_module", "Keeping"),
        ("as_slots", "Keeping"),
        ("as_class_attribute", "Keeping"),
        ("as_class_in_a_closure", "Keeping"),
        ("as_closure", "keeping"),
        ("as_method", "put"),
        ("as_default", "keeping"),
        ("as_partial", "partial"),
    ],
)
def test_a_processor_that_keeps_maps_is_given_all_of_them_until_it_is_gone(form, name):
    # A processor could once hide what it keeps in a method's object, slots, the arguments of a
    # partial, a default, its class, or the closure of its class: shallow steps left its maps out.
    plain = SD.load()
    seen = Maps()
    plain.unet.set_attn_processor(getattr(seen, form)())
    expected = SD.run(plain, steps=STEPS)

    pipe, kept = SD.load(), Maps()
    with DeepCacheHelper(pipe) as helper:
        accelerated = SD.run(pipe, steps=STEPS)
        pipe.unet.set_attn_processor(getattr(kept, form)())
        with pytest.warns(DeepCacheWarning, match=f"processor {name} of down_blocks") as warned:
            SD.run(pipe, steps=STEPS)
        assert len(warned) == 1
        # Warnings are errors here: there is no second one.
        assert torch.equal(SD.run(pipe, steps=STEPS), expected)
        assert len(kept.maps) == 2 * len(seen.maps)
        assert all(map(torch.equal, kept.maps, 2 * seen.maps))
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (FULL + 2 * STEPS, SHALLOW)

        pipe.unet.set_attn_processor(AttnProcessor2_0())
        assert torch.equal(SD.run(pipe, steps=STEPS), accelerated)
        assert helper.stats.full_calls == 2 * FULL + 2 * STEPS
        assert helper.stats.shallow_calls == 2 * SHALLOW


def test_a_processor_that_keeps_maps_where_every_step_runs_is_accelerated():
    pipe, kept = SD.load(), Maps()
    first = next(name for name in pipe.unet.attn_processors if name.startswith("up_blocks.2"))
    shallowest = "up_blocks.2.attentions.2.transformer_blocks.0.attn2.processor"
    assert first != shallowest
    processors = dict(pipe.unet.attn_processors) | {shallowest: kept.as_own_class()}
    with DeepCacheHelper(pipe) as helper:
        pipe.unet.set_attn_processor(processors)
        SD.run(pipe, steps=STEPS)
    assert len(kept.maps) == STEPS
    assert helper.stats.shallow_calls == SHALLOW


# --- IP-Adapter ---------------------------------------------------------------------------------


#: Width of what a picture's encoder would give.
IMAGE_WIDTH = 12


def ip_adapter(unet, *, seed=0, tokens=4):
    """The state dict of an IP-Adapter, as `load_ip_adapter` takes it."""
    context = unet.config.cross_attention_dim
    weights = {}
    with seeded(seed):
        projection = {
            "proj.weight": torch.randn(tokens * context, IMAGE_WIDTH),
            "proj.bias": torch.randn(tokens * context),
            "norm.weight": torch.ones(context),
            "norm.bias": torch.zeros(context),
        }
        crossed = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
        # The weights are numbered with the processors of the self-attentions between them.
        for number, name in enumerate(crossed):
            width = unet.get_submodule(name.removesuffix(".processor")).to_q.weight.shape[0]
            for part in ("to_k_ip", "to_v_ip"):
                weights[f"{2 * number + 1}.{part}.weight"] = torch.randn(width, context)
    return {"image_proj": projection, "ip_adapter": weights}


def load_ip_adapter(pipe):
    pipe.load_ip_adapter(
        ip_adapter(pipe.unet), subfolder=None, weight_name=None, image_encoder_folder=None
    )


def image_embeds(seed=0):
    """Of no picture and of a picture."""
    generator = torch.Generator().manual_seed(seed)
    return {"ip_adapter_image_embeds": [torch.randn(2, 1, IMAGE_WIDTH, generator=generator)]}


def only_in_the_deepest_up_block(pipe):
    blocks = pipe.unet.up_blocks
    block = next(i for i, block in enumerate(blocks) if hasattr(block, "attentions"))
    layers = [1.0] * len(blocks[block].attentions)
    pipe.set_ip_adapter_scale({"up": {f"block_{block}": layers}})


@pytest.mark.parametrize("case", BOTH)
def test_an_ip_adapter_is_loaded_scaled_and_unloaded_while_enabled(case):
    story = [
        Change("plain", lambda pipe: None),
        Change("load", load_ip_adapter, image_embeds()),
        Change("other-picture", lambda pipe: None, image_embeds(1)),
        Change("scale", lambda pipe: pipe.set_ip_adapter_scale(0.4), image_embeds()),
        Change("unload", lambda pipe: pipe.unload_ip_adapter()),
    ]
    plain, *shown, unloaded = tell(case, story)
    assert all_differ([plain, *shown])
    assert torch.equal(unloaded, plain)


def test_an_ip_adapter_is_exact_at_every_branch(no_grad):
    pipe = SD.load()
    load_ip_adapter(pipe)
    embeds = [torch.randn(2, 1, 1, IMAGE_WIDTH, generator=torch.Generator().manual_seed(0))]
    assert_exact_at_every_branch(
        pipe.unet, lambda: inputs2d_condition() | {"added_cond_kwargs": {"image_embeds": embeds}}
    )


# --- T2I-Adapters, GLIGEN, ControlNet-XS, PAG ---------------------------------------------------


def _multi_adapter():
    options = {"channels": [8, 16, 16], "num_res_blocks": 1, "downscale_factor": 2}
    return StableDiffusionAdapterPipeline(
        **sd_parts(), adapter=MultiAdapter([T2IAdapter(**options) for _ in range(2)]), **UNCHECKED
    )


def _sdxl_multi_adapter():
    options = {"channels": [8, 16, 16, 16], "num_res_blocks": 1, "downscale_factor": 4}
    adapters = [T2IAdapter(**options, adapter_type="full_adapter_xl") for _ in range(2)]
    return StableDiffusionXLAdapterPipeline(**sdxl_parts(), adapter=MultiAdapter(adapters))


_TWO = {
    "image": [picture(), picture(seed=1)],
    "adapter_conditioning_scale": [0.8, 0.5],
}

_MULTI = {
    "sd-multi-adapter": make_case(
        "sd-multi-adapter",
        StableDiffusionAdapterPipeline,
        _multi_adapter,
        others={"scale": {"adapter_conditioning_scale": [0.1, 1.5]}},
        output_type="latent",
        **PROMPT,
        **_TWO,
    ),
    "sdxl-multi-adapter": make_case(
        "sdxl-multi-adapter",
        StableDiffusionXLAdapterPipeline,
        _sdxl_multi_adapter,
        others={"factor": {"adapter_conditioning_factor": 0.5}},
        **PROMPT,
        **_TWO,
    ),
}

#: Each with another generation, and the branches besides 0 at which what is plugged in is cut.
PLUGGED = [
    ("sd-adapter", "scale", 4),
    ("sdxl-adapter", "factor", 4),
    ("sd-multi-adapter", "scale", 4),
    ("sdxl-multi-adapter", "factor", 7),
    ("gligen", "grounding", 2),
    ("gligen-text-image", "seed", 0),
    ("sd-controlnet-xs", "control-end", 4),
    ("sdxl-controlnet-xs", "seed", 1),
    ("sd-pag", "no-pag", 2),
    ("sdxl-pag", "no-pag", 1),
]


@pytest.mark.parametrize(("name", "other", "branch"), [slowly(row, row[0]) for row in PLUGGED])
def test_what_is_plugged_in_is_accelerated_and_the_next_generation_is_right(name, other, branch):
    case = (_MULTI | CASES)[name]
    overrides = {"steps": STEPS} | dict(case.others[other])
    fresh = case.load()
    plain, plain_other = case.run(fresh, steps=STEPS), case.run(fresh, **overrides)
    assert not torch.equal(plain, plain_other)
    with DeepCacheHelper(fresh, branch=branch) as its:
        expected = case.run(fresh, **overrides)
    assert not torch.equal(expected, plain_other)

    pipe = case.load()
    unet, before = case.unet(pipe), trace(case.unet(pipe))
    helper = DeepCacheHelper(pipe, interval=1, branch=branch).enable()
    assert torch.equal(case.run(pipe, steps=STEPS), plain)
    helper.set_params(cache_interval=3)
    assert not torch.equal(case.run(pipe, steps=STEPS), plain)
    before_other = helper.stats.shallow_calls
    assert before_other >= SHALLOW
    assert torch.equal(case.run(pipe, **overrides), expected)
    assert its.stats.shallow_calls >= SHALLOW
    assert helper.stats.shallow_calls - before_other == its.stats.shallow_calls
    helper.disable()
    assert torch.equal(case.run(pipe, **overrides), plain_other)
    if "pag" not in name and "gligen" not in name:  # these pipelines leave things of their own
        assert trace(unet) == before
    assert layout(unet) == layout(case.unet(fresh))


# --- tomesd -------------------------------------------------------------------------------------


def merge(pipe):
    # Without chance: tomesd draws from one generator as long as it is applied.
    # SDXL has no attention at full size.
    tomesd.apply_patch(pipe, ratio=0.5, max_downsample=2, use_rand=False)


def test_tomesd_is_applied_and_removed_while_enabled():
    story = [
        Change("plain", lambda pipe: None),
        Change("apply", merge),
        Change("apply-again", lambda pipe: tomesd.apply_patch(pipe, ratio=0.7, use_rand=False)),
        Change("remove", tomesd.remove_patch),
    ]
    plain, *shown, removed = tell(SD, story)
    assert all_differ([plain, *shown])
    assert torch.equal(removed, plain)


ORDERS = [
    ("apply", "enable", "disable", "remove"),
    ("apply", "enable", "remove", "disable"),
    ("enable", "apply", "disable", "remove"),
    ("enable", "apply", "remove", "disable"),
]


@pytest.mark.parametrize(
    ("case", "order"),
    [
        slowly((case, order), "-".join([case.name, *order]))
        for case, order in [*((SD, order) for order in ORDERS), (SDXL, ORDERS[-1])]
    ],
)
def test_tomesd_and_a_helper_come_and_go_in_any_order(case, order):
    pictures = {}
    fresh = case.load()
    for merged in (False, True):
        if merged:
            merge(fresh)
        pictures[merged, False] = case.run(fresh, steps=STEPS)
        with DeepCacheHelper(fresh):
            pictures[merged, True] = case.run(fresh, steps=STEPS)
    assert all_differ(pictures.values())

    pipe = case.load()
    helper = DeepCacheHelper(pipe)
    actions = {
        "apply": lambda: merge(pipe),
        "remove": lambda: tomesd.remove_patch(pipe),
        "enable": helper.enable,
        "disable": helper.disable,
    }
    merged = enabled = False
    for name in order:
        actions[name]()
        merged = name == "apply" or (merged and name != "remove")
        enabled = name == "enable" or (enabled and name != "disable")
        assert torch.equal(case.run(pipe, steps=STEPS), pictures[merged, enabled]), name
    tomesd.remove_patch(fresh)
    assert layout(pipe.unet) == layout(fresh.unet)


def test_tomesds_chance_is_that_of_the_same_calls():
    # It draws at each call of a merged layer, so a shallow call, which has the shallowest layers
    # only, moves its generator on by less than a full one.
    def first_generation():
        pipe = SD.load()
        tomesd.apply_patch(pipe, ratio=0.5)
        with DeepCacheHelper(pipe) as helper:
            return SD.run(pipe, steps=STEPS), helper.stats

    (picture_, stats), (again, _) = first_generation(), first_generation()
    assert torch.equal(picture_, again)
    assert (stats.full_calls, stats.shallow_calls) == (FULL, SHALLOW)


@pytest.mark.parametrize("name", ["sd-controlnet", "sd-adapter"])
def test_a_hook_that_reads_positional_arguments_finds_them_in_shallow_calls(name):
    # tomesd's hook takes the size of the latents from `args[0]`. Shallow calls of pipelines with a
    # ControlNet or an adapter had all arguments by keyword, so they failed.
    case = CASES[name]
    fresh = case.load()
    merge(fresh)
    plain = case.run(fresh, steps=STEPS)
    pipe = case.load()
    merge(pipe)
    with DeepCacheHelper(pipe, interval=1):
        assert torch.equal(case.run(pipe, steps=STEPS), plain)
    with DeepCacheHelper(pipe) as helper:
        case.run(pipe, steps=STEPS)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (FULL, SHALLOW)


# --- timesteps and callbacks --------------------------------------------------------------------


def _assert_right(load, run):
    """A generation between others is that of a fresh helper, and plain at interval 1."""
    fresh = load()
    with counted_calls(fresh.unet) as calls:
        plain = run(fresh)
    steps = calls[""]
    with DeepCacheHelper(fresh):
        expected = run(fresh)
    assert not torch.equal(expected, plain)
    pipe = load()
    helper = DeepCacheHelper(pipe, interval=1).enable()
    assert torch.equal(run(pipe), plain)
    helper.set_params(cache_interval=3)
    SD.run(pipe, steps=7, seed=1)
    before = helper.stats
    assert torch.equal(run(pipe), expected)
    assert helper.stats.generations - before.generations == 1
    assert helper.stats.full_calls - before.full_calls == -(-steps // 3)
    assert helper.stats.shallow_calls - before.shallow_calls == steps - -(-steps // 3) > 0
    helper.disable()
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize(
    ("scheduler", "given"),
    [
        ("euler", {"sigmas": [14.0, 7.5, 3.0, 1.2, 0.4]}),
        ("euler", {"timesteps": [980, 700, 420, 200, 30]}),
        ("dpm-multistep", {"timesteps": [980, 700, 420, 200, 30]}),
        ("lcm", {"timesteps": [999, 759, 499, 259, 99]}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_callers_own_timesteps_and_sigmas(scheduler, given):
    _assert_right(
        lambda: with_scheduler(SD.load(), scheduler),
        lambda pipe: SD.run(pipe, steps=None, **given),
    )


def _brighter(pipe, step, _timestep, kwargs):
    kwargs["latents"] = kwargs["latents"] + 0.1 * (step == 2)
    return kwargs


def _in_place(pipe, step, _timestep, kwargs):
    kwargs["latents"].mul_(1.2 if step in (1, 4) else 1.0)
    return kwargs


def _guidance(pipe, step, _timestep, kwargs):
    pipe._guidance_scale = 2.0 + step
    return kwargs


def _prompt(pipe, step, _timestep, kwargs):
    if step == 3:
        kwargs["prompt_embeds"] = kwargs["prompt_embeds"].flip(1)
    return kwargs


@pytest.mark.parametrize(
    ("callback", "inputs"),
    [
        (_brighter, ["latents"]),
        (_in_place, ["latents"]),
        (_guidance, ["latents"]),
        (_prompt, ["prompt_embeds"]),
    ],
    ids=["latents", "latents-in-place", "guidance", "prompt"],
)
def test_a_callback_may_change_the_course_of_a_generation(callback, inputs):
    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": inputs}
    _assert_right(SD.load, lambda pipe: SD.run(pipe, steps=STEPS, **options))


@pytest.mark.parametrize("last", [0, 2, 3])
def test_an_interrupted_generation_does_not_reach_the_next(last):
    def interrupt(pipe, step, _timestep, kwargs):
        pipe._interrupt = step == last
        return kwargs

    fresh = SD.load()
    plain = SD.run(fresh, steps=STEPS, callback_on_step_end=interrupt)
    with DeepCacheHelper(fresh):
        expected = SD.run(fresh, steps=STEPS)
    pipe = SD.load()
    with DeepCacheHelper(pipe) as helper:
        cut_short = SD.run(pipe, steps=STEPS, callback_on_step_end=interrupt)
        assert helper.stats.full_calls + helper.stats.shallow_calls == last + 1
        assert torch.equal(cut_short, plain) == (last == 0)
        assert torch.equal(SD.run(pipe, steps=STEPS), expected)
        # The same number of steps from a later one: img2img's way to start.
        SD.run(pipe, steps=STEPS, callback_on_step_end=interrupt)
        assert torch.equal(SD.run(pipe, steps=STEPS), expected)


# --- schedulers ---------------------------------------------------------------------------------


def test_a_scheduler_replaced_or_copied_between_generations_is_followed():
    story = [
        Change("plain", lambda pipe: None),
        Change("euler", lambda pipe: with_scheduler(pipe, "euler")),
        Change("copy", lambda pipe: setattr(pipe, "scheduler", copy.deepcopy(pipe.scheduler))),
        Change("unipc", lambda pipe: with_scheduler(pipe, "unipc")),
        Change("back", lambda pipe: with_scheduler(pipe, "ddim")),
    ]
    plain, euler, copied, unipc, back = tell(SD, story)
    assert all_differ([plain, euler, unipc])
    assert torch.equal(euler, copied)
    assert torch.equal(back, plain)


def test_a_copied_scheduler_is_as_far_as_its_original_and_unpatched():
    pipe = SD.load()
    with DeepCacheHelper(pipe):
        SD.run(pipe, steps=STEPS)
        duplicate = copy.deepcopy(pipe.scheduler)
    assert vars(duplicate).keys() == vars(pipe.scheduler).keys()
    assert vars(pipe.scheduler).keys() == vars(SD.load().scheduler).keys()
    assert torch.equal(duplicate.timesteps, pipe.scheduler.timesteps)


# --- several pipelines with one U-Net -----------------------------------------------------------


def _shared(case, other, **parts):
    pipe = case.load()
    sharing = other.from_pipe(pipe, **parts)
    sharing.set_progress_bar_config(disable=True)
    assert sharing.unet is pipe.unet
    return pipe, sharing


def _runs(defaults):
    return functools.partial(run_pipeline, defaults=defaults, steps=STEPS)


#: What else can be made of a pipeline, and how it is run.
SHARING = {
    "img2img": (SD, StableDiffusionImg2ImgPipeline, _runs(EDIT)),
    "img2img-strength": (SD, StableDiffusionImg2ImgPipeline, _runs(EDIT | {"strength": 0.6})),
    "inpaint": (SD, StableDiffusionInpaintPipeline, _runs(PAINT)),
    "pag": (SD, StableDiffusionPAGPipeline, _runs(PROMPT | {"pag_scale": 30.0})),
    "sdxl-img2img": (SDXL, StableDiffusionXLImg2ImgPipeline, _runs(EDIT | {"strength": 0.8})),
}


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        *(slowly((name, "same"), name) for name in SHARING),
        ("img2img-strength", "heun"),
        ("inpaint", "dpm-multistep"),
    ],
)
def test_pipelines_on_one_unet_take_turns_under_one_helper(name, scheduler):
    case, kind, run = SHARING[name]
    # How far a line is followed depends on the noise at each step, and so on the scheduler.
    replay = "extrapolate" if scheduler == "same" else "reuse"

    def both():
        pipe, other = _shared(case, kind)
        if scheduler != "same":
            with_scheduler(other, scheduler)
        return pipe, other

    pipe, other = both()
    plain = case.run(pipe, steps=STEPS)
    plain_other = run(other)
    with DeepCacheHelper(pipe, replay=replay):
        expected = case.run(pipe, steps=STEPS)
    with DeepCacheHelper(other, replay=replay) as its:
        expected_other = run(other)
    assert not torch.equal(expected_other, plain_other)
    assert its.stats.shallow_calls > 0

    pipe, other = both()
    before = trace(pipe.unet)
    helper = DeepCacheHelper(pipe, replay=replay).enable()
    for _ in range(2):
        assert torch.equal(case.run(pipe, steps=STEPS), expected)
        assert torch.equal(run(other), expected_other)
    assert helper.stats.generations == 4
    assert helper.stats.shallow_calls == 2 * (SHALLOW + its.stats.shallow_calls)
    helper.disable()
    assert torch.equal(case.run(pipe, steps=STEPS), plain)
    assert torch.equal(run(other), plain_other)
    if name != "pag":  # puts its processors in place and the others back
        assert trace(pipe.unet) == before


class Levels(Extrapolate):
    """Keeps the noise levels that it is told."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "told", [])

    def feature(self, step, recorded, levels):
        self.told.append(levels)
        return super().feature(step, recorded, levels)


def test_the_noise_levels_of_another_pipelines_scheduler_are_known():
    # Without them an extrapolation is not damped: with few steps it goes too far.
    pipe, other = _shared(SD, StableDiffusionInpaintPipeline)
    with_scheduler(other, "dpm-multistep")
    replays = Levels(), Levels()
    for replay, owner in zip(replays, (other, pipe), strict=True):
        with DeepCacheHelper(owner, replay=replay):
            _runs(PAINT)(other)
    assert len(replays[0].told) == SHALLOW
    assert None not in replays[0].told
    for expected, told in zip(replays[0].told, replays[1].told, strict=True):
        # One scheduler interpolates its sigmas, the other looks them up.
        assert told is not None
        assert told == pytest.approx(expected, abs=1e-3)


def test_a_second_helper_on_a_shared_unet_is_refused_until_the_first_is_disabled():
    pipe, other = _shared(SD, StableDiffusionImg2ImgPipeline)
    run = _runs(EDIT)
    before = trace(pipe.unet)
    first, second = DeepCacheHelper(pipe), DeepCacheHelper(other, interval=2)
    with first:
        expected = SD.run(pipe, steps=STEPS)
        with pytest.raises(AlreadyEnabledError):
            second.enable()
        assert not second.enabled
        second.disable()  # takes nothing away from the first
        assert torch.equal(SD.run(pipe, steps=STEPS), expected)
    assert trace(pipe.unet) == before
    with second:
        run(other)
        assert (second.stats.full_calls, second.stats.shallow_calls) == (2, 2)  # 4 of 5 steps
    assert trace(pipe.unet) == before


@pytest.mark.parametrize("enabled", ["text-to-image", "controlnet"])
def test_a_controlnet_pipeline_on_a_shared_unet(enabled):
    def both():
        pipe, other = _shared(
            SD, StableDiffusionControlNetPipeline, controlnet=controlnet(unet2d_condition())
        )
        return pipe, other

    run = _runs(PROMPT | {"image": HINT})
    pipe, other = both()
    with DeepCacheHelper(pipe):
        expected = SD.run(pipe, steps=STEPS)
    with DeepCacheHelper(other):
        expected_other = run(other)

    pipe, other = both()
    traces = trace(other.unet), trace(other.controlnet)
    with DeepCacheHelper(pipe if enabled == "text-to-image" else other) as helper:
        for _ in range(2):
            with counted_calls(other.controlnet) as calls:
                assert torch.equal(run(other), expected_other)
            # Only a helper of the pipeline that has it cuts the ControlNet.
            assert calls["mid_block"] == (FULL if enabled == "controlnet" else STEPS)
            assert torch.equal(SD.run(pipe, steps=STEPS), expected)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (4 * FULL, 4 * SHALLOW)
    assert (trace(other.unet), trace(other.controlnet)) == traces


# --- ControlNet: guess mode, and its part of the steps ------------------------------------------


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
    [slowly(row, "-".join([row[0], str(row[1]), *row[2]])) for row in CONTROLS],
)
def test_a_cut_controlnet_gives_what_a_whole_one_does(name, branch, overrides, in_full):
    case = CASES[name]
    run = functools.partial(case.run, steps=STEPS, **overrides)
    pipe = case.load()
    traces = trace(pipe.unet), trace(pipe.controlnet)
    with DeepCacheHelper(pipe, interval=1, branch=branch):
        exact = run(pipe)
    assert torch.equal(exact, run(pipe))
    # A helper of the bare U-Net knows of no ControlNet, and leaves it whole; nor of a scheduler.
    with DeepCacheHelper(pipe.unet, branch=branch, replay="reuse"):
        expected = run(pipe)
    assert not torch.equal(expected, exact)

    middle = "nets.0.mid_block" if name == "sd-controlnet-two" else "mid_block"
    with DeepCacheHelper(pipe, branch=branch, replay="reuse") as helper:
        case.run(pipe, steps=7, seed=1)
        with counted_calls(pipe.controlnet) as calls:
            assert torch.equal(run(pipe), expected)
    assert calls[middle] == in_full
    assert helper.stats.shallow_calls == 4 + SHALLOW
    assert (trace(pipe.unet), trace(pipe.controlnet)) == traces


def test_two_unets_with_helpers_may_share_a_controlnet():
    # The second helper's patch went round the first one's, whose call came inside the cut.
    case = CASES["sd-controlnet"]
    fresh = case.load()
    with DeepCacheHelper(fresh):
        expected = [case.run(fresh, steps=STEPS, seed=seed) for seed in (0, 1)]
    first, second = case.load(), case.load()
    second.controlnet = first.controlnet
    before = trace(first.controlnet)
    with DeepCacheHelper(first) as helper:
        other = DeepCacheHelper(second).enable()
        for _ in range(2):
            assert torch.equal(case.run(first, steps=STEPS, seed=0), expected[0])
            assert torch.equal(case.run(second, steps=STEPS, seed=1), expected[1])
        assert helper.stats.shallow_calls == other.stats.shallow_calls == 2 * SHALLOW
    other.disable()
    assert trace(first.controlnet) == before
