"""What is said of each branch, against what really runs and what is really held."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from builders.cases import CASES
from builders.layouts import cascade, controlnet_xs, levels, long_skips, original, second_stream
from builders.marks import mostly_slow
from builders.unets import UNETS, unet2d, unet2d_condition
from conftest import trace
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from zoo import CASES as ZOO

from deepcache_patch import OUTPUT, Branch, DeepCacheHelper, InvalidSettingError, Uniform
from deepcache_patch.cutting.anatomy import dissect
from deepcache_patch.cutting.features import Recorder, StandIn, first_tensor
from deepcache_patch.inspection.branches import Branches, BranchesOfEach, branches_of, share_of
from deepcache_patch.inspection.outline import Outline
from deepcache_patch.running.example import example_of

pytestmark = pytest.mark.usefixtures("no_grad")

Build = Callable[[], nn.Module]
Inputs = Callable[[], dict[str, Any]]

LAYOUTS: dict[str, tuple[Build, Inputs]] = {
    **{name: (each.build, each.inputs) for name, each in UNETS.items()},
    **{
        f"cascade-{name}": (build, cascade.inputs_of(name, (8, 8)))
        for name, build in cascade.CASCADES.items()
    },
    **{
        f"wuerstchen-{name}": (build, cascade.wuerstchen_inputs)
        for name, build in cascade.WUERSTCHENS.items()
    },
    **{
        f"xs-{name}": (build, controlnet_xs.inputs)
        for name, (build, _) in controlnet_xs.UNETS.items()
    },
    **{name: (each.build, each.inputs) for name, each in levels.CASES.items()},
    "hunyuan": (lambda: long_skips.hunyuan(8), long_skips.hunyuan_inputs),
    "unidiffuser": (long_skips.unidiffuser, long_skips.unidiffuser_inputs),
    "uvit": (long_skips.uvit, long_skips.uvit_inputs),
    **{
        f"original-{kind.__name__}": (
            lambda kind=kind: original.build(kind, channels=(4, 8, 6), layers=2),
            lambda kind=kind: original.inputs(kind),
        )
        for kind in original.KINDS
    },
    **{
        f"second-stream-{name}": (lambda name=name: second_stream.build(name), second_stream.inputs)
        for name in second_stream.CONFIGS
    },
}

QUICK = {
    "2d-attention-everywhere",
    "2d-no-mid-block",
    "cascade-stage-b",
    "condition-1-layer",
    "hunyuan",
    "k-blocks-no-attention",
    "original-ComfyUNet",
    "second-stream-attention",
    "sound-2-levels",
    "uvit",
    "wuerstchen-3-levels",
}
EVERY = mostly_slow(LAYOUTS, QUICK)


def flops_of(unet: nn.Module, arguments: dict[str, Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        unet(**arguments)
    return int(counter.get_total_flops())


@contextmanager
def flops_of_each_call(unet: nn.Module) -> Iterator[list[int]]:
    counts: list[int] = []
    with FlopCounterMode(display=False) as counter:
        handles = [
            unet.register_forward_pre_hook(lambda *_: counts.append(-counter.get_total_flops())),
            unet.register_forward_hook(
                lambda *_: counts.append(counts.pop() + counter.get_total_flops())
            ),
        ]
        try:
            yield counts
        finally:
            for handle in handles:
                handle.remove()


@pytest.fixture(autouse=True)
def _attention_that_is_counted() -> Iterator[None]:
    # torch has no formula for the fused attention of the CPU, and would take it to cost nothing.
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.mark.parametrize("name", EVERY)
def test_the_work_of_a_call_and_its_feature_are_counted_exactly(name):
    build, inputs = LAYOUTS[name]
    unet, anatomy = build(), dissect(build())
    outline, example = Outline(unet), example_of(inputs())
    copied = dissect(outline.unet)
    before, state = trace(unet), torch.get_rng_state()
    branches = branches_of(outline, example)
    assert trace(unet) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert [each.number for each in branches] == list(anatomy.branches)

    anatomy, full = dissect(unet), flops_of(unet, inputs())
    assert 2 * outline.multiply_adds(copied.cut(None, StandIn(), {}), example) == full
    shares = []
    for branch in anatomy.branches:
        stand_in, recorder = StandIn(), Recorder()
        with anatomy.cut(None, stand_in, {branch: recorder}).applied():
            unet(**inputs())
        stand_in.feature = recorder.take()
        arguments = inputs()
        arguments = anatomy.trimmed(branch, arguments) or arguments
        with anatomy.cut(branch, stand_in, {}).applied():
            shallow = flops_of(unet, arguments)
        said = branches[branch]
        assert said.share == shallow / full
        assert said.shape == tuple(stand_in.feature.shape)
        assert said.nbytes == stand_in.feature.nbytes
        shares.append(said.share)
    # A deeper one costs more, or as much if what it adds has no multiply-adds, but never all.
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] < 1


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["2d-2-layers", "condition-sdxl", "condition-odd-size", "uvit"], ["2d-2-layers", "uvit"]
    ),
)
def test_the_helpers_own_calls_are_as_the_table_says(name):
    build, inputs = LAYOUTS[name]
    unet = build()
    for branch in dissect(unet).branches[::3]:
        helper = DeepCacheHelper(unet, schedule=Uniform(2, branch=branch), replay="reuse").enable()
        with flops_of_each_call(unet) as counts:
            for timestep in (500, 400):
                unet(**inputs() | {"timestep": torch.tensor(timestep)})
        said = helper.branches[branch]
        assert said.share == counts[1] / counts[0]
        assert said.nbytes == helper.stats.cache_nbytes
        helper.disable()
        assert helper.branches[branch] == said  # of the last call, still


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        [
            "animatediff",
            "if",
            "kandinsky-v22",
            "kandinsky3",
            "sd",
            "sd-controlnet",
            "sd-latent-upscale",
            "sdxl",
            "stable-cascade-decoder",
            "stable-video-diffusion",
        ],
        ["if"],
    ),
)
def test_the_calls_of_pipelines_are_as_the_table_says(name):
    case = ZOO[name]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform(2, branch=0)) as helper:
        unet = case.unet(pipe)
        with flops_of_each_call(unet) as counts:
            case.run(pipe)
        tables = helper.branches
    table = tables[case.unets[0]] if isinstance(tables, BranchesOfEach) else tables
    assert {count / counts[0] for count in counts} == {1, table[0].share}


def test_the_table_before_the_first_call_is_that_of_a_call_for_one_picture():
    for name in ("2d-class-labels", "condition-class-labels", "condition-sdxl"):
        unet, inputs = UNETS[name].build(), UNETS[name].inputs(batch=1)
        text = inputs.get("encoder_hidden_states")
        if text is not None:
            inputs["encoder_hidden_states"] = text[:, :1].repeat(1, 77, 1)
        helper = DeepCacheHelper(unet, schedule=Uniform())
        before = helper.branches
        assert before == branches_of(Outline(unet), example_of(inputs))
        assert before[0].share is not None
        with helper:
            unet(**UNETS[name].inputs(batch=3))
        assert helper.branches != before
        assert helper.branches[0].shape == (3, *before[0].shape[1:])
        assert helper.branches[0].nbytes == 3 * before[0].nbytes


@pytest.mark.parametrize(
    ("config", "more"),
    mostly_slow(
        [
            ({"class_embed_type": "timestep"}, {"class_labels": torch.zeros(1)}),
            ({"class_embed_type": "identity"}, {"class_labels": torch.zeros(1, 32)}),
            (
                {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 6},
                {"class_labels": torch.zeros(1, 6)},
            ),
            (
                {
                    "class_embed_type": "simple_projection",
                    "projection_class_embeddings_input_dim": 6,
                },
                {"class_labels": torch.zeros(1, 6)},
            ),
            (
                {"encoder_hid_dim": 6, "encoder_hid_dim_type": "text_proj"},
                {"encoder_hidden_states": torch.zeros(1, 77, 6)},
            ),
            (
                {
                    "encoder_hid_dim": 6,
                    "encoder_hid_dim_type": "image_proj",
                    "addition_embed_type": "image",
                },
                {"added_cond_kwargs": {"image_embeds": torch.zeros(1, 6)}},
            ),
        ]
    ),
    ids=["timestep", "identity", "projection", "simple-projection", "text", "image"],
)
def test_what_a_config_asks_for_is_given_before_the_first_call(config, more):
    unet = unet2d_condition(**config)
    inputs = {
        "sample": torch.zeros(1, 4, 8, 8),
        "timestep": torch.tensor(1),
        "encoder_hidden_states": torch.zeros(1, 77, 16),
    }
    unet(**inputs | more)
    table = DeepCacheHelper(unet).branches
    assert table[0].share is not None
    assert table == branches_of(Outline(unet), example_of(inputs | more))


# --- places -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "places"),
    {
        "2d-1-layer": [
            "down block 0 to layer 0 of up block 1",
            "the downsampler of down block 0 to up block 0",
            "down block 1 to layer 0 of up block 0",
            "the middle block",
        ],
        "uvit": [
            "transformer in block 1 to transformer out block 1",
            "transformer in block 2 to transformer out block 0",
            "the transformer middle block",
        ],
        "hunyuan": ["block 1 to block 6", "block 2 to block 5", "block 3 to block 4"],
        "wuerstchen-3-levels": ["down block 1 to up block 1", "down block 2 to up block 0"],
        "kandinsky3": [
            "down block 1 to up block 2",
            "down block 2 to up block 1",
            "down block 3 to up block 0",
        ],
        "xs-2-levels": [
            "down block 0 to layer 1 of up block 1",
            "layer 1 of down block 0 to layer 0 of up block 1",
            "the downsampler of down block 0 to up block 0",
            "down block 1 to layer 1 of up block 0",
            "layer 1 of down block 1 to layer 0 of up block 0",
            "the middle block",
        ],
        "second-stream-1-level": ["down block 0 to layer 0 of up block 0", "the middle block"],
    }.items(),
)
def test_the_place_is_said_in_words(name, places):
    branches = branches_of(Outline(LAYOUTS[name][0]()), None)
    assert [each.place for each in branches] == [f"leaves out {place}" for place in places]


@pytest.mark.parametrize("name", EVERY)
def test_no_two_branches_have_the_same_place(name):
    branches = branches_of(Outline(LAYOUTS[name][0]()), None)
    assert len({each.place for each in branches}) == len(branches)


# --- what is not known --------------------------------------------------------------------------


def test_other_u_nets_are_known_after_the_first_generation():
    unet = long_skips.uvit()
    helper = DeepCacheHelper(unet, schedule=Uniform())
    assert helper.branches[0] == Branch(0, helper.branches[0].place, None, None, None)
    assert str(helper.branches).splitlines()[-1] == (
        "share, feature and size are known after the first generation"
    )
    with helper:
        unet(**long_skips.uvit_inputs())
        assert helper.branches[0].shape == (2, 16, 8)


def test_a_u_net_that_asks_for_values_has_places_only():
    unet = unet2d()
    embed = unet.time_embedding
    embed.act = type("Asks", (nn.Module,), {"forward": lambda self, x: x * x.sum().item()})()
    first_tensor(unet(**UNETS["2d-1-layer"].inputs()))
    assert {each.share for each in DeepCacheHelper(unet).branches} == {None}


def test_a_processor_that_keeps_what_it_sees_is_not_called():
    class Keeps:
        def __init__(self):
            self.seen = []

        def __call__(self, attention, hidden_states, *args, **kwargs):
            self.seen.append(hidden_states)
            return hidden_states

    unet, processor = unet2d_condition(), Keeps()
    unet.set_attn_processor(processor)
    assert DeepCacheHelper(unet).branches[0].share is None
    assert processor.seen == []


def test_arguments_that_would_be_kept_alive_are_not_remembered():
    assert example_of({"sample": torch.zeros(1), "controller": object()}) is None
    example = example_of({"sample": torch.zeros(2, 3), "more": {"list": [1, torch.zeros(4)]}})
    number, tensor = example["more"]["list"]
    assert (number, tensor.is_meta, tensor.shape) == (1, True, (4,))
    assert (example["sample"].is_meta, example["sample"].shape) == (True, (2, 3))


# --- what others put on a U-Net -----------------------------------------------------------------


def test_hooks_patches_and_compiled_calls_do_not_run():
    def fail(*_args, **_kwargs):
        raise AssertionError("this must not run")

    unet = unet2d_condition()
    expected = DeepCacheHelper(unet).branches
    unet.forward = fail
    unet.mid_block.forward = fail
    unet.conv_in.register_forward_pre_hook(fail)
    unet.conv_out.register_forward_hook(fail)
    unet.down_blocks[0]._compiled_call_impl = fail
    assert DeepCacheHelper(unet).branches == expected
    assert expected[0].share is not None


def test_a_generation_is_the_same_when_the_table_was_asked_for_midway():
    case = CASES["sd"]
    with DeepCacheHelper(case.load(), schedule=Uniform()) as helper:
        expected = case.run(helper.pipe)
    tables = []

    def ask(_pipe, _step, _timestep, _kwargs):
        tables.append(helper.branches)
        return {}

    with DeepCacheHelper(case.load(), schedule=Uniform()) as helper:
        assert torch.equal(case.run(helper.pipe, callback_on_step_end=ask), expected)
    assert len(tables) == 5
    assert all(table == tables[0] for table in tables)
    assert tables[0][0].shape[0] == 2  # with guidance


def test_another_threads_shallow_call_is_waited_for():
    # A cut changes the U-Net itself: an outline that is made meanwhile would be of what is left.
    unet, inputs = unet2d_condition(), UNETS["condition-2-layers"].inputs
    inside, go_on, tables = threading.Event(), threading.Event(), []
    with DeepCacheHelper(unet, schedule=Uniform(2)) as helper:
        unet(**inputs(timestep=500))
        expected = helper.branches

        def hold(*_):
            inside.set()
            assert go_on.wait(60)

        # The tracker is of one thread: the other runs both steps of a generation of its own.
        def generate():
            with torch.no_grad():
                unet(**inputs(timestep=500))
                handle = unet.conv_out.register_forward_hook(hold)
                unet(**inputs(timestep=400))
                handle.remove()

        generating = threading.Thread(target=generate)
        asking = threading.Thread(target=lambda: tables.append(helper.branches))
        generating.start()
        assert inside.wait(60)
        asking.start()
        asking.join(0.2)
        assert tables == []
        go_on.set()
        generating.join()
        asking.join()
        assert helper.stats.shallow_calls == 1
    assert tables == [expected]


def test_several_u_nets_have_a_table_each():
    pipe = ZOO["unclip"].load()
    tables = DeepCacheHelper(pipe).branches
    assert list(tables) == ["decoder", "super_res_first", "super_res_last"]
    for name, table in tables.items():
        assert len(table) == len(dissect(pipe.components[name]).branches)
    parts = str(tables).split("\n\n")
    assert parts == [f"{name}: {table}" for name, table in tables.items()]


def test_weights_kept_in_a_smaller_dtype_are_those_they_compute_in():
    unet = unet2d_condition()
    expected = DeepCacheHelper(unet).branches
    unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert DeepCacheHelper(unet).branches == expected


# --- printed ------------------------------------------------------------------------------------


def test_the_table():
    helper = DeepCacheHelper(unet2d(sample_size=16), schedule=Uniform())
    shares = [f"{each.share:.1%}" for each in helper.branches]
    lines = str(helper.branches).splitlines()
    assert lines[0] == "UNet2DModel: 4 branches; a call with 1×3×16×16 in float32"
    ends = [
        "down block 0 to layer 0 of up block 1",
        "the downsampler of down block 0 to up block 0",
        "down block 1 to layer 0 of up block 0",
        "the middle block",
    ]
    assert lines[1:] == [
        "branch  share     feature      size  leaves out",
        "    -1   0.0%   1×3×16×16   3.0 KiB  everything",
        f"     0  {shares[0]:>5}   1×8×16×16   8.0 KiB  {ends[0]}",
        f"     1  {shares[1]:>5}  1×16×16×16  16.0 KiB  {ends[1]}",
        f"     2  {shares[2]:>5}    1×16×8×8   4.0 KiB  {ends[2]}",
        f"     3  {shares[3]:>5}    1×16×8×8   4.0 KiB  {ends[3]}",
    ]
    assert repr(helper.branches) == str(helper.branches)


def test_the_branch_above_the_output_is_none_of_the_sequence():
    table = DeepCacheHelper(unet2d(sample_size=16)).branches
    assert [branch.number for branch in table] == [0, 1, 2, 3]
    assert len(table) == 4
    assert table[0].number == 0
    assert table.output == Branch(OUTPUT, "leaves out everything", 0.0, (1, 3, 16, 16), 3072)
    assert table != Branches(table.title, list(table))
    assert table == Branches(table.title, list(table), table.output)


def test_the_output_of_a_call_is_shown_with_its_own_channels():
    unet = unet2d_condition(in_channels=9)
    output = DeepCacheHelper(unet).branches.output
    assert output.shape == (1, 4, 8, 8)
    assert output.nbytes == 4 * 8 * 8 * 4


def test_a_share_is_that_of_the_unet_where_it_is_largest():
    def table(*shares):
        return Branches("", [Branch(number, "", each, None, None) for number, each in shares])

    one, other = table((0, 0.1), (1, 0.4)), table((0, 0.2), (1, None))
    assert [share_of(one, number) for number in (OUTPUT, 0, 1)] == [0.0, 0.1, 0.4]
    both = BranchesOfEach(first=one, second=other)
    assert [share_of(both, number) for number in (OUTPUT, 0, 1)] == [0.0, 0.2, None]


def test_an_entry_cannot_be_changed():
    entry = DeepCacheHelper(unet2d()).branches[-1]
    assert entry.number == 3
    with pytest.raises(FrozenInstanceError):
        entry.share = 0.0


def test_the_error_for_a_branch_that_is_not_there_says_where_they_stand():
    with pytest.raises(
        InvalidSettingError,
        match=r"^branch 9 is out of range: this UNet2DConditionModel has 9 skip connections, so "
        r"branches 0 to 8; print\(DeepCacheHelper\(pipe\).branches\) shows them$",
    ):
        DeepCacheHelper(unet2d_condition(), schedule=Uniform(branch=9))


def test_a_notebook_gets_the_same_table() -> None:
    known = DeepCacheHelper(CASES["sd"].load()).branches
    html = known._repr_html_()
    title, header, *rows = str(known).splitlines()
    assert html.startswith(f"<table><caption>{title}</caption>")
    assert html.count("<tr>") == 1 + len(rows)
    assert html.count("<th ") == len(header.split("  ")) - header.split("  ").count("")
    for row in rows:
        number, share, *_ = row.split()
        assert f">{number}</td>" in html
        assert f">{share}</td>" in html


def test_a_notebook_gets_what_is_not_known_and_no_markup() -> None:
    row = Branch(0, "leaves out <b>", None, None, None)
    html = Branches("<i>", [row])._repr_html_()
    assert "<b>" not in html
    assert "<i>" not in html
    assert html.endswith("<p>share, feature and size are known after the first generation</p>")
    both = BranchesOfEach({"<u>": Branches("a", [row]), "unet": Branches("b", [row])})
    assert both._repr_html_().count("<table>") == 2
    assert "<p>&lt;u&gt;</p>" in both._repr_html_()
