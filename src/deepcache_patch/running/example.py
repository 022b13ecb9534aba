"""What a U-Net is called with, without the values: from a call, or from its configuration."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch.utils._pytree import tree_flatten, tree_unflatten

#: Values that are kept as they are.
PLAIN: Final = (bool, int, float, str, type(None), torch.dtype)


def example_of(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call, with tensors that have no values.

    Returns:
        `None` if there is something in them that is neither a plain value nor a plain tensor: it
        would be kept alive.
    """
    leaves, structure = tree_flatten(dict(arguments))
    if not all(type(leaf) is torch.Tensor or isinstance(leaf, PLAIN) for leaf in leaves):
        return None
    leaves = [on_meta(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    example: dict[str, Any] = tree_unflatten(leaves, structure)
    return example


def example_from_config(unet: Any) -> dict[str, Any] | None:
    """What a U-Net of a common class is called with, for one picture of its size."""
    if isinstance(unet, UNet2DConditionModel):
        return _base(unet) | _conditioning(unet)
    return _base(unet) if isinstance(unet, UNet2DModel) else None


def _base(unet: Any) -> dict[str, Any]:
    config, dtype = unet.config, unet.dtype
    size = config.sample_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    arguments: dict[str, Any] = {
        "sample": _empty(dtype, config.in_channels, *size),
        "timestep": torch.empty((), dtype=torch.int64, device="meta"),
    }
    kind = config.class_embed_type
    if kind == "timestep":
        arguments["class_labels"] = _empty(dtype)
    elif kind == "identity":
        arguments["class_labels"] = _empty(dtype, unet.time_embedding.linear_2.out_features)
    elif kind in ("projection", "simple_projection"):
        width = config.projection_class_embeddings_input_dim
        arguments["class_labels"] = _empty(dtype, width)
    elif config.num_class_embeds is not None:
        arguments["class_labels"] = _empty(torch.int64)
    return arguments


def _conditioning(unet: Any) -> dict[str, Any]:
    config, dtype = unet.config, unet.dtype
    width = config.encoder_hid_dim or config.cross_attention_dim
    if not isinstance(width, int):
        width = width[0]
    arguments = {"encoder_hidden_states": _empty(dtype, 77, width)}
    added = {}
    if config.addition_embed_type == "text_time":
        # A refiner has five numbers and a wider text in their place: that is as much work.
        text = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": _empty(dtype, text), "time_ids": _empty(dtype, 6)}
    if config.addition_embed_type == "image" or config.encoder_hid_dim_type == "image_proj":
        added["image_embeds"] = _empty(dtype, config.encoder_hid_dim)
    return arguments | ({"added_cond_kwargs": added} if added else {})


def _empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """One of these in a batch."""
    return torch.empty((1, *shape), dtype=dtype, device="meta")


def on_meta(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of its shape that has no values."""
    return torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device="meta")
