"""What every anatomy gives: the skips of a U-Net, its branches, and the cut for each of them.

A layout is a subclass of `Anatomy` in another file of this folder. It knows its models
by `has_lists` or `are_lists`, remembers the modules that `with_blocks` gives, and refuses a model
with `cannot_cut` or `do_not_add_up`. Nothing here is about one layout.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import nn

from ...errors import InvalidSettingError, UnsupportedModelError
from ..cut import Cut
from ..features import Recorder, StandIn


class Dissected:
    """A model in whose calls and children the cuts of an anatomy find their way.

    A subclass ends its `__init__` with a call of `_remember`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = parameters_of(model)
        self._seen: list[tuple[Any, tuple[Any, ...]]] = []

    @property
    def is_current(self) -> bool:
        """Whether the model still has the blocks and layers that were found in it."""
        # A loop, because this runs in every call, and a generator expression is slower.
        for children, found in self._seen:  # noqa: SIM110
            if tuple(children.values()) != found:
                return False
        return True

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, by the names in the signature of the model's `forward`."""
        return dict(zip(self._parameters, args, strict=False)) | dict(kwargs)

    def _remember(self, owners: Iterable[nn.Module]) -> None:
        """Keep the children of all modules that the cuts look at."""
        self._seen = [(each._modules, tuple(each._modules.values())) for each in owners]


def parameters_of(model: object) -> tuple[str, ...]:
    """The names of the parameters of the model's `forward`."""
    # Not of its `type`, which a proxy has of its own; nor of what hides it on the instance.
    forward: Any = model.__class__.forward  # type: ignore[attr-defined]
    return tuple(_signature(forward).parameters)[1:]


def _signature(function: Any) -> inspect.Signature:
    """That of a function, or of the `forward` that it takes its place of and calls.

    Who replaces `forward` on a class often takes `*args, **kwargs`, without `functools.wraps`.
    """
    signature = inspect.signature(function)
    kinds = {each.kind for each in list(signature.parameters.values())[1:]}
    if inspect.isfunction(function) and kinds <= {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }:
        seen = inspect.getclosurevars(function)
        named = {*filter(inspect.isfunction, (*seen.nonlocals.values(), *seen.globals.values()))}
        found = [each for each in named - {function} if each.__name__ == "forward"]
        if len(found) == 1:  # of several, who knows which is called
            return _signature(found[0])
    return signature


def are_lists(model: object, *names: str) -> bool:
    """Whether the model has lists of modules with these names, which may be empty."""
    return all(isinstance(getattr(model, name, None), nn.ModuleList) for name in names)


def has_lists(model: object, *names: str) -> bool:
    """Whether the model has lists of modules with these names, and something in each."""
    return are_lists(model, *names) and all(len(getattr(model, name)) for name in names)


def with_blocks(owner: nn.Module, *names: str) -> list[nn.Module]:
    """A module, its lists of blocks with these names, the blocks, and the children of each."""
    lists = [getattr(owner, name) for name in names]
    blocks = [block for each in lists for block in each]
    return [owner, *lists, *blocks, *(child for block in blocks for child in block.children())]


def cannot_cut(model: nn.Module, reason: str) -> UnsupportedModelError:
    """What is raised when something about a model of a known layout is not as expected."""
    return UnsupportedModelError(f"{type(model).__name__} cannot be cut: {reason}")


def do_not_add_up(
    unet: nn.Module, emitted: int, consumed: int, ins: str = "down blocks", outs: str = "up blocks"
) -> UnsupportedModelError:
    """What is raised when other skips are consumed than emitted."""
    reason = f"its {ins} emit {emitted} skip connections, its {outs} consume {consumed}"
    return cannot_cut(unet, reason)


class Anatomy(Dissected, ABC):
    """The skips of one U-Net, and how to cut it. A subclass for each layout.

    Branch k keeps what produces skips 0…k and what consumes them.

    A subclass finds the skips in `__init__`, calls `_found` at its end, and gives the cut.

    Attributes:
        sample_name: The argument of the U-Net's `forward` that is denoised.
        timestep_name: The argument that says how far the denoising is.
        conditioning_name: The argument that two calls of one step differ in, such as the prompt.
        num_skips: How many skip connections there are.
        branches: The branches of this U-Net, `range(0, …)`.
        is_known: Whether it is made of diffusers' classes alone. What others do between their
            layers is not known, so a cut of theirs has to be proved by a call.
    """

    sample_name: ClassVar[str] = "sample"
    timestep_name: ClassVar[str] = "timestep"
    conditioning_name: ClassVar[str] = "encoder_hidden_states"

    num_skips: int
    branches: range
    is_known: bool

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        self._unet: Any = unet

    @classmethod
    @abstractmethod
    def fits(cls, model: object) -> bool:
        """Whether the model has this layout."""

    @abstractmethod
    def cut(self, branch: int | None, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
        """What one kind of call needs.

        Args:
            branch: One of `branches` for a shallow call; `None` for a call that runs everything.
            stand_in: What returns the deep feature in a shallow call.
            recorders: What receives the deep feature of a branch, for branches shallower than
                `branch`.

        Returns:
            The swaps: while they are applied, a call of the U-Net is of that kind.
        """

    def trimmed(self, branch: int, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments of a shallow call where they must differ from a full call's, else `None`.

        Args:
            branch: Where the call is cut.
            arguments: By name.
        """
        return None

    def refusal(self, arguments: Mapping[str, Any]) -> str | None:
        """Why a call with these arguments must run in full, if it must."""
        return None

    def residuals(
        self, arguments: Mapping[str, Any]
    ) -> tuple[Sequence[torch.Tensor] | None, torch.Tensor | None]:
        """What a ControlNet adds in this call: to each skip, and to the middle; `None` without."""
        return None, None

    def with_residuals(self, arguments: Mapping[str, Any], given: Any) -> dict[str, Any]:
        """The arguments with what another call of the ControlNet has returned."""
        return dict(arguments)

    def check_branch(self, branch: Any) -> None:
        """Check that this U-Net has the branch.

        Raises:
            InvalidSettingError: If it has not; the message names the range.
        """
        whole = isinstance(branch, Integral) and not isinstance(branch, bool)
        if not whole or branch not in self.branches:
            raise InvalidSettingError(
                f"branch {branch!r} is out of range: this {type(self._unet).__name__} has "
                f"{self.num_skips} skip connections, so branches 0 to {self.branches[-1]}; "
                "print(DeepCacheHelper(pipe).branches) shows them"
            )

    def handed_over(
        self, arguments: Mapping[str, Any], count: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as they are handed over: the first `count` by position, others by name.

        Hooks of others that read a call's positional arguments (tomesd's) go on finding them.
        """
        names = self._parameters[:count]
        named = {name: value for name, value in arguments.items() if name not in names}
        return tuple(arguments[name] for name in names), named

    def conditioning(self, arguments: Mapping[str, Any]) -> torch.Tensor | None:
        """The conditioning of a call, if it is a tensor."""
        found = arguments.get(self.conditioning_name)
        return found if isinstance(found, torch.Tensor) else None

    def sample(self, arguments: Mapping[str, Any]) -> Any:
        """What a call denoises, usually `(batch, channels, …)`; `None` if it is not given."""
        return arguments.get(self.sample_name)

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        """The timestep of a call, a number or a tensor; `None` if it has none."""
        return arguments.get(self.timestep_name)

    @staticmethod
    def _takes(model: object, *names: str) -> bool:
        """Whether the model's `forward` has arguments with these names."""
        return set(names) <= set(parameters_of(model))

    def _found(self, owners: Iterable[nn.Module]) -> None:
        """Remember the children of all modules that the cuts look at."""
        owners = list(owners)
        libraries = {type(each).__module__.partition(".")[0] for each in (self._unet, *owners)}
        self.is_known = libraries <= {"diffusers", "torch"}
        self._remember(owners)
