"""Tiny modular pipelines of SDXL, made of blocks and of parts of our own; and guiders for them.

diffusers before 0.42 lacks what is imported here: whoever imports this asks for the version first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    ComponentsManager,
    LayerSkipConfig,
    ModularPipelineBlocks,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    SmoothedEnergyGuidanceConfig,
    StableDiffusionXLAutoBlocks,
    StableDiffusionXLModularPipeline,
)

from builders.cases import CASES, as_tensor
from builders.unets import seeded

#: Where guiders leave something out, in some of the calls: the lists of the U-Net's transformer
#: blocks in the middle and on the way up.
_MIDDLE, _UP = (f"{each}.attentions.0.transformer_blocks" for each in ("mid_block", "up_blocks.1"))


def modular_sdxl(
    parts: Mapping[str, Any] | None = None,
    *,
    blocks: ModularPipelineBlocks | None = None,
    manager: ComponentsManager | None = None,
) -> StableDiffusionXLModularPipeline:
    """A modular pipeline with parts of an ordinary one.

    Args:
        parts: By name, by default those of the tiny SDXL pipeline; what no block asks for is left.
        blocks: By default diffusers' for all that SDXL does.
        manager: Of its components.
    """
    parts = CASES["sdxl"].load().components if parts is None else parts
    pipe = StableDiffusionXLModularPipeline(
        blocks or StableDiffusionXLAutoBlocks(), components_manager=manager
    )
    wanted = {name: part for name, part in parts.items() if part is not None}
    pipe.update_components(**{name: wanted[name] for name in wanted.keys() & {*pipe.components}})
    _silence(pipe._blocks)
    return pipe


def _silence(blocks: Any) -> None:
    """No bars: the pipeline's own method stops at the outermost blocks."""
    for each in getattr(blocks, "sub_blocks", {}).values():
        if hasattr(each, "set_progress_bar_config"):
            each.set_progress_bar_config(disable=True)
        _silence(each)


def run_modular(
    pipe: Any,
    *,
    defaults: Mapping[str, Any],
    guider: Callable[[], Any] | None = None,
    steps: int = 5,
    seed: int = 0,
    **overrides: Any,
) -> torch.Tensor:
    """Calls the pipeline with `defaults` and what overrides them, and returns its pictures.

    Args:
        pipe: The pipeline.
        defaults: Of the call.
        guider: Makes the one that it is called with. Each generation has a new one: a guider that
            has stopped makes the next generation fail, with or without a helper.
        steps: `num_inference_steps`.
        seed: Of the generator, and of torch's own.
        overrides: Of the defaults.
    """
    if guider is not None:
        pipe.update_components(guider=guider())
    arguments = {
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "np",
        **defaults,
        **overrides,
    }
    with seeded(seed):
        return as_tensor(pipe(**arguments, output="images"))


def _skip(*places: str, **what: bool) -> list[LayerSkipConfig]:
    return [LayerSkipConfig(indices=[0], fqn=place, **what) for place in places]


def _perturbed(**when: float) -> PerturbedAttentionGuidance:
    scores = {"skip_attention": False, "skip_attention_scores": True, "skip_ff": False}
    config = _skip(_MIDDLE, _UP, **scores)
    return PerturbedAttentionGuidance(
        5.0, perturbed_guidance_scale=3.0, perturbed_guidance_config=config, **when
    )


def _skipping(**when: float) -> SkipLayerGuidance:
    config = _skip(_MIDDLE, _UP)
    return SkipLayerGuidance(5.0, skip_layer_guidance_scale=3.0, skip_layer_config=config, **when)


def _smoothed() -> SmoothedEnergyGuidance:
    config = SmoothedEnergyGuidanceConfig(indices=[0], fqn=_MIDDLE)
    return SmoothedEnergyGuidance(5.0, seg_guidance_scale=3.0, seg_guidance_config=config)


#: Guiders by name. Without the names of lists of blocks, those that skip layers know transformers
#: only.
GUIDERS: dict[str, Callable[[], Any]] = {
    "cfg": lambda: ClassifierFreeGuidance(5.0),
    "cfg-midway": lambda: ClassifierFreeGuidance(5.0, start=0.3, stop=0.8),
    "apg": lambda: AdaptiveProjectedGuidance(5.0, adaptive_projected_guidance_momentum=-0.5),
    "zero-star": lambda: ClassifierFreeZeroStarGuidance(5.0),
    "seg": _smoothed,
    "pag": lambda: _perturbed(perturbed_guidance_start=0.0, perturbed_guidance_stop=1.0),
    "pag-midway": lambda: _perturbed(perturbed_guidance_start=0.2, perturbed_guidance_stop=0.7),
    "slg": lambda: _skipping(skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0),
    "slg-midway": lambda: _skipping(skip_layer_guidance_start=0.2, skip_layer_guidance_stop=0.7),
    # It begins before the unconditional call does, which comes between the other two.
    "slg-first": lambda: _skipping(start=0.5, skip_layer_guidance_stop=1.0),
    # The skipping goes on where the unconditional call has ended.
    "slg-longer": lambda: _skipping(stop=0.5, skip_layer_guidance_stop=1.0),
}

UNGUIDED: Callable[[], Any] = lambda: ClassifierFreeGuidance(1.0)  # noqa: E731
