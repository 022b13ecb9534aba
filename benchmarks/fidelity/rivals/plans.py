"""Full steps of methods that know them in advance, for a budget: `full_steps` of `steps`. Pure
arithmetic; each function returns the full steps, rising, from 0.
"""

#: ZEUS: full steps at the start and at the end, as shares of all steps (10 and 5 of 50).
_ZEUS_START, _ZEUS_END = 0.2, 0.1

#: Spectrum: full steps at the start, and the first gap (its `warmup_steps` and `window_size`).
_SPECTRUM_START, _SPECTRUM_GAP = 5, 2

#: How finely Spectrum's growth (its `flex_window`) is searched; 0.75 is the published one.
_GROWTH = 0.01


def uniform(steps: int, full_steps: int) -> list[int]:
    """Evenly spread: step ⌊i · steps / full_steps⌋ for each i."""
    return [number * steps // full_steps for number in range(full_steps)]


def zeus(steps: int, full_steps: int) -> list[int]:
    """The first fifth and the last tenth, and the rest of the budget evenly between.

    Where the budget is less than that, it goes to the start, one step to the end.
    """
    start = max(2, round(steps * _ZEUS_START))
    end = max(1, round(steps * _ZEUS_END))
    between = full_steps - start - end
    if between < 0:
        start, between = max(1, full_steps - 1), 0
        end = full_steps - start
    width = (steps - start - end + 1) / (between + 1)
    inner = [start - 1 + round(number * width) for number in range(1, between + 1)]
    return [*range(start), *inner, *range(steps - end, steps)]


def spectrum(steps: int, full_steps: int) -> list[int]:
    """Five steps, then gaps that begin with 2 and grow after each full step, just so much as fits.

    Where gaps of 2 throughout are too wide for the budget, more steps run whole at the start; where
    it is too small for any such plan, it all goes to the start.
    """
    for start in range(_SPECTRUM_START, steps + 1):
        evenly = _growing(steps, start, 0)
        if len(evenly) == full_steps:
            return evenly
        if len(evenly) > full_steps:
            break
    growths = (number * _GROWTH for number in range(round(steps / _GROWTH)))
    plans = (_growing(steps, _SPECTRUM_START, growth) for growth in growths)
    kept = (plan for plan in plans if len(plan) <= full_steps)
    return max(kept, key=len, default=list(range(full_steps)))


def _growing(steps: int, start: int, growth: float) -> list[int]:
    plan, gap, skipped = list(range(start)), float(_SPECTRUM_GAP), 0
    for step in range(start, steps):
        if (skipped + 1) % int(gap + 1e-9) == 0:
            plan.append(step)
            gap, skipped = gap + growth, 0
        else:
            skipped += 1
    return plan
