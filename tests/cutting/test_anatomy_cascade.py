"""Stable Cascade and Würstchen: one skip for each level, which may run several times."""

import pytest
from builders.bare_models import (
    assert_fits_by,
    assert_helper_works,
    assert_runs_only,
    refusal_of,
)
from builders.layouts.cascade import (
    CASCADE_SKIPS,
    CASCADES,
    WUERSTCHENS,
    cascade,
    cascade_inputs,
    inputs_of,
    wuerstchen,
    wuerstchen_inputs,
)
from builders.unets import unet2d_condition
from conftest import assert_exact_at_every_branch
from torch import nn

from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.cutting.anatomy.cascade import (
    CascadeAnatomy,
    WuerstchenAnatomy,
    _ends_with_scaler,
)

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("name", CASCADES)
def test_every_level_but_the_deepest_has_a_skip(name):
    anatomy = dissect(CASCADES[name]())
    assert isinstance(anatomy, CascadeAnatomy)
    assert anatomy.num_skips == CASCADE_SKIPS[name]
    assert anatomy.branches == range(CASCADE_SKIPS[name])


@pytest.mark.parametrize("name", WUERSTCHENS)
def test_every_level_of_wuerstchen_but_the_deepest_has_a_skip(name):
    anatomy = dissect(WUERSTCHENS[name]())
    assert isinstance(anatomy, WuerstchenAnatomy)
    assert anatomy.num_skips == int(name[0]) - 1


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (18, 22)], ids=["8x8", "16x24", "18x22"])
@pytest.mark.parametrize("name", CASCADES)
def test_cascade_is_exact_at_every_branch(name, size):
    # Where a side does not halve evenly, what comes from below is resized to the skip.
    assert_exact_at_every_branch(CASCADES[name](), inputs_of(name, size))


@pytest.mark.parametrize("name", WUERSTCHENS)
def test_wuerstchen_is_exact_at_every_branch(name):
    assert_exact_at_every_branch(WUERSTCHENS[name](), lambda: wuerstchen_inputs((16, 32)))


def test_wuerstchen_without_attention_or_text_is_exact():
    unet = wuerstchen([1, 1, 1], level_config=["CT", "CT", "C"])
    assert_exact_at_every_branch(unet, lambda: wuerstchen_inputs() | {"clip": None})


@pytest.mark.parametrize("name", CASCADES)
def test_a_shallow_cascade_runs_the_levels_above_as_often_as_a_full_one(name):
    unet = CASCADES[name]()
    levels = len(unet.down_blocks)

    def kept(branch):
        above = range(levels if branch < 0 else branch + 1)
        for level in above:
            up = levels - 1 - level
            yield f"down_downscalers.{level}"
            yield f"up_upscalers.{up}"
            for path, index in (("down", level), ("up", up)):
                for lists in (f"{path}_blocks", f"{path}_repeat_mappers"):
                    yield from (
                        f"{lists}.{index}.{i}" for i in range(len(getattr(unet, lists)[index]))
                    )

    assert_runs_only(unet, inputs_of(name, (8, 8)), kept)


@pytest.mark.parametrize("name", WUERSTCHENS)
def test_a_shallow_wuerstchen_runs_the_levels_above(name):
    unet = WUERSTCHENS[name]()
    levels = len(unet.down_blocks)

    def kept(branch):
        for level in range(levels if branch < 0 else branch + 1):
            for path, index in (("down_blocks", level), ("up_blocks", levels - 1 - level)):
                blocks = getattr(unet, path)[index]
                yield from (f"{path}.{index}.{i}" for i in range(len(blocks)))
            for index in (level, 2 * levels - 1 - level):
                if unet.effnet_mappers[index] is not None:
                    yield f"effnet_mappers.{index}"

    assert_runs_only(unet, wuerstchen_inputs, kept)


@pytest.mark.parametrize("part", ["down_downscalers", "up_upscalers", "up_repeat_mappers"])
def test_levels_without_all_their_parts_are_refused(part):
    unet = cascade((1, 1, 1), (1, 1, 1))
    del getattr(unet, part)[0]
    assert refusal_of(unet) == f"StableCascadeUNet cannot be cut: it has 2 {part} for 3 levels"


def test_levels_that_do_not_add_up_are_refused():
    unet = cascade((1, 1, 1), (1, 1, 1))
    del unet.up_blocks[0]
    assert refusal_of(unet) == (
        "StableCascadeUNet cannot be cut: it has 3 down levels and 2 up levels"
    )


def test_a_single_level_is_refused():
    assert refusal_of(cascade((1,), (1,))) == (
        "StableCascadeUNet cannot be cut: with a single level it has no skip connections"
    )


def test_wuerstchen_without_scalers_or_mappers_is_refused():
    unet = wuerstchen([1, 1])
    del unet.up_blocks[0][-1]
    assert refusal_of(unet) == (
        "WuerstchenDiffNeXt cannot be cut: an up level below the highest does not end with what "
        "scales up"
    )
    unet = wuerstchen([1, 1])
    del unet.effnet_mappers[0]
    assert refusal_of(unet) == (
        "WuerstchenDiffNeXt cannot be cut: it has 3 effnet_mappers for 2 levels"
    )


def test_every_up_level_of_wuerstchen_below_the_highest_scales_up():
    unet = wuerstchen([1, 1, 1])
    del unet.up_blocks[1][-1]
    assert "does not end with what scales up" in refusal_of(unet)
    scaler, block = nn.Sequential(), nn.Identity()
    for group, ends in (
        (nn.ModuleList([block, scaler]), True),
        (nn.ModuleList([scaler]), True),
        (nn.ModuleList([scaler, block]), False),
        (nn.ModuleList(), False),
        (nn.Sequential(scaler), False),
    ):
        assert _ends_with_scaler(group) is ends


@pytest.mark.parametrize(
    ("layout", "build", "parts", "arguments"),
    [
        (
            CascadeAnatomy,
            lambda: cascade((1, 1), (1, 1)),
            (
                *("down_blocks", "down_downscalers", "down_repeat_mappers"),
                *("up_blocks", "up_upscalers", "up_repeat_mappers"),
            ),
            ("sample", "timestep_ratio"),
        ),
        (
            WuerstchenAnatomy,
            lambda: wuerstchen([1, 1]),
            ("down_blocks", "up_blocks", "effnet_mappers"),
            ("x", "r", "effnet"),
        ),
    ],
    ids=["cascade", "wuerstchen"],
)
def test_each_layout_is_known_by_its_parts(layout, build, parts, arguments):
    assert_fits_by(layout, build, parts=(), arguments=arguments)
    for part in parts:
        unet = build()
        delattr(unet, part)
        assert not layout.fits(unet)


def test_replaced_levels_are_noticed():
    for unet, path in (
        (cascade((1, 1), (1, 1)), "up_upscalers"),
        (wuerstchen([1, 1]), "up_blocks"),
    ):
        anatomy = dissect(unet)
        assert anatomy.is_current
        getattr(unet, path)[0] = getattr(unet, path)[0].__class__()
        assert not anatomy.is_current


def test_other_models_do_not_fit():
    for layout in (CascadeAnatomy, WuerstchenAnatomy):
        assert not layout.fits(unet2d_condition())
        assert not layout.fits(object())
    assert not CascadeAnatomy.fits(wuerstchen([1, 1]))
    assert not WuerstchenAnatomy.fits(cascade((1, 1), (1, 1)))


def test_a_helper_leads_through_a_loop_of_cascade():
    assert_helper_works(CASCADES["3-levels-repeated"](), lambda t: cascade_inputs(timestep_ratio=t))


def test_a_helper_leads_through_a_loop_of_wuerstchen():
    assert_helper_works(WUERSTCHENS["3-levels"](), lambda t: wuerstchen_inputs(r=t))
