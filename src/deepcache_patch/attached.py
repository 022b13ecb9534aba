"""One U-Net with a helper attached: what each of its calls runs.

The other modules know where a U-Net can be cut, which step a call belongs to and what is in the
cache; whether a call runs in full or shallow is decided here and nowhere else, in
`AttachedUNet._branch_to_run`.
"""

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from .anatomy import Anatomy, dissect
from .cut import Cut
from .errors import DeepCacheWarning
from .features import FeatureCache, FeatureKey, Recorded, Recorder, StandIn
from .guide import Context, Guide
from .patch import Patch
from .pipelines import unwrapped
from .schedule import FULL, PlanEntry
from .steps import Position, StepTracker

#: Where the patch goes. `nn.Module.__call__` runs this, if it is not `None`, instead of hooks and
#: `forward`. So the patch is outermost: whoever replaces `forward` (accelerate does at every
#: offload) is inside, and `Module.compile` puts its compiled call in the same place. Copies and
#: pickles of a module leave it out.
CALL: Final = "_compiled_call_impl"

#: How many calls of one step are kept apart. More are no denoising loop that is known, and each
#: would hold a feature of its own: they run in full.
MAX_SLOTS: Final = 64


@dataclass(frozen=True)
class Stats:
    """What has happened since `DeepCacheHelper.enable`.

    Attributes:
        generations: Denoising loops that were started.
        full_calls: U-Net calls that ran everything.
        shallow_calls: U-Net calls that ran only what lies above the branch.
        cache_nbytes: The most bytes of deep features that a U-Net's cache held at once; added up
            over the U-Nets of the pipeline.
    """

    generations: int = 0
    full_calls: int = 0
    shallow_calls: int = 0
    cache_nbytes: int = 0

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(
            self.generations + other.generations,
            self.full_calls + other.full_calls,
            self.shallow_calls + other.shallow_calls,
            self.cache_nbytes + other.cache_nbytes,
        )


class _Session:
    """What belongs to the generation of one thread."""

    def __init__(self) -> None:
        self.tracker = StepTracker()
        self.cache = FeatureCache()
        self.generation = -1
        self.guide: Guide | None = None
        self.entry: PlanEntry = FULL  # of the current step
        self.last_full = 0  # the last step that the guide wanted in full
        # The conditioning of each slot in that step.
        self.conditionings: dict[int, torch.Tensor | None] = {}

    def reset(self) -> None:
        self.tracker.reset()
        self.guide = None
        self.forget()

    def forget(self) -> None:
        """Let go of what was recorded."""
        self.cache.clear()
        self.conditionings.clear()
        self.entry, self.last_full = FULL, 0


class AttachedUNet:
    """One U-Net with its cache and the patch round its call.

    Nothing here keeps the pipeline alive, for the U-Net holds the patch.

    Args:
        unet: The U-Net as the pipeline calls it, compiled or not.
        anatomy: Of the U-Net inside `torch.compile`'s wrapper.
        begin: Gives what leads through a generation, at its first call.
        scheduler_of: Gives the pipeline's scheduler, or `None`.
        tag: Marks the patch.
    """

    def __init__(
        self,
        unet: nn.Module,
        anatomy: Anatomy,
        begin: Callable[[Context], Guide],
        scheduler_of: Callable[[], Any],
        *,
        tag: object,
    ) -> None:
        self.unet = unet
        self._anatomy = anatomy
        self._begin = begin
        self._scheduler_of = scheduler_of
        self._stand_in = StandIn()
        self._recorders: dict[int, Recorder] = {}
        self._cuts: dict[tuple[int | None, tuple[int, ...]], Cut] = {}
        self._local = threading.local()
        self._sessions: weakref.WeakSet[_Session] = weakref.WeakSet()
        self._pauses = 0
        self._warned: set[str] = set()
        self._generations = self._full_calls = self._shallow_calls = self._peak_nbytes = 0
        # A cut changes the U-Net for everybody, so calls take turns.
        self._lock = threading.RLock()
        self._patch = Patch(unet, CALL, unet._call_impl, tag=tag)

    @property
    def stats(self) -> Stats:
        """Counts since this was made."""
        return Stats(self._generations, self._full_calls, self._shallow_calls, self._peak_nbytes)

    @property
    def installed(self) -> bool:
        """Whether calls of the U-Net come here."""
        return self._patch.installed

    def attach(self) -> None:
        """Send calls of the U-Net here."""
        self._patch.install(self._call)

    def detach(self) -> None:
        """Leave the U-Net as it was, and let go of everything recorded."""
        with self._lock:
            self._patch.remove()
            self.reset()

    def pause(self, count: int = 1) -> None:
        """Run everything plainly until `resume` was called as often."""
        with self._lock:
            self._pauses += count

    def resume(self) -> None:
        """Take one `pause` back; a generation that was paused starts anew."""
        with self._lock:
            self._pauses -= 1
            self.reset()

    def follow(self, begin: Callable[[Context], Guide]) -> None:
        """Be led by another from the next call on, which is a first step."""
        with self._lock:
            self._begin = begin
            self.reset()

    def reset(self) -> None:
        """Forget the current generation of every thread."""
        with self._lock:
            for session in list(self._sessions):
                session.reset()

    def _call(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with self._lock:
            if self._patch.installed:
                return self._run(original, args, kwargs)
        # Removed while this call was waiting: somebody else's patch may be there by now.
        return self.unet(*args, **kwargs)

    def _run(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        arguments = self._anatomy.arguments(args, kwargs)
        if self._pauses or not arguments.keys() >= {"sample", "timestep"}:
            return original(*args, **kwargs)
        session = self._session()
        position = self._locate(session, arguments["timestep"])
        if position is None:
            self._full_calls += 1
            return original(*args, **kwargs)
        try:
            guide = self._lead(session, position)
            if not self._anatomy.is_current:
                self._anatomy = dissect(unwrapped(self.unet))
                self._cuts.clear()
                session.forget()
            branch, feature = self._branch_to_run(session, guide, position, arguments)
            if branch is None:
                self._full_calls += 1
            else:
                self._shallow_calls += 1
                trimmed = self._anatomy.trimmed(branch, arguments)
                if trimmed is not None:
                    args, kwargs = (), trimmed
            tapped = tuple(b for b in guide.branches if branch is None or b < branch)
            with self._cut(branch, tapped, feature):
                output = original(*args, **kwargs)
            self._keep_recorded(session, guide, position, arguments, output)
        except BaseException:
            # Whether the caller tries this step again, or what, cannot be known.
            session.reset()
            raise
        finally:
            for recorder in self._recorders.values():
                recorder.take()
        return output

    def _session(self) -> _Session:
        try:
            session: _Session = self._local.session
        except AttributeError:
            session = self._local.session = _Session()
            self._sessions.add(session)
        return session

    def _locate(self, session: _Session, timestep: Any) -> Position | None:
        """Where the call stands; `None`, with a warning that says why, if it must run in full."""
        if torch.is_grad_enabled():
            self._warn("gradients are enabled: wrap the denoising loop in torch.no_grad()")
            return None
        timesteps = getattr(self._scheduler_of(), "timesteps", None)
        if not isinstance(timesteps, torch.Tensor) or timesteps.ndim != 1:
            timesteps = None
        position = session.tracker.locate(timestep, timesteps)
        if position is None:
            self._warn(
                "its step cannot be told from its timestep: pass an element of the scheduler's "
                "timesteps, the same for the whole batch"
            )
            return None
        if position.slot >= MAX_SLOTS:
            self._warn(
                f"it is more than the {MAX_SLOTS}th at the same timestep: in a loop of your own, "
                "call the helper's reset() before each picture"
            )
            return None
        return position

    def _lead(self, session: _Session, position: Position) -> Guide:
        """What leads through the generation of this call, asked for the call's step."""
        if position.generation != session.generation:
            session.generation = position.generation
            finished, session.guide = session.guide, None
            session.forget()
            if finished is not None:
                finished.finish()
            self._generations += 1
        guide = session.guide
        if guide is None or position.step >= guide.num_steps:
            timesteps = session.tracker.remaining()
            if timesteps is not None and len(timesteps) != position.num_steps:
                timesteps = None
            # Without a list of timesteps nobody knows how many steps there will be.
            num_steps = position.num_steps or max(64, 2 * position.step)
            unet = unwrapped(self.unet)
            guide = self._begin(Context(num_steps, timesteps, self._scheduler_of(), unet))
            for branch in guide.branches:
                self._anatomy.check_branch(branch)
                self._recorders.setdefault(branch, Recorder())
            session.guide = guide
        if position.slot == 0:
            session.entry = guide.entry(position.step)
            if session.entry == FULL:
                session.last_full = position.step
                session.conditionings.clear()
        return guide

    def _branch_to_run(
        self, session: _Session, guide: Guide, position: Position, arguments: dict[str, Any]
    ) -> tuple[int | None, torch.Tensor | None]:
        """The branch and the feature to replay, or two `None` for a full call.

        Full is what the guide says is full, and whatever has no feature of its own to replay: the
        first step, a call of another shape or dtype than the one that recorded, more calls than the
        last full step had, and a call whose conditioning is that of another slot, because one
        before it was left out.
        """
        entry, slot = session.entry, position.slot
        if entry == FULL:
            return None, None
        recorded = session.cache.get(slot, entry, FeatureKey.of(arguments["sample"]))
        if not recorded or recorded[0].step < session.last_full:
            return None, None
        conditioning = _conditioning(arguments)
        slots = [s for s, its in session.conditionings.items() if _same_memory(its, conditioning)]
        if slots and slot not in slots:
            return None, None
        return entry, guide.feature(position.step, entry, recorded)

    @contextmanager
    def _cut(
        self, branch: int | None, tapped: tuple[int, ...], feature: torch.Tensor | None
    ) -> Iterator[None]:
        """The U-Net as one call shall see it: shallow, or whole; with taps where it is recorded."""
        if (branch, tapped) not in self._cuts:
            recorders = {b: self._recorders[b] for b in tapped}
            self._cuts[branch, tapped] = self._anatomy.cut(branch, self._stand_in, recorders)
        self._stand_in.feature = feature
        try:
            with self._cuts[branch, tapped].applied():
                yield
        finally:
            self._stand_in.feature = None

    def _keep_recorded(
        self,
        session: _Session,
        guide: Guide,
        position: Position,
        arguments: dict[str, Any],
        output: Any,
    ) -> None:
        slot, sample = position.slot, arguments["sample"]
        taken = {branch: recorder.take() for branch, recorder in self._recorders.items()}
        features = {branch: each for branch, each in taken.items() if each is not None}
        guide.observe(position, sample, output, features)
        if position.step + 1 == position.num_steps:
            session.cache.drop(slot)
            session.conditionings.pop(slot, None)
            return
        for branch, feature in features.items():
            recorded = Recorded(position.step, FeatureKey.of(sample), feature)
            session.cache.put(slot, branch, recorded, keep=guide.keep)
            session.conditionings[slot] = _conditioning(arguments)
        held = sum(each.cache.nbytes for each in self._sessions)
        self._peak_nbytes = max(self._peak_nbytes, held)

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"a U-Net call runs in full: {reason}", DeepCacheWarning, stacklevel=2)


def _conditioning(arguments: dict[str, Any]) -> torch.Tensor | None:
    found = arguments.get("encoder_hidden_states")
    return found if isinstance(found, torch.Tensor) else None


def _same_memory(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.data_ptr() == second.data_ptr() and first.shape == second.shape
