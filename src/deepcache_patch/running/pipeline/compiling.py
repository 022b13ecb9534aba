"""Compiling a pipeline's modules in place. How a patch stays outside of that is in `patching`."""

from typing import Any

from ...errors import InvalidSettingError
from ...patching.wrappers import is_compiled_wrapper, layers_of, unwrapped
from .components import controlnets_of, unets_of


def compile_in_place(pipe: Any, **options: Any) -> None:
    """Compile the U-Nets and ControlNets of a pipeline; see `DeepCacheHelper.compile`.

    Raises:
        InvalidSettingError: If one of them is `torch.compile`'s already; then none is compiled.
    """
    modules = list(dict.fromkeys([*unets_of(pipe).values(), *controlnets_of(pipe)]))
    for module in modules:
        if any(map(is_compiled_wrapper, layers_of(module))):
            raise InvalidSettingError(
                f"{type(unwrapped(module)).__name__} is wrapped by torch.compile already: "
                "leave out one of the two"
            )
    for module in modules:
        module.compile(**{"fullgraph": True, **options})
