"""One U-Net with a helper attached: its calls come here, and are run whole or cut.

Which of the two is decided in `decision`; `unet_cuts` knows how it is cut. Here the calls of a
generation are led through: the guide is asked, features are recorded and replayed, all is counted.
"""

import threading
import weakref
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, cast

import torch
from torch import nn

from ..cutting.anatomy import Anatomy
from ..cutting.answer import Answer
from ..cutting.cut import CutAt
from ..cutting.features import FeatureKey, Recorded
from ..errors import ChangedResidualsError, warn
from ..patching.call import CallPatch
from ..patching.wrappers import unwrapped
from ..schedules.context import Context, FinishedCall, Position
from ..schedules.guide import Guide, GuideFactory
from ..schedules.noise import timesteps_of
from ..schedules.plans import OUTPUT
from .decision import Call, FullOrShallow
from .example import example_of
from .locating.declared import DeclaredGeneration
from .pipeline.callers import Callers
from .proof import Proof
from .residuals import Given, Source
from .session import Session
from .stats import GenerationRecord, LastGeneration, Stats
from .tracing import is_written_down
from .unet_cuts import UNetCuts

_ANOTHERS: Final = (
    "it is of another asyncio task than the loop whose block of generation() it is in: enter a "
    "block in each task"
)

# What each call adds to the counts; made once, for making it takes as long as adding it.
_FULL: Final = Stats(full_calls=1)
_SHALLOW: Final = Stats(shallow_calls=1)
_UNPLACED: Final = Stats(full_calls=1, unplaced_calls=1)


class _Invocation(NamedTuple):
    """A call as it came: what runs the U-Net, with what; `arguments` has both kinds by name."""

    original: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    arguments: dict[str, Any]

    def with_arguments(self, anatomy: Anatomy, changed: dict[str, Any] | None) -> "_Invocation":
        """The same with other arguments; itself where none changed."""
        if changed is None:
            return self
        return _Invocation(
            self.original, *anatomy.handed_over(changed, len(self.args)), arguments=changed
        )

    def run(self) -> Any:
        """What the U-Net returns."""
        return self.original(*self.args, **self.kwargs)


class AttachedUNet:
    """One U-Net with its cache and the patch round its call.

    Nothing here keeps the pipeline alive, for the U-Net holds the patch.

    Args:
        name: The name of the component that it is.
        patch: The patch round the U-Net's calls, to be installed.
        anatomy: That of the U-Net inside `torch.compile`'s wrapper.
        new_guide: Gives what leads through a generation, at its first call.
        scheduler_getter: Gives the pipeline's schedulers, the likeliest for this U-Net first.
        paused: Whether calls run plainly; asked for each of them.
        callers: Who may call the U-Net.
        declared: Gives the generation that the caller has declared, if it is in one.
        examples: Gets what a generation begins with, by U-Net: see `example_of`.

    Attributes:
        stats: Counts since this was made.
    """

    def __init__(
        self,
        *,
        name: str,
        patch: CallPatch,
        anatomy: Anatomy,
        new_guide: GuideFactory,
        scheduler_getter: Callable[[], Sequence[Any]],
        paused: Callable[[], bool],
        callers: Callers,
        declared: Callable[[], DeclaredGeneration | None],
        examples: MutableMapping[nn.Module, dict[str, Any] | None],
    ) -> None:
        self.name = name
        self._unet = unwrapped(patch.module)
        self._cuts = UNetCuts(self._unet, anatomy)
        self._new_guide = new_guide
        self._proof = Proof(self._unet, self._cuts, patch)
        self._decision = FullOrShallow(self._cuts, self._proof, scheduler_getter)
        self._paused = paused
        self._callers = callers
        self._declared = declared
        self._examples = examples
        self._local = threading.local()
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self.stats = Stats()
        self._course: GenerationRecord | None = None
        self._outdated: GenerationRecord | None = None  # of the settings before
        self._warned_of_changes = False
        self._doubts: set[str] = set()  # the kinds of those that were told
        # A cut changes the U-Net for everybody, so calls take turns.
        self._lock = patch.lock
        self._patch = patch

    @property
    def last_generation(self) -> LastGeneration | None:
        """How the generation went that began last; `None` before the first."""
        if self._course is None:
            return None
        return replace(self._course.so_far(), is_outdated=self._course is self._outdated)

    @property
    def installed(self) -> bool:
        """Whether calls of the U-Net come here."""
        return self._patch.installed

    @property
    def unet(self) -> nn.Module:
        """The U-Net as the pipeline calls it; changes when it was compiled since."""
        return self._patch.module

    @property
    def _anatomy(self) -> Anatomy:
        return self._cuts.anatomy

    @property
    def num_skips(self) -> int:
        """How many skip connections the U-Net has."""
        return self._anatomy.num_skips

    def attach(self) -> None:
        """Send calls of the U-Net here; wait for those that are under way."""
        self._patch.take_over(self._call)

    def detach(self) -> None:
        """Leave the U-Net as it was, and let go of everything recorded."""
        with self._lock:
            self._patch.remove()
            self.reset()
            for session in list(self._sessions):
                session.residuals.clear()

    def follow(self, new_guide: GuideFactory, *, is_change: bool) -> None:
        """Be led by another from the next call on, which is a first step."""
        with self._lock:
            self._new_guide = new_guide
            self.reset()
            if is_change:
                self._outdated = self._course

    def reset(self) -> None:
        """Forget the current generation of every thread."""
        with self._lock:
            for session in list(self._sessions):
                session.reset()

    def end(self, session: Session, *, failed: bool) -> None:
        """A generation is over that somebody has declared; by an error, perhaps."""
        with self._lock:
            guide = session.guide
            session.reset()
            session.residuals.clear()
            self._sessions.discard(session)
            if guide is not None:
                guide.finish()
            doubt = session.tracker.doubt()
            if doubt is None or failed or not self.installed or doubt.kind in self._doubts:
                return
            self._doubts.add(doubt.kind)
            warn(doubt.text)

    def foresee(self, timestep: Any, sample: torch.Tensor, source: Source) -> CutAt:
        """The branch of the coming call, for a ControlNet that is called before it.

        What comes may still run in full, if it turns out to be another call than it seems.

        Args:
            timestep: What the ControlNet got.
            sample: What the ControlNet got; it may differ from the U-Net's in its channels.
            source: The ControlNet.

        Returns:
            `None` if the call will run in full, if that is not known, or if it has not been seen
            that what the ControlNet gives reaches the U-Net as it is.
        """
        with self._lock:
            if self._runs_plainly(sample) or not self._patch.installed:
                return None
            session = self._session()
            branch = self._decision.coming(session, timestep, sample)
            if branch is None:
                return None
            if session.residuals.trusts(source):
                # At branch -1 the U-Net will not run, but the ControlNet does: the least of it.
                return max(branch, 0)
            reason = "what it gave was changed before it reached the U-Net"
            if not source.is_own:
                reason = "its forward is not the libraries', and may count its residuals"
            if (source.changed or not source.is_own) and not self._warned_of_changes:
                self._warned_of_changes = True
                warn(
                    f"{source.name} runs whole on every step: {reason}. To have it cut along, give "
                    "its residuals to the U-Net as they are and change conditioning_scale; "
                    f"{self._alone} never cuts it"
                )
            return None

    def remember(self, call: Given) -> None:
        """Remember a call of a ControlNet: the U-Net's will show whether its residuals arrive."""
        with self._lock:
            self._session().residuals.give(call)

    @property
    def _alone(self) -> str:
        """How to make a helper that knows of no ControlNets."""
        return f"DeepCacheHelper(pipe.{self.name})"

    def _call(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with self._lock, self._patch.room_for_graphs(self._kinds_of_calls):
            if self._patch.installed:
                try:
                    arguments = self._anatomy.arguments(args, kwargs)
                    return self._run(_Invocation(original, args, kwargs, arguments))
                except BaseException:
                    # Whether the caller tries this step again, or what, cannot be known.
                    session = self._session()
                    session.reset()
                    session.residuals.clear()
                    raise
        return self._patch.module(*args, **kwargs)

    def _run(self, invocation: _Invocation) -> Any:
        anatomy, arguments = self._cuts.anatomy, invocation.arguments
        sample = anatomy.sample(arguments)
        session = self._session()
        if self._runs_plainly(sample):
            timestep = anatomy.timestep(arguments)
            session.tracker.passed(timestep, is_written_down=is_written_down(sample))
            session.reset()  # what was recorded before this call is too old after it
            return self._unrecorded(session, invocation)
        position = self._decision.position(session, arguments)
        if position is None:
            output = self._unrecorded(session, invocation)
            self.stats += _UNPLACED
            session.course.called_anywhere()
            return output
        try:
            guide = self._lead(session, position)
            if position.step == position.order == 0:
                self._examples[self._unet] = example_of(arguments)
            # Where no call can be shallow, neither slots nor replaced blocks matter.
            if not guide.branches and not guide.observes:
                output = self._unrecorded(session, invocation)
                self.stats += _FULL
                session.course.called(position, None)
                session.called(position)
                return output
            return self._step(session, guide, position, invocation)
        except BaseException:
            self._cuts.taken()
            raise

    def _step(
        self, session: Session, guide: Guide, position: Position, invocation: _Invocation
    ) -> Any:
        """A call of a generation in which something is recorded or observed: full, or shallow."""
        if self._cuts.look_again():
            session.forget(midway=True)
        anatomy, arguments = self._cuts.anatomy, invocation.arguments
        sample = anatomy.sample(arguments)
        given = anatomy.conditioning(arguments)
        slot = session.slot_of(position, sample, given, self._cuts.hooks())
        call = Call(guide, position, slot, sample, arguments)
        branch, recorded = self._decision.branch(session, call)
        feature = output = None
        if branch == OUTPUT:
            output = _answer_without_running(call, recorded)
        elif branch is not None:
            feature = guide.feature(position.step, branch, recorded)
        del recorded  # or the traceback of an error would keep all of it
        changed = self._completed(session, branch, arguments)
        self.stats += _FULL if branch is None else _SHALLOW
        if branch == OUTPUT:  # nothing is left to run
            session.course.called(position, branch)
            self._finish_call(session, call, output, is_forecast=True)
            return output
        if branch is not None:
            changed = anatomy.trimmed(branch, changed or arguments) or changed
        invocation = invocation.with_arguments(anatomy, changed)
        shallower = (each for each in guide.branches if branch is None or each < branch)
        tapped = tuple([each for each in shallower if each != OUTPUT])
        to_prove = None
        if branch is None:
            to_prove = self._proof.to_prove(invocation.args, invocation.kwargs, tapped)
        with self._cuts.applied(branch, tapped, feature):
            output = invocation.run()
        session.course.called(position, branch)
        if branch is None:
            self._proof.prove(invocation.original, to_prove, output, tapped)
        self._finish_call(session, call, output)
        return output

    def _unrecorded(self, session: Session, invocation: _Invocation) -> Any:
        """A call that runs everything, and in which nothing is recorded.

        Full steps of a generation that records go through `_step`.
        """
        changed = self._completed(session, None, invocation.arguments)
        return invocation.with_arguments(self._anatomy, changed).run()

    def _runs_plainly(self, sample: Any) -> bool:
        """Whether a call is to be that of a U-Net without a helper.

        So it is, too, where somebody has kept the U-Net of a pipeline that is gone; unless it is
        another pipeline's as well.
        """
        if self._paused() or is_written_down(sample):
            return True
        declared = self._declared()
        if declared is not None and declared.is_anothers():
            self._decision.warn(_ANOTHERS)
            return True
        return self._callers.gone and not self._callers.are_pipelines()

    @property
    def _kinds_of_calls(self) -> int:
        """Recording and shallow at each branch, and plain."""
        return 2 * len(self._anatomy.branches) + 1

    def _session(self) -> Session:
        """The session of the `generation()` block that the call is in; else the thread's."""
        declared = self._declared()
        if declared is not None and declared.is_anothers():
            return Session()  # of no generation
        if declared is not None:
            if self not in declared.sessions:
                declared.sessions[self] = Session(declared)
                self._sessions.add(declared.sessions[self])
            return cast(Session, declared.sessions[self])
        try:
            session: Session = self._local.session
        except AttributeError:
            session = Session(by_pipeline=self._callers.are_pipelines)
            self._local.session = session
            self._sessions.add(session)
        return session

    def _lead(self, session: Session, position: Position) -> Guide:
        """What leads through the generation of this call, asked for the call's step."""
        if position.generation != session.generation:
            self._begin_generation(session, position.generation)
        guide = session.guide
        is_within = guide is not None and position.step < guide.num_steps
        if is_within and session.has_lost_its_list(position):
            guide = None  # it was made for the entries of that list
            session.forget()
        # There is none, or there are more steps than were guessed.
        if guide is None or position.step >= guide.num_steps:
            timesteps = session.tracker.remaining()
            if timesteps is not None and len(timesteps) != position.num_steps:
                timesteps = None
            # Without a list of timesteps nobody knows how many steps there will be.
            num_steps = position.num_steps or max(64, 2 * position.step)
            context = Context(
                num_steps,
                timesteps,
                session.scheduler,
                self._unet,
                is_own=session.tracker.runs_on(timesteps_of(session.scheduler)),
                is_guess=position.num_steps is None,
                is_declared=session.declared is not None,
            )
            guide = self._new_guide(context)
            self._cuts.record(guide.branches)
            self._proof.begin()
            session.guide, session.is_guess = guide, context.is_guess
            session.course.calibration = guide.learns
        session.enter(guide, position.step)
        return guide

    def _begin_generation(self, session: Session, number: int) -> None:
        session.generation = number
        finished, session.guide = session.guide, None
        session.forget()
        if finished is not None:
            finished.finish()
        self.stats += Stats(generations=1)
        session.course.finish()
        self._course = session.course = GenerationRecord(self.name)

    def _completed(
        self, session: Session, branch: CutAt, arguments: dict[str, Any]
    ) -> dict[str, Any] | None:
        """The arguments with all residuals that the call needs, if a cut ControlNet gave fewer.

        Raises:
            ChangedResidualsError: If something was done to those that it gave.
        """
        residuals, middle = self._anatomy.residuals(arguments)
        if residuals is None:
            return None
        call = session.residuals.arrive(residuals, middle)
        needed = self.num_skips if branch is None else branch + 1
        sources = session.residuals.sources_cut
        if len(residuals) >= needed or not sources:
            return None
        if call is not None and call.again is not None and call.is_unwritten():
            return self._anatomy.with_residuals(arguments, call.again())
        raise ChangedResidualsError(
            f"the residuals of {' and '.join(sources)} were changed before they reached the U-Net, "
            "and this call needs more of them than were made. From now on they are all made: run "
            f"the generation again. {self._alone} makes all of them from the start"
        )

    def _finish_call(
        self, session: Session, call: Call, output: Any, *, is_forecast: bool = False
    ) -> None:
        """A call is over: let the guide observe it, tell the session, keep what was recorded."""
        guide, position, slot, sample, arguments = call
        if self._cuts.ran_twice:
            self._decision.warn(
                "its layers were run more than once in it, by what somebody has put round its "
                "forward, and each time has a feature of its own"
            )
        features = self._cuts.taken()
        answer = None
        if OUTPUT in guide.branches and not is_forecast:
            found = Answer.of(output, arguments)
            if found is None:
                self._decision.warn("it returns more than one tensor, so none can be forecast")
            else:
                answer, made = found
                features[OUTPUT] = made.clone()
        if guide.observes:
            finished = FinishedCall(
                position,
                sample,
                output,
                features,
                replaced={each: session.cache.get(slot.number, each) for each in features},
                slot=slot.number,
                instead_of=slot.instead_of,
            )
            guide.observe(finished)
        session.called(position, slot)
        if position.is_last or not features:
            return
        keep = 1 if slot.is_earlier else guide.keep  # no trend leads on where calls are left out
        key = FeatureKey.of(sample)
        for branch, feature in features.items():
            is_output = branch == OUTPUT
            recorded = Recorded(
                position.step,
                key,
                feature,
                sample=sample.clone() if is_output else None,
                answer=answer if is_output else None,
            )
            session.cache.put(slot.number, branch, recorded, keep=keep)
        held = sum(each.cache.nbytes for each in self._sessions)
        if held > self.stats.cache_nbytes:
            self.stats = replace(self.stats, cache_nbytes=held)


def _answer_without_running(call: Call, recorded: Sequence[Recorded]) -> Any:
    """What a call above the output returns: the guide's output, in what the U-Net returned."""
    made = call.guide.output(call.position.step, recorded, call.sample)
    answer: Any = recorded[0].answer  # what has none is not replayed
    return answer.with_tensor(made.clone())  # the pipeline may write into it
