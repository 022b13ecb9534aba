"""`DeepCacheSDHelper`: the calls, attributes and pictures of the class of that name in the package
DeepCache 0.1.1, for programs that were written for it. Nothing else is known by its words.
"""

from dataclasses import dataclass
from typing import Any, Final

from .errors import InvalidSettingError
from .helper import DeepCacheHelper
from .running.pipeline.components import unets_of
from .schedules.context import Context
from .schedules.plans import FULL, Plan, Uniform, whole_number

#: How that package wraps single layers; here no layer is wrapped.
_WRAPPING: Final = (
    "is_enter_position",
    "is_skip_step",
    "unwrap_modules",
    "wrap_block_forward",
    "wrap_modules",
    "wrap_unet_forward",
)


@dataclass(frozen=True)
class _CountingTimesteps(Uniform):
    """`Uniform`, but a timestep that is listed twice (by PNDM) counts where it stands first.

    So it is with DeepCache 0.1.1. Where no step but the first would ever be full (Heun, for an even
    interval), steps are counted all the same.
    """

    def __str__(self) -> str:
        return f"Uniform(interval={self.interval}, branch={self.branch})"

    def plan_for(self, context: Context) -> Plan:
        """The plan of a generation, by its timesteps."""
        plan, timesteps = self.plan(context.num_steps), context.timesteps
        if timesteps is None or len(timesteps) != len(plan):
            return plan
        first = {value: step for step, value in reversed(list(enumerate(timesteps)))}
        places = (first[value] for value in timesteps)
        found = Plan(FULL if place % self.interval == 0 else self.branch for place in places)
        starves = len(found.full_steps) == 1 < len(plan.full_steps)
        return plan if starves else found


class DeepCacheSDHelper:
    """The helper of DeepCache 0.1.1: uniform steps, and features that are used again as they are.

    The calls come in any order, and each may come twice. `DeepCacheHelper` does more, and is the
    better choice for new programs.

    Args:
        pipe: A diffusers pipeline with a U-Net, of any component name; or a bare U-Net. It may also
            be given to `enable`, or assigned to `pipe`, which counts from the next `enable` on.

    Attributes:
        pipe: The pipeline, once there is one.
        params: What `set_params` was given, with `cache_branch_id` taken apart by three.
        function_dict: Empty while disabled; while enabled, the U-Net's own `forward` by the key
            "unet_forward". No layer is wrapped here, so there are no others.
        cached_output: Always empty: features are kept elsewhere.
        cur_timestep: Always 0 unless it is assigned to; nothing goes by it.
        start_timestep: Always `None` unless it is assigned to; nothing goes by it.

    Example:
        >>> helper = DeepCacheSDHelper(pipe=pipe)  # doctest: +SKIP
        >>> helper.set_params(cache_interval=3, cache_branch_id=0)  # doctest: +SKIP
        >>> helper.enable()  # doctest: +SKIP
        >>> images = pipe("a red circle").images  # doctest: +SKIP
        >>> helper.disable()  # doctest: +SKIP
    """

    pipe: Any
    params: dict[str, Any]
    function_dict: dict[Any, Any]
    cached_output: dict[Any, Any]
    cur_timestep: int
    start_timestep: int | None

    def __init__(self, pipe: Any = None) -> None:
        if pipe is not None:
            self.pipe = pipe
        self._helper: DeepCacheHelper | None = None  # while enabled
        self._last: DeepCacheHelper | None = None  # the one before, for what it has counted
        self.set_params()
        self.reset_states()

    def enable(self, pipe: Any = None) -> None:
        """Patch the pipeline's U-Net; if it is enabled already, begin anew with what is set.

        Args:
            pipe: In the place of the one that it has, which is left as it was before it was
                enabled; where this one is refused, the one that it has stays enabled.

        Raises:
            InvalidSettingError: If there is no pipeline, or its U-Net lacks the branch.
            UnsupportedModelError: If it has no U-Net that can be cut.
            AlreadyEnabledError: If another helper is enabled on the same U-Net.
        """
        pipe = getattr(self, "pipe", None) if pipe is None else pipe
        if pipe is None:
            raise InvalidSettingError(
                "there is no pipeline to enable: give one, DeepCacheSDHelper(pipe=pipe)"
            )
        helper = before = self._helper
        if helper is not None and helper.pipe is pipe:
            helper.follow(self._schedule)
            helper.enable()
        else:
            helper = DeepCacheHelper(pipe, schedule=self._schedule, replay="reuse")
            _enable_instead(helper, before)
        self.pipe, self._helper, self._last = pipe, helper, None
        self.reset_states()
        self.function_dict["unet_forward"] = next(iter(unets_of(pipe).values())).forward

    def disable(self) -> None:
        """Leave every module as it was. Harmless when not enabled."""
        if self._helper is not None:
            self._last, self._helper = self._helper, None
            self._last.disable()
        self.reset_states()

    def set_params(
        self, cache_interval: int = 1, cache_branch_id: int = 0, skip_mode: str = "uniform"
    ) -> None:
        """Set what runs, before or while enabled. What is not given gets its default.

        Args:
            cache_interval: N of the paper's 1:N, at least 1, which leaves nothing out.
            cache_branch_id: The branch of the other steps, at least 0; see `DeepCacheHelper`.
            skip_mode: Only "uniform".

        Raises:
            InvalidSettingError: If a value is out of range; nothing is changed then. Which branches
                there are is known when it is enabled.
        """
        interval = whole_number("cache_interval", cache_interval, 1)
        branch = whole_number("cache_branch_id", cache_branch_id, 0)
        if skip_mode != "uniform":
            raise InvalidSettingError(
                f"skip_mode must be 'uniform', not {skip_mode!r}: for another strategy take "
                "DeepCacheHelper(pipe, schedule=...)"
            )
        if self._helper is not None:
            self._helper.follow(_CountingTimesteps(interval, branch))
        self.params = {
            "cache_interval": cache_interval,
            "cache_layer_id": cache_branch_id % 3,
            "cache_block_id": cache_branch_id // 3,
            "skip_mode": skip_mode,
        }

    def reset_states(self) -> None:
        """Forget the current generation: the next U-Net call runs in full as a first step."""
        self.cur_timestep, self.start_timestep = 0, None
        self.function_dict, self.cached_output = {}, {}
        if self._helper is not None:
            self._helper.reset()

    @property
    def _schedule(self) -> Uniform:
        """What `params` say."""
        branch = 3 * self.params["cache_block_id"] + self.params["cache_layer_id"]
        return _CountingTimesteps(self.params["cache_interval"], branch)

    def __repr__(self) -> str:
        pipe = type(self.pipe).__name__ if hasattr(self, "pipe") else "no pipeline"
        interval, branch = self._schedule.interval, self._schedule.branch
        state = "enabled" if self._helper is not None and self._helper.enabled else "disabled"
        return (
            f"DeepCacheSDHelper({pipe}, cache_interval={interval}, cache_branch_id={branch}, "
            f"{state})"
        )

    def __str__(self) -> str:
        """What is set, and what `print` of a `DeepCacheHelper` says, of the last time enabled."""
        helper = self._helper or self._last
        return "\n".join([repr(self), *([] if helper is None else str(helper).split("\n")[1:])])

    def __getattr__(self, name: str) -> Any:
        if name in _WRAPPING:
            raise AttributeError(
                f"{name} is how DeepCache 0.1.1 wraps layers, and no layer is wrapped here: to say "
                "which steps are full, take DeepCacheHelper(pipe, schedule=...)"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        # A copied pipeline is a plain one, and so is the helper that was copied along with it.
        return {**vars(self), "_helper": None, "_last": None, "function_dict": {}}


def _enable_instead(helper: DeepCacheHelper, before: DeepCacheHelper | None) -> None:
    """Disable what was enabled before, which comes back if the other is refused."""
    was_enabled = before is not None and before.enabled
    if before is not None:
        before.disable()  # first, since both pipelines may have the same U-Net
    try:
        helper.enable()
    except Exception:
        if before is not None and was_enabled:
            before.enable()
        raise
