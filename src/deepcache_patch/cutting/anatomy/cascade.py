"""The layouts of Stable Cascade and Würstchen: levels of blocks, with one skip for each level.

Every level of the down path but the deepest emits one skip, when all its blocks have run, which may
be several times in one call (`down_repeat_mappers`). Every group of up blocks but the deepest
consumes one, with the first of its blocks. Skip 0 is that of the highest level.

The forward of both lets the deepest group go without a skip, so in a shallow call there is one
level more than is kept: an empty one, whose group of up blocks is the stand-in. Blocks are called
by what they are an instance of. So the taps stand round the upscalers, which are called plainly,
like the stand-in.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..cut import Cut, CutAt, Swap, shorten
from ..features import Recorder, StandIn, Tap
from .base import Anatomy, cannot_cut

_DOWN = ("down_blocks", "down_downscalers", "down_repeat_mappers")
_UP = ("up_blocks", "up_upscalers", "up_repeat_mappers")


class _ScaledAnatomy(Anatomy):
    """What both layouts share.

    Raises:
        UnsupportedModelError: If its levels do not fit together, or if there are no two of them.
    """

    may_be_empty = True

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        self._levels, ups = len(self._unet.down_blocks), len(self._unet.up_blocks)
        if ups != self._levels:
            raise cannot_cut(unet, f"it has {self._levels} down levels and {ups} up levels")
        if self._levels < 2:
            raise cannot_cut(unet, "with a single level it has no skip connections")
        self.num_skips = self._levels - 1
        self.branches = range(self.num_skips)


class CascadeAnatomy(_ScaledAnatomy):
    """The skips of a `StableCascadeUNet`, and how to cut it."""

    lists = (*_DOWN, *_UP)
    timestep_name = "timestep_ratio"

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        lists = {name: getattr(unet, name) for name in self.lists}
        for name, parts in lists.items():
            if len(parts) != self._levels:
                raise cannot_cut(unet, f"it has {len(parts)} {name} for {self._levels} levels")
        self._found([unet, *lists.values()])

    def cut(self, branch: CutAt, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs; see `Anatomy.cut`."""
        down = {name: list(getattr(self._unet, name)) for name in _DOWN}
        up = {name: list(getattr(self._unet, name)) for name in _UP}
        for tapped, recorder in recorders.items():
            # What leaves the level below enters the branch.
            scalers = up["up_upscalers"]
            scalers[-2 - tapped] = Tap(scalers[-2 - tapped], recorder)
        if branch is not None:
            kept = branch + 1
            for name, bottom in zip(_DOWN, _level(), strict=True):
                down[name] = [*down[name][:kept], bottom]
            for name, bottom in zip(_UP, _level(stand_in), strict=True):
                up[name] = [bottom, *up[name][-kept:]]
        swaps: list[Swap] = []
        for name, parts in (down | up).items():
            shorten(swaps, self._unet, name, parts)
        return Cut(swaps)


class WuerstchenAnatomy(_ScaledAnatomy):
    """The skips of a `WuerstchenDiffNeXt`, and how to cut it.

    Every down level but the highest begins with what scales down, and every up level but the
    highest ends with what scales up.
    """

    lists = ("down_blocks", "up_blocks", "effnet_mappers")
    sample_name = "x"
    timestep_name = "r"
    more_arguments = ("effnet",)

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        mappers, ups = self._unet.effnet_mappers, list(self._unet.up_blocks)
        if len(mappers) != 2 * self._levels:
            raise cannot_cut(
                unet, f"it has {len(mappers)} effnet_mappers for {self._levels} levels"
            )
        if not all(_ends_with_scaler(group) for group in ups[:-1]):
            raise cannot_cut(unet, "an up level below the highest does not end with what scales up")
        self._found([unet, self._unet.down_blocks, self._unet.up_blocks, *ups, mappers])

    def cut(self, branch: CutAt, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs; see `Anatomy.cut`."""
        swaps: list[Swap] = []
        for tapped, recorder in recorders.items():
            below = self._unet.up_blocks[-2 - tapped]
            swaps.append(Swap(below, str(len(below) - 1), Tap(below[-1], recorder)))
        if branch is None:
            return Cut(swaps)
        kept = branch + 1
        down, up = list(self._unet.down_blocks)[:kept], list(self._unet.up_blocks)[-kept:]
        shorten(swaps, self._unet, "down_blocks", [*down, nn.ModuleList()])
        shorten(swaps, self._unet, "up_blocks", [nn.ModuleList([stand_in]), *up])
        # First those of the down path, then those of the up path; the empty level has none.
        mappers, empty = list(self._unet.effnet_mappers), [None, None]
        shorten(swaps, self._unet, "effnet_mappers", mappers[:kept] + empty + mappers[-kept:])
        return Cut(swaps)


def _level(*blocks: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A level of these blocks, which neither scales nor repeats."""
    return nn.ModuleList(blocks), nn.Identity(), nn.ModuleList()


def _ends_with_scaler(group: Any) -> bool:
    # Blocks are modules of their own classes.
    return isinstance(group, nn.ModuleList) and len(group) > 0 and type(group[-1]) is nn.Sequential
