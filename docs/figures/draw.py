"""Draws the figures of the documentation. From the project's root: ``python docs/figures/draw.py``.

Each is an SVG on a light sheet of its own, readable on a light page and on a dark one.
"""

from pathlib import Path

INK, FAINT = "#1f2933", "#9aa5b1"
#: Fill and line of what runs, of what is left out, and of the deep feature.
RUNS, LEFT_OUT, FEATURE = ("#cfe3f7", "#2b6cb0"), ("#ffffff", "#b8c2cc"), ("#fde3c8", "#c05621")


class Sheet:
    """A figure of `width` × `height` units, and what it shows in words."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}">',
            f"<title>{title}</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" '
            'fill="context-stroke"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="10" fill="#f8fafc"/>',
        ]

    def box(
        self,
        x: float,
        y: float,
        size: tuple[float, float],
        colours: tuple[str, str],
        *words: str,
    ) -> None:
        """A box with its upper left corner at (x, y), and lines of words in it."""
        width, height = size
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" '
            f'fill="{colours[0]}" {_stroke(colours)}/>'
        )
        ink = FAINT if colours is LEFT_OUT else INK
        for number, line in enumerate(words):
            middle = y + height / 2 + 5 + 16 * (number - (len(words) - 1) / 2)
            self.text(x + width / 2, middle, line, ink, size=12)

    def line(self, path: str, colours: tuple[str, str]) -> None:
        """An arrow."""
        self.parts.append(
            f'<path d="{path}" fill="none" {_stroke(colours)} marker-end="url(#head)"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        ink: str = INK,
        *,
        anchor: str = "middle",
        size: int = 12,
    ) -> None:
        """Words on the line y; the large ones are bold."""
        weight = ' font-weight="600"' if size > 13 else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" '
            f'fill="{ink}"{weight}>{words}</text>'
        )

    def save(self, name: str) -> None:
        """Write it into this folder."""
        text = "\n".join([*self.parts, "</svg>", ""])
        (Path(__file__).parent / name).write_text(text, encoding="utf-8")


def _stroke(colours: tuple[str, str]) -> str:
    dash = ' stroke-dasharray="4 3"' if colours is LEFT_OUT else ""
    return f'stroke="{colours[1]}" stroke-width="1.4"{dash}'


def cut(skips: int = 5, branch: int = 1) -> None:
    """Two U-Nets: one that runs in full and records, and one that is cut and replays."""
    sheet = Sheet(880, 390, f"A U-Net in full, and cut at branch {branch}")
    for left, deepest in ((14, skips - 1), (446, branch)):
        full = deepest > branch
        sheet.text(left + 200, 34, "full step" if full else "shallow step", size=16)
        for skip in range(skips):
            y, down, up = 60 + 46 * skip, left + 24 * skip, left + 316 - 24 * skip
            colours = RUNS if skip <= deepest else LEFT_OUT
            sheet.line(f"M{down + 84} {y + 14}H{up - 1}", colours)
            sheet.text(
                left + 200, y + 10, f"skip {skip}", FAINT if skip > deepest else INK, size=11
            )
            sheet.box(down, y, (84, 28), colours, "down")
            sheet.box(up, y, (84, 28), colours, "up")
            below = RUNS if skip < deepest else LEFT_OUT
            if skip < skips - 1:
                sheet.line(f"M{down + 54} {y + 28}V{y + 45}", below)
                if skip != branch:
                    sheet.line(f"M{up + 30} {y + 46}V{y + 29}", below)
            else:
                sheet.line(
                    f"M{down + 50} {y + 28}V{y + 60}H{left + 157}", below if not full else RUNS
                )
                sheet.box(left + 158, y + 46, (84, 28), RUNS if full else LEFT_OUT, "middle")
                sheet.line(
                    f"M{left + 242} {y + 60}H{up + 34}V{y + 29}", below if not full else RUNS
                )
        y, up = 60 + 46 * branch, left + 316 - 24 * branch + 30
        if full:
            sheet.line(f"M{up} {y + 46}V{y + 29}", FEATURE)
            sheet.line(f"M{up} {y + 37}H{left + 378}V{y + 99}", FEATURE)
        else:
            sheet.line(f"M{left + 378} {y + 100}V{y + 37}H{up}V{y + 29}", FEATURE)
        done = "recorded" if full else "replayed"
        sheet.box(left + 334, y + 100, (88, 44), FEATURE, "deep feature,", done)
    sheet.text(
        440,
        368,
        f"Branch {branch}: what makes skips 0 to {branch}, and the top {branch + 1} layers of the "
        "way up. Dashed: left out for the length of the call.",
    )
    sheet.save("cut.svg")


def steps(count: int = 8, interval: int = 3) -> None:
    """A generation: full steps record, those between them replay."""
    sheet = Sheet(880, 250, f"{count} steps with interval {interval}")
    sheet.text(24, 34, f"interval={interval}", anchor="start", size=16)
    about = "orange: the deep feature, recorded and replayed. Heights are not to scale."
    sheet.text(856, 34, about, anchor="end")
    base = 190
    for step in range(count):
        x, recorded = 58 + step * 100, step - step % interval
        if step == recorded:
            sheet.box(x, base - 90, (56, 90), RUNS, "full")
            sheet.box(x + 8, base - 116, (40, 18), FEATURE)
        else:
            sheet.box(x, base - 22, (56, 22), RUNS, "shallow")
            sheet.line(f"M{58 + recorded * 100 + 48} {base - 107}H{x + 28}V{base - 24}", FEATURE)
        sheet.text(x + 28, base + 20, f"step {step}")
        sheet.text(x + 28, base + 42, "F" if step == recorded else "·", size=16)
    sheet.save("steps.svg")


if __name__ == "__main__":
    cut()
    steps()
