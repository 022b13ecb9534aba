"""The settings of a helper: what is refused before anything is done, and what each one hands on.

Schedules and replays have tests of their own, in `schedules`.
"""

import threading

import diffusers
import pytest
import torch
from builders.loops import Written, kinds_of_steps, loop
from builders.marks import mostly_slow
from builders.unets import unet2d, unet2d_condition
from conftest import trace
from zoo import CASES as ZOO

from deepcache_patch import (
    FULL,
    Adaptive,
    AlreadyEnabledError,
    Auto,
    Branch,
    Calibrated,
    Centred,
    DeepCacheError,
    DeepCacheHelper,
    InvalidSettingError,
    NoiseAware,
    Reuse,
    Uniform,
    UnsupportedModelError,
)
from deepcache_patch.inspection.branches import Branches
from deepcache_patch.running.controlnet import AttachedControlNet
from deepcache_patch.running.session import Session
from deepcache_patch.running.unet_cuts import UNetCuts
from deepcache_patch.schedules.guide import Guide, PlannedGuide

pytestmark = pytest.mark.usefixtures("kept_tables")

NO_BRANCH_9 = (
    "branch 9 is out of range: this UNet2DConditionModel has 9 skip connections, so branches 0 to "
    "8; print(DeepCacheHelper(pipe).branches) shows them"
)
NO_SCHEDULE = (
    "schedule must be a name such as 'auto', what Calibrated.load(file) gives, or an object with a "
    "method plan(num_steps), not "
)
NO_INTEGER = "interval must be an integer of at least 1, not "
NO_SPEEDUP = (
    "speedup goes with the name of a schedule, 'noise-aware' (the default) or 'auto', not with "
    "{}: give one of the two, or leave speedup out"
)
NO_REPLAY = (
    "replay must be 'reuse' or 'extrapolate' or an object with a method "
    "feature(step, recorded, levels), not "
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, "interval must be a number from 1 to 1000, not 0"),
        ({"interval": 0.99}, "interval must be a number from 1 to 1000, not 0.99"),
        ({"interval": "3"}, "interval must be a number from 1 to 1000, not '3'"),
        ({"branch": -2}, "branch must be an integer of at least -1, not -2"),
        ({"branch": 0.5}, "branch must be an integer of at least -1, not 0.5"),
        ({"branch": 9}, NO_BRANCH_9),
        ({"schedule": [FULL, 0]}, NO_SCHEDULE + "['full', 0]"),
        ({"schedule": int}, NO_SCHEDULE + repr(int)),
        *(
            (
                {"schedule": kind},
                f"{NO_SCHEDULE}the class {kind.__name__}: did you mean {kind.__name__}()?",
            )
            for kind in (Uniform, Adaptive, Auto, NoiseAware)
        ),
        (
            {"schedule": "automatic"},
            "there is no schedule 'automatic': did you mean 'auto'? There are default, "
            "noise-aware, uniform, centred, auto, adaptive",
        ),
        (
            {"schedule": "adaptive", "interval": 0.5},
            "interval must be a number from 1 to 1000, not 0.5",
        ),
        ({"schedule": "uniform", "interval": 2.5}, NO_INTEGER + "2.5"),
        ({"schedule": "uniform", "branch": 9}, NO_BRANCH_9),
        (
            {"speedup": 2, "interval": 3},
            "speedup=2 stands in the place of interval=3: give one",
        ),
        (
            {"speedup": 2, "schedule": Uniform()},
            NO_SPEEDUP.format("Uniform(interval=3, branch=0)"),
        ),
        ({"speedup": 2, "schedule": "uniform"}, NO_SPEEDUP.format("'uniform'")),
        ({"speedup": 0.5}, "speedup must be a number from 1 to 1000, not 0.5"),
        ({"speedup": True}, "speedup must be a number from 1 to 1000, not True"),
        ({"speedup": 2, "branch": 9}, NO_BRANCH_9),
        (
            {"schedule": Uniform(), "interval": 3},
            "give either schedule or interval and branch, not both",
        ),
        ({"schedule": Uniform(branch=9)}, NO_BRANCH_9),
        ({"schedule": "auto", "branch": 9}, NO_BRANCH_9),
        ({"schedule": "auto", "interval": 0}, "interval must be a number from 1 to 1000, not 0"),
        ({"schedule": Adaptive(branches=(0, 9))}, NO_BRANCH_9),
        (
            {"schedule": "auto", "replay": "reuse"},
            "Auto brings its own replay: leave replay='reuse' out",
        ),
        ({"replay": "repeat"}, NO_REPLAY + "'repeat'"),
        ({"replay": Reuse}, NO_REPLAY + "the class Reuse: did you mean Reuse()?"),
        ({"replay": 2}, NO_REPLAY + "2"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_patched(settings, message):
    unet = unet2d_condition()
    before = trace(unet)
    with pytest.raises(InvalidSettingError) as caught:
        DeepCacheHelper(unet, **settings)
    assert str(caught.value) == message
    assert trace(unet) == before


def test_by_default_steps_are_planned_by_noise_levels():
    unet = unet2d_condition()
    assert DeepCacheHelper(unet).schedule == NoiseAware(2.2, -1)
    assert DeepCacheHelper(unet, interval=3).schedule == NoiseAware(3, -1)
    assert DeepCacheHelper(unet, interval=2.5, branch=1).schedule == NoiseAware(2.5, 1)
    assert DeepCacheHelper(unet, branch=0).schedule == NoiseAware(2.2, 0)


def test_a_schedule_may_be_given_by_its_name():
    unet = unet2d_condition()
    assert DeepCacheHelper(unet, schedule="noise-aware").schedule == NoiseAware()
    assert DeepCacheHelper(unet, schedule="uniform").schedule == Uniform(3, 0)
    named = DeepCacheHelper(unet, schedule="uniform", interval=2, branch=4)
    assert named.schedule == Uniform(2, 4)
    assert DeepCacheHelper(unet, schedule="centred", interval=5).schedule == Centred(5)
    assert str(DeepCacheHelper(unet, schedule="adaptive").schedule) == str(Adaptive())
    named = DeepCacheHelper(unet, schedule="adaptive", interval=2, branch=4)
    assert str(named.schedule) == str(Adaptive(branches=(4,), interval=2))
    assert str(DeepCacheHelper(unet, schedule="auto", interval=4).schedule) == str(Auto(4))


def test_the_default_has_a_name():
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet, schedule="default")
    assert helper.schedule == DeepCacheHelper(unet).schedule == NoiseAware()
    given = {"interval": 4, "branch": 0}
    assert DeepCacheHelper(unet, schedule="default", **given).schedule == NoiseAware(4, 0)
    assert DeepCacheHelper(unet, schedule="default", speedup=1).schedule == NoiseAware(1)
    assert helper.set(schedule="auto", interval=4).set(schedule="default").interval == 4
    helper.follow("default")
    assert helper.schedule == NoiseAware()


def test_a_helper_follows_a_schedule_by_its_name():
    unet = unet2d_condition()
    with DeepCacheHelper(unet) as helper:
        helper.follow("uniform")
        assert helper.schedule == Uniform()
        assert kinds_of_steps(unet, steps=4) == "FssF"
        helper.follow("auto")
        assert isinstance(helper.schedule, Auto)
        before = helper.schedule
        for wrong, message in {
            "often": "there is no schedule 'often'; there are default, noise-aware, uniform, "
            "centred, auto, adaptive",
            "dfault": "there is no schedule 'dfault': did you mean 'default'? There are default, "
            "noise-aware, uniform, centred, auto, adaptive",
            None: NO_SCHEDULE + "None",
        }.items():
            with pytest.raises(InvalidSettingError) as caught:
                helper.follow(wrong)
            assert str(caught.value) == message
        assert helper.schedule is before


# --- a speedup --------------------------------------------------------------------------------


@pytest.mark.parametrize("speedup", [1, 1.5, 2, 4.75, 1000])
def test_above_the_output_the_interval_is_the_speedup(speedup):
    helper = DeepCacheHelper(ZOO["sd"].load(), speedup=speedup)
    assert helper.schedule == NoiseAware(speedup, -1)
    helper = DeepCacheHelper(ZOO["sd"].load(), speedup=speedup, schedule="auto")
    assert (type(helper.schedule), helper.interval, helper.branch) == (Auto, speedup, -1)


def test_of_a_bare_unet_a_speedup_counts_what_branch_0_costs_that_stands_in():
    unet = unet2d_condition()
    at_0 = DeepCacheHelper(unet, speedup=1.5, branch=0).schedule
    assert DeepCacheHelper(unet, speedup=1.5).schedule == NoiseAware(at_0.interval, -1)
    assert at_0.interval > 1.5


@pytest.mark.parametrize("branch", mostly_slow([0, 1, 2], [0, 2]))
@pytest.mark.parametrize("speedup", mostly_slow([1, 1.25, 1.5], [1.25]))
def test_at_a_branch_the_interval_makes_the_work_what_is_asked_for(speedup, branch):
    unet = unet2d_condition()
    share = DeepCacheHelper(unet).branches[branch].share
    schedule = DeepCacheHelper(unet, speedup=speedup, branch=branch).schedule
    assert schedule.branch == branch
    full = 1 / schedule.interval
    assert full + (1 - full) * share == pytest.approx(1 / speedup, rel=1e-12)


def test_of_several_unets_the_one_with_the_largest_share_counts():
    class TwoUNets(diffusers.DiffusionPipeline):
        def __init__(self, first, second):
            super().__init__()
            self.register_modules(first=first, second=second)

    pipe = TwoUNets(unet2d_condition(), unet2d_condition(layers_per_block=1))
    shares = [table[0].share for table in DeepCacheHelper(pipe).branches.values()]
    assert shares[0] < shares[1]
    schedule = DeepCacheHelper(pipe, speedup=2, branch=0).schedule
    full = 1 / schedule.interval
    assert full + (1 - full) * shares[1] == pytest.approx(1 / 2, rel=1e-12)


@pytest.mark.parametrize("branch", mostly_slow([0, 8], [8]))
def test_a_speedup_beyond_the_branch_is_refused_with_the_most_that_there_is(branch):
    unet = unet2d_condition()
    share = DeepCacheHelper(unet).branches[branch].share
    most = int(10 / (share + (1 - share) / 1000)) / 10
    if most > 1:
        assert DeepCacheHelper(unet, speedup=most, branch=branch).schedule.interval > 50
    for speedup in (most + 0.1, 1000):
        with pytest.raises(InvalidSettingError) as caught:
            DeepCacheHelper(unet, speedup=speedup, branch=branch)
        assert str(caught.value) == (
            f"speedup={speedup:g} is out of reach: a shallow call at branch {branch} is "
            f"{share:.1%} of a full one, so at most {most}×; branch=-1, the forecast, costs "
            "nothing"
        )


def test_where_a_branchs_cost_is_not_known_a_speedup_is_refused(monkeypatch):
    unknown = Branches("", [Branch(0, "", None, None, None)])
    monkeypatch.setattr(DeepCacheHelper, "branches", property(lambda _: unknown))
    with pytest.raises(InvalidSettingError) as caught:
        DeepCacheHelper(unet2d_condition(), speedup=2, branch=0)
    assert str(caught.value) == (
        "what a call at branch 0 costs is known after the first generation: give interval, not "
        "speedup"
    )
    assert DeepCacheHelper(ZOO["sd"].load(), speedup=2).schedule == NoiseAware(2)


def test_a_schedule_that_guides_gets_the_replay_and_every_generations_context():
    class Guiding:
        def begin(self, context, replay):
            begun.append((context.num_steps, replay))
            return PlannedGuide(Uniform(2), replay, context)

    begun, unet, replay = [], unet2d_condition(), Reuse()
    with DeepCacheHelper(unet, schedule=Guiding(), replay=replay):
        assert kinds_of_steps(unet) == "FsFsFsF"
        assert kinds_of_steps(unet, steps=3) == "FsF"
    assert begun == [(7, replay), (3, replay)]


class Looking(Guide):
    """One that records nothing, and notes which calls it is told of."""

    def __init__(self, num_steps, seen):
        super().__init__(num_steps, ())
        self.seen = seen

    def observe(self, call):
        self.seen.append((call.position.step, call.slot, dict(call.features)))


def test_a_guide_that_records_nothing_is_told_of_every_call():
    class Guiding:
        def begin(self, context, replay):
            return Looking(context.num_steps, seen)

    seen, unet = [], unet2d_condition()
    with DeepCacheHelper(unet, schedule=Guiding()) as helper:
        assert kinds_of_steps(unet, steps=3) == "FFF"
        assert helper.stats.cache_nbytes == 0
    assert seen == [(step, 0, {}) for step in range(3)]


def test_where_all_steps_are_full_calls_are_counted_and_not_looked_into(monkeypatch):
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=Uniform(1)) as helper:
        monkeypatch.setattr(UNetCuts, "look_again", None)
        monkeypatch.setattr(Session, "slot_of", None)
        assert kinds_of_steps(unet, steps=3) == kinds_of_steps(unet, steps=3) == "FFF"
        assert (helper.stats.generations, helper.stats.full_calls) == (2, 6)
        assert [str(each.plan) for each in helper.last_generations.values()] == ["FFF"]
        monkeypatch.undo()
        helper.set(interval=2)
        assert kinds_of_steps(unet, steps=3) == "FsF"


def test_calibrate_hands_over_what_it_is_given(monkeypatch):
    handed, helper = [], DeepCacheHelper(unet2d_condition(), schedule=Uniform())

    def calibrate(*args, **options):
        handed.append((args, options))
        return "a schedule"

    monkeypatch.setattr("deepcache_patch.helper.calibrate", calibrate)
    nothing = {"speedup": None, "full_steps": None, "psnr": None, "branch": -1}
    for options in ({"speedup": 2.0}, {"full_steps": 5, "branch": 1}, {"psnr": 30.0}, {}):
        assert helper.calibrate(loop, **options) == "a schedule"
        assert handed.pop() == ((helper, loop), nothing | options)


def test_compile_compiles_the_unet_and_the_controlnet_in_place(monkeypatch):
    compiled, pipe = [], ZOO["sd-controlnet"].load()
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compiled.append((module, options))
    )
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    assert helper.compile(mode="max-autotune") is helper
    options = {"fullgraph": True, "mode": "max-autotune"}
    assert compiled == [(pipe.unet, options), (pipe.controlnet, options)]
    compiled.clear()
    unet = unet2d_condition()
    DeepCacheHelper(unet, schedule=Uniform()).compile(fullgraph=False)
    assert compiled == [(unet, {"fullgraph": False})]


def test_enable_attaches_anew_to_what_was_compiled_since_and_to_nothing_else():
    pipe = ZOO["sd-controlnet"].load()
    for whole in (pipe, pipe.unet):
        with DeepCacheHelper(whole, schedule=Uniform()) as helper:
            attached = helper._attachment.unets
            helper.enable()
            assert helper._attachment.unets is attached
    with DeepCacheHelper(pipe, schedule=Uniform()) as helper:
        for name in ("unet", "controlnet"):
            setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))
            helper.enable()
            assert helper._attachment.unets[0].unet is pipe.unet
            assert helper._attachment.controlnets[0].controlnet is pipe.controlnet


def test_two_unets_have_a_table_each():
    pipe = ZOO["stable-cascade-combined"].load()
    tables = DeepCacheHelper(pipe).branches
    assert set(tables) == {"prior_prior", "decoder"}


def test_compile_refuses_what_is_compiled_already():
    unet = unet2d_condition()
    helper = DeepCacheHelper(torch.compile(unet, backend="eager"), schedule=Uniform())
    with pytest.raises(InvalidSettingError) as caught:
        helper.compile()
    assert str(caught.value) == (
        "UNet2DConditionModel is wrapped by torch.compile already: leave out one of the two"
    )


def test_a_helper_is_printed_with_its_schedule_and_state():
    unet = unet2d_condition()
    helper = DeepCacheHelper(unet, schedule=Uniform(4))
    assert helper.pipe is unet
    said = "DeepCacheHelper(UNet2DConditionModel, Uniform(interval=4, branch=0), "
    assert repr(helper) == said + "disabled)"
    with helper:
        assert repr(helper) == said + "enabled)"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Written(FULL), "has 1 entries for 3 steps"),
        (Written(FULL, 9, 0), "branch 9 is out of range"),
        (Written(FULL, "shallow", 0), "entry 1 must be an integer of at least -1, not 'shallow'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_when_the_generation_starts(plan, message):
    unet = unet2d_condition()
    with DeepCacheHelper(unet, schedule=plan), pytest.raises(InvalidSettingError, match=message):
        loop(unet, steps=3)


def test_a_transformer_pipeline_is_told_of_its_own_caches():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    transformer = diffusers.FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=4, num_attention_heads=1,
        joint_attention_dim=4, pooled_projection_dim=4, axes_dims_rope=(2, 1, 1), in_channels=4,
    )  # fmt: skip
    pipe = diffusers.FluxPipeline(
        scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    with pytest.raises(
        UnsupportedModelError,
        match=r"FluxPipeline has no U-Net .*FluxTransformer2DModel.*transformer\.enable_cache",
    ):
        DeepCacheHelper(pipe, schedule=Uniform())
    with pytest.raises(UnsupportedModelError, match=r"transformer\.enable_cache"):
        DeepCacheHelper(transformer)


def test_a_transformer_that_has_no_cache_is_not_sent_to_one():
    # `enable_cache` was advised for Stable Diffusion 3, whose transformer has none.
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=4, num_attention_heads=1,
        joint_attention_dim=4, caption_projection_dim=4, pooled_projection_dim=4,
    )  # fmt: skip
    assert not hasattr(transformer, "enable_cache")
    with pytest.raises(UnsupportedModelError) as caught:
        DeepCacheHelper(transformer)
    assert str(caught.value) == (
        "SD3Transformer2DModel has no U-Net that can be cut (found: SD3Transformer2DModel); "
        f"SD3Transformer2DModel is a transformer, for which diffusers {diffusers.__version__} has "
        "no cache: what makes it faster is fewer steps, or torch.compile"
    )


@pytest.mark.parametrize("thing", [None, "stabilityai/stable-diffusion-2-1", 3])
def test_what_is_no_pipeline_is_refused(thing):
    with pytest.raises(UnsupportedModelError, match=f"not {type(thing).__name__}"):
        DeepCacheHelper(thing)


def test_errors_have_the_builtin_kinds_and_one_base():
    for error, builtin in (
        (InvalidSettingError, ValueError),
        (UnsupportedModelError, TypeError),
        (AlreadyEnabledError, RuntimeError),
    ):
        assert issubclass(error, DeepCacheError)
        assert issubclass(error, builtin)


class FSDPModule:
    """What `fully_shard` makes of a module, as far as its name goes."""


def test_a_schedule_that_each_process_decides_for_itself_is_refused_for_a_sharded_unet():
    unet = unet2d()
    unet.__class__ = type("Sharded", (FSDPModule, type(unet)), {})
    assert DeepCacheHelper(unet).schedule == NoiseAware()
    assert DeepCacheHelper(unet, schedule=Uniform()).schedule == Uniform()
    with pytest.raises(InvalidSettingError) as caught:
        DeepCacheHelper(unet, schedule=Adaptive())
    assert str(caught.value) == (
        "Adaptive may decide otherwise in each process, but the U-Net is sharded, and all "
        "processes must call the same layers: take Uniform, or a schedule that was calibrated "
        "before"
    )


def test_a_pause_that_is_left_elsewhere_says_where_it_belongs():
    pause = DeepCacheHelper(unet2d(), schedule=Uniform()).paused()
    thread = threading.Thread(target=pause.__enter__)
    thread.start()
    thread.join()
    with pytest.raises(RuntimeError) as caught:
        pause.__exit__(None, None, None)
    assert str(caught.value) == (
        "paused() was entered in another thread or asyncio task: leave it there, too"
    )


def test_enable_that_is_interrupted_at_the_controlnet_leaves_no_trace(monkeypatch):
    pipe = ZOO["sd-controlnet"].load()
    parts = (pipe.unet, pipe.controlnet)
    before = [trace(each) for each in parts]
    attach = AttachedControlNet.attach

    def interrupted(controlnet):
        attach(controlnet)
        raise KeyboardInterrupt  # while it waits for calls that are under way

    monkeypatch.setattr(AttachedControlNet, "attach", interrupted)
    helper = DeepCacheHelper(pipe, schedule=Uniform())
    with pytest.raises(KeyboardInterrupt):
        helper.enable()
    assert [trace(each) for each in parts] == before
    assert not helper.enabled


def test_a_calibrated_schedule_is_compared_with_each_unet_and_its_own_scheduler():
    checked = []

    class Checked(Calibrated):
        branches = ()

        def __init__(self):
            """Nothing was calibrated."""

        def check(self, unet, scheduler):
            checked.append((unet, scheduler))

    pipe = ZOO["stable-cascade-combined"].load()
    assert pipe.scheduler is not pipe.prior_scheduler
    DeepCacheHelper(pipe, schedule=Checked())
    assert checked == [
        (pipe.decoder, pipe.scheduler),
        (pipe.prior_prior, pipe.prior_scheduler),
    ]
    checked.clear()
    unet = unet2d()
    DeepCacheHelper(unet, schedule=Checked())
    assert checked == [(unet, None)]
