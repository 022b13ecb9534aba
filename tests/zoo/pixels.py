"""Pipelines without text: pixels from noise, by the samplers that diffusers has for them.

They call `unet(sample, t)` by position. The U-Net fixes the size of the pictures, except for
RePaint's, which has that of the picture that it repairs.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from builders.cases import Case, make_case, mask, picture
from builders.models import MODELS, load_pipeline, model_folder
from builders.unets import SIDE, unet2d
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDPMPipeline,
    KarrasVePipeline,
    KarrasVeScheduler,
    LDMPipeline,
    PNDMPipeline,
    RePaintPipeline,
    RePaintScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
)


def consistency(**unet: int) -> ConsistencyModelPipeline:
    # Timesteps are float64 here, and negative where sigma is below 1.
    return ConsistencyModelPipeline(
        unet=unet2d(
            sample_size=SIDE,
            block_out_channels=(8, 8, 16),
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            layers_per_block=2,
            resnet_time_scale_shift="scale_shift",
            attn_norm_num_groups=4,
            **unet,
        ),
        scheduler=CMStochasticIterativeScheduler(),
    )


def consistency_classes() -> ConsistencyModelPipeline:
    return consistency(num_class_embeds=3)


def repaint() -> RePaintPipeline:
    return RePaintPipeline(
        unet=unet2d(sample_size=REPAINT_SIDE, layers_per_block=2),
        # See tiny.py: with the usual betas, most pixels would end clamped.
        scheduler=RePaintScheduler(beta_end=0.002),
    )


def score_sde_ve() -> ScoreSdeVePipeline:
    unet = unet2d(
        sample_size=SIDE,
        # The attention blocks normalise in 32 groups, whatever `norm_num_groups`.
        block_out_channels=(8, 32, 32),
        down_block_types=("SkipDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D", "SkipUpBlock2D"),
        time_embedding_type="fourier",
    )
    # The pictures are clamped to 0…1 as they come: little noise that is driven upwards leaves most
    # pixels inside.
    unet.conv_out.bias.data += 1
    return ScoreSdeVePipeline(unet=unet, scheduler=ScoreSdeVeScheduler(sigma_max=0.1))


def karras_ve() -> KarrasVePipeline:
    return KarrasVePipeline(
        unet=unet2d(sample_size=SIDE, block_out_channels=(8, 8, 16)),
        # Its `schedule` holds squares of sigmas. Random weights take no noise away, so there is
        # little of it.
        scheduler=KarrasVeScheduler(sigma_max=1.0),
    )


def load_karras_ve() -> KarrasVePipeline:
    # The packages of the pipeline and of its scheduler are both called `deprecated`, so diffusers
    # saves the scheduler as if it came with the pipeline, and does not find it there at loading.
    index = model_folder(karras_ve) / "model_index.json"
    parts = json.loads(index.read_text())
    index.write_text(json.dumps(parts | {"scheduler": ["diffusers", "KarrasVeScheduler"]}))
    return load_pipeline(KarrasVePipeline, karras_ve)


def quietly(case: Case) -> Case:
    """The case without the warnings that its class gives of itself, however it is called."""

    def without_warnings(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                warnings.filterwarnings("ignore", "Safety checker disabled")
                warnings.filterwarnings("ignore", "torch.meshgrid")
                return function(*args, **kwargs)

        return wrapper

    return replace(case, load=without_warnings(case.load), run=without_warnings(case.run))


#: RePaint shrinks masks to a multiple of 32.
REPAINT_SIDE = 32

#: What every pipeline here takes.
OTHERS = {"seed": {"seed": 1}, "steps": {"steps": 7}, "batch": {"batch_size": 2}}

#: Pipelines without text, by readable id.
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        make_case("ddim", DDIMPipeline, MODELS["ddim"], others=OTHERS | {"eta": {"eta": 1.0}}),
        make_case("ddpm", DDPMPipeline, MODELS["ddpm"], others=OTHERS),
        make_case(
            "consistency",
            ConsistencyModelPipeline,
            consistency,
            # Their first is the highest noise, their gaps are unequal.
            others=OTHERS
            | {"timesteps": {"num_inference_steps": None, "timesteps": [39, 31, 22, 14, 9, 4, 0]}},
        ),
        make_case(
            "consistency-classes",
            ConsistencyModelPipeline,
            consistency_classes,
            others=OTHERS
            | {"batch": {"batch_size": 2, "class_labels": [1, 2]}, "class": {"class_labels": 2}},
            class_labels=1,
        ),
        make_case("ldm", LDMPipeline, MODELS["ldm"], others=OTHERS | {"eta": {"eta": 1.0}}),
        make_case("pndm", PNDMPipeline, MODELS["pndm"], others=OTHERS),
        # Goes back to noisier timesteps, without the U-Net, and runs through them again.
        quietly(
            make_case(
                "repaint",
                RePaintPipeline,
                repaint,
                others=OTHERS
                | {
                    "batch": {"image": [picture(REPAINT_SIDE), picture(REPAINT_SIDE, seed=1)]},
                    "size": {
                        "image": picture(2 * REPAINT_SIDE),
                        "mask_image": mask(2 * REPAINT_SIDE),
                    },
                    "no-jumps": {"jump_n_sample": 1},
                    "eta": {"eta": 1.0},
                },
                image=picture(REPAINT_SIDE),
                mask_image=mask(REPAINT_SIDE),
                jump_length=2,
                jump_n_sample=2,
            )
        ),
        # Two calls for each step, of equal sigma, which is a tensor of the batch's length.
        make_case("score-sde-ve", ScoreSdeVePipeline, score_sde_ve, others=OTHERS),
        # Two calls for each step, at different sigmas, but one for the last.
        replace(
            make_case("karras-ve", KarrasVePipeline, karras_ve, others=OTHERS),
            load=load_karras_ve,
        ),
    )
}
