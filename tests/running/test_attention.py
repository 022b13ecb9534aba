"""What changes the attention of a U-Net while a helper is enabled: FreeU, processors, tomesd.

A *story* is a list of changes to a pipeline: see `changes`.
"""

import abc
import functools

import pytest
import tomesd
import torch
from builders.changes import BOTH, FULL, SD, SDXL, SHALLOW, STEPS, Change, all_differ, tell
from builders.marks import mostly_slow
from builders.unets import inputs2d_condition, unet2d_condition
from conftest import assert_exact_at_every_branch, counted_calls, layout
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from zoo import CASES

from deepcache_patch import DeepCacheHelper, DeepCacheWarning, Uniform

# What peft says when a second adapter is loaded.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")


# --- FreeU and fused projections ----------------------------------------------------------------


FREEU = [
    Change("plain", lambda pipe: None),
    Change("on", lambda pipe: pipe.enable_freeu(s1=0.5, s2=0.4, b1=1.4, b2=1.6)),
    Change("off", lambda pipe: pipe.disable_freeu()),
]


# FreeU is in the two deepest up blocks: branch 0 leaves them out, 4 is cut inside the second.
@pytest.mark.parametrize(
    ("case", "branch"),
    mostly_slow(
        [
            pytest.param(case, branch, id=f"{case.name}-{branch}")
            for case, branch in ((SD, 0), (SD, 4), (SDXL, 4))
        ],
        ["sd-4"],
    ),
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
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
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
    mostly_slow(
        [Halved, HalvedModule, lambda: halved, lambda: functools.partial(halved, scale=0.5)], 1
    ),
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
    mostly_slow(
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
        [("as_own_class", "Keeping"), ("as_closure", "keeping")],
    ),
)
def test_a_processor_that_keeps_maps_is_given_all_of_them_until_it_is_gone(form, name):
    # A processor could once hide what it keeps in a method's object, slots, the arguments of a
    # partial, a default, its class, or the closure of its class: shallow steps left its maps out.
    plain = SD.load()
    seen = Maps()
    plain.unet.set_attn_processor(getattr(seen, form)())
    expected = SD.run(plain, steps=STEPS)

    pipe, kept = SD.load(), Maps()
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
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
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        pipe.unet.set_attn_processor(processors)
        SD.run(pipe, steps=STEPS)
    assert len(kept.maps) == STEPS
    assert helper.stats.shallow_calls == SHALLOW


# --- tomesd -------------------------------------------------------------------------------------


def merge(pipe):
    # Without chance: tomesd draws from one generator as long as it is applied.
    # SDXL has no attention at full size.
    tomesd.apply_patch(pipe, ratio=0.5, max_downsample=2, use_rand=False)


@pytest.mark.slow
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
    mostly_slow(
        [
            pytest.param(case, order, id="-".join([case.name, *order]))
            for case, order in [*((SD, order) for order in ORDERS), (SDXL, ORDERS[-1])]
        ],
        ["sd-enable-apply-disable-remove"],
    ),
)
def test_tomesd_and_a_helper_come_and_go_in_any_order(case, order):
    pictures = {}
    fresh = case.load()
    for merged in (False, True):
        if merged:
            merge(fresh)
        pictures[merged, False] = case.run(fresh, steps=STEPS)
        with DeepCacheHelper(fresh, schedule=Uniform()):
            pictures[merged, True] = case.run(fresh, steps=STEPS)
    assert all_differ(pictures.values())

    pipe = case.load()
    helper = DeepCacheHelper(pipe, schedule=Uniform())
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
        with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
            return SD.run(pipe, steps=STEPS), helper.stats

    (picture_, stats), (again, _) = first_generation(), first_generation()
    assert torch.equal(picture_, again)
    assert (stats.full_calls, stats.shallow_calls) == (FULL, SHALLOW)


@pytest.mark.parametrize("name", mostly_slow(["sd-controlnet", "sd-adapter"], ["sd-adapter"]))
def test_a_hook_that_reads_positional_arguments_finds_them_in_shallow_calls(name):
    # tomesd's hook takes the size of the latents from `args[0]`. Shallow calls of pipelines with a
    # ControlNet or an adapter had all arguments by keyword, so they failed.
    case = CASES[name]
    fresh = case.load()
    merge(fresh)
    plain = case.run(fresh, steps=STEPS)
    pipe = case.load()
    merge(pipe)
    with DeepCacheHelper(pipe, schedule=Uniform(1)):
        assert torch.equal(case.run(pipe, steps=STEPS), plain)
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        case.run(pipe, steps=STEPS)
    assert (helper.stats.full_calls, helper.stats.shallow_calls) == (FULL, SHALLOW)
