"""Who takes part: the plain pipeline, fewer steps, DeepCache 0.1.1 and this package as asked for.

A contestant says what stands around one of its generations, and afterwards how much work that was,
in calls of the whole U-Net. Nothing here generates or measures.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from benchmarks.deepcache import deepcache
from benchmarks.provenance import slug
from deepcache_patch import FULL, Auto, DeepCacheHelper
from deepcache_patch.settings.by_name import named_schedule

#: What takes part if nobody says otherwise. Shares are of the plain pipeline's steps.
FEWER_STEPS = (0.6, 0.5, 0.4, 0.3)
DEEPCACHE_INTERVALS = (2, 3, 5)
OURS = ("interval=2", "interval=3", "interval=5", "schedule=auto,interval=3")

#: Branch -> multiply-adds of a shallow call as a share of those of a full one, if that is known.
Shares = Mapping[int, float | None]


@dataclass(frozen=True)
class Work:
    """What a generation computed.

    Attributes:
        full_calls: Calls of the U-Net that ran everything.
        shallow_calls: The others.
        work: All of them, in multiply-adds of a full call; `None` if the share is not known.
    """

    full_calls: int
    shallow_calls: int
    work: float | None


#: Told how often the U-Net was called, says what that was.
Tally = Callable[[int], Work]


@dataclass(frozen=True)
class Contestant:
    """One way to make the pictures.

    Attributes:
        name: No other contestant has it.
        steps: `num_inference_steps` of its generations.
        around: Makes the context in which a generation runs; called anew for each.
        learn: Given what runs a generation that is not measured; before the first that is.
    """

    name: str
    steps: int
    around: Callable[[], AbstractContextManager[Tally]]
    learn: Callable[[Callable[[], Any]], None] = lambda run: None

    @property
    def folder(self) -> str:
        """Of its pictures."""
        return folder_of(self.name)


def folder_of(name: str) -> str:
    """Where the pictures of a contestant lie, by its name: branches -1 and 1 lie apart."""
    return slug(name.replace("=-", "=minus-"))


def helper_settings(text: str) -> dict[str, Any]:
    """Arguments of `DeepCacheHelper` from words: `interval=3` or `schedule=adaptive,tolerance=0.2`.

    With a schedule, what is not `replay` are parameters of that.

    Raises:
        ValueError: If it is not written like that, or there is no such argument.
    """
    given: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = (each.strip() for each in part.partition("="))
        if not name or not value or name in given:
            raise ValueError(f"--ours {text!r}: write NAME=VALUE,NAME=VALUE, each name once")
        given[name] = _number_or_word(value)
    try:
        if "schedule" in given:
            replay = {"replay": given.pop("replay")} if "replay" in given else {}
            return {"schedule": named_schedule(given.pop("schedule"), **given), **replay}
    except (TypeError, ValueError) as error:
        raise ValueError(f"--ours {text!r}: {error}") from error
    known = [name for name in signature(DeepCacheHelper).parameters if name != "pipe"]
    for name in given.keys() - known:
        raise ValueError(f"--ours {text!r}: {name!r} is none of {', '.join(known)}")
    return given


def contestants(pipe: Any, shares: Shares, options: Namespace) -> list[Contestant]:
    """Everyone who takes part, the plain pipeline first.

    Args:
        pipe: The pipeline.
        shares: Of the branches of its U-Net; read when a generation is over.
        options: `steps` of the plain pipeline, `fewer_steps`, the intervals of `deepcache` at
            branch 0, settings of `ours`, and the folder `output`, where schedules keep what they
            learn.

    Raises:
        ValueError: If settings do not fit the pipeline.
    """
    steps = options.steps
    found = [Contestant("plain", steps, _alone)]
    found += [Contestant(f"{fewer} steps", fewer, _alone) for fewer in options.fewer_steps]
    for interval in options.deepcache:
        around = partial(_published, pipe, shares, interval)
        found.append(Contestant(f"DeepCache 0.1.1, interval={interval}", steps, around))
    return [*found, *(_our(pipe, shares, options.output, steps, text) for text in options.ours)]


@contextmanager
def _alone() -> Iterator[Tally]:
    yield lambda calls: Work(calls, 0, calls)


@contextmanager
def _published(pipe: Any, shares: Shares, interval: int) -> Iterator[Tally]:
    counted = 0

    def count(*_: Any) -> None:
        nonlocal counted
        counted += 1

    def tally(calls: int) -> Work:
        share, shallow = shares[0], calls - counted
        return Work(counted, shallow, None if share is None else counted + shallow * share)

    # It does not count. Its shallow calls never come to the parts of the middle block.
    part = next(each for each in pipe.unet.mid_block.modules() if not [*each.children()])
    handle = part.register_forward_hook(count)
    try:
        with deepcache(pipe, interval, 0):
            yield tally
    finally:
        handle.remove()


def _our(pipe: Any, shares: Shares, folder: Path, steps: int, text: str) -> Contestant:
    settings = helper_settings(text)
    helper = DeepCacheHelper(pipe, **settings)
    schedule = settings.get("schedule")

    @contextmanager
    def around() -> Iterator[Tally]:
        with helper:
            yield lambda calls: _work(helper, shares, calls)

    def learn(run: Callable[[], Any]) -> None:
        if not isinstance(schedule, Auto):
            return
        file = folder / f"learned-{folder_of(text)}.json"
        learning = Auto(schedule.interval, schedule.branch, file=file)
        if not learning.learned:
            with DeepCacheHelper(pipe, schedule=learning):
                run()
        # The file has fewer digits than what was learned: after a break, all is as before.
        kept = Auto(schedule.interval, schedule.branch, file=file)
        helper.follow(kept)  # as by default, where a generation teaches nothing

    return Contestant(f"ours, {text}", steps, around, learn)


def _work(helper: DeepCacheHelper, shares: Shares, calls: int) -> Work:
    (last,) = helper.last_generations.values()
    costs = [1.0 if entry == FULL else shares[entry] for entry in last.plan]
    known = [cost for cost in costs if cost is not None]
    work = calls * sum(known) / len(known) if len(known) == len(costs) else None
    return Work(last.full_calls, last.shallow_calls, work)


def _number_or_word(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value
