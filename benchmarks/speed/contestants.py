"""Who runs in the races of `run`: the plain loop, the hand-cut one, this package, its rivals."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.deepcache import deepcache
from benchmarks.networks.loop_pipeline import LoopPipeline, hand_cut, twin
from benchmarks.speed.race import Contestant, Generation, Loop
from benchmarks.speed.tgate_tomesd import merged_tokens, t_gate
from deepcache_patch import FULL, DeepCacheHelper, Uniform

#: Arguments of `torch.compile`; `None` for eager. A graph that breaks, or is compiled too often, is
#: an error.
FORMS: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "compiled": {"fullgraph": True},
    "cudagraphs": {"fullgraph": True, "mode": "reduce-overhead"},
}


@dataclass(frozen=True)
class Field:
    """Everyone who runs one loop with one setting.

    Attributes:
        loop: What is run.
        form: A key of `FORMS`.
        interval: N of the paper's 1:N.
        branch: Where shallow steps are cut.
    """

    loop: Loop
    form: str
    interval: int
    branch: int

    def contestants(self, pipe: LoopPipeline) -> dict[str, Contestant]:
        """Those that can take part, by name; the plain loop first."""
        found: dict[str, Contestant] = {
            "plain": self._plain,
            "cut": self._cut,
            "by hand": self._by_hand,
            "ours": partial(self._ours, replay="reuse"),
            "ours, extrapolating": self._ours,
            "default": self._default,
        }
        if pipe.controlnet is not None:
            found["ours, ControlNet whole"] = partial(self._ours, only_unet=True, replay="reuse")
        if FORMS[self.form] is None:  # it asks for the timestep's value in every call
            found["DeepCache 0.1.1"] = self._deepcache
        return found

    def _plain(self, pipe: LoopPipeline, _stack: ExitStack) -> Generation:
        self._compile(pipe)
        return partial(self.loop.generation, pipe)

    def _cut(self, pipe: LoopPipeline, stack: ExitStack) -> Generation:
        """The network is cut for the whole race."""
        loop = self.loop
        arguments = pipe.call_arguments(batch=loop.batch * pipe.copies, size=loop.size)
        stack.enter_context(hand_cut(pipe, self.branch, arguments))
        return self._plain(pipe, stack)

    def _by_hand(self, pipe: LoopPipeline, stack: ExitStack) -> Generation:
        """The network of each step of ours, whole or cut, and nothing recorded."""
        cut = twin(pipe)
        self._cut(cut, stack)
        self._compile(pipe)
        whole, shallow = (
            {"unet": each.unet, "controlnet": each.controlnet} for each in (pipe, cut)
        )
        plan = Uniform(self.interval, self.branch).plan(self.loop.steps)

        def take(step: int) -> None:
            # Not by assignment: the pipeline would register each of them anew.
            vars(pipe).update(whole if plan[step] == FULL else shallow)

        return partial(self.loop.generation, pipe, take)

    def _ours(
        self, pipe: LoopPipeline, stack: ExitStack, *, only_unet: bool = False, **replay: Any
    ) -> Generation:
        schedule = Uniform(self.interval, self.branch)
        patched = pipe.unet if only_unet else pipe
        self._helped(DeepCacheHelper(patched, schedule=schedule, **replay), stack)
        if only_unet and FORMS[self.form] is not None:
            pipe.controlnet.compile(**FORMS[self.form])
        return partial(self.loop.generation, pipe)

    def _default(self, pipe: LoopPipeline, stack: ExitStack) -> Generation:
        """As many full steps, where the noise levels ask for them; the others above the output."""
        self._helped(DeepCacheHelper(pipe, interval=self.interval), stack)
        return partial(self.loop.generation, pipe)

    def _helped(self, helper: DeepCacheHelper, stack: ExitStack) -> None:
        stack.enter_context(helper)
        compiling = FORMS[self.form]
        if compiling is not None:
            helper.compile(**compiling)

    def _deepcache(self, pipe: LoopPipeline, _stack: ExitStack) -> Generation:
        def generation() -> Iterator[float]:
            with deepcache(pipe, self.interval, self.branch):
                yield from self.loop.generation(pipe)

        return generation

    def _compile(self, pipe: LoopPipeline) -> None:
        compiling = FORMS[self.form]
        for module in (pipe.unet, pipe.controlnet):
            if compiling is not None and module is not None:
                module.compile(**compiling)


def rivals(loop: Loop) -> dict[str, Contestant]:
    """Those that have neither interval nor branch, with the plain loop."""

    def plain(pipe: LoopPipeline, _stack: ExitStack) -> Generation:
        return partial(loop.generation, pipe)

    def tomesd(pipe: LoopPipeline, stack: ExitStack) -> Generation:
        stack.enter_context(merged_tokens(pipe))
        return partial(loop.generation, pipe)

    def gated(pipe: LoopPipeline, _stack: ExitStack) -> Generation:
        run: Callable[[], Any] = t_gate(
            pipe, loop.steps, batch=loop.batch, size=loop.size, seed=loop.seed
        )
        return partial(loop.whole, pipe, run)

    return {"plain": plain, "tomesd 0.1.3": tomesd, "T-GATE 1.0.0": gated}
