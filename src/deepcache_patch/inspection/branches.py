"""What a person chooses a branch by: its place, the cost of a call there, its feature's size."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import torch
from torch import nn

from ..cutting.anatomy import Anatomy, dissect
from ..cutting.answer import Answer
from ..cutting.cut import Cut, Swap
from ..cutting.features import Around, Recorder, StandIn, Tap
from ..patching.call import whole
from ..patching.wrappers import unwrapped
from ..running.example import example_from_config
from ..running.pipeline.components import unets_of
from ..running.watching.observers import observer_of
from ..running.watching.walk import Parts
from ..schedules.plans import OUTPUT
from ..schedules.tables import aligned, html_table
from .outline import Outline

_EVERYTHING: Final = "leaves out everything"
_HEADER: Final = ("branch", "share", "feature", "size", "leaves out")
_UNKNOWN: Final = "share, feature and size are known after the first generation"


@dataclass(frozen=True)
class Branch:
    """One branch of a U-Net.

    Attributes:
        number: What the settings call it: from 0, or -1 above the output.
        place: What a shallow call leaves out, in words: from where to where, in the order in which
            the layers run. Blocks and layers have their numbers in the U-Net, from 0. The output of
            the last one left out is the deep feature.
        share: The multiply-adds of a shallow call, as a part of those of a full call, 0 to 1.
        shape: The shape of the deep feature of one U-Net call.
        nbytes: The bytes of that feature. There may be two features to hold: see `Extrapolate`.

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
        output: The branch above the output, -1, where nothing runs; `None` where there is none.
            It stands in the table, and is none of the sequence.
    """

    def __init__(
        self, title: str, branches: Sequence[Branch], output: Branch | None = None
    ) -> None:
        self.title = title
        self.output = output
        self._branches = tuple(branches)

    def __getitem__(self, index: Any) -> Any:
        """Return a branch, or several of them."""
        return self._branches[index]

    def __len__(self) -> int:
        return len(self._branches)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Branches) and (self._branches, self.output) == (
            other._branches,
            other.output,
        )

    __hash__ = None  # type: ignore[assignment]

    def _rows(self) -> list[tuple[str, ...]]:
        """The cells of the table, the header first."""
        rows: list[tuple[str, ...]] = [_HEADER]
        rows += [
            (
                str(each.number),
                "?" if each.share is None else f"{each.share:.1%}",
                "?" if each.shape is None else "×".join(map(str, each.shape)),
                "?" if each.nbytes is None else _bytes(each.nbytes),
                each.place.removeprefix("leaves out "),
            )
            for each in (*([] if self.output is None else [self.output]), *self)
        ]
        return rows

    @property
    def _remarks(self) -> list[str]:
        return [] if all(each.share is not None for each in self) else [_UNKNOWN]

    def _repr_html_(self) -> str:
        header, *rows = self._rows()
        remarks = "".join(f"<p>{escape(each)}</p>" for each in self._remarks)
        return f"{html_table(self.title, rows, header=header)}{remarks}"

    def __str__(self) -> str:
        return "\n".join([self.title, *aligned(self._rows()), *self._remarks])

    __repr__ = __str__


class BranchesOfEach(dict[str, Branches]):
    """The branches of several U-Nets, by the components' names; printed, a table for each."""

    def __str__(self) -> str:
        return "\n\n".join(f"{name}: {branches}" for name, branches in self.items())

    def _repr_html_(self) -> str:
        tables = (f"<p>{escape(name)}</p>{each._repr_html_()}" for name, each in self.items())
        return "".join(tables)

    __repr__ = __str__


def share_of(branches: Branches | BranchesOfEach, number: int) -> float | None:
    """The share of a branch, of the U-Net where it is largest; `None` where one is not known."""
    if number == OUTPUT:
        return 0.0
    tables = branches.values() if isinstance(branches, BranchesOfEach) else [branches]
    shares = [table[number].share for table in tables]
    return None if None in shares else max(shares)


def branches_of_pipeline(
    pipe: Any, examples: Mapping[nn.Module, Mapping[str, Any] | None]
) -> Branches | BranchesOfEach:
    """The branches of each U-Net of a pipeline; of its only one, without its name.

    Args:
        pipe: The pipeline, or a bare U-Net.
        examples: What a U-Net was called with, without values, where that is known.

    Raises:
        UnsupportedModelError: If there is no U-Net that can be cut.
    """
    unets, outlines = unets_of(pipe), {}
    for unet in unets.values():
        with whole(unet):
            outlines[unet] = Outline(unwrapped(unet))
    tables = {
        name: branches_of(outlines[unet], examples.get(unwrapped(unet)))
        for name, unet in unets.items()
    }
    return BranchesOfEach(tables) if len(tables) > 1 else next(iter(tables.values()))


def branches_of(outline: Outline, example: Mapping[str, Any] | None) -> Branches:
    """The branches of a U-Net.

    Args:
        outline: The outline of the U-Net.
        example: What it is called with; `None` if that is not known.
    """
    unet: Any = outline.unet
    anatomy = dissect(unet)
    number = len(anatomy.branches)
    title = f"{type(unet).__name__}: {number} branch{'' if number == 1 else 'es'}"
    unknown: list[tuple[None, None]] = [(None, None)] * number
    known: Sequence[tuple[float | None, torch.Tensor | None]] = unknown
    output: Branch | None = _branch(OUTPUT, _EVERYTHING, 0.0, None)
    try:
        example = example_from_config(unet) if example is None else example
        if example is not None and not _is_watched(unet):
            known = _measured(outline, anatomy, example)
            answer = Answer.of(outline.output, example)
            output = None if answer is None else _branch(OUTPUT, _EVERYTHING, 0.0, answer[1])
            sample = example[anatomy.sample_name]
            dtype = str(sample.dtype).removeprefix("torch.")
            title += f"; a call with {'×'.join(map(str, sample.shape))} in {dtype}"
    except Exception:  # whatever modules say that want to see values; the places are still known
        known = unknown
    places = zip(anatomy.branches, _places(unet, anatomy), known, strict=True)
    rows = [_branch(branch, place, *each) for branch, place, each in places]
    return Branches(title, rows, output)


def _branch(number: int, place: str, share: float | None, feature: torch.Tensor | None) -> Branch:
    """One of a table; `None` for what is not known."""
    size = (None, None) if feature is None else (tuple(feature.shape), feature.nbytes)
    return Branch(number, place, share, *size)


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


def _is_watched(unet: nn.Module) -> bool:
    """Whether a call would leave something in an attention processor."""
    everything = Cut([Swap(unet, name, None) for name in unet._modules])
    return observer_of(Parts(unet), everything) is not None


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
