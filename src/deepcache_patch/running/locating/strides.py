"""Do calls that leave entries of their list out, or are at none, go on like a loop?

A denoising loop goes down evenly, or changes its pace little by little. Timesteps that are drawn at
random do not.
"""

from typing import Final, NamedTuple

#: How far the first step of a loop may go, as a share of the whole way: one of four steps has 1/4.
_FIRST: Final = 0.3

#: How many times as long as the step before a step may be.
_LONGER: Final = 4

#: What steps are that prove a loop: their first share of the whole way, and how many times as long
#: one may be as another.
_SHORT: Final = 0.15
_ALIKE: Final = 1.5


class Stride(NamedTuple):
    """How far a call is from the step before.

    Attributes:
        far: 0 if it is at the same step.
        whole: How far all the steps go, or infinity, in the same units.
        entries: Whether these are entries of a list, or else values.
    """

    far: float
    whole: float
    entries: bool

    @property
    def is_next(self) -> bool:
        """Whether it is the next entry of the list."""
        return self.entries and self.far == 1


class Strides(NamedTuple):
    """The steps that calls have made one after the other.

    Attributes:
        last: The last one.
        alike: How many in a row were alike, up to it.
    """

    last: Stride | None = None
    alike: int = 0

    def fits(self, stride: Stride) -> bool:
        """Whether a loop may have this step after the last one."""
        last = self.last
        if stride.is_next:
            return True
        if last is None or last.entries != stride.entries:
            return stride.far <= _FIRST * stride.whole
        return stride.far <= _LONGER * last.far

    def after(self, stride: Stride) -> "Strides":
        """These and one more."""
        last = self.last
        if last is not None and last.entries == stride.entries and _alike(last, stride):
            return Strides(stride, self.alike + 1)
        return Strides(stride, int(stride.is_next or stride.far <= _SHORT * stride.whole))


def _alike(last: Stride, stride: Stride) -> bool:
    if stride.entries:  # evenly spaced, but for rounding
        return abs(stride.far - last.far) <= last.far / 10
    return last.far / _ALIKE <= stride.far <= last.far * _ALIKE
