"""Tiny models under the names of well-known ones, in a cache folder as the hub's client keeps it.

`from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")` then reads a tiny pipeline by its
own code, offline. What the documents load stands here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import ControlNetModel, MotionAdapter, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict
from zoo.video_audio import audioldm2, woken

from builders.models import MODELS, model_folder

_COMMIT = "0" * 40


class _Parts:
    """Saves parts of a pipeline side by side, in no folders of their own."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def save_pretrained(self, folder: Path) -> None:
        for part in self.parts:
            part.save_pretrained(folder)


class _Lora:
    """Saves a LoRA of SDXL's U-Net."""

    def save_pretrained(self, folder: Path) -> None:
        unet = MODELS["sdxl"]().unet
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        weights = get_peft_model_state_dict(unet)
        StableDiffusionXLPipeline.save_lora_weights(
            folder, weights, weight_name="pixel-art-xl.safetensors"
        )


def _unconditional() -> _Parts:
    pipe = MODELS["ddpm"]()
    return _Parts(pipe.unet, pipe.scheduler)


def _controlnet() -> ControlNetModel:
    unet = MODELS["sd"]().unet
    return woken(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8)))


def _motion_adapter() -> MotionAdapter:
    config = MODELS["sd"]().unet.config
    return woken(
        MotionAdapter(
            block_out_channels=config.block_out_channels,
            motion_layers_per_block=config.layers_per_block,
            motion_num_attention_heads=2,
            motion_norm_num_groups=4,
        )
    )


#: Name on the hub -> what is built and saved under it.
STAND_INS: dict[str, Callable[[], Any]] = {
    "cvssp/audioldm2": audioldm2,
    "google/ddpm-cat-256": _unconditional,
    "guoyww/animatediff-motion-adapter-v1-5-2": _motion_adapter,
    "lllyasviel/control_v11p_sd15_canny": _controlnet,
    "nerijs/pixel-art-xl": _Lora,
    "stabilityai/stable-diffusion-xl-base-1.0": MODELS["sdxl"],
    "stable-diffusion-v1-5/stable-diffusion-v1-5": MODELS["sd"],
}


def fill(cache: Path) -> None:
    """Make the folder a cache of the hub with all stand-ins."""
    for name, build in STAND_INS.items():
        folder = cache / f"models--{name.replace('/', '--')}"
        (folder / "snapshots").mkdir(parents=True)
        (folder / "snapshots" / _COMMIT).symlink_to(model_folder(build))
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(_COMMIT)
