"""What plugs into a U-Net while a helper is enabled: LoRA, IP-Adapter, T2I-Adapter, GLIGEN, PAG.

A *story* is a list of changes to a pipeline: see `changes`.
"""

import pytest
import torch
from builders.cases import PROMPT, make_case, picture
from builders.changes import BOTH, SD, SHALLOW, STEPS, Change, all_differ, load, tell
from builders.marks import mostly_slow
from builders.parts import UNCHECKED, sd_parts, sdxl_parts
from builders.unets import inputs2d_condition, seeded
from conftest import assert_exact_at_every_branch, layout, trace
from diffusers import (
    MultiAdapter,
    StableDiffusionAdapterPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLAdapterPipeline,
    T2IAdapter,
)
from zoo import CASES

from deepcache_patch import DeepCacheHelper, Uniform

# What peft says when a second adapter is loaded.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")


# --- LoRA ---------------------------------------------------------------------------------------


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


def test_a_lora_is_loaded_fused_and_unloaded_while_enabled():
    # The quick part of the next one. Weights that were fused come back rounded.
    short = [each for each in LORA if each.name in ("plain", "load", "fuse", "unfuse", "unload")]
    plain, loaded, fused, *_ = tell(SD, short)
    assert all_differ([plain, loaded, fused])


@pytest.mark.slow
@pytest.mark.parametrize("case", BOTH)
def test_a_lora_is_loaded_scaled_fused_and_unloaded_while_enabled(case):
    plains = dict(zip([change.name for change in LORA], tell(case, LORA), strict=True))
    shown = ("plain", "load", "scale", "weaken", "both", "fuse")
    assert all_differ([plains[name] for name in shown])
    assert torch.equal(plains["disable"], plains["plain"])
    assert torch.equal(plains["enable"], plains["both"])


@pytest.mark.parametrize("fused", mostly_slow([False, True], 1), ids=["loaded", "fused"])
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
    with DeepCacheHelper(fresh, schedule=Uniform()):
        expected = SD.run(fresh, steps=STEPS)
    with DeepCacheHelper(pipe, schedule=Uniform()):
        SD.run(pipe, steps=STEPS)
        load("style", seed=1)(other)
        assert torch.equal(SD.run(pipe, steps=STEPS), expected)


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


@pytest.mark.parametrize(
    ("name", "other", "branch"),
    mostly_slow([pytest.param(*row, id=row[0]) for row in PLUGGED], ["sd-adapter"]),
)
def test_what_is_plugged_in_is_accelerated_and_the_next_generation_is_right(name, other, branch):
    case = (_MULTI | CASES)[name]
    overrides = {"steps": STEPS} | dict(case.others[other])
    fresh = case.load()
    plain, plain_other = case.run(fresh, steps=STEPS), case.run(fresh, **overrides)
    assert not torch.equal(plain, plain_other)
    with DeepCacheHelper(fresh, schedule=Uniform(branch=branch)) as its:
        expected = case.run(fresh, **overrides)
    assert not torch.equal(expected, plain_other)

    pipe = case.load()
    unet, before = case.unet(pipe), trace(case.unet(pipe))
    helper = DeepCacheHelper(pipe, schedule=Uniform(1, branch=branch)).enable()
    assert torch.equal(case.run(pipe, steps=STEPS), plain)
    helper.set(interval=3)
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
