"""A gated, removable wrapper round one callable attribute of one object.

What the wrapper does is the caller's business: nothing here knows of diffusion. The wrapper is a
`wrapt.FunctionWrapper`, so signature, name and introspection are those of the wrapped callable.
"""

import copy
from collections.abc import Callable
from typing import Any, Final

import wrapt

_ABSENT: Final = object()


class _Gated(wrapt.FunctionWrapper):  # type: ignore[misc, type-arg, unused-ignore]
    """A function wrapper that copies and pickles as what it wraps.

    wrapt's proxies refuse both; a copied pipeline should be a plain one, not an error.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __copy__(self) -> Any:
        return self.__wrapped__  # as a copy of a plain function is that function

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__wrapped__.__reduce_ex__(protocol)


class Patch:
    """A wrapper round `original`, stored in `vars(owner)[name]` while installed.

    Args:
        owner: The object whose instance dictionary takes the wrapper. It is written to directly:
            `torch.nn.Module` and `OptimizedModule` redirect plain attribute assignment.
        name: The attribute.
        original: What a call did before; the wrapper receives it as its first argument.
        wrapper: Called as `wrapper(original, args, kwargs)` while the patch is installed.
    """

    def __init__(
        self,
        owner: Any,
        name: str,
        original: Callable[..., Any],
        wrapper: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any],
    ) -> None:
        self._owner = owner
        self._name = name
        self._open = False
        self._before: Any = _ABSENT
        self._wrapper = wrapper
        self._gated = _Gated(
            original,
            lambda wrapped, _instance, args, kwargs: wrapper(wrapped, args, kwargs),
            enabled=lambda: self._open,
        )

    @property
    def installed(self) -> bool:
        """Whether calls go through the wrapper: open, and still where it was put."""
        return self._open and vars(self._owner).get(self._name) is self._gated

    def install(self) -> None:
        """Put the wrapper in place and open its gate. Harmless when already installed."""
        if self.installed:
            return
        self._before = vars(self._owner).get(self._name, _ABSENT)
        vars(self._owner)[self._name] = self._gated
        self._open = True

    def remove(self) -> None:
        """Close the gate and restore what was there, absence included. Harmless when repeated.

        If somebody has wrapped or replaced the attribute since, their object stays, and this
        wrapper, if it is still inside, passes every call through.
        """
        self._open = False
        if vars(self._owner).get(self._name) is not self._gated:
            return
        if self._before is _ABSENT:
            del vars(self._owner)[self._name]
        else:
            vars(self._owner)[self._name] = self._before


def is_patched(owner: Any, name: str) -> bool:
    """Whether an installed `Patch` of this package is the outermost wrapper of the attribute."""
    return isinstance(vars(owner).get(name), _Gated)
