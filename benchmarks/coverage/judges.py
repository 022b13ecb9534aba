"""Which tests judge a module when it is mutated: those written for it, and no others.

A mutant that only some other module's tests would notice survives.
"""

from collections.abc import Iterable

_OF_THE_HELPER = (
    "test_helper",
    "inspection/test_branches",
    "running/test_controlnet",
    "running/test_exactness",
    "running/test_failures",
)

_OF_TIMESTEPS = (
    "running/test_astray",
    "running/test_timelines",
    "running/test_steps",
    "running/test_outside_of_loops",
)

#: Module below the package -> the beginnings of the paths of its test files, below `tests`.
JUDGES = {
    "patching.patch": ("patching/test_patch",),
    "cutting.cut": ("cutting/test_cut",),
    "cutting.features": ("cutting/test_features", "schedules/test_replay"),
    "cutting.anatomy": (
        "cutting/test_anatomy.",
        "cutting/test_anatomy_controlnet.",
        "cutting/test_anatomy_original",
    ),
    "cutting.anatomy.base": ("cutting/test_anatomy_base", "cutting/test_anatomy."),
    "cutting.anatomy.blocks": ("cutting/test_anatomy.",),
    "cutting.anatomy.cascade": ("cutting/test_anatomy_cascade",),
    "cutting.anatomy.controlnet": (
        "cutting/test_anatomy_controlnet.",
        "cutting/test_anatomy_long_skips",
    ),
    "cutting.anatomy.controlnet_xs": ("cutting/test_anatomy_controlnet_xs",),
    "cutting.anatomy.layered": (
        "cutting/test_anatomy.",
        "cutting/test_anatomy_controlnet",
        "cutting/test_anatomy_second_stream",
    ),
    "cutting.anatomy.levels": ("cutting/test_anatomy_levels",),
    "cutting.anatomy.long_skips": ("cutting/test_anatomy_long_skips",),
    "cutting.anatomy.original": ("cutting/test_anatomy_original",),
    "cutting.anatomy.second_stream": ("cutting/test_anatomy_second_stream",),
    "schedules.plans": ("schedules/test_plans",),
    "running.slots": ("running/test_marks", "running/test_slots"),
    "running.watching.stateful": (
        "running/test_kept_where",
        "running/test_kept_by_layers",
        "running/test_stateful",
        "running/test_observers",
    ),
    "running.second_run": ("running/test_unnoticed",),
    "running.decision": ("running/test_decision",),
    "running.session": ("running/test_session", "running/test_decision"),
    "running.locating.timelines": _OF_TIMESTEPS,
    "running.locating.strides": ("running/test_strides",),
    "running.locating.steps": _OF_TIMESTEPS,
    "running.watching.bytecode": ("running/test_bytecode",),
    "running.watching.observers": ("running/test_observers",),
    "running.pipeline.callers": ("running/test_callers",),
    "running.tracing": ("running/test_written_down",),
    "running.attachment": _OF_THE_HELPER,
    "running.pipeline.owners": _OF_THE_HELPER,
    "helper": _OF_THE_HELPER,
}


def judged(function: str, tests: Iterable[str]) -> set[str]:
    """Those of the tests that judge the module of a function, by its dotted name."""
    module = function.removeprefix("deepcache_patch.").rpartition(".")[0]
    judges = tuple(f"tests/{name}" for name in JUDGES[module])
    return {test for test in tests if test.startswith(judges)}
