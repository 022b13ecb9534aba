"""A gated, removable wrapper round one callable attribute of one object.

What the wrapper does is the caller's business: nothing here knows of diffusion. The wrapper is a
`wrapt.FunctionWrapper`, so signature, name and introspection are those of the wrapped callable.
"""

import copy
from collections.abc import Callable
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
        self, original: Callable[..., Any], wrapper: Wrapper, patch: "Patch", ticket: object
    ) -> None:
        super().__init__(
            original,
            lambda wrapped, _instance, args, kwargs: wrapper(wrapped, args, kwargs),
            enabled=lambda: patch.lets_in(ticket),
        )
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

    Args:
        owner: The object whose instance dictionary takes the wrapper. It is written to directly:
            `torch.nn.Module` and `OptimizedModule` redirect plain attribute assignment.
        name: The attribute.
        fallback: What a call does where the attribute is absent or `None`.
        tag: Anything, for whoever finds the patch with `installed_patch`.
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
        self._before: Any = _ABSENT
        # Dropped at removal, so that nothing holds the wrapper and what it is bound to.
        self._gated: _Gated | None = None
        self._ticket: object = None

    @property
    def installed(self) -> bool:
        """Whether calls reach the wrapper, possibly through somebody else's round it."""
        return self._gated is not None and installed_patch(self._owner, self._name) is self

    @property
    def covers_another(self) -> bool:
        """Whether something was there when this was installed."""
        return self._gated is not None and self._before not in (_ABSENT, None)

    def lets_in(self, ticket: object) -> bool:
        """Whether the wrapper with this ticket is the one in use; others pass calls through."""
        return ticket is self._ticket

    def install(self, wrapper: Wrapper) -> None:
        """Put `wrapper` in place. Harmless when already installed."""
        if self.installed:
            return
        self._before = vars(self._owner).get(self._name, _ABSENT)
        present = None if self._before is _ABSENT else self._before
        self._ticket = object()
        self._gated = _Gated(present or self._fallback, wrapper, self, self._ticket)
        vars(self._owner)[self._name] = self._gated

    def remove(self) -> None:
        """Close the gate and restore what was there, absence included. Harmless when repeated.

        If somebody has wrapped or replaced the attribute since, their object stays, and this
        wrapper, if it is still inside, passes every call through.
        """
        gated, self._gated, self._ticket = self._gated, None, None
        if gated is None or vars(self._owner).get(self._name) is not gated:
            return
        if self._before is _ABSENT:
            del vars(self._owner)[self._name]
        else:
            vars(self._owner)[self._name] = self._before
        self._before = _ABSENT


def installed_patch(owner: Any, name: str) -> Patch | None:
    """The patch of this package whose wrapper a call of the attribute reaches first, if any.

    Looks through wrappers that say what they wrap with `__wrapped__`.
    """
    found = vars(owner).get(name)
    while found is not None:
        if isinstance(found, _Gated):
            patch: Patch = found._self_patch
            if patch.lets_in(found._self_ticket):
                return patch
        found = getattr(found, "__wrapped__", None)
    return None
