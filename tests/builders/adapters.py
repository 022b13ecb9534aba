"""Weights of adapters, seeded, as a pipeline loads them."""

import torch

#: Parts of the U-Net that get a LoRA: what is kept at branch 0, and the upsamplers, where deep
#: features are tapped, among them.
TARGETS = ("to_q", "to_out.0", "conv1", "conv_in", "time_emb_proj", "proj_in", "upsamplers.0.conv")


def lora(unet, *, seed, rank=2):
    """The state dict of a LoRA, as `load_lora_weights` takes it."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in unet.named_modules():
        if name.endswith(TARGETS) and hasattr(module, "weight"):
            out, into, *kernel = module.weight.shape
            down, up = (rank, into, *kernel), (out, rank, *(1 for _ in kernel))
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(down, generator=generator) / 2
            weights[f"unet.{name}.lora_B.weight"] = torch.randn(up, generator=generator) / 2
    return weights
