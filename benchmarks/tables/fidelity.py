"""The tables that say how near the pictures of faster pipelines come to the plain ones."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fidelity import per_picture
from benchmarks.fidelity.contestants import RIVALS
from benchmarks.fidelity.curves import RESULTS, TITLES, Row, fitted_to, nearest, psnr_at, results
from benchmarks.fidelity.work import SPEEDS
from benchmarks.tables.markdown import table

#: The sampler of the README's table: the one that is used most.
_SHOWN = "dpm-25"

#: Those of the README's table, at the numbers of steps that people take.
_USUAL = ("dpm-25", "dpm-karras-25", "unipc-20", "euler-30")

#: Those of it with stronger guidance: one that people take, and one with which least is gained.
_STRONG = (_SHOWN, "ddim-20")

#: The budget of tables that have one only.
_SHOWN_SPEED = SPEEDS[-1]

#: From here on, in dB, one is nearer than another.
_NOTICED = 0.05

#: Whose speed by work differs from that of a row by no larger part than this keeps it.
_KEPT = 0.05


def fidelity() -> str:
    """Work and fidelity on one sampler: ours, others' and fewer steps."""
    report = results()[_SHOWN]
    shown = [row for row in report["rows"] if _in_readme(row)]
    rows = [
        (
            _named(row),
            f"{1 / row['work_sd15']:.2f}×",
            "–" if row["family"] == "plain" else f"{row['psnr']:.1f} dB",
            "–" if row["family"] == "plain" else f"{row['psnr_worst_tenth']:.1f} dB",
            "–" if row["family"] == "plain" else f"{row['ssim']:.3f}",
            f"{row['read_back']:.0%}",
        )
        for row in shown
    ]
    header = (report["title"], "by work", "PSNR", "worst tenth", "SSIM", "prompts read back")
    return table(header, rows)


def _in_readme(row: Row) -> bool:
    if row["family"] == "deepcache 0.1.1":
        return bool(row["settings"]["branch"] == 0)
    return row["family"] in ("plain", "fewer steps", "default", "spectrum")


def _named(row: Row) -> str:
    if row["family"] == "fewer steps":
        return f"no helper, {row['steps']} steps"
    return str(row["name"]).replace(", branch 0", "")


def measured_on() -> str:
    """Where the table of `fidelity` comes from."""
    report = results()[_SHOWN]
    versions, command = report["versions"], report["command"].partition(" --output")[0]
    return (
        f"{report['images']} pictures of 64×64 pixels from the model in `benchmarks/models/"
        f"{report['model']}`, guidance {report['guidance_scale']:g}, {report['device']}, "
        f"{report['threads']} thread of the CPU, torch {versions['torch']}, diffusers "
        f"{versions['diffusers']}; `{command}`{_measured_later(report)}. "
        "The DDPM model: 32×32 pixels from `shapes-ddpm`, without guidance."
    )


def _measured_later(report: Any) -> str:
    return "".join(
        f"; {_and(each['families'])} were measured later, against plain pictures of their "
        f"own, on {each['device']} with torch {each['versions']['torch']}"
        for each in report.get("updates", ())
    )


def _and(names: Sequence[str]) -> str:
    """The names as one speaks them."""
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def pictures_of_both() -> str:
    """What was drawn for the table of `usual_samplers`."""
    counts = {each["model"]: each["images"] for each in _usual()}
    drawn = " and ".join(f"{images} pictures of {model}" for model, images in counts.items())
    guidance = results()[_SHOWN]["guidance_scale"]
    return f"Means over {drawn}, 64×64 pixels, guidance {guidance:g} unless named."


def samplers() -> str:
    """PSNR at one budget, for every sampler."""
    return _at_budgets(_counted(), _SHOWN_SPEED)


def usual_samplers() -> str:
    """The same for the samplers of `_USUAL`, on both models, without `auto` and most rivals.

    And those of `_STRONG` with stronger guidance.
    """
    strong = (
        {**each, "title": f"{each['title']}, guidance {each['guidance_scale']:g}"}
        for each in _strong()
        if each["sampler"] in _STRONG
    )
    return _on_models([*_usual(), *strong], _SHOWN_SPEED)


def strong_guidance() -> str:
    """The same at both budgets with stronger guidance."""
    return f"With guidance {_scale(_strong())}:\n\n{_on_models(_strong(), *SPEEDS)}"


def _strong() -> list[Any]:
    """The reports with stronger guidance, on both models."""
    folders = (RESULTS / "strong-guidance", RESULTS / "emoji" / "strong-guidance")
    return [each for folder in folders for each in _counted(folder)]


def _scale(reports: Iterable[Any]) -> str:
    """Their guidance scale."""
    return ", ".join(dict.fromkeys(f"{each['guidance_scale']:g}" for each in reports))


def _on_models(reports: Sequence[Any], *speeds: float) -> str:
    """PSNR by sampler, a figure for each model, without `auto` and most rivals."""
    families = [family for family in _FAMILIES if family != "auto"]
    rows = []
    for title in dict.fromkeys(each["title"] for each in reports):
        its = [each for each in reports if each["title"] == title]
        for speed in speeds:
            each_model = (_psnrs(report, speed, families) for report in its)
            (kept, *_), *figures = zip(*each_model, strict=True)
            rows.append((title, kept, *map("/".join, figures)))
    models = "/".join(dict.fromkeys(each["model"] for each in reports))
    titles = [TITLES[family] for family in families]
    return table((f"PSNR in dB, {models}", "speed", *titles), rows)


def nearer() -> str:
    """Who comes nearer to the plain pictures than the default, wherever prompts were drawn."""
    reports = [*_on_both(), *_strong()]
    prompted = [each for each in reports if each["guidance_scale"] is not None]
    rows = [
        (f"{each['guidance_scale']:g}", each["model"], each["title"], *told)
        for each in prompted
        for speed in SPEEDS
        for told in _nearer(each["rows"], speed)
    ]
    header = ("guidance", "model", "sampler", "default", "nearer", "by dB", "in pictures")
    return f"{table(header, rows)}\n\nCompared were {len(prompted) * len(SPEEDS)} places."


def _nearer(rows: Sequence[Row], budget: float) -> Iterator[tuple[str, ...]]:
    """The default's speed, and each that comes nearer at the budget, with the dB."""
    default, speed = fitted_to(rows, "default", budget), _equal_work(rows, budget)
    for family in ("fewer steps", "deepcache 0.1.1", *RIVALS):
        psnr, aside = _found(rows, family, budget, speed)
        if default is not None and psnr is not None and psnr - default["psnr"] >= _NOTICED:
            error, count = _by_picture(fitted_to(rows, family, budget), default)
            gained = f"{psnr - default['psnr']:+.1f}{error}"
            yield f"{speed:.2f}×", TITLES[family] + aside, gained, count


def _by_picture(row: Row | None, default: Row) -> tuple[str, str]:
    """The standard error of the mean gain over the default, and in how many pictures there is one.

    Nothing where figures of each picture were not kept, as for what is read off a curve.
    """
    if row is None or "psnr_each" not in row or "psnr_each" not in default:
        return "", "–"
    pairs = zip(row["psnr_each"], default["psnr_each"], strict=True)
    gained = [its - others for its, others in pairs if None not in (its, others)]
    if len(gained) < 2:
        return "", "–"
    error = statistics.stdev(gained) / math.sqrt(len(gained))
    digits, nearer = 1 if error >= _NOTICED else 2, sum(each > 0 for each in gained)
    return f" ± {error:.{digits}f}", f"{nearer} of {len(gained)}"


def gains() -> str:
    """How much nearer than the default is what has learned, over all rows of both models."""
    strong = _strong()
    places = (("", _on_both()), (f" with guidance {_scale(strong)}", strong))
    told = (
        f"`{name}`{where} {gain}"
        for where, reports in places
        for name, family in (("calibrate", "calibrated"), ("auto", "auto"))
        if (gain := _gain(reports, family))
    )
    return f"Compared with the default, over all rows that were measured: {'; '.join(told)}."


def _gain(reports: Iterable[Any], family: str) -> str:
    """Nothing where it was not measured."""
    gained = []
    for report in reports:
        for budget in SPEEDS:
            found = (fitted_to(report["rows"], each, budget) for each in (family, "default"))
            its, default = (None if row is None else row["psnr"] for row in found)
            if its is not None and default is not None:
                gained.append(its - default)
    if not gained:
        return ""
    mean, below = statistics.fmean(gained), sum(gain < 0 for gain in gained)
    told = f"is {mean:+.1f} dB on average ({min(gained):+.1f} to {max(gained):+.1f})"
    return f"{told}, worse in {below} of {len(gained)}".replace("-", "−")


def _usual() -> list[Any]:
    """The reports on the samplers of `_USUAL`, one after the other, each on both models."""
    return [each for name in _USUAL for each in _on_both() if each["sampler"] == name]


def _on_both() -> list[Any]:
    """The reports whose work was counted, of the first model and of `emoji`."""
    return [*_counted(), *_counted(RESULTS / "emoji")]


def curves() -> str:
    """PSNR at both budgets, for every sampler."""
    return _at_budgets(_counted(), *SPEEDS)


def curves_on_emoji() -> str:
    """The same on the model `emoji`, and what was drawn; nothing before it was measured."""
    reports = _counted(RESULTS / "emoji")
    if not reports:
        return ""
    drawn = {
        f"{each['images']} pictures, guidance {each['guidance_scale']:g}, {each['device']}"
        for each in reports
    }
    return (
        "The same on another model, `emoji`. Most constants were chosen on both, with other "
        f"prompts and seeds ({'; '.join(sorted(drawn))}):\n\n{_at_budgets(reports, *SPEEDS)}"
    )


def _at_budgets(reports: Iterable[Any], *speeds: float) -> str:
    rows = [
        (report["title"], *_psnrs(report, speed, _FAMILIES), _psnr_of_best(report["rows"], speed))
        for report in reports
        for speed in speeds
    ]
    return table(("PSNR in dB", "speed", *_COLUMNS), rows)


def quality() -> str:
    """Prompts read back, Fréchet distance and worst pictures, near one budget."""
    header = ("read back · Fréchet distance · worst tenth in dB", *_COLUMNS)
    rows = []
    for report in _counted():
        speed = _equal_work(report["rows"], _SHOWN_SPEED)
        cells = [_quality_of(nearest(report["rows"], family, speed)) for family in _FAMILIES]
        best = _best_other(report["rows"], _SHOWN_SPEED)
        rows.append((report["title"], *cells, _quality_of(best, named=True)))
    return table(header, rows)


#: The families with a column of their own.
_FAMILIES = ("fewer steps", "deepcache 0.1.1", "default", "auto", "calibrated", "spectrum")
_OTHERS = "best of the other rivals"
_COLUMNS = (*(TITLES[family] for family in _FAMILIES), _OTHERS)


def _counted(folder: Path = RESULTS) -> list[Any]:
    """The reports whose work was counted, with the rows of which that is so."""
    reports = [
        {**report, "rows": [row for row in report["rows"] if row.get("work_sd15") is not None]}
        for report in results(folder).values()
    ]
    return [report for report in reports if report["rows"]]


def _psnrs(report: Any, budget: float, families: Iterable[str]) -> list[str]:
    """The speed of the row, and the PSNR of each family."""
    rows, speed = report["rows"], _equal_work(report["rows"], budget)
    return [f"{speed:.2f}×", *(_psnr_of(rows, family, budget, speed) for family in families)]


def _equal_work(rows: Sequence[Row], budget: float) -> float:
    """The speed by work at which all are compared: of the default, as full steps are whole."""
    default = fitted_to(rows, "default", budget)
    return budget if default is None else 1 / default["work_sd15"]


def _psnr_of(rows: Sequence[Row], family: str, budget: float, speed: float) -> str:
    psnr, aside = _found(rows, family, budget, speed)
    return _decibels(psnr) + aside


def _found(
    rows: Sequence[Row], family: str, budget: float, speed: float
) -> tuple[float | None, str]:
    """The PSNR of who was fitted to the budget, else from the curve, else of the nearest.

    With the speed of who has another than the row, as it stands behind the figure.
    """
    fitted, value = fitted_to(rows, family, budget), psnr_at(rows, family, speed)
    near = fitted or nearest(rows, family, speed)
    if near is None or (fitted is None and value is not None):
        return value, ""
    return near["psnr"], _aside(near, speed)


def _psnr_of_best(rows: Sequence[Row], budget: float) -> str:
    """The PSNR of the best rival that has no column, and its name."""
    best = _best_other(rows, budget)
    if best is None:
        return "–"
    return _decibels(best["psnr"]) + _aside(best, _equal_work(rows, budget), TITLES[best["family"]])


def _aside(row: Row, speed: float, *words: str) -> str:
    """What stands behind a figure in brackets: the words, and the speed if it is another."""
    reached = 1 / row["work_sd15"]
    kept = abs(reached / speed - 1) <= _KEPT
    said = (*words, *(() if kept else (f"{reached:.2f}×",)))
    return f" ({', '.join(said)})" if said else ""


def _best_other(rows: Sequence[Row], budget: float) -> Row | None:
    """The rival without a column that came nearest to the plain pictures at the budget."""
    found = (fitted_to(rows, family, budget) for family in RIVALS if family not in _FAMILIES)
    known = [row for row in found if row is not None and row["psnr"] is not None]
    return max(known, key=lambda row: row["psnr"], default=None)


def _decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _quality_of(row: Row | None, *, named: bool = False) -> str:
    if row is None:
        return "–"
    read = "–" if row["read_back"] is None else f"{row['read_back']:.0%}"
    name = f" ({TITLES[row['family']]})" if named else ""
    return f"{read} · {row['frechet']:.1f} · {_decibels(row['psnr_worst_tenth'])}{name}"


def adaptive() -> str:
    """`Adaptive`, picture by picture, beside the default's plans of equal mean work."""
    header = (
        "each picture by itself",
        "full calls: mean, least, most",
        "others at branch: how often",
        "PSNR · the default at equal mean work",
        "worst tenth · the default's",
    )
    rows = []
    for report in per_picture.results().values():
        for row in report["rows"]:
            beside = row.get("default_at_equal_work")
            if beside is None:
                continue
            shallow = (f"{branch}: {mean:.1f}" for branch, mean in row["shallow"].items())
            rows.append(
                (
                    f"{report['title']}: {report['images']} pictures",
                    f"{row['full_steps']:.1f}, {row['full_steps_least']}, {row['full_steps_most']}",
                    ", ".join(shallow).replace("-", "−"),
                    f"{_decibels(row['psnr'])} · {_decibels(beside['psnr'])}",
                    f"{_decibels(row['worst_tenth'])} · {_decibels(beside['worst_tenth'])}",
                )
            )
    return table(header, rows)


TABLES: tuple[Callable[[], str], ...] = (
    fidelity,
    measured_on,
    samplers,
    usual_samplers,
    strong_guidance,
    nearer,
    gains,
    pictures_of_both,
    curves,
    curves_on_emoji,
    quality,
    adaptive,
)
