"""What every anatomy gives: the skips of a U-Net, its branches, and the cut for each of them.

A layout is a subclass of `Anatomy` in another file of this folder. It says at its head by what it
knows its models, remembers the modules that `with_blocks` gives, and refuses a model with
`cannot_cut` or `do_not_add_up`. Nothing here is about one layout.
"""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import nn

from ...errors import InvalidSettingError, UnsupportedModelError
from ..cut import Cut, CutAt
from ..features import Recorder, StandIn
from ..origin import put_around, runs_known_code


class Dissected:
    """What anatomies of U-Nets and ControlNets share: argument names, and if a block was replaced.

    A subclass ends its `__init__` with a call of `_remember`.

    Attributes:
        blocks: The modules whose children the cuts look at.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = parameters_of(model)
        self._seen: list[tuple[Any, tuple[Any, ...]]] = []
        self._code: list[tuple[nn.Module, type, dict[str, Any], Any]] = []
        self._kinds: list[tuple[type, Any]] = []
        self.blocks: frozenset[nn.Module] = frozenset()

    @property
    def is_current(self) -> bool:
        """Whether the model still has the blocks and layers that were found in it."""
        # A loop, because this runs in every call, and a generator expression is slower.
        for children, found in self._seen:  # noqa: SIM110
            if tuple(children.values()) != found:
                return False
        return True

    @property
    def runs_the_same(self) -> bool:
        """Whether these blocks and layers have the classes and the `forward` that were found."""
        # Loops, and no function calls, for the same reason.
        for module, kind, own, forward in self._code:
            if module.__class__ is not kind or own.get("forward") is not forward:
                return False
        for kind, forward in self._kinds:  # noqa: SIM110
            if kind.forward is not forward:  # type: ignore[attr-defined]
                return False
        return True

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, by the names in the signature of the model's `forward`."""
        return dict(zip(self._parameters, args, strict=False)) | dict(kwargs)

    def _remember(self, owners: Iterable[nn.Module]) -> None:
        """Keep the children of all modules that the cuts look at."""
        self.blocks = frozenset(owners)
        self._seen = [(each._modules, tuple(each._modules.values())) for each in self.blocks]
        self._remember_code()

    def _remember_code(self) -> None:
        """Keep what calls of these modules and of their children run."""
        children = (child for each in self.blocks for child in each._modules.values())
        modules = self.blocks | {each for each in children if each is not None}
        self._code = [
            (each, each.__class__, vars(each), vars(each).get("forward")) for each in modules
        ]
        kinds = {kind for _, kind, _, _ in self._code}
        self._kinds = [(kind, getattr(kind, "forward", None)) for kind in kinds]


def parameters_of(model: object) -> tuple[str, ...]:
    """The names of the parameters of the model's `forward`."""
    # Not of its `type`, which a proxy has of its own; nor of what hides it on the instance.
    kinds = [kind for kind in model.__class__.__mro__ if "forward" in vars(kind)]
    signature = _signature(vars(kinds[0])["forward"])
    for kind, base in pairwise(kinds):
        if not _takes_anything(signature) or not _calls_its_base(vars(kind)["forward"]):
            break
        signature = _signature(vars(base)["forward"])
    return tuple(signature.parameters)[1:]


def _signature(function: Any) -> inspect.Signature:
    """That of a function, or of the `forward` that it takes its place of and calls.

    Who replaces `forward` on a class often takes `*args, **kwargs`, without `functools.wraps`.
    """
    signature = inspect.signature(function)
    if inspect.isfunction(function) and _takes_anything(signature):
        seen = inspect.getclosurevars(function)
        named = {*filter(inspect.isfunction, (*seen.nonlocals.values(), *seen.globals.values()))}
        found = [each for each in named - {function} if each.__name__ == "forward"]
        if len(found) == 1:  # of several, who knows which is called
            return _signature(found[0])
    return signature


def _takes_anything(signature: inspect.Signature) -> bool:
    kinds = {each.kind for each in list(signature.parameters.values())[1:]}
    return kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def _calls_its_base(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and "__class__" in code.co_freevars and "forward" in code.co_names


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


# Names, and parts of names, of what differs between the steps of any loop. The options are
# ComfyUI's, which keeps its own state in them.
_MOVING = ("control", "transformer_options")
_MOVING_PARTS = re.compile("timestep|sigma|residual|block_samples")


def _put_tensors(found: dict[str, torch.Tensor], name: str, value: Any) -> None:
    """Put a tensor, or those in a list or dictionary, where they are found by name."""
    if value is None or isinstance(value, bool) or _MOVING_PARTS.search(name):
        return
    if isinstance(value, torch.Tensor):
        if value.layout == torch.strided and not value.is_nested:
            found[name] = value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            _put_tensors(found, f"{name}.{key}", each)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            _put_tensors(found, f"{name}[{index}]", each)


class Anatomy(Dissected, ABC):
    """The skips of one U-Net, and how to cut it. A subclass for each layout.

    Branch k keeps what produces skips 0…k and what consumes them.

    A subclass says by what it knows a model, finds the skips in `__init__`, calls `_found` at its
    end, and gives the cut. It has a `fits` of its own where names do not tell its models.

    Args:
        unet: The U-Net; it is only looked at.

    Attributes:
        lists: The lists of modules by which a model is known.
        may_be_empty: Whether there may be nothing in them, so that it is refused with the reason.
        parts: The other attributes by which it is known.
        absent: Attributes that it does not have.
        sample_name: The argument of the U-Net's `forward` that is denoised.
        timestep_name: The argument that says how far the denoising is.
        more_arguments: The other arguments by which it is known.
        num_skips: How many skip connections there are.
        branches: The branches of this U-Net, `range(0, …)`.
        is_known: Whether it and its blocks run what diffusers' classes define. What others do
            between their layers is not known, so a cut of theirs has to be proved by a call.
    """

    lists: ClassVar[tuple[str, ...]]
    may_be_empty: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = ()
    absent: ClassVar[tuple[str, ...]] = ()
    sample_name: ClassVar[str] = "sample"
    timestep_name: ClassVar[str] = "timestep"
    more_arguments: ClassVar[tuple[str, ...]] = ()

    num_skips: int
    branches: range
    is_known: bool

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        self._unet: Any = unet

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Whether the model has this layout."""
        return cls._has_parts(model) and cls._takes_arguments(model)

    @abstractmethod
    def cut(self, branch: CutAt, stand_in: StandIn, recorders: Mapping[int, Recorder]) -> Cut:
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
            arguments: Those of the call, by name.
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

    def conditioning(self, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """All tensors that say what a call is about: its prompt, labels, pictures, positions.

        Args:
            arguments: Those of the call, by name. Tensors may be in lists and dictionaries.

        Returns:
            By name. Not what moves with the steps: the sample, the timestep, and residuals.
        """
        moving = {self.sample_name, self.timestep_name, *_MOVING}
        found: dict[str, torch.Tensor] = {}
        for name, value in arguments.items():
            if name not in moving:
                _put_tensors(found, name, value)
        return found

    def sample(self, arguments: Mapping[str, Any]) -> Any:
        """What a call denoises, usually `(batch, channels, …)`; `None` if it is not given."""
        return arguments.get(self.sample_name)

    def timestep(self, arguments: Mapping[str, Any]) -> Any:
        """The timestep of a call, a number or a tensor; `None` if it has none."""
        return arguments.get(self.timestep_name)

    @classmethod
    def _has_parts(cls, model: object) -> bool:
        has = are_lists if cls.may_be_empty else has_lists
        return (
            has(model, *cls.lists)
            and all(hasattr(model, name) for name in cls.parts)
            and not any(hasattr(model, name) for name in cls.absent)
        )

    @classmethod
    def _takes_arguments(cls, model: object) -> bool:
        names = {cls.sample_name, cls.timestep_name, *cls.more_arguments}
        return names <= set(parameters_of(model))

    def _found(self, owners: Iterable[nn.Module]) -> None:
        """Remember the children of all modules that the cuts look at."""
        self._remember([self._unet, *owners])
        self._look_at_code()

    def look_again_at_code(self) -> bool:
        """See whose code the blocks run now; returns whether somebody's own came or went.

        accelerate puts its hooks round `forward` anew after each generation, which changes nothing.
        """
        kinds, around = {module: kind for module, kind, _, _ in self._code}, self._around
        self._remember_code()
        self._look_at_code()
        return around != self._around or any(
            kinds[module] is not kind for module, kind, _, _ in self._code
        )

    def _look_at_code(self) -> None:
        modules = (module for module, *_ in self._code)
        self._around = {module: put_around(module) for module in modules}
        # A wrapper sees every call of the U-Net. One of a block may stand behind a tap.
        self.is_known = runs_known_code(self._unet, wrapped=True) and all(
            runs_known_code(each) for each in self.blocks - {self._unet}
        )
