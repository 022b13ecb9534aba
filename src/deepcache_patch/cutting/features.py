"""Deep features: recorded by a tap, kept in a cache, replayed by a stand-in.

A deep feature has the shape `(batch, channels, height, width)` of the layer that it enters, and the
dtype and device in which the U-Net computes. Where to record and to replay is known in `anatomy`;
when, is decided in `running`.
"""

import math
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from .answer import Answer


class Recorder:
    """Holds the deep feature that passed a tap last, until it is taken.

    Attributes:
        latest: The feature.
        in_graph: Whether compiled code recorded it.
        repeated: Whether a tap was passed more than once: there is a feature for each time then,
            and no telling which belongs to what.
    """

    def __init__(self) -> None:
        self.latest: torch.Tensor | None = None
        self.in_graph = False
        self.repeated = False
        self.taps: list[weakref.ref[Tap]] = []

    def take(self) -> torch.Tensor | None:
        """Return the feature, unless it is one of several, and let go of it."""
        latest, self.latest = self.latest, None
        if latest is None:  # no tap was passed since
            return None
        repeated, self.repeated = self.repeated, False
        for reference in tuple(self.taps):  # one may be gone meanwhile
            tap = reference()
            if tap is not None:
                tap.passed = False
        if repeated:
            return None
        if self.in_graph:
            return latest.clone()  # a CUDA graph writes to the same memory when it runs again
        return latest


class Around(nn.Module):
    """Stands round `inner`, and looks like it to everybody else.

    It is swapped in for one call only. A forward hook would do the same in eager mode, but a
    compiled U-Net that ran once without the hook never notices it: dynamo does not guard on hooks
    (`skip_nnmodule_hook_guards`), while a swapped child makes it compile a second graph.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        # Not a child: this has the children, parameters and buffers of what it stands round, so
        # that their names are the same inside a call. accelerate looks weights up by name there.
        vars(self)["inner"] = inner
        for names in ("_modules", "_parameters", "_buffers"):
            vars(self)[names] = vars(inner)[names]

    def __getattr__(self, name: str) -> Any:
        # The U-Net asks its middle block whether it `has_cross_attention`.
        return getattr(vars(self)["inner"], name)


class Tap(Around):
    """Runs `inner` and hands a copy of its output to a recorder."""

    def __init__(self, inner: nn.Module, recorder: Recorder) -> None:
        super().__init__(inner)
        self.recorder = recorder
        self.passed = False
        recorder.taps.append(weakref.ref(self, recorder.taps.remove))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what `inner` returns."""
        output = self.inner(*args, **kwargs)
        hidden_states = first_tensor(output)
        # A copy, because what comes next may write into this tensor: FreeU scales it in place.
        self.recorder.latest = hidden_states.clone()
        self.recorder.in_graph = torch.compiler.is_dynamo_compiling()
        if self.passed:
            self.recorder.repeated = True
        self.passed = True
        return output


class StandIn(nn.Module):
    """Takes the place of the middle block and returns a recorded deep feature."""

    def __init__(self) -> None:
        super().__init__()
        self.feature: torch.Tensor | None = None

    def forward(self, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Return a copy of the feature, since the layers above may write into it.

        Raises:
            RuntimeError: If there is no feature.
        """
        if self.feature is None:
            raise RuntimeError("the stand-in for the middle block was run without a deep feature")
        return self.feature.clone()

    def __iter__(self) -> Iterator[nn.Module]:
        yield self  # ComfyUI does not call a block but runs its layers, one by one


def first_tensor(output: Any) -> Any:
    """What a module returned first, or alone."""
    return output if isinstance(output, torch.Tensor) else output[0]


class FeatureKey(NamedTuple):
    """What must agree between the call that records and the call that replays.

    Attributes:
        shape: Shape of the U-Net's `sample`, `(batch, channels, height, width)`.
        dtype: Dtype of `sample`.
        device: Device of `sample`.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, sample: torch.Tensor) -> "FeatureKey":
        """The key of a call with this `sample`."""
        return cls(tuple(sample.shape), sample.dtype, sample.device)

    def is_like(self, sample: torch.Tensor) -> bool:
        """Whether a call with this `sample` has the key, but for its channels.

        The frames of a video `(batch, channels, frames, height, width)` may be in the batch.
        """
        pictures, size = _pictures(self.shape), self.shape[-2:]
        return (pictures, size, self.dtype) == (
            _pictures(tuple(sample.shape)),
            tuple(sample.shape[-2:]),
            sample.dtype,
        )


def _pictures(shape: tuple[int, ...]) -> int:
    batch, _channels, *frames = shape[:-2]
    return math.prod((batch, *frames))


class Recorded(NamedTuple):
    """A deep feature, and when it was recorded.

    Attributes:
        step: The step of the generation.
        key: The key of the call that recorded it.
        feature: The deep feature, or at the branch above the output, the output. Nobody else writes
            to it.
        sample: What the call denoised, where `feature` is its output.
        answer: What the call returned, where `feature` is its output.
    """

    step: int
    key: FeatureKey
    feature: torch.Tensor
    sample: torch.Tensor | None = None
    answer: Answer | None = None

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        return self.feature.nbytes + (0 if self.sample is None else self.sample.nbytes)

    def is_like(self, other: "Recorded") -> bool:
        """Whether a replay can go on from both."""
        return self.key == other.key and self.feature.dtype == other.feature.dtype


class FeatureCache:
    """The newest deep features of each (slot, branch), as many as it is told to keep.

    Filled by `AttachedUNet`, emptied by `Session`: at the start of a step, after calls of the last
    one, and when all is forgotten.
    """

    def __init__(self) -> None:
        self._recorded: dict[tuple[int, int], tuple[Recorded, ...]] = {}

    @property
    def nbytes(self) -> int:
        """The bytes held now."""
        held = (each for recorded in self._recorded.values() for each in recorded)
        return sum(each.nbytes for each in held)

    def put(self, slot: int, branch: int, recorded: Recorded, *, keep: int = 1) -> None:
        """Keep what was recorded, and no more than `keep` in all.

        Args:
            slot: Which U-Net call of the step recorded it, at least 0.
            branch: The branch that it belongs to, at least -1.
            recorded: The newest feature.
            keep: How many, at least 1. Those of another key, or that were computed in another dtype
                (autocast), are never kept beside the newest.
        """
        before = self._recorded.get((slot, branch), ())
        is_alike = bool(before) and before[0].is_like(recorded)
        self._recorded[slot, branch] = (recorded, *before)[:keep] if is_alike else (recorded,)

    def get(self, slot: int, branch: int) -> tuple[Recorded, ...]:
        """Return what was recorded, the newest first; all have the newest's key and dtype."""
        return self._recorded.get((slot, branch), ())

    def drop(self, slot: int) -> None:
        """Let go of what the slot holds."""
        for place in [place for place in self._recorded if place[0] == slot]:
            del self._recorded[place]

    def clear(self) -> None:
        """Let go of everything."""
        self._recorded.clear()
