"""Full or shallow? What each call of a U-Net runs is decided here.

Some things are seen elsewhere: `unet` lets some calls run plainly, and in a generation that records
nothing all of them in full; `session` makes a step full if a full one before it was left out, or if
blocks were replaced in it.

The guide says what a step shall be, `locating` where a call stands, `unet_cuts` who watches the
layers that would be left out, `proof` whether the U-Net can be cut, the session what was recorded.
Here these are weighed. When in doubt, a call runs in full. What is then done stands in `unet`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch

from ..cutting.cut import CutAt
from ..cutting.features import FeatureKey, Recorded
from ..errors import warn
from ..schedules.context import Position
from ..schedules.guide import Guide
from ..schedules.noise import timesteps_of
from ..schedules.plans import FULL, OUTPUT
from .locating.timelines import driving_scheduler
from .proof import Proof
from .session import Session
from .slots import Slot
from .unet_cuts import UNetCuts

#: How many calls of one step are kept apart. More are no denoising loop that is known, and each
#: would hold a feature of its own: they run in full.
MAX_SLOTS: Final = 64


class Call(NamedTuple):
    """One call of a U-Net, as far as it is known before it runs.

    Attributes:
        guide: What leads its generation. A reset within the call takes it from the session.
        position: Where it stands.
        slot: The one of its step.
        sample: What it denoises.
        arguments: All of them, by name.
    """

    guide: Guide
    position: Position
    slot: Slot
    sample: torch.Tensor
    arguments: dict[str, Any]


class FullOrShallow:
    """Decides what each call of one U-Net runs, and warns once of each reason to run in full.

    Args:
        cuts: The U-Net's cuts.
        proof: Whether these cuts give what the whole U-Net gives.
        scheduler_getter: Gives the pipeline's schedulers, the likeliest for this U-Net first.
    """

    def __init__(
        self, cuts: UNetCuts, proof: Proof, scheduler_getter: Callable[[], Sequence[Any]]
    ) -> None:
        self._cuts = cuts
        self._proof = proof
        self._scheduler_getter = scheduler_getter
        self._warned: set[str] = set()

    def position(self, session: Session, arguments: Mapping[str, Any]) -> Position | None:
        """Where the call stands; `None`, with a warning that says why, if it must run in full.

        Without a warning if it is of no denoising loop.
        """
        anatomy = self._cuts.anatomy
        timestep, sample = anatomy.timestep(arguments), anatomy.sample(arguments)
        if timestep is None or not isinstance(sample, torch.Tensor):
            return None
        refusal = anatomy.refusal(arguments)
        if torch.is_grad_enabled():
            refusal = "gradients are enabled: wrap the denoising loop in torch.no_grad()"
        if refusal is not None:
            self.warn(refusal)
            session.tracker.passed(timestep)
            return None
        declared = session.declared and session.declared.scheduler
        session.scheduler = declared or driving_scheduler(self._scheduler_getter(), timestep)
        timesteps = timesteps_of(session.scheduler)
        position = session.locate(timestep, timesteps)
        if position is None and session.tracker.unclear is None:
            session.forget()
            return None
        if position is None:
            self.warn(str(session.tracker.unclear))
            return None
        if position.order >= MAX_SLOTS:
            if position.num_steps == 1:
                return None  # no step comes in which it could be shallow
            self.warn(
                f"it is more than the {MAX_SLOTS}th at the same timestep: in a loop of your own, "
                "call the helper's reset() before each picture"
            )
            return None
        return position

    def branch(self, session: Session, call: Call) -> tuple[CutAt, Sequence[Recorded]]:
        """The branch and what there is to replay, the newest first; of a full call `None` and none.

        Full is what the guide says is full, and whatever has no feature of its own to replay: the
        first step, a call of another shape or dtype than the one that recorded, more calls than the
        last full step had, a call that is given something else, and one that comes earlier in its
        step, because others were left out. A call is also full if somebody watches the layers that
        would be left out.
        """
        # A full step is `FULL` for the guide; from here on `None` is the branch of a full call.
        entry, slot = session.entry, call.slot
        if entry == FULL:
            return None, ()
        if slot.differing and session.slots.changes > 1:
            named = " and ".join(slot.differing)
            self.warn(
                f"{named} is another at each step, and what was recorded is of the one before"
            )
        recorded = self.to_replay(session, slot, entry)
        if not recorded or slot.is_earlier:
            return None, ()
        if recorded[0].key != FeatureKey.of(call.sample):
            return None, ()
        if entry == OUTPUT:
            answer = recorded[0].answer
            if answer is None or answer.asked != call.arguments.get("return_dict"):
                return None, ()
        return entry, recorded

    def coming(self, session: Session, timestep: Any, sample: torch.Tensor) -> CutAt:
        """The branch of the coming call, as far as it can be foreseen; `None` for one in full.

        Args:
            session: The state before that call.
            timestep: What a ControlNet got, which is called before the U-Net.
            sample: What the ControlNet got; it may differ from the U-Net's in its channels.
        """
        guide, timesteps = session.guide, timesteps_of(session.scheduler)
        if torch.is_grad_enabled() or guide is None or not self._cuts.anatomy.is_current:
            return None
        position = session.locate(timestep, timesteps, ahead=True)
        if position is None or position.generation != session.generation:
            return None
        if position.step >= guide.num_steps or position.order >= MAX_SLOTS:
            return None
        if session.has_lost_its_list(position):
            return None
        # This is kept: the U-Net's call will find that the step was entered.
        session.enter(guide, position.step)
        entry, slot = session.entry, session.slots.at(position.order)
        if entry == FULL or slot is None:
            return None
        recorded = self.to_replay(session, slot, entry)
        return entry if recorded and recorded[0].key.is_like(sample) else None

    def to_replay(self, session: Session, slot: Slot, branch: int) -> Sequence[Recorded]:
        """What there is to replay in a call that is cut there; nothing if it must be a full one."""
        recorded = session.cache.get(slot.number, branch)
        if not recorded or recorded[0].step < session.replayable_from:
            return ()
        asked = (branch, self._cuts.revision)
        if asked not in session.watched:
            session.watched[asked] = self._cuts.watcher(branch)
        reason = session.watched[asked] or self._proof.doubt(branch)
        if reason is not None:
            self.warn(reason)
            return ()
        return recorded

    def warn(self, reason: str) -> None:
        """Say, once, why calls run in full that should be shallow."""
        if reason not in self._warned:
            self._warned.add(reason)
            warn(f"a U-Net call runs in full: {reason}")
