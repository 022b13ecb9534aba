"""Toy U-Nets in the layout of guided-diffusion, CompVis and ComfyUI, and their arguments."""

import torch
from torch import nn
from torch.nn import functional as F

from builders.bare_models import (
    shake,
)
from builders.unets import seeded

WIDTH = 8  # of all embeddings


class ResBlock(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.norm, self.emb = nn.GroupNorm(2, inner), nn.Linear(WIDTH, outer)
        self.conv = nn.Conv2d(inner, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1)

    def forward(self, x, emb):
        return self.skip(x) + F.silu(
            self.conv(F.silu(self.norm(x))) + self.emb(emb)[..., None, None]
        )


class Attention(nn.Module):
    """Attends to the context, or to itself where there is none."""

    def __init__(self, channels):
        super().__init__()
        self.query = nn.Linear(channels, WIDTH)
        self.key, self.own_key = nn.Linear(WIDTH, WIDTH), nn.Linear(channels, WIDTH)
        self.out = nn.Linear(WIDTH, channels)

    def forward(self, x, context=None):
        tokens = x.flatten(2).transpose(1, 2)
        keys = self.own_key(tokens) if context is None else self.key(context)
        attended = F.scaled_dot_product_attention(self.query(tokens), keys, keys)
        return x + self.out(attended).transpose(1, 2).view_as(x)


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, output_shape=None):
        size = [2 * side for side in x.shape[-2:]] if output_shape is None else output_shape[-2:]
        return self.conv(F.interpolate(x, size=size))


class Layers(nn.Sequential):
    """Gives each layer what it takes."""

    def forward(self, x, emb, context=None):
        return run_layers(self, x, emb, context)


def run_layers(layers, x, emb, context, output_shape=None):
    for layer in layers:
        if isinstance(layer, ResBlock):
            x = layer(x, emb)
        elif isinstance(layer, Attention):
            x = layer(x, context)
        elif isinstance(layer, Upsample):
            x = layer(x, output_shape)
        else:
            x = layer(x)
    return x


class CompVisUNet(nn.Module):
    def __init__(self, *, channels=(4, 8), layers=1, attention=True, middle=True):
        super().__init__()
        self.embed = nn.Linear(1, WIDTH)
        self.input_blocks = nn.ModuleList([Layers(nn.Conv2d(4, channels[0], 3, padding=1))])
        widths, width = [channels[0]], channels[0]
        for level, outer in enumerate(channels):
            for _ in range(layers):
                attend = [Attention(outer)] if attention and level else []
                self.input_blocks.append(Layers(ResBlock(width, outer), *attend))
                width = outer
                widths.append(width)
            if level < len(channels) - 1:
                down = nn.Conv2d(width, width, 3, stride=2, padding=1)
                self.input_blocks.append(Layers(down))
                widths.append(width)
        both = ResBlock(width, width), Attention(width), ResBlock(width, width)
        self.middle_block = Layers(*both) if middle else None
        self.output_blocks = nn.ModuleList()
        for level, outer in reversed(list(enumerate(channels))):
            for layer in range(layers + 1):
                block = [ResBlock(width + widths.pop(), outer)]
                block += [Attention(outer)] if attention and level else []
                block += [Upsample(outer)] if level and layer == layers else []
                self.output_blocks.append(Layers(*block))
                width = outer
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x, timesteps=None, context=None, y=None, **kwargs):
        emb, hs, h = self.embed(timesteps[:, None].float() / 1000), [], x
        emb = emb if y is None else emb + y
        for module in self.input_blocks:
            h = module(h, emb, context)
            hs.append(h)
        h = self.middle_block(h, emb, context)
        for module in self.output_blocks:
            h = module(torch.cat([h, hs.pop()], dim=1), emb, context)
        return self.out(h)


class GuidedUNet(CompVisUNet):
    """Called without a context."""

    def forward(self, x, timesteps, y=None):
        emb, hs, h = self.embed(timesteps[:, None].float() / 1000), [], x
        emb = emb if y is None else emb + y
        for module in self.input_blocks:
            h = module(h, emb)
            hs.append(h)
        h = self.middle_block(h, emb)
        for module in self.output_blocks:
            h = module(torch.cat([h, hs.pop()], dim=1), emb)
        return self.out(h)


class ComfyUNet(CompVisUNet):
    """Runs the layers of a block itself, so that pictures of odd sizes can be scaled back."""

    def forward(
        self, x, timesteps=None, context=None, y=None, control=None, transformer_options=None
    ):
        emb, hs, h = self.embed(timesteps[:, None].float() / 1000), [], x
        emb = emb if y is None else emb + y
        for module in self.input_blocks:
            h = run_layers(module, h, emb, context)
            hs.append(h)
        if self.middle_block is not None:
            h = run_layers(self.middle_block, h, emb, context)
        if control is not None:
            h = h + control.pop()
        for module in self.output_blocks:
            h = torch.cat([h, hs.pop()], dim=1)
            h = run_layers(module, h, emb, context, hs[-1].shape if hs else None)
        return self.out(h)


def build(kind, **options):
    with seeded(0):
        return shake(kind(**options))


def inputs(kind, size=(8, 8), timestep=500.0, **more):
    generator = torch.Generator().manual_seed(0)
    context = (
        {} if kind is GuidedUNet else {"context": torch.randn(2, 5, WIDTH, generator=generator)}
    )
    return {
        "x": torch.randn(2, 4, *size, generator=generator),
        "timesteps": torch.as_tensor(timestep).expand(2),
        "y": torch.randn(2, WIDTH, generator=generator),
    } | context | more  # fmt: skip


# The skips by hand: one for the input, one for each layer, one for each downsampling.
SIZES = {
    "1-level": ({"channels": (4,)}, 1 + 1),
    "2-levels": ({}, 1 + 2 * 1 + 1),
    "2-levels-2-layers": ({"layers": 2}, 1 + 2 * 2 + 1),
    "3-levels-2-layers": ({"channels": (4, 8, 6), "layers": 2}, 1 + 3 * 2 + 2),
    "no-attention": ({"channels": (4, 8, 6), "attention": False}, 1 + 3 * 1 + 2),
}

KINDS = [CompVisUNet, GuidedUNet, ComfyUNet]
