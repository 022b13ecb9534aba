"""What 200 generations, and switching on and off 1,000 times, leave behind.

A Stable Diffusion with a ControlNet, of the true classes and as small as they can be, runs 200
generations by each of three schedules, with steps, batches and sizes that change from one to the
next. Then it is switched on and off 1,000 times in each of several ways, and makes a full and a
shallow step each time. After the tenth, and in some twenty places more up to the last, these are
read:

- live tensors and their bytes, of all that the garbage collector knows, memory that several share
  counted once; Python objects after a collection, by type; threads; and the graphs that dynamo has
  made, where the networks are compiled. All of them must be the same numbers in all places.
- resident memory, after `malloc_trim`. The allocator keeps pages back and gives them back as it
  likes, so this is flat only within `RESIDENT_BOUND`.

Run from the project's root: ``python -m benchmarks.cost.lifetime``.
"""

import ctypes
import gc
import json
import os
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch._subclasses import FakeTensor

from benchmarks.networks.loop_pipeline import LoopPipeline
from benchmarks.networks.toys import smallest
from benchmarks.provenance import options, prepare, write
from deepcache_patch import Adaptive, Auto, DeepCacheHelper, Uniform
from deepcache_patch.schedules.guide import AnySchedule

#: Steps, pictures and size of the latents, one after the other. Readings are taken where the same
#: generation was the last, for the scheduler keeps its list of timesteps.
GENERATIONS: Final = ((10, 1, 8), (9, 2, 8), (10, 1, 16), (9, 1, 8), (12, 2, 8))
#: By how much resident memory may be more than after the tenth, in MiB: the allocator's own coming
#: and going. A feature of each of 190 generations would be 0.75 to 3, those of 990 cycles 4.
RESIDENT_BOUND: Final = 0.5
#: After how many turns everything that is made once has been made.
WARM_UP: Final = 10


_PROCESS: Final = ctypes.CDLL(None)


class Tensors(NamedTuple):
    """Those that are alive.

    Attributes:
        count: How many.
        nbytes: Of their memory, what several share counted once; those on "meta" have none, nor
            have dynamo's fakes.
    """

    count: int
    nbytes: int


def live_tensors() -> Tensors:
    """All that the garbage collector knows."""
    # By its type: `isinstance` would ask other objects what class they say they are of.
    found = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    real = [each for each in found if not (each.is_meta or issubclass(type(each), FakeTensor))]
    storages = [each.untyped_storage() for each in real]
    return Tensors(len(found), sum({each._cdata: each.nbytes() for each in storages}.values()))


def live_objects() -> Counter[str]:
    """How many objects of each type the garbage collector knows."""
    return Counter(f"{type(e).__module__}.{type(e).__qualname__}" for e in gc.get_objects())


def resident_mib() -> float:
    """Resident memory of the process, once the allocator has given back what it can.

    0 where the system is not Linux; not given back first where the C library is not GNU's.
    """
    with suppress(AttributeError):
        _PROCESS.malloc_trim(0)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def graphs() -> int:
    """How many dynamo has made in this process."""
    made: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return made


def main() -> None:
    """Measure and write."""
    parser = options("cost.lifetime", __doc__, repeats=1)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    arguments = parser.parse_args()
    device, dtype = prepare(arguments)
    if arguments.quick:
        arguments.generations, arguments.cycles = 30, 100
    pipe = smallest(device, dtype)
    # What the libraries are made of is not counted: collections are quick, and counts small.
    gc.collect()
    gc.freeze()
    figures = {
        "resident_bound_mib": RESIDENT_BOUND,
        "generations": of_generations(pipe, arguments.generations),
        "cycles": of_cycles(pipe, arguments.cycles),
    }
    figures["compiled"] = of_compiled(pipe, arguments.cycles)
    write("cost.lifetime", arguments, device, figures)


def of_generations(pipe: LoopPipeline, times: int) -> dict[str, Any]:
    """So many generations of different kinds, by each schedule."""
    schedules: dict[str, AnySchedule] = {
        "uniform": Uniform(),
        "auto": Auto(1.2),  # so many full steps that it learns from most of them
        "adaptive": Adaptive(0.2, (0, 1)),  # runs both branches in the first of them
    }
    found: dict[str, Any] = {}
    for name, schedule in schedules.items():
        with DeepCacheHelper(pipe, schedule=schedule) as helper:
            found[name] = readings(lambda turn: _generation(pipe, turn), times)
            found[name]["full_calls"] = helper.stats.full_calls
            found[name]["shallow_calls"] = helper.stats.shallow_calls
    return found


def of_cycles(pipe: LoopPipeline, times: int) -> dict[str, Any]:
    """Switched on and off so many times in each way."""
    helper = DeepCacheHelper(pipe, schedule=Uniform(2))

    def enabled(_: int) -> None:
        helper.enable()
        _two_steps(pipe)
        helper.disable()

    def new(_: int) -> None:
        with DeepCacheHelper(pipe, schedule=Uniform(2)):
            _two_steps(pipe)

    def broken_off(_: int) -> None:
        with DeepCacheHelper(pipe, schedule=Uniform(2)):
            next(pipe.loop(4, size=8))

    def deleted(_: int) -> None:
        DeepCacheHelper(pipe, schedule=Uniform(2)).enable()  # takes over from the one before
        _two_steps(pipe)

    def paused(_: int) -> None:
        with helper.paused():
            _two_steps(pipe)

    ways = {"the same helper": enabled, "a new helper": new, "a new helper, and a loop that is "
            "broken off": broken_off, "a helper that nobody disables": deleted}  # fmt: skip
    found = {name: readings(way, times) for name, way in ways.items()}
    with helper:
        found["paused"] = readings(paused, times)
    return found


def of_compiled(pipe: LoopPipeline, times: int) -> dict[str, Any]:
    """Likewise with compiled networks; by the backend "eager", since only graphs count."""
    DeepCacheHelper(pipe, schedule=Uniform()).compile(backend="eager")

    def new(_: int) -> None:
        with DeepCacheHelper(pipe, schedule=Uniform(2)) as helper:
            _two_steps(pipe)
            with helper.paused():
                _two_steps(pipe)

    return readings(new, times)


def readings(run: Callable[[int], None], times: int) -> dict[str, Any]:
    """What there is after the tenth run and in further places up to the last.

    Args:
        run: Gets the number of the turn, from 0.
        times: More than `WARM_UP`, both multiples of the number of different generations.
    """
    every = len(GENERATIONS)
    stride = max(every, (times - WARM_UP) // 20 // every * every)
    places = sorted({*range(WARM_UP, times, stride), times})
    # Arrays of numbers hold no objects, so that the readings do not count themselves.
    found = {name: array("q") for name in ("tensors", "nbytes", "objects", "threads", "graphs")}
    resident = array("d")
    by_type: dict[int, str] = {}
    objects: Counter[str] = Counter()  # one there is always, lest the readings count themselves
    # What they make at their first call.
    live_tensors(), resident_mib(), graphs(), objects.update(live_objects()), objects.clear()
    for turn in range(1, times + 1):
        run(turn - 1)
        if turn in places:
            gc.collect()
            # The tensors first: asked for their memory, they make an object that stays.
            for name, value in zip(("tensors", "nbytes"), live_tensors(), strict=True):
                found[name].append(value)
            objects.update(live_objects())
            found["objects"].append(sum(objects.values()))
            if turn in (WARM_UP, times):
                by_type[turn] = json.dumps(objects)
            objects.clear()
            found["threads"].append(threading.active_count())
            found["graphs"].append(graphs())
            resident.append(resident_mib())
    grown = Counter(json.loads(by_type[times]))
    grown.subtract(json.loads(by_type[WARM_UP]))
    return {
        "places": places,
        **{name: list(values) for name, values in found.items()},
        "resident_mib": list(resident),
        "grown": {name: count for name, count in grown.items() if count},
    }


def _generation(pipe: LoopPipeline, turn: int) -> None:
    steps, pictures, size = GENERATIONS[turn % len(GENERATIONS)]
    # The same again and again, or an adaptive one may come to its second branch late.
    pipe(steps, batch=pictures, size=size, seed=turn % len(GENERATIONS))


def _two_steps(pipe: LoopPipeline) -> None:
    pipe(2, size=8)


def is_flat(values: Sequence[float], within: float = 0) -> bool:
    """Whether no value differs from the first by more."""
    return all(abs(each - values[0]) <= within for each in values)


if __name__ == "__main__":
    main()
