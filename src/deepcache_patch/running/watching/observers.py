"""Who watches the layers that a shallow call leaves out.

Some pipelines and users read attention maps out of a U-Net's deep layers at every step, or count
the layers that run and so the steps: by an attention processor, a `forward` in the place of a
layer's own, a class in the place of a layer's. On a shallow step there would be no map, or an old
one, and counts would be short. Forward hooks are not looked at, nor accelerate's and diffusers':
profilers have them, too. What code can keep is judged in `stateful`.
"""

from collections.abc import Iterable, Set
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from torch import nn

from ...cutting.cut import Cut
from .offloading import offloading_of
from .stateful import (
    attributes_of,
    is_known_class,
    is_plain,
    may_be_stateful,
    module_may_be_stateful,
)
from .walk import Parts


def observer_of(parts: Parts, cut: Cut | None, blocks: Set[nn.Module] = frozenset()) -> str | None:
    """Say what needs the layers that the cut leaves out: what keeps something, offloading.

    Processors of `diffusers.models` and layers of libraries only compute. So does any other code,
    as far as can be seen, that can reach nothing but numbers, names and weights, and writes to
    nobody's attributes. Without a cut everything is left out.

    Args:
        parts: The parts of the U-Net.
        cut: What leaves the layers out.
        blocks: The U-Net and its blocks, which hand lists of skips on.
    """
    made_by = str(getattr(vars(parts.network).get("forward"), "__module__", None))
    if made_by.partition(".")[0] == "DeepCache":
        return (
            "DeepCacheSDHelper of the DeepCache package is enabled, too, and each would replay "
            "what the other has replayed: call its disable() to be fast"
        )
    kinds = {each: _Kind.of(each) for each in parts.kinds}
    modules = parts.marked({each for each, kind in kinds.items() if kind.is_to_be_seen})
    kept = frozenset() if cut is None else parts.kept_by(cut)
    found = first_stateful(parts.network, modules, kept, blocks, kinds)
    if found is not None:
        what, cure = found
        return (
            f"{what} may keep what it sees at each step, and shallow steps leave that layer out: "
            f"{cure} to be fast"
        )
    return offloading_of(modules)


class _Kind(NamedTuple):
    """A class of modules.

    Attributes:
        is_known: Whether calls of its modules run code of libraries alone.
        may_be_asked: Whether `module.processor` may come from the class (a property,
            `__getattr__`), so the module must be asked.
    """

    is_known: bool
    may_be_asked: bool

    @classmethod
    def of(cls, kind: type[nn.Module]) -> "_Kind":
        by_class = hasattr(kind, "processor") or kind.__getattr__ is not nn.Module.__getattr__
        return cls(is_known_class(kind), by_class)

    @property
    def is_to_be_seen(self) -> bool:
        """Whether each module of the class is to be looked at, or those alone that have a mark."""
        return self.may_be_asked or not self.is_known


def first_stateful(
    unet: nn.Module,
    modules: Iterable[nn.Module],
    skipped: Set[nn.Module],
    blocks: Set[nn.Module],
    kinds: dict[type, _Kind] | None = None,
) -> tuple[str, str] | None:
    """Name the first module that may keep something or count, and what is to be done about it.

    Args:
        unet: The U-Net.
        modules: Modules of the U-Net.
        skipped: Those that are not looked at.
        blocks: The U-Net and its blocks, as for `observer_of`.
        kinds: What is known of their classes; grows.
    """
    kinds = {} if kinds is None else kinds
    harmless: set[type] = set()
    for module in modules:
        if module in skipped:
            continue
        kind = type(module)
        if kind not in kinds:
            kinds[kind] = _Kind.of(kind)
        is_known, may_be_asked = kinds[kind]
        # Asking a module for what it lacks takes it longer than all the rest.
        if may_be_asked or "processor" in module._modules or "processor" in vars(module):
            processor = getattr(module, "processor", None)
            if _is_stateful(processor, harmless):
                what = f"the attention processor {_name(processor)}{_place(unet, module)}"
                return what, "set diffusers' own processors"
        is_replaced = not vars(module).keys().isdisjoint(("forward", "_call_impl"))
        if is_known and not is_replaced:
            continue
        if module_may_be_stateful(module, for_one_call=module in blocks):
            what = f"the class {kind.__name__}{_place(unet, module)}"
            if is_replaced:
                what = f"the function in the place of {kind.__name__}.forward{_place(unet, module)}"
            return what, "take it out" if is_replaced else "use diffusers' own class"
    return None


def _place(unet: nn.Module, module: nn.Module) -> str:
    """Where the module is, as a sentence says it; nothing for the U-Net itself.

    That may be a proxy, which is not among its own modules.
    """
    name = next((name for name, each in unet.named_modules() if each is module), "")
    return f" of {name}" if name else ""


def _is_stateful(processor: Any, harmless: set[type]) -> bool:
    """Whether it may keep something.

    Args:
        processor: The processor of one layer.
        harmless: Classes of diffusers whose objects without attributes do not; grows.
    """
    if processor is None:
        return False
    kind = type(processor)
    if kind in harmless and not vars(processor):
        return False
    if not isinstance(processor, FunctionType | MethodType | partial):
        own = not kind.__module__.startswith("diffusers.models.")
        if own and not all(map(is_plain, attributes_of(processor))):
            return True
        if not own and not getattr(processor, "__dict__", True) and not may_be_stateful(processor):
            harmless.add(kind)
    judged = module_may_be_stateful if isinstance(processor, nn.Module) else may_be_stateful
    return judged(processor)


def _name(processor: Any) -> str:
    return getattr(processor, "__name__", type(processor).__name__)
