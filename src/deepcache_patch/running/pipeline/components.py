"""What a pipeline is made of: its U-Nets, what goes with them, and its schedulers.

How a patch stays outside of what is compiled here is known in `patching`.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from torch import nn

from ...cutting.anatomy import dissect, is_controlnet, is_unet
from ...errors import InvalidSettingError, UnsupportedModelError
from ...patching.call import whole
from ...patching.wrappers import is_compiled_wrapper, layers_of, unwrapped


def unets_of(pipe: Any) -> dict[str, nn.Module]:
    """The U-Nets of a pipeline, as it calls them, by the names of the components.

    A bare U-Net has the name "unet".

    Raises:
        UnsupportedModelError: If there is none that can be cut; names one that is inside another
            module.
    """
    modules = modules_of(pipe)
    unets = {name: module for name, module in modules.items() if _is_whole(module, is_unet)}
    if unets:
        return unets
    kinds = [type(unwrapped(each)) for each in modules.values()]
    names = ", ".join(kind.__name__ for kind in kinds) or "no modules"
    cure = "a U-Net with skip connections is what DeepCache needs"
    theirs = (kind.__name__ for kind in kinds if kind.__module__.startswith("diffusers."))
    transformer = next((name for name in theirs if "Transformer" in name), None)
    if transformer is not None:
        cure = (
            f"{transformer} is a transformer, for which diffusers {diffusers.__version__} has no "
            "cache: what makes it faster is fewer steps, or torch.compile"
        )
    wrappers = {"DataParallel", "FullyShardedDataParallel"}
    inside = _unet_inside(pipe)
    missing = next((name for name, part in _components_of(pipe) if _is_to_come(name, part)), None)
    if missing is not None:
        cure = _how_to_give(pipe, missing)
    if any(hasattr(module, "enable_cache") for module in modules.values()):
        cure = "transformers have caches of their own: see pipe.transformer.enable_cache(...)"
    if inside is not None:
        cure = f"something stands round the one that it has: give DeepCacheHelper({inside})"
    if wrappers & {type(module).__name__ for module in modules.values()}:
        cure = "run one process for each device, or shard the U-Net with fully_shard"
    raise UnsupportedModelError(
        f"{type(pipe).__name__} has no U-Net that can be cut (found: {names}); {cure}"
    )


def is_sharded(unet: nn.Module) -> bool:
    """Whether processes fetch parts of the U-Net from each other, by `fully_shard`."""
    # By its name, because its place has changed with torch 2.6.
    kinds = {kind for module in unet.modules() for kind in type(module).__mro__}
    return any(kind.__name__ == "FSDPModule" for kind in kinds)


def controlnets_of(pipe: Any) -> list[nn.Module]:
    """The ControlNets of a pipeline that can be cut along with its U-Net, as it calls them."""
    if isinstance(pipe, nn.Module):
        return []
    modules = modules_of(pipe).values()
    return [module for module in modules if _is_whole(module, is_controlnet)]


def _is_whole(module: nn.Module, kind: Callable[[nn.Module], bool]) -> bool:
    """Whether the module is of the kind; cut, it might not look like it."""
    with whole(module):
        return kind(unwrapped(module))


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


def scheduler_getter(pipe: Any, name: str) -> Callable[[], list[Any]]:
    """What gives the schedulers that the pipeline has at the time, without keeping it alive.

    Args:
        pipe: The pipeline, or a bare U-Net, which has none.
        name: The component that a scheduler is for; the likeliest comes first: a pipeline with a
            `prior` and a `decoder` has a `prior_scheduler`, and one with an `unet` a `scheduler`.
    """
    if isinstance(pipe, nn.Module):
        return list

    def likeness(scheduler: str) -> tuple[int, bool]:
        letters = zip(scheduler.replace("scheduler", "unet"), name, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], letters))
        return shared, scheduler == "scheduler"

    found = [each for each in pipe.components if "scheduler" in each]
    names = sorted(found, key=likeness, reverse=True)
    reference = weakref.ref(pipe)
    return lambda: [getattr(reference(), each, None) for each in names]


def likeliest_scheduler(pipe: Any, name: str) -> Any:
    """The first of `scheduler_getter`; `None` if it is missing, or there are none."""
    return next(iter(scheduler_getter(pipe, name)()), None)


def modules_getter(pipe: Any) -> Callable[[], list[nn.Module]]:
    """What gives the modules that the pipeline has at the time, without keeping it alive."""
    if isinstance(pipe, nn.Module):
        return list
    names, reference = list(modules_of(pipe)), weakref.ref(pipe)

    def modules() -> list[nn.Module]:
        found = (getattr(reference(), name, None) for name in names)
        return [each for each in found if isinstance(each, nn.Module)]

    return modules


def modules_of(pipe: Any) -> dict[str, nn.Module]:
    """The components of a pipeline that are modules, by name.

    Raises:
        UnsupportedModelError: If it is no pipeline.
    """
    if isinstance(pipe, nn.Module):
        return {"unet": pipe}
    if is_pipeline(pipe):
        return {name: part for name, part in _components_of(pipe) if isinstance(part, nn.Module)}
    inside, within = _unet_inside(pipe), _pipeline_inside(pipe)
    cure = "" if inside is None else f": give it the U-Net alone, DeepCacheHelper({inside})"
    if within is not None:
        cure = f": give it the pipeline inside, DeepCacheHelper({within})"
    what = type(pipe).__name__
    if isinstance(pipe, type):
        what, cure = f"the class {pipe.__name__}", f": give {pipe.__name__}.from_pretrained(...)"
    raise UnsupportedModelError(
        f"DeepCacheHelper takes a diffusers pipeline or a U-Net, not {what}{cure}"
    )


def is_pipeline(pipe: Any) -> bool:
    """Whether it is a pipeline, of diffusers' classes or a modular one.

    Modular pipelines are known by what they have: `components` by name, each of them an attribute.
    What keeps a list of another pipeline's parts, and has not these itself, is none.
    """
    if isinstance(pipe, DiffusionPipeline):
        return True
    parts = None if isinstance(pipe, nn.Module | type) else getattr(pipe, "components", None)
    return isinstance(parts, Mapping) and bool(parts) and all(hasattr(pipe, each) for each in parts)


def _components_of(pipe: Any) -> Iterable[tuple[str, Any]]:
    """The parts of a pipeline by name; those that are not there yet are `None`."""
    return () if isinstance(pipe, nn.Module) else pipe.components.items()


def _is_to_come(name: str, part: Any) -> bool:
    return part is None and "unet" in name


def _how_to_give(pipe: Any, name: str) -> str:
    if hasattr(pipe, "update_components"):
        return (
            f"its {name} is not there yet: call pipe.load_components({name!r}), or "
            f"pipe.update_components({name}=...), before DeepCacheHelper(pipe)"
        )
    return f"its {name} is None: give it one, pipe.{name} = ..., before DeepCacheHelper(pipe)"


def _pipeline_inside(owner: Any) -> str | None:
    """How to write the pipeline that something stands for, such as a server's for one request."""
    parts = getattr(owner, "__dict__", {}).items()
    return next((f"pipe.{name}" for name, part in parts if is_pipeline(part)), None)


def _unet_inside(pipe: Any) -> str | None:
    """How to write the U-Net that is nearest to the surface of something; `None` without one."""
    layer, seen = [("model" if isinstance(pipe, nn.Module) else "pipe", pipe)], {id(pipe)}
    while layer:
        below: list[tuple[str, Any]] = []
        for path, owner in layer:
            for name, part in _parts_of(owner):
                if id(part) in seen:
                    continue
                seen.add(id(part))
                written = f"{path}[{name}]" if name.isdecimal() else f"{path}.{name}"
                if isinstance(part, nn.Module) and _can_be_cut(part):
                    return written
                # What is in a pipeline may be anything; further down only modules are looked at.
                if isinstance(part, nn.Module | list | tuple) or owner is pipe:
                    below.append((written, part))
        layer = below
    return None


def _parts_of(owner: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(owner, list | tuple):
        yield from ((str(number), part) for number, part in enumerate(owner))
        return
    if isinstance(owner, nn.Module):
        yield from owner.named_children()
    yield from getattr(owner, "__dict__", {}).items()


def _can_be_cut(module: nn.Module) -> bool:
    try:
        with whole(module):
            dissect(unwrapped(module))
    except UnsupportedModelError:
        return False
    return True
