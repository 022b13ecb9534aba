"""torch.compile before and after `enable`: how many graphs, and the same pictures as without it.

Graphs are counted by the backend; both that are used give the results of eager mode to the last
bit. dynamo is told to fail where it would break a graph, unless a test says otherwise.
"""

import copy
import pickle

import pytest
import torch
from builders.marks import mostly_slow
from builders.versions_needed import needs
from diffusers import DDIMScheduler, UNet2DModel
from torch._dynamo.testing import CompileCounterWithBackend
from zoo import CASES

from deepcache_patch import (
    FULL,
    OUTPUT,
    AlreadyEnabledError,
    DeepCacheHelper,
    DeepCacheWarning,
    Explicit,
    InvalidSettingError,
    Stats,
    Uniform,
)
from deepcache_patch.patching.call import CALL

# The oldest that this was run with; 2.4 cannot trace diffusers' U-Nets as one graph.
pytestmark = needs("torch", "2.13")

FEATURE = 2 * 8 * 8 * 8 * 4  # bytes: two pictures of 8 channels of 8×8, float32


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["eager"])
def graphs(request):
    return CompileCounterWithBackend(request.param)


def small_unet(kind=UNet2DModel, levels=1):
    torch.manual_seed(0)
    return kind(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8,) * levels,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,  # what takes long to trace
    ).eval()


@torch.no_grad()
def loop(unet, *, steps=6, pictures=2, device="cpu"):
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps, device=device)
    sample = torch.randn(pictures, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    for timestep in scheduler.timesteps:
        noise = unet(sample, timestep).sample
        sample = scheduler.step(noise, timestep, sample).prev_sample
    return sample


@pytest.fixture(scope="module")
def pictures():
    """What the plain U-Net makes, and what it makes with a helper, both eager."""
    unet = small_unet()
    with DeepCacheHelper(unet, schedule=Uniform()):
        cached = loop(unet)
    return loop(unet), cached


def in_place(unet, **options):
    unet.compile(**options)
    return unet


FORMS = {"wrapper": torch.compile, "in place": in_place}


@pytest.mark.parametrize("form", mostly_slow(FORMS, 1))
@pytest.mark.parametrize(
    ("graphs", "dynamic"),
    mostly_slow([("eager", None), ("aot_eager", None), ("eager", True)], 1),
    indirect=["graphs"],
)
def test_compiled_before_enable(form, dynamic, graphs, pictures):
    # It runs plain first, as a warmed-up server does: forward hooks, the obvious way to record,
    # would then never be noticed by the compiled graph.
    compiled = FORMS[form](small_unet(), backend=graphs, fullgraph=True, dynamic=dynamic)
    assert torch.equal(loop(compiled), pictures[0])
    plain = graphs.frame_count
    with DeepCacheHelper(compiled, schedule=Uniform()) as helper:
        assert torch.equal(loop(compiled), pictures[1])
        # `dynamic=True` shows each graph to the backend twice, that of the plain U-Net as well.
        assert graphs.frame_count == 3 * plain
        assert torch.equal(loop(compiled), pictures[1])
        with helper.paused():
            assert torch.equal(loop(compiled), pictures[0])
    assert torch.equal(loop(compiled), pictures[0])
    assert helper.stats == Stats(2, 4, 8, 2 * FEATURE)
    assert graphs.frame_count == 3 * plain


@pytest.mark.slow
def test_compiled_in_place_after_enable(graphs, pictures):
    unet = small_unet()
    helper = DeepCacheHelper(unet, schedule=Uniform()).enable()
    unet.compile(backend=graphs, fullgraph=True)
    assert helper.enabled
    assert torch.equal(loop(unet), pictures[1])
    assert graphs.frame_count == 2
    unet.compile(backend=graphs, fullgraph=True)  # and once more
    assert torch.equal(loop(unet), pictures[1])
    assert graphs.frame_count == 2
    helper.disable()
    assert not helper.enabled
    assert unet._compiled_call_impl is not None
    assert "compile" not in vars(unet)
    assert torch.equal(loop(unet), pictures[0])
    assert graphs.frame_count == 3
    assert helper.stats == Stats(2, 4, 8, 2 * FEATURE)


@pytest.mark.slow
def test_a_pipelines_unet_wrapped_after_enable(graphs):
    case = CASES["sd"]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()):
        cached = case.run(pipe)
    plain = case.run(pipe)
    unet = pipe.unet
    helper = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    pipe.unet = torch.compile(unet, backend=graphs)
    assert helper.enabled
    assert torch.equal(case.run(pipe), cached)
    assert graphs.frame_count == 2
    assert helper.enabled
    assert torch.equal(case.run(pipe), cached)
    helper.disable()
    assert not {CALL, "compile"} & (vars(unet).keys() | vars(pipe.unet).keys())
    assert torch.equal(case.run(pipe), plain)
    assert graphs.frame_count == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "controlnet"])
def test_wrapped_after_enable_for_one_graph_it_says_how_to_go_on(name, graphs):
    case = CASES["sd-controlnet"]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()):
        cached = case.run(pipe)
    helper = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    setattr(pipe, name, torch.compile(getattr(pipe, name), backend=graphs, fullgraph=True))
    unsupported = torch._dynamo.exc.Unsupported
    with pytest.raises(unsupported, match=r"call its enable\(\) once more after torch.compile"):
        case.run(pipe)
    helper.enable()
    assert torch.equal(case.run(pipe), cached)
    assert graphs.frame_count == 2


@pytest.mark.slow
def test_a_helper_on_the_wrapper_and_one_on_the_unet_inside_are_told_apart(graphs):
    case = CASES["sd"]
    pipe = case.load()
    unet, compiled = pipe.unet, torch.compile(pipe.unet, backend=graphs)
    pipe.unet = compiled
    first = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    pipe.unet = unet
    second = DeepCacheHelper(pipe, schedule=Uniform()).enable()
    pipe.unet = compiled
    with pytest.raises(AlreadyEnabledError, match=r"call disable\(\) on one of them"):
        case.run(pipe)
    second.disable()
    case.run(pipe)
    assert first.stats.shallow_calls > 0


def test_somebody_elses_compilation_beside_it_is_none_of_its_own(monkeypatch, pictures):
    # torch says that it compiles while any thread does.
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True, raising=False)
    unet = small_unet()
    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
        assert torch.equal(loop(unet), pictures[1])
    assert helper.stats == Stats(1, 2, 4, 2 * FEATURE)


def test_called_from_compiled_code_of_somebody_it_runs_uncompiled_with_a_warning(graphs, pictures):
    unet = small_unet()
    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
        compiled = torch.compile(unet, backend=graphs)
        with pytest.warns(DeepCacheWarning, match="runs uncompiled: compile it alone"):
            assert torch.equal(loop(compiled), pictures[1])
    assert graphs.frame_count == 0
    assert helper.stats == Stats(1, 2, 4, 2 * FEATURE)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_switching_on_and_off_compiles_nothing_again(form, graphs, pictures):
    compiled = FORMS[form](small_unet(), backend=graphs, fullgraph=True)
    same = DeepCacheHelper(compiled, schedule=Uniform())
    for _ in range(5):
        for helper in (same, DeepCacheHelper(compiled, schedule=Uniform())):
            with helper:
                assert torch.equal(loop(compiled), pictures[1])
            assert torch.equal(loop(compiled), pictures[0])
    assert graphs.frame_count == 3


def test_above_the_output_the_plain_graph_is_the_only_one(graphs):
    plan = Explicit((FULL, OUTPUT, OUTPUT, FULL, OUTPUT, OUTPUT))
    eager, unet = small_unet(), small_unet()
    with DeepCacheHelper(eager, schedule=plan):
        expected = loop(eager)
    unet.compile(backend=graphs, fullgraph=True)
    with DeepCacheHelper(unet, schedule=plan) as helper:
        assert torch.equal(loop(unet), expected)
        assert (helper.stats.full_calls, helper.stats.shallow_calls) == (2, 4)
    assert torch.equal(loop(unet), loop(eager))
    assert graphs.frame_count == 1


@pytest.mark.slow
def test_each_branch_of_a_plan_is_a_graph(graphs):
    plan = Explicit((FULL, 0, 1, 2, FULL, 0))
    eager, unet = small_unet(levels=2), small_unet(levels=2)
    with DeepCacheHelper(eager, schedule=plan):
        expected = loop(eager)
    unet.compile(backend=graphs, fullgraph=True)
    with DeepCacheHelper(unet, schedule=plan):
        for _ in range(2):
            assert torch.equal(loop(unet), expected)
            # Full, recording for all three; shallow at 0; at 1, recording for 0; at 2, for both.
            assert graphs.frame_count == 4


@pytest.mark.slow
def test_more_graphs_than_dynamo_allows_one_module(graphs):
    # With `fullgraph`, dynamo fails where a piece of code would have more graphs than the limit.
    unet = small_unet()
    unet.compile(backend=graphs, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=1):
        with DeepCacheHelper(unet, schedule=Explicit((FULL, 0, 1))) as helper:
            loop(unet, steps=3)
        assert torch._dynamo.config.recompile_limit == 1
    assert helper.stats.shallow_calls == 2
    assert graphs.frame_count == 3


@pytest.mark.slow
def test_another_batch_compiles_each_kind_once_more_for_all_batches(graphs):
    unet = small_unet()
    unet.compile(backend=graphs, fullgraph=True)
    with DeepCacheHelper(unet, schedule=Uniform()):
        counts = []
        for count in (2, 3, 4, 5):
            loop(unet, pictures=count)
            counts.append(graphs.frame_count)
    # dynamo takes a size for fixed until it changes.
    assert counts == [2, 4, 4, 4]


@pytest.mark.parametrize("enabled_first", mostly_slow([True, False], 1))
def test_regional_compilation(enabled_first, graphs):
    case = CASES["sd"]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()):
        cached = case.run(pipe)
    plain = case.run(pipe)
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    if enabled_first:
        helper.enable()
    pipe.unet.compile_repeated_blocks(backend=graphs, fullgraph=True)
    helper.enable()
    assert torch.equal(case.run(pipe), cached)
    blocks = graphs.frame_count
    helper.disable()
    assert torch.equal(case.run(pipe), plain)
    assert graphs.frame_count == blocks > 0


def reusing_memory(graph, _inputs):
    """A backend that writes outputs to the same memory each time, as CUDA graphs do."""
    kept = []

    def run(*inputs):
        outputs = graph.forward(*inputs)
        if not kept:
            kept.extend(outputs)
        for memory, output in zip(kept, outputs, strict=True):
            memory.copy_(output)
        return tuple(kept)

    return run


class ForeignUNet(UNet2DModel):
    """Not diffusers' own: a cut has to be proved by a call before it is used."""


@pytest.mark.parametrize("kind", mostly_slow([UNet2DModel, ForeignUNet], 1))
def test_a_feature_survives_the_reuse_of_a_graphs_memory(kind, pictures):
    unet = small_unet(kind)
    unet.compile(backend=reusing_memory, fullgraph=True)
    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
        assert torch.equal(loop(unet), pictures[1])
        assert torch.equal(loop(unet), pictures[1])
    assert helper.stats == Stats(2, 4, 8, 2 * FEATURE)


def test_compiled_code_that_rounds_otherwise_proves_nothing_about_a_cut(pictures):
    # With inductor, a shallow call differs from the full one in the last bits.
    def backend(graph, _inputs):
        noise = torch.rand(()) * 1e-6
        return lambda *inputs: tuple(
            output + noise if output.is_floating_point() else output
            for output in graph.forward(*inputs)
        )

    unet = small_unet(ForeignUNet)
    unet.compile(backend=backend, fullgraph=True)
    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
        assert not torch.equal(loop(unet), pictures[1])
    assert helper.stats == Stats(1, 2, 4, 2 * FEATURE)


# --- helper.compile -----------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", mostly_slow([True, False], 1))
def test_helper_compile(enabled, graphs, pictures):
    unet = small_unet()
    helper = DeepCacheHelper(unet, schedule=Uniform())
    if enabled:
        helper.enable()
    assert helper.compile(backend=graphs) is helper
    assert helper.enabled == enabled
    helper.enable()
    assert torch.equal(loop(unet), pictures[1])
    assert graphs.frame_count == 2


def test_helper_compile_asks_for_one_graph_unless_it_is_told_otherwise(monkeypatch):
    unet = small_unet()
    given = []
    monkeypatch.setattr(torch, "compile", lambda _call, **options: given.append(options))
    DeepCacheHelper(unet, schedule=Uniform()).compile().compile(
        fullgraph=False, mode="max-autotune"
    )
    assert given == [{"fullgraph": True}, {"fullgraph": False, "mode": "max-autotune"}]


def test_helper_compile_refuses_what_is_compiled_already():
    case = CASES["sd"]
    pipe = case.load()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with pytest.raises(InvalidSettingError, match="UNet2DConditionModel is wrapped by"):
        DeepCacheHelper(pipe, schedule=Uniform()).compile()


@pytest.mark.slow
def test_a_controlnet_that_is_cut_is_compiled_along(graphs):
    case = CASES["sd-controlnet"]
    pipe = case.load()
    with DeepCacheHelper(pipe, schedule=Uniform()):
        cached = case.run(pipe)
    plain = case.run(pipe)
    with DeepCacheHelper(pipe, schedule=Uniform()).compile(backend=graphs):
        assert torch.equal(case.run(pipe), cached)
        assert graphs.frame_count == 4  # U-Net and ControlNet, both in full and shallow
        assert torch.equal(case.run(pipe), cached)
    assert graphs.frame_count == 4
    assert torch.equal(case.run(pipe), plain)
    # The ControlNet's full call is the plain one; the U-Net's records.
    assert graphs.frame_count == 5


# --- copies -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "duplicate", mostly_slow([copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))], 1)
)
def test_a_copy_compiles_for_itself(duplicate, graphs, pictures):
    unet = small_unet()
    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
        before = vars(unet)[CALL]
        duplicated = duplicate(unet)
        assert CALL not in vars(duplicated)
        duplicated.compile(backend=graphs)
        assert vars(unet)[CALL] is before
        assert torch.equal(loop(duplicated), pictures[0])
        assert graphs.frame_count == 1
        assert torch.equal(loop(unet), pictures[1])
    assert helper.stats == Stats(1, 2, 4, 2 * FEATURE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_graphs():
    unet = small_unet().to("cuda")
    on_device = {"steps": 7, "device": "cuda"}
    with DeepCacheHelper(unet, schedule=Uniform()) as helper:
        eager = loop(unet, **on_device)
        helper.compile(mode="reduce-overhead")
        first = loop(unet, **on_device)
        assert torch.equal(loop(unet, **on_device), first)
    # inductor fuses operations, and rounds otherwise: float32 to a few of its last bits.
    torch.testing.assert_close(first, eager, rtol=1e-3, atol=1e-4)
