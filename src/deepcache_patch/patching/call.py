"""A patch round the call of a module, which stays outside of whatever compiles that module.

What decides between a full and a shallow call is Python that no compiler should look into, and the
compiled call has to be inside it. So the patch follows `module.compile()` and
`torch.compile(module)`, whether they come before it or after it.
"""

import inspect
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any, Final

import torch
from torch import nn

from ..errors import AlreadyEnabledError, warn
from .patch import Patch, Wrapper, installed_patch
from .wrappers import is_compiled_wrapper, layers_of, unwrapped

#: Where the patch goes. `nn.Module.__call__` runs this, if it is not `None`, instead of hooks and
#: `forward`. So the patch is outermost: whoever replaces `forward` (accelerate does at every
#: offload) is inside, and `Module.compile` puts its compiled call in the same place. Copies and
#: pickles of a module leave it out.
CALL: Final = "_compiled_call_impl"


def _outside_of_graphs(function: Any) -> Any:
    """The function, for dynamo to leave a graph where it is called, or fail with the cure."""
    options: dict[str, Any] = {}
    if "reason" in inspect.signature(torch.compiler.disable).parameters:  # from torch 2.7 on
        options["reason"] = "DeepCacheHelper decides outside of compiled code: call its enable()"
        options["reason"] += " once more after torch.compile, or compile with helper.compile()"
    return torch.compiler.disable(function, **options)  # type: ignore[no-untyped-call]


class CallPatch:
    """A wrapper round the calls of one module.

    Args:
        module: What is called: a module, or `torch.compile`'s wrapper of one.
        modules_getter: Gives all modules of the pipeline as it calls them now, without keeping it
            alive.
        installer: Gives who installs the patch, for whoever finds it with `call_patch_of`.

    Attributes:
        module: What is called; changes when the pipeline got a compiled one.
        installer: Who installs the patch, as it was given.
        lock: For whoever may change what the module is made of: calls take turns. A call that has
            waited for its turn looks whether the patch is still `installed`. If it was removed
            meanwhile, somebody else's may be in its place: call `module` then, without the lock.
    """

    def __init__(
        self,
        module: nn.Module,
        modules_getter: Callable[[], Iterable[nn.Module]],
        *,
        installer: Any,
    ) -> None:
        self.installer = installer
        self._modules_getter = modules_getter
        self._wrapper: Wrapper | None = None
        self._usual_limit = 0
        self.lock = threading.RLock()
        self._stand_round(module)

    def _stand_round(self, module: nn.Module) -> None:
        self.module = module
        me = weakref.ref(self)  # or the module would be held by a cycle after removal
        self._wraps_compiled = any(map(is_compiled_wrapper, layers_of(module)))
        self._patch = Patch(module, CALL, module._call_impl, tag=me)
        self._compile = Patch(module, "compile", module.compile, tag=me)

    @property
    def installed(self) -> bool:
        """Whether calls of the module reach the wrapper."""
        return self._patch.installed

    @property
    def compiled(self) -> bool:
        """Whether the module is compiled as a whole; or has a wrapper that may be compiled code."""
        return self._wraps_compiled or self._patch.covers_another

    def room_for_graphs(self, kinds: int) -> AbstractContextManager[Any]:
        """Let dynamo compile as many graphs for each kind of call as for one module.

        A cut module is another network, but runs the same code, of which dynamo compiles no more
        than `recompile_limit` graphs (8): then it gives up, with an error where `fullgraph` was
        asked for. diffusers wraps the `forward` of all its models in one function, so that they
        share that limit.

        Args:
            kinds: How many there may be.

        Returns:
            For the length of one call, in this thread.
        """
        if not self.compiled:
            return nullcontext()
        config: Any = torch._dynamo.config
        # An older name, up to torch 2.6.
        name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        now = getattr(config, name)
        self._usual_limit = self._usual_limit or now  # not a multiple of what a call has set
        return _set(config, name, max(now, kinds * self._usual_limit))

    def install(self, wrapper: Wrapper) -> None:
        """Send calls to `wrapper`. Harmless when already installed."""
        with self.lock:
            if self.installed:
                return
            self._wrapper = wrapper
            self._patch.install(self._enter)
            self._compile.install(self._compile_inside)

    def take_over(self, wrapper: Wrapper) -> None:
        """`install`, and wait for calls in other threads that began before.

        They take no turns, so they would see what is done to the module meanwhile.
        """
        with self.lock:
            self.install(wrapper)
            self._await_earlier_calls()

    def _await_earlier_calls(self) -> None:
        while any(map(self._is_in_earlier_call, _stacks_of_others())):
            time.sleep(1e-3)

    def _is_in_earlier_call(self, innermost: FrameType | None) -> bool:
        modules = list(layers_of(self.module))
        frame: Any = innermost
        while frame is not None:
            # Python 3.11 may give anything for what called a generator that runs meanwhile.
            if not isinstance(frame, FrameType):
                return True  # not known: it is looked at again
            if frame.f_code in _ENTRIES:
                return False
            if frame.f_code is _MODULE_CALL and frame.f_locals["self"] in modules:
                return True
            frame = frame.f_back
        return False

    def remove(self) -> None:
        """Leave the module as it was. Harmless when repeated."""
        with self.lock:
            self._compile.remove()
            self._patch.remove()
            self._wrapper = None

    def _enter(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        # Not `is_compiling`, which is true while any thread compiles anything.
        if torch.compiler.is_dynamo_compiling():
            return self._leave_compiled_code(original, args, kwargs)
        wrapper = self._wrapper
        if wrapper is None:  # removed just now, by another thread
            return self.module(*args, **kwargs)
        return wrapper(original, args, kwargs)

    @_outside_of_graphs
    def _leave_compiled_code(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A call from compiled code, which goes on behind it.

        If it is from what `torch.compile` has made of the module, stand round that from now on.

        Raises:
            AlreadyEnabledError: If another patch stands there.
        """
        with self.lock:
            wrapper, around = self._wrapper, self._wrapper_of_module()
            if wrapper is not None and around is not None:
                self.remove()
                self._stand_round(around)
                self.install(wrapper)
        # It may have been moved or removed by another thread, too.
        if wrapper is None or unwrapped(self.module) is not self.module:
            return self.module(*args, **kwargs)
        warn(
            f"{type(self.module).__name__} is called from compiled code, and runs uncompiled: "
            "compile it alone, with helper.compile() or before enable()"
        )
        return wrapper(original, args, kwargs)

    def _wrapper_of_module(self) -> nn.Module | None:
        """What the pipeline has now that wraps the module, if it does."""
        for module in self._modules_getter():
            if module is not self.module and any(each is self.module for each in layers_of(module)):
                other = call_patch_of(module)
                if other is not None and other.installer() is not None:
                    raise AlreadyEnabledError(
                        f"one DeepCacheHelper is enabled on {type(self.module).__name__}, another "
                        "on what torch.compile has made of it: call disable() on one of them"
                    )
                if other is not None:
                    other.remove()
                return module
        return None

    def _compile_inside(
        self, compile_in_place: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """`module.compile`, which would put its compiled call in the place of the patch."""
        with self.lock:
            installed = self._patch.installed
            self._patch.remove()
            try:
                compile_in_place(*args, **kwargs)
            finally:
                if installed:
                    self._patch.install(self._enter)


@contextmanager
def _set(config: Any, name: str, value: int) -> Iterator[None]:
    # Not by torch's `config.patch`: it makes a class at each use, and in torch 2.13 a context
    # variable, too, which the thread's context holds for ever.
    before = getattr(config, name)
    setattr(config, name, value)
    try:
        yield
    finally:
        setattr(config, name, before)


#: The code of `module(...)`, and that by which a call comes to a patch.
_MODULE_CALL: Final = nn.Module._wrapped_call_impl.__code__
_ENTRIES: Final = frozenset(
    inspect.unwrap(function).__code__
    for function in (CallPatch._enter, CallPatch._leave_compiled_code)
)


def _stacks_of_others() -> list[FrameType]:
    """Where the other threads are."""
    me = threading.get_ident()
    return [frame for thread, frame in sys._current_frames().items() if thread != me]


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Keep the module whole for the length of a `with` block, whoever may cut it for a call."""
    while True:
        found = (call_patch_of(each) for each in layers_of(module))
        patch = next((each for each in found if each is not None), None)
        if patch is None:
            yield
            return
        with patch.lock:
            if patch.installed:  # not removed while this was waiting
                yield
                return


def call_patch_of(module: nn.Module) -> CallPatch | None:
    """The patch that a call of the module reaches first, if any."""
    patch = installed_patch(module, CALL)
    tag: Any = None if patch is None else patch.tag
    found: CallPatch | None = None if tag is None else tag()
    return found
