"""What a person chooses a branch by: its place, what a call there costs, the size of its feature.

Nothing is computed. An outline of the U-Net, a copy of its modules whose tensors have shapes and no
values, is called once in full and once for each branch, and the multiply-adds are counted. The
U-Net itself is only read, and what others put on it (hooks, patches, compiled calls) is left out.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from .anatomy import Anatomy, dissect
from .cut import Cut, Swap
from .features import Around, Recorder, StandIn, Tap
from .observers import observer_of
from .pipelines import unwrapped

_PLAIN: Final = (bool, int, float, str, type(None), torch.dtype)

_UNKNOWN: Final = "share, feature and size are known after the first generation"


@dataclass(frozen=True)
class Branch:
    """One branch of a U-Net.

    Attributes:
        number: What the settings call it, at least 0.
        place: What a shallow call leaves out, in words: from where to where, in the order in which
            the layers run. Blocks and layers have their numbers in the U-Net, from 0. The output of
            the last one left out is the deep feature.
        share: The multiply-adds of a shallow call, as a part of those of a full call, 0 to 1.
        shape: Of the deep feature of one U-Net call.
        nbytes: Likewise. There may be two features to hold: see `Extrapolate`.

    The last three are `None` as long as it is not known what the U-Net is called with.
    """

    number: int
    place: str
    share: float | None
    shape: tuple[int, ...] | None
    nbytes: int | None


class Branches(Sequence[Branch]):
    """The branches of one U-Net; printed, a table.

    Args:
        title: What stands above the table.
        branches: From 0.
    """

    def __init__(self, title: str, branches: Sequence[Branch]) -> None:
        self.title = title
        self._branches = tuple(branches)

    def __getitem__(self, index: Any) -> Any:
        """Return a branch, or several of them."""
        return self._branches[index]

    def __len__(self) -> int:
        return len(self._branches)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Branches) and self._branches == other._branches

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        rows = [("branch", "share", "feature", "size", "leaves out")]
        rows += [
            (
                str(each.number),
                "?" if each.share is None else f"{each.share:.1%}",
                "?" if each.shape is None else "×".join(map(str, each.shape)),
                "?" if each.nbytes is None else _bytes(each.nbytes),
                each.place.removeprefix("leaves out "),
            )
            for each in self
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
        lines = [
            "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), last])
            for *row, last in rows
        ]
        known = all(each.share is not None for each in self)
        return "\n".join([self.title, *lines, *([] if known else [_UNKNOWN])])

    __repr__ = __str__


class BranchesOfEach(dict[str, Branches]):
    """The branches of several U-Nets, by the components' names; printed, a table for each."""

    def __str__(self) -> str:
        return "\n\n".join(f"{name}: {branches}" for name, branches in self.items())

    __repr__ = __str__


class Outline:
    """A copy of a U-Net's modules whose tensors have shapes and no values.

    Calls of it are quick: what was called with tensors of the same shapes before is not run again,
    nor is a twin of it, such as the next of many equal blocks.

    Args:
        unet: Not inside `torch.compile`'s wrapper; it is only read.
    """

    def __init__(self, unet: nn.Module) -> None:
        dtype = getattr(unet, "dtype", torch.float32)
        modules = {module: object.__new__(type(module)) for module in unet.modules()}
        self.unet = modules[unet]
        self._parents: dict[nn.Module, list[nn.Module]] = {each: [] for each in modules.values()}
        for module, copied in modules.items():
            for name, value in vars(module).items():
                if name in _FRESH:
                    vars(copied)[name] = type(value)()
                elif name not in _INSTALLED and "hook" not in name:
                    vars(copied)[name] = _emptied(value, dtype)
            children = {
                name: None if child is None else modules[unwrapped(child)]
                for name, child in module._modules.items()
            }
            vars(copied)["_modules"] = children
            for child in children.values():
                if child is not None:
                    self._parents[child].append(copied)
        self._numbers: dict[Any, int] = {}
        self._kinds: dict[nn.Module, int] = {}
        self._known: dict[Any, tuple[int, Any]] = {}

    @torch.no_grad()
    def multiply_adds(self, cut: Cut, arguments: Mapping[str, Any]) -> int:
        """Count those of one kind of call."""
        touched: set[nn.Module] = set()
        waiting = [owner for owner in cut.owners if owner in self._parents]
        while waiting:
            module = waiting.pop()
            if module not in touched:
                touched.add(module)
                waiting += self._parents[module]
        counter = _Counter()
        for module in self._parents:
            vars(module).pop("forward", None)
            if module is not self.unet and module not in touched:
                kind = self._kind(module)
                vars(module)["forward"] = _Remembering(module, kind, counter, self._known)
        try:
            with torch.inference_mode(False), cut.applied(), counter:
                self.unet(**tree_map_only(torch.Tensor, torch.empty_like, dict(arguments)))
        finally:
            for module in self._parents:
                vars(module).pop("forward", None)
        return counter.multiply_adds

    def _kind(self, module: nn.Module) -> int:
        """A number that modules share whose calls differ in nothing but values."""
        if module not in self._kinds:
            own = {
                name: value
                for name, value in vars(module).items()
                if name not in ("_modules", "forward")
            }
            children = tuple(
                (name, None if child is None else self._kind(child))
                for name, child in module._modules.items()
            )
            traits = (type(module), _traits(own), children)
            self._kinds[module] = self._numbers.setdefault(traits, len(self._numbers))
        return self._kinds[module]


def example_of(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call, with tensors that have no values.

    Returns:
        `None` if there is something in them that is neither a plain value nor a plain tensor: it
        would be kept alive.
    """
    leaves, _ = tree_flatten(dict(arguments))
    if not all(type(leaf) is torch.Tensor or isinstance(leaf, _PLAIN) for leaf in leaves):
        return None
    example: dict[str, Any] = tree_map_only(torch.Tensor, _on_meta, dict(arguments))
    return example


def branches_of(outline: Outline, example: Mapping[str, Any] | None) -> Branches:
    """The branches of a U-Net.

    Args:
        outline: Of the U-Net.
        example: What it is called with; `None` if that is not known.
    """
    unet: Any = outline.unet
    anatomy = dissect(unet)
    number = len(anatomy.branches)
    title = f"{type(unet).__name__}: {number} branch{'' if number == 1 else 'es'}"
    known: Sequence[tuple[float, torch.Tensor] | None] = [None] * number
    try:
        example = _from_config(unet) if example is None else example
        if example is not None and not _is_watched(unet):
            known = _measured(outline, anatomy, example)
            sample = example[anatomy.sample_name]
            dtype = str(sample.dtype).removeprefix("torch.")
            title += f"; a call with {'×'.join(map(str, sample.shape))} in {dtype}"
    except Exception:  # whatever modules say that want to see values; the places are still known
        known = [None] * number
    return Branches(
        title,
        [
            Branch(branch, place, None, None, None)
            if each is None
            else Branch(branch, place, each[0], tuple(each[1].shape), each[1].nbytes)
            for branch, place, each in zip(
                anatomy.branches, _places(unet, anatomy), known, strict=True
            )
        ],
    )


def _measured(
    outline: Outline, anatomy: Anatomy, example: Mapping[str, Any]
) -> list[tuple[float, torch.Tensor]]:
    """The share and the deep feature of each branch."""
    if anatomy.refusal(example) is not None:
        raise ValueError("such a call is never shallow")
    recorders = {branch: Recorder() for branch in anatomy.branches}
    whole = outline.multiply_adds(anatomy.cut(None, StandIn(), recorders), example)
    measured = []
    for branch, recorder in recorders.items():
        stand_in, feature = StandIn(), recorder.take()
        if feature is None:
            raise ValueError(f"branch {branch} has recorded nothing")
        stand_in.feature = feature
        arguments = anatomy.trimmed(branch, dict(example)) or example
        shallow = outline.multiply_adds(anatomy.cut(branch, stand_in, {}), arguments)
        measured.append((shallow / whole, feature))
    return measured


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Counts multiply-adds, by torch's own formulas."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.multiply_adds = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # Not `FlopCounterMode`: it sets hooks for all modules of the process, in all threads.
        output = func(*args, **(kwargs or {}))
        formula: Any = flop_counter.flop_registry.get(func._overloadpacket)
        if formula is not None:
            # A multiply-add is two operations there.
            self.multiply_adds += formula(*args, **(kwargs or {}), out_val=output) // 2
        return output


class _Remembering:
    """The `forward` of a module of an outline, which runs once for each kind of call."""

    def __init__(
        self,
        module: nn.Module,
        kind: int,
        counter: _Counter,
        known: dict[Any, tuple[int, Any]],
    ) -> None:
        self._module = module
        self._kind = kind
        self._counter = counter
        self._known = known

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = (self._kind, _traits(args), _traits(kwargs))
        if call in self._known:
            number, output = self._known[call]
            self._counter.multiply_adds += number
            return output
        before = self._counter.multiply_adds
        output = type(self._module).forward(self._module, *args, **kwargs)
        self._known[call] = self._counter.multiply_adds - before, output
        return output


class _Same:
    """Equal for the same object only, which it keeps alive: its address goes to no other."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _traits(value: Any) -> Any:
    """What a call depends on in a value, but for the values in tensors."""
    if isinstance(value, torch.Tensor):
        return torch.Tensor, value.shape, value.dtype
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_traits, value))
    if isinstance(value, set):
        return type(value), frozenset(value)
    if isinstance(value, dict):
        return type(value), tuple((key, _traits(item)) for key, item in value.items())
    if type(value).__module__.startswith("diffusers.") and vars(value) == {}:
        return type(value)  # an attention processor
    return _Same(value)


#: The dictionaries of hooks that every module has; and what calls it instead of its class.
_FRESH: Final = frozenset(name for name in vars(nn.Module()) if "hooks" in name)
_INSTALLED: Final = frozenset({"forward", "_compiled_call_impl", "_modules"})


def _emptied(value: Any, dtype: torch.dtype) -> Any:
    """The value of a module's attribute without what is in its tensors; containers are copied."""
    if isinstance(value, torch.Tensor):
        try:
            # Weights may be kept in a smaller dtype than they compute in (layerwise casting).
            small = value.is_floating_point() and value.element_size() == 1
            emptied = _on_meta(value, dtype if small else value.dtype)
        except Exception:  # some kinds of quantized weights; a call will say so
            return value
        return nn.Parameter(emptied, False) if isinstance(value, nn.Parameter) else emptied
    if type(value) is list:
        return [_emptied(each, dtype) for each in value]
    if type(value) in (dict, OrderedDict):
        return {key: _emptied(each, dtype) for key, each in value.items()}
    return value


def _on_meta(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device="meta")


def _is_watched(unet: nn.Module) -> bool:
    """Whether a call would leave something in an attention processor."""
    everything = Cut([Swap(unet, name, None) for name in unet._modules])
    return observer_of(unet, everything) is not None


def _places(unet: nn.Module, anatomy: Anatomy) -> Iterator[str]:
    """What a shallow call of each branch leaves out, in words."""
    modules = dict(unet.named_modules())
    names = {module: name for name, module in modules.items()}
    lists = {name for module, name in names.items() if _is_list(module) and not _numbered(name)}
    for branch in anatomy.branches:
        with anatomy.cut(branch, StandIn(), {}).applied():
            kept = {names[module] for module in unet.modules() if module in names}
        kept |= {name[:end] for name in kept for end in _dots(name)} | lists
        # The outermost of what is left out, in the order of the modules.
        left: list[str] = []
        for name in modules:
            if name not in kept and not any(name.startswith(f"{each}.") for each in left):
                left.append(name)
        with anatomy.cut(None, StandIn(), {branch: Recorder()}).applied():
            tapped = [names[_inner(each)] for each in unet.modules() if isinstance(each, Tap)]
        # In some layouts the middle block, or what goes with the blocks, is named before them, and
        # a downsampler before the layers of its block, which run first.
        blocks = [name for name in left if "block" in name and "mid" not in name] or left
        start = blocks[0].split(".")[:2]
        first = min(blocks, key=lambda each: (each.split(".")[:2] != start, "sample" in each))
        # A second stream may be recorded where it enters the part that is kept.
        ends = [name for name in left for end in tapped if f"{end}.".startswith(f"{name}.")]
        last = ends[-1] if ends else left[-1]
        words = list(dict.fromkeys(_words(modules, name) for name in (first, last)))
        yield "leaves out " + " to ".join(words)


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList)


def _numbered(name: str) -> bool:
    return name.rpartition(".")[2].isdigit()


def _inner(module: Any) -> nn.Module:
    while isinstance(module, Around):
        module = vars(module)["inner"]
    return module  # type: ignore[no-any-return]


def _dots(name: str) -> list[int]:
    return [i for i, letter in enumerate(name) if letter == "."]


def _words(modules: Mapping[str, nn.Module], name: str) -> str:
    """A module's name in words: "layer 1 of down block 0" for `down_blocks.0.resnets.1`."""
    parts, words = name.split("."), []
    while parts:
        *parts, last = parts
        if not last.isdigit():
            words.append("the " + _singular(last))
            continue
        *parts, listed = parts
        owner = modules[".".join(parts)]
        layers: Any = getattr(owner, "resnets", getattr(owner, "base_resnets", None))
        if "sample" in listed:
            words.append("the " + _singular(listed))
        elif parts and isinstance(layers, nn.ModuleList):
            layer = int(last) // (len(getattr(owner, listed)) // len(layers))
            # ControlNet-XS lists what goes with the downsampler behind what goes with the layers.
            words.append(f"layer {layer}" if layer < len(layers) else "the downsampler")
        else:
            words.append(f"{_singular(listed)} {last}")
    return " of ".join(words)


def _singular(name: str) -> str:
    words = name.removesuffix("s").replace("mid_", "middle_").replace("_", " ")
    return words.removesuffix("ple") + "pler" if words.endswith("sample") else words


def _bytes(number: int) -> str:
    size, units = number / 2**10, ["KiB", "MiB", "GiB"]
    while size >= 2**10 and len(units) > 1:
        size, units = size / 2**10, units[1:]
    return f"{size:.1f} {units[0]}"


def _from_config(unet: Any) -> dict[str, Any] | None:
    """What a U-Net of a common class is called with, for one picture of its size."""
    if isinstance(unet, UNet2DConditionModel):
        return _base(unet) | _conditioning(unet)
    return _base(unet) if isinstance(unet, UNet2DModel) else None


def _base(unet: Any) -> dict[str, Any]:
    config, dtype = unet.config, unet.dtype
    size = config.sample_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    arguments: dict[str, Any] = {
        "sample": _empty(dtype, config.in_channels, *size),
        "timestep": torch.empty((), dtype=torch.int64, device="meta"),
    }
    kind = config.class_embed_type
    if kind == "timestep":
        arguments["class_labels"] = _empty(dtype)
    elif kind == "identity":
        arguments["class_labels"] = _empty(dtype, unet.time_embedding.linear_2.out_features)
    elif kind in ("projection", "simple_projection"):
        width = config.projection_class_embeddings_input_dim
        arguments["class_labels"] = _empty(dtype, width)
    elif config.num_class_embeds is not None:
        arguments["class_labels"] = _empty(torch.int64)
    return arguments


def _conditioning(unet: Any) -> dict[str, Any]:
    config, dtype = unet.config, unet.dtype
    width = config.encoder_hid_dim or config.cross_attention_dim
    if not isinstance(width, int):
        width = width[0]
    arguments = {"encoder_hidden_states": _empty(dtype, 77, width)}
    added = {}
    if config.addition_embed_type == "text_time":
        # A refiner has five numbers and a wider text in their place: that is as much work.
        text = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": _empty(dtype, text), "time_ids": _empty(dtype, 6)}
    if config.addition_embed_type == "image" or config.encoder_hid_dim_type == "image_proj":
        added["image_embeds"] = _empty(dtype, config.encoder_hid_dim)
    return arguments | ({"added_cond_kwargs": added} if added else {})


def _empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """One of these in a batch."""
    return torch.empty((1, *shape), dtype=dtype, device="meta")
