"""Hunyuan-DiT and UniDiffuser's U-ViT: transformers with skips from one half to the other."""

import pytest
import torch
from builders.bare_models import (
    assert_fits_by,
    assert_helper_works,
    assert_runs_only,
    refusal_of,
)
from builders.layouts.long_skips import (
    hunyuan,
    hunyuan_controlnet,
    hunyuan_inputs,
    unidiffuser,
    unidiffuser_inputs,
    uvit,
    uvit_inputs,
)
from builders.unets import unet2d_condition
from conftest import assert_exact_at_every_branch, counted_calls, trace

from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.cutting.anatomy.controlnet import HunyuanControlNetAnatomy
from deepcache_patch.cutting.anatomy.long_skips import (
    HunyuanAnatomy,
    UniDiffuserAnatomy,
    UViTAnatomy,
)
from deepcache_patch.cutting.features import Recorder, StandIn

pytestmark = pytest.mark.usefixtures("no_grad")


# --- Hunyuan-DiT --------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "skips"), [(4, 1), (6, 2), (10, 4), (40, 19)])
def test_the_two_blocks_in_the_middle_of_hunyuan_have_no_skip(layers, skips):
    anatomy = dissect(hunyuan(layers))
    assert isinstance(anatomy, HunyuanAnatomy)
    assert anatomy.num_skips == skips
    assert anatomy.branches == range(skips)


@pytest.mark.parametrize("size", [(8, 8), (6, 10)], ids=["8x8", "6x10"])
@pytest.mark.parametrize("layers", [4, 6, 10])
def test_hunyuan_is_exact_at_every_branch(layers, size):
    assert_exact_at_every_branch(hunyuan(layers), lambda: hunyuan_inputs(size))


@pytest.mark.parametrize("layers", [4, 6, 10])
def test_hunyuan_with_a_controlnet_is_exact_at_every_branch(layers):
    # The residuals are popped off their list, the deepest first, and one that is left raises.
    residuals = _residuals(hunyuan_controlnet(layers))
    assert_exact_at_every_branch(
        hunyuan(layers), lambda: hunyuan_inputs(controlnet_block_samples=list(residuals))
    )


def test_hunyuan_takes_the_residuals_of_a_cut_controlnet():
    model, controlnet = hunyuan(10), hunyuan_controlnet(10)
    anatomy, stand_in, recorder = dissect(model), StandIn(), Recorder()
    for branch in anatomy.branches:
        with anatomy.cut(None, stand_in, {branch: recorder}).applied():
            full = hunyuan_inputs(controlnet_block_samples=_residuals(controlnet))
            plain = model(**full).sample
        stand_in.feature = recorder.take()
        with HunyuanControlNetAnatomy(controlnet).cut(branch).applied():
            given = _residuals(controlnet)
        arguments = hunyuan_inputs(controlnet_block_samples=given)
        trimmed = anatomy.trimmed(branch, arguments)
        with anatomy.cut(branch, stand_in, {}).applied():
            assert torch.equal(model(**trimmed).sample, plain)
        assert len(given) == branch + 1  # the caller's list stays
        assert arguments["controlnet_block_samples"] is given


def test_nothing_is_trimmed_without_residuals():
    anatomy = dissect(hunyuan(6))
    assert anatomy.trimmed(0, hunyuan_inputs()) is None
    assert anatomy.trimmed(0, hunyuan_inputs(controlnet_block_samples=None)) is None


def test_residuals_of_skips_that_are_left_out_become_zeros_of_the_same_kind():
    anatomy = dissect(hunyuan(10))
    given = tuple(torch.full((2, 16, 8), float(i), dtype=torch.float16) for i in range(4))
    for branch in anatomy.branches:
        trimmed = anatomy.trimmed(branch, {"controlnet_block_samples": given})
        residuals = trimmed["controlnet_block_samples"]
        assert [each is kept for each, kept in zip(residuals, given, strict=True)] == [
            skip <= branch for skip in range(4)
        ]
        for zero in residuals[branch + 1 :]:
            assert torch.equal(zero, torch.zeros((), dtype=torch.float16))
            assert zero.dtype == torch.float16
    elsewhere = {"controlnet_block_samples": [torch.ones(2, device="meta")]}
    assert anatomy.trimmed(0, elsewhere)["controlnet_block_samples"][1].device.type == "meta"


def test_residuals_can_be_exchanged_for_those_of_another_call():
    anatomy, controlnet = dissect(hunyuan(6)), hunyuan_controlnet(6)
    arguments = hunyuan_inputs()
    assert anatomy.residuals(arguments) == (None, None)
    given = controlnet(**hunyuan_inputs(controlnet_cond=torch.ones(2, 4, 8, 8)))
    arguments = anatomy.with_residuals(arguments, given)
    assert anatomy.residuals(arguments) == (given.controlnet_block_samples, None)


@pytest.mark.parametrize("limit", range(5))
def test_a_cut_controlnet_makes_the_first_residuals_with_the_first_blocks(limit):
    controlnet = hunyuan_controlnet(10)
    before, whole = trace(controlnet), _residuals(controlnet)
    assert len(whole) == 4
    cut = HunyuanControlNetAnatomy(controlnet).cut(limit - 1)
    with counted_calls(controlnet) as calls, cut.applied():
        residuals = _residuals(controlnet)
    assert len(residuals) == limit
    assert all(map(torch.equal, residuals, whole))
    ran = {name for name in calls if name.count(".") == 1 and "blocks" in name}
    assert ran == {f"{part}.{i}" for part in ("blocks", "controlnet_blocks") for i in range(limit)}
    assert trace(controlnet) == before


def test_a_shallow_hunyuan_runs_the_blocks_above_the_branch():
    model = hunyuan(10)

    def kept(branch):
        number = branch + 1 if branch >= 0 else 5
        yield from (f"blocks.{i}" for i in (*range(number), *range(10 - number, 10)))

    assert_runs_only(model, hunyuan_inputs, kept)


@pytest.mark.parametrize(
    ("layers", "emitting", "consuming"), [(2, 0, []), (5, 1, [3, 4]), (7, 2, [4, 5, 6])]
)
def test_hunyuan_without_skips_or_with_an_odd_number_of_blocks_is_refused(
    layers, emitting, consuming
):
    # With an odd number its own forward takes one skip more than there is.
    assert refusal_of(hunyuan(layers)) == (
        f"HunyuanDiT2DModel cannot be cut: of its {layers} blocks {emitting} emit a skip "
        f"connection, the blocks {consuming} consume one"
    )


def test_hunyuan_with_a_block_less_is_refused():
    model = hunyuan(6)
    del model.blocks[2]
    assert refusal_of(model) == (
        "HunyuanDiT2DModel cannot be cut: of its 5 blocks 2 emit a skip connection, the blocks "
        "[3, 4] consume one"
    )


def test_a_helper_leads_through_a_loop_of_hunyuan():
    assert_helper_works(hunyuan(6), lambda t: hunyuan_inputs(timestep=t))


def test_a_helper_leads_through_a_loop_of_hunyuan_with_a_controlnet():
    residuals = _residuals(hunyuan_controlnet(6))
    assert_helper_works(
        hunyuan(6),
        lambda t: hunyuan_inputs(timestep=t, controlnet_block_samples=list(residuals)),
    )


def _residuals(controlnet):
    condition = torch.linspace(-1, 1, 2 * 4 * 8 * 8).view(2, 4, 8, 8)
    inputs = hunyuan_inputs(controlnet_cond=condition)
    return controlnet(**inputs, return_dict=False)[0]


# --- UniDiffuser --------------------------------------------------------------------------------


UVITS = {
    "2-layers": (lambda: unidiffuser(num_layers=2), unidiffuser_inputs, 1),
    "6-layers": (unidiffuser, unidiffuser_inputs, 3),
    "7-layers": (lambda: unidiffuser(num_layers=7), unidiffuser_inputs, 3),
    "version-1": (
        lambda: unidiffuser(use_data_type_embedding=True, use_timestep_embedding=True),
        unidiffuser_inputs,
        3,
    ),
    "standard-blocks": (lambda: unidiffuser(block_type="other"), unidiffuser_inputs, 3),
    "bare": (uvit, uvit_inputs, 3),
}


@pytest.mark.parametrize("name", UVITS)
def test_every_in_block_of_a_uvit_has_a_skip(name):
    build, _, skips = UVITS[name]
    anatomy = dissect(build())
    assert type(anatomy) is (UViTAnatomy if name == "bare" else UniDiffuserAnatomy)
    assert anatomy.num_skips == skips
    assert anatomy.branches == range(skips)


@pytest.mark.parametrize("name", UVITS)
def test_a_uvit_is_exact_at_every_branch(name):
    build, inputs, _ = UVITS[name]
    assert_exact_at_every_branch(build(), inputs)


def test_every_output_of_unidiffuser_is_exact():
    model = unidiffuser()
    anatomy, stand_in, recorder = dissect(model), StandIn(), Recorder()
    plain = model(**unidiffuser_inputs())
    for branch in anatomy.branches:
        with anatomy.cut(None, stand_in, {branch: recorder}).applied():
            model(**unidiffuser_inputs())
        stand_in.feature = recorder.take()
        with anatomy.cut(branch, stand_in, {}).applied():
            assert all(map(torch.equal, model(**unidiffuser_inputs()), plain))


@pytest.mark.parametrize("name", ["6-layers", "bare"])
def test_a_shallow_uvit_runs_the_blocks_above_the_branch(name):
    build, inputs, skips = UVITS[name]
    prefix = "" if name == "bare" else "transformer."

    def kept(branch):
        number = branch + 1 if branch >= 0 else skips
        yield from (f"{prefix}transformer_in_blocks.{i}" for i in range(number))
        for i in range(skips - number, skips):
            yield from (f"{prefix}transformer_out_blocks.{i}.{part}" for part in ("skip", "block"))
        if branch < 0:
            yield f"{prefix}transformer_mid_block"

    assert_runs_only(build(), inputs, kept)


@pytest.mark.parametrize(
    ("image", "text", "moving"),
    [
        (torch.tensor(7), torch.tensor(7), 7),  # both at once
        (torch.tensor(7), 1000, 7),
        (1000, torch.tensor(7), 7),
        (torch.tensor(7), 0, 7),  # a picture for a text
        (0, torch.tensor(7), 7),  # a text for a picture
        (7, 0, 7),  # two numbers: the picture's
    ],
)
def test_the_timestep_of_unidiffuser_is_the_one_that_moves(image, text, moving):
    arguments = {"timestep_img": image, "timestep_text": text}
    assert dissect(unidiffuser()).timestep(arguments) == moving


def test_a_uvit_whose_blocks_do_not_add_up_is_refused():
    model = unidiffuser()
    del model.transformer.transformer_out_blocks[0]
    assert refusal_of(model) == (
        "UniDiffuserModel cannot be cut: its in-blocks emit 3 skip connections, its out-blocks "
        "consume 2"
    )
    assert refusal_of(uvit(num_layers=1)) == (
        "UTransformer2DModel cannot be cut: its in-blocks emit 0 skip connections, its out-blocks "
        "consume 0"
    )


def test_a_helper_leads_through_a_loop_of_unidiffuser():
    def text_to_image(timestep):
        return unidiffuser_inputs(timestep)

    def image_to_text(timestep):
        return unidiffuser_inputs() | {"timestep_img": 0, "timestep_text": timestep}

    assert_helper_works(unidiffuser(), text_to_image)
    assert_helper_works(unidiffuser(), image_to_text)


def test_a_helper_leads_through_a_loop_of_a_bare_uvit():
    model, generator = uvit(), torch.Generator()

    def at(timestep):  # nothing else in it depends on the timestep
        sample = torch.randn(2, 4, 8, 8, generator=generator.manual_seed(int(timestep * 1000)))
        return {"hidden_states": sample, "timestep": timestep}

    assert_helper_works(model, at)


def test_replaced_blocks_are_noticed():
    for model, path in ((hunyuan(6), "blocks"), (uvit(), "transformer_out_blocks")):
        anatomy = dissect(model)
        assert anatomy.is_current
        getattr(model, path)[-1] = torch.nn.Identity()
        assert not anatomy.is_current


def test_other_models_do_not_fit():
    for layout in (HunyuanAnatomy, UViTAnatomy, UniDiffuserAnatomy):
        for other in (unet2d_condition(), hunyuan_controlnet(6), torch.nn.Linear(1, 1), object()):
            assert not layout.fits(other)
    assert not HunyuanAnatomy.fits(uvit())
    assert not UViTAnatomy.fits(unidiffuser())


def test_each_layout_is_known_by_its_parts():
    assert_fits_by(
        HunyuanAnatomy,
        lambda: hunyuan(6),
        parts=("blocks",),
        arguments=("hidden_states", "timestep", "controlnet_block_samples"),
    )
    model = hunyuan(6)
    del model.blocks[1].skip_linear
    assert not HunyuanAnatomy.fits(model)
    assert_fits_by(
        UViTAnatomy,
        uvit,
        parts=("transformer_mid_block",),
        arguments=("hidden_states", "timestep"),
    )
    assert_fits_by(
        UniDiffuserAnatomy,
        unidiffuser,
        parts=("transformer",),
        arguments=("latent_image_embeds", "timestep_img", "timestep_text"),
    )
    for path in ("transformer_in_blocks", "transformer_out_blocks"):
        model = uvit()
        delattr(model, path)
        assert not UViTAnatomy.fits(model)
