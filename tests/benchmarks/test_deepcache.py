"""The published package is on for one generation, and leaves nothing behind."""

from types import SimpleNamespace

import pytest
from diffusers import DDIMScheduler

from benchmarks.deepcache import deepcache


def test_deepcache_leaves_no_forward_behind():
    pytest.importorskip("DeepCache")
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    )
    pipe = SimpleNamespace(unet=unet, scheduler=DDIMScheduler())
    before = [set(vars(module)) for module in unet.modules()]
    with deepcache(pipe, 3, 0):
        assert "forward" in vars(unet)
    assert [set(vars(module)) for module in unet.modules()] == before
    with pytest.raises(RuntimeError, match="in the middle"), deepcache(pipe, 3, 0):
        raise RuntimeError("in the middle")
    assert [set(vars(module)) for module in unet.modules()] == before
