"""A gated, removable wrapper round one callable attribute of one object.

What the wrapper does is the caller's business: nothing here knows of diffusion. The wrapper is a
`wrapt.FunctionWrapper`, so signature, name and introspection are those of the wrapped callable.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import wrapt

_ABSENT: Final = object()

#: Called as `wrapper(original, args, kwargs)`.
Wrapper: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class _Gated(wrapt.FunctionWrapper):  # type: ignore[misc, type-arg, unused-ignore]
    """A function wrapper that knows its patch, and copies and pickles as what it wraps.

    wrapt's proxies refuse both; a copied pipeline should be a plain one, not an error.
    """

    def __init__(
        self,
        before: Any,
        original: Callable[..., Any],
        wrapper: Wrapper,
        patch: "Patch",
        ticket: object,
    ) -> None:
        super().__init__(
            original,
            lambda wrapped, _instance, args, kwargs: wrapper(wrapped, args, kwargs),
            enabled=lambda: patch.lets_in(ticket),
        )
        self._self_before = before  # the attribute's value, or `_ABSENT`
        self._self_patch = patch
        self._self_ticket = ticket

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __copy__(self) -> Any:
        return self.__wrapped__  # as a copy of a plain function is that function

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__wrapped__.__reduce_ex__(protocol)


class Patch:
    """A wrapper round a callable, stored in `vars(owner)[name]` while installed.

    Several of one attribute may be installed, one round the other, and removed in any order.

    Args:
        owner: The object whose instance dictionary takes the wrapper. It is written to directly:
            `torch.nn.Module` and `OptimizedModule` redirect plain attribute assignment.
        name: The attribute.
        fallback: What a call does where the attribute is absent or `None`.
        tag: Anything, for whoever finds the patch with `installed_patch`; `None` is not found.
    """

    def __init__(
        self,
        owner: Any,
        name: str,
        fallback: Callable[..., Any],
        *,
        tag: object = None,
    ) -> None:
        self.tag = tag
        self._owner = owner
        self._name = name
        self._fallback = fallback
        # Dropped at removal, so that nothing holds the wrapper and what it is bound to.
        self._gated: _Gated | None = None
        self._ticket: object = None

    @property
    def installed(self) -> bool:
        """Whether calls reach the wrapper, possibly through somebody else's round it."""
        gated = self._gated  # read once: another thread may remove it meanwhile
        if gated is None:
            return False
        if vars(self._owner).get(self._name) is gated:  # nobody stands round it
            return True
        return any(each is self for each in _installed(self._owner, self._name))

    @property
    def covers_another(self) -> bool:
        """Whether something was there when this was installed that is no patch of this package."""
        before: Any = self._gated
        while isinstance(before, _Gated):
            before = before._self_before
        return before is not None and before is not _ABSENT

    def lets_in(self, ticket: object) -> bool:
        """Whether the wrapper with this ticket is the one in use; others pass calls through."""
        return ticket is self._ticket

    def install(self, wrapper: Wrapper) -> None:
        """Put `wrapper` in place. Harmless when already installed."""
        if self.installed:
            return
        before = vars(self._owner).get(self._name, _ABSENT)
        present = None if before is _ABSENT else before
        self._ticket = object()
        self._gated = _Gated(before, present or self._fallback, wrapper, self, self._ticket)
        vars(self._owner)[self._name] = self._gated

    def remove(self) -> None:
        """Close the gate and restore what was there, absence included. Harmless when repeated.

        If somebody has wrapped or replaced the attribute since, their object stays, and this
        wrapper, if it is still inside, passes every call through.
        """
        gated, self._gated, self._ticket = self._gated, None, None
        if gated is None:
            return
        before, outer = gated._self_before, vars(self._owner).get(self._name)
        if outer is not gated:
            while isinstance(outer, _Gated):
                if outer._self_before is gated:  # another patch is round this one
                    outer._self_before, outer.__wrapped__ = before, gated.__wrapped__
                    return
                outer = outer._self_before
        elif before is _ABSENT:
            del vars(self._owner)[self._name]
        else:
            vars(self._owner)[self._name] = before


def installed_patch(owner: Any, name: str) -> Patch | None:
    """The patch with a tag whose wrapper a call of the attribute reaches first, if any.

    Looks through wrappers that say what they wrap with `__wrapped__`.
    """
    return next((patch for patch in _installed(owner, name) if patch.tag is not None), None)


def _installed(owner: Any, name: str) -> Iterator[Patch]:
    """The patches of an attribute that are in force, the outermost first."""
    found = vars(owner).get(name)
    while found is not None:
        if isinstance(found, _Gated):
            patch: Patch = found._self_patch
            if patch.lets_in(found._self_ticket):
                yield patch
        found = getattr(found, "__wrapped__", None)
