"""Which pipelines of diffusers run faster, and whether each of their generations is the right one.

Every case of `tests/zoo`, a tiny pipeline of each class, generates with this package and with
DeepCache 0.1.1: first as its main case, then as others, with another size, batch, guidance,
strength or number of steps. Each of these must equal that of a fresh pipeline with a fresh helper,
or the one before has left something behind. Run from the project's root:
``python -m benchmarks.coverage.compatibility``.
"""

from __future__ import annotations

import argparse
import functools
import json
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks import provenance
from benchmarks.coverage.cases import from_tests
from benchmarks.deepcache import deepcache_helper
from deepcache_patch import DeepCacheHelper, DeepCacheWarning, Uniform, UnsupportedModelError
from deepcache_patch.measuring.environment import device_name, versions

RESULTS = provenance.RESULTS / "compatibility.json"
INTERVAL = 3
STEPS = 8


@dataclass(frozen=True)
class Outcome:
    """What became of one pipeline with one helper.

    Attributes:
        result: "exact": faster, and every generation is that of a fresh pipeline; "wrong": faster,
            but some are not, or an interval of 1 is not the plain pipeline; "in full": nothing is
            left out; "refused": there is an error before anything is patched; "fails": there is
            another error.
        why: The warnings, or the error.
        share: How many calls of the U-Nets' layers were left of the plain pipeline's, 0 to 1.
        wrong: The generations that differ, or raise what a fresh pipeline does not.
        undone: Whether the pipeline is the plain one again, after the helper was disabled.
    """

    result: str
    why: str = ""
    share: float = 1.0
    wrong: tuple[str, ...] = ()
    undone: bool = True


#: Attaches a helper with an interval to a pipeline, and returns what takes it off.
Attach = Callable[[Any, int], Callable[[], None]]


def ours(pipe: Any, interval: int) -> Callable[[], None]:
    """This package, branch 0."""
    return DeepCacheHelper(pipe, schedule=Uniform(interval)).enable().disable


def deepcache(pipe: Any, interval: int) -> Callable[[], None]:
    """DeepCache 0.1.1 as its README says, branch 0."""
    helper = deepcache_helper(pipe, interval, 0)
    helper.enable()
    return functools.partial(helper.disable)


def outcome(case: Any, attach: Attach) -> Outcome:
    """Run a case of the zoo in all its ways."""
    pipe = case.load()
    with layer_calls(case, pipe) as plainly:
        plain = case.run(pipe, steps=STEPS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = _outcome(case, attach, pipe, plain, plainly)
        except UnsupportedModelError as error:
            return Outcome("refused", str(error))
        except Exception as error:  # whatever another package raises
            return Outcome("fails", f"{type(error).__name__}: {str(error).splitlines()[0][:160]}")
    said = {str(each.message) for each in caught if issubclass(each.category, DeepCacheWarning)}
    return Outcome(**{**vars(found), "why": "; ".join(sorted(said))})


def _outcome(case: Any, attach: Attach, pipe: Any, plain: torch.Tensor, plainly: Any) -> Outcome:
    wrong = []
    at_1 = case.load()
    detach = attach(at_1, 1)
    if not torch.equal(case.run(at_1, steps=STEPS), plain):
        wrong.append("interval 1")
    detach()
    detach = attach(pipe, INTERVAL)
    with layer_calls(case, pipe) as counted:
        case.run(pipe, steps=STEPS)
    for change, overrides in case.others.items():
        arguments = {"steps": STEPS} | dict(overrides)
        fresh = case.load()
        attach(fresh, INTERVAL)
        expected = case.run(fresh, **arguments)
        try:
            if not torch.equal(case.run(pipe, **arguments), expected):
                wrong.append(change)
        except Exception as error:  # whatever another package raises
            wrong.append(f"{change} ({type(error).__name__})")
    detach()
    share = counted.calls / plainly.calls
    result = "wrong" if wrong else "exact" if share < 1 else "in full"
    undone = torch.equal(case.run(pipe, steps=STEPS), plain)
    return Outcome(result, "", round(share, 3), tuple(wrong), undone)


class _Count:
    calls = 0


@contextmanager
def layer_calls(case: Any, pipe: Any) -> Iterator[_Count]:
    """Counts the calls of the layers without children in the pipeline's U-Nets."""
    layers = {
        module
        for name in case.unets
        for module in pipe.components[name].modules()
        if not any(True for _ in module.children())
    }
    count = _Count()

    def hook(module: torch.nn.Module, _args: Any, _output: Any) -> None:
        count.calls += module in layers

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


def zoo() -> dict[str, Any]:
    """The cases of the tests."""
    cases: dict[str, Any] = from_tests("zoo").CASES
    return cases


def row(name: str, attachments: tuple[str, ...] = ("ours", "deepcache")) -> dict[str, Any]:
    """What there is to say of one case."""
    torch.set_num_threads(1)
    case = zoo()[name]
    pipe = case.load()
    outcomes = {each: asdict(outcome(case, globals()[each])) for each in attachments}
    return {
        "pipeline": case.pipeline.__name__,
        "deprecated": is_deprecated(case.pipeline),
        "unets": {each: type(pipe.components[each]).__name__ for each in case.unets},
        **json.loads(json.dumps(outcomes)),
    }


def is_deprecated(pipeline: type) -> bool:
    """Whether diffusers has marked the class, or put it where the deprecated ones are."""
    marked = any(base.__name__ == "DeprecatedPipelineMixin" for base in pipeline.__mro__)
    return marked or ".deprecated." in pipeline.__module__


def main() -> None:
    """Run, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--only", nargs="*", help="cases to run again; the others are kept")
    arguments = parser.parse_args()
    names = arguments.only or list(zoo())
    kept = json.loads(RESULTS.read_text())["rows"] if arguments.only else {}
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        rows = {}
        for name, found in zip(names, pool.map(row, names), strict=True):
            rows[name] = found
            print(name, *(f"{each}: {found[each]['result']}" for each in ("ours", "deepcache")))
    report = {
        "command": provenance.command("coverage.compatibility"),
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
        "interval": INTERVAL,
        "steps": STEPS,
        "rows": {name: (kept | rows)[name] for name in zoo() if name in kept | rows},
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
