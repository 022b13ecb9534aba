"""Mutation testing: does a test fail for every small change of the parts that decide?

mutmut makes the changes and tries each in a process forked from one that has imported everything.
Here stands what it lacks: only those tests that `judges` names, the quickest first; properties,
context managers and functions with a cache, which it would leave out; and the results. Its settings
are in `pyproject.toml`.
Run from the project's root: ``python -m benchmarks.coverage.mutation [NAME_OF_MUTANT …]``. Without
names it goes on where it was broken off; ``rm -r mutants`` for a fresh start, which functions with
new names need: tests that have run are not asked again which functions they reach.
"""

import argparse
import gc
import json
import platform
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import libcst as cst
import mutmut.__main__ as mutmut
from mutmut.mutation import file_mutation, trampoline
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.workers import isolation

from benchmarks.coverage.judges import judged
from benchmarks.coverage.merging import merged

# Not from `provenance`: it imports the package, and mutmut has to be first with the mutated one.
RESULTS = Path(__file__).resolve().parents[1] / "results" / "mutation.json"


def extend_mutmut() -> None:
    """Teach mutmut what it lacks, for the length of this process."""
    skips = file_mutation.MutationVisitor._skip_node_and_children
    arrange = file_mutation.function_trampoline_arrangement
    collect = mutmut.collect_or_load_stats
    arguments = PytestRunner._pytest_args_regular_run
    warm_up = PytestRunner.warm_up
    register_timeout = isolation.register_timeout

    def skip(self: Any, node: cst.CSTNode) -> bool:
        return not _is_mutable_though_decorated(node) and skips(self, node)

    def arranged(function: cst.FunctionDef, mutants: Any, class_name: str | None) -> Any:
        if not _is_mutable_though_decorated(function):
            return arrange(function, mutants, class_name)
        plain = function.with_changes(decorators=())
        before, (switch, *versions), after, names = arrange(plain, mutants, class_name)
        decorators = (*function.decorators, *switch.decorators)
        return before, [switch.with_changes(decorators=decorators), *versions], after, names

    def collected(*args: Any, **kwargs: Any) -> None:
        collect(*args, **kwargs)
        found = state().tests_by_mangled_function_name
        for function in found:
            found[function] = judged(function, found[function])

    def quickest_first(self: PytestRunner, tests: Iterable[str]) -> list[str]:
        seconds = state().duration_by_test
        return arguments(self, sorted(tests, key=lambda test: (seconds.get(test, 0), test)))

    def warmed_up(self: PytestRunner) -> None:
        warm_up(self)
        # pytest collects garbage five times at its end: not that of torch and diffusers, too.
        gc.collect()
        gc.freeze()

    def patient(pid: int, timeout_s: float) -> None:
        # The limit that counts is that of CPU time: it does not depend on what else is running.
        register_timeout(pid, 20 * timeout_s)

    # Who calls the U-Net is told by the modules of the frames: the switch's is one of the package.
    trampoline.__name__ = "deepcache_patch.switch"
    file_mutation.MutationVisitor._skip_node_and_children = skip
    file_mutation.function_trampoline_arrangement = arranged
    mutmut.collect_or_load_stats = collected
    PytestRunner._pytest_args_regular_run = quickest_first
    PytestRunner.warm_up = warmed_up
    isolation.register_timeout = patient


def _is_mutable_though_decorated(node: cst.CSTNode) -> bool:
    if not isinstance(node, cst.FunctionDef) or len(node.decorators) != 1:
        return False
    decorator = node.decorators[0].decorator
    if isinstance(decorator, cst.Call):  # such as `lru_cache(100)`
        decorator = decorator.func
    kept = ("property", "contextmanager", "lru_cache")
    return isinstance(decorator, cst.Name) and decorator.value in kept


def report(before: dict[str, Any]) -> dict[str, Any]:
    """The results of the last run, and of modules that it did not run those of the one before.

    Args:
        before: An earlier report, also for what it says of mutants that survive.
    """
    reasons = {_key(each): each["reason"] for each in before.get("survivors", ())}
    modules: dict[str, Counter[str]] = {}
    survivors = []
    for path in mutmut.walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        name = str(path.relative_to("src/deepcache_patch").with_suffix(""))
        counts = modules[name] = Counter()
        for mutant, code in data.exit_code_by_key.items():
            status = status_by_exit_code[code]
            counts[status] += 1
            if status not in ("killed", "timeout", "not checked"):
                survivor = {"name": mutant, "status": status, "module": name}
                survivor |= _change(mutant, path)
                survivors.append(survivor | {"reason": reasons.get(_key(survivor))})
    ran = {name: dict(counts) for name, counts in modules.items()}
    return {
        "tool": f"mutmut {version('mutmut')}",
        "command": "make mutation",
        "python": platform.python_version(),
        **merged(ran, survivors, before),
    }


def _change(mutant: str, path: Path) -> dict[str, str]:
    function = mutmut.mangled_name_from_mutant_name(mutant).rpartition(".")[2]
    function = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    lines = get_diff_for_mutant(mutant, path=path).splitlines()[3:]
    old = [line[1:].strip() for line in lines if line.startswith("-")]
    new = [line[1:].strip() for line in lines if line.startswith("+")]
    return {"function": function, "code": "\n".join(old), "mutant": "\n".join(new)}


def _key(survivor: dict[str, Any]) -> tuple[str, ...]:
    return tuple(survivor[name] for name in ("module", "function", "code", "mutant"))


def main() -> None:
    """Run the mutants that are asked for; write the results of all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="of mutants to run again; may have a *")
    parser.add_argument("--children", type=int, default=1, help="how many run at a time")
    arguments = parser.parse_args()
    extend_mutmut()
    mutmut._run(tuple(arguments.names), arguments.children)
    before = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    found = report(before)
    RESULTS.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")
    for name, counts in found["modules"].items():
        print(name, counts)


if __name__ == "__main__":
    main()
