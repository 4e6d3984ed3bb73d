"""Charts as SVG, drawn here: no script draws anything. Colours are the style sheet's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

__all__ = ["Bar", "bars"]

WIDTH, HEIGHT = 720, 200
LEFT, TOP, BOTTOM = 40, 20, 30
LABEL = 70  # the room of a date, as large as it is on a phone
Bar = tuple[int, Sequence[tuple[str, int]]]  # its begin; (name of a part, how many), from below


def bars(title: str, found: Sequence[Bar], every: int) -> str:
    """Stacked bars over time, each with a tooltip, every so many with its date. Parts are classes of the style sheet."""
    most = max((sum(count for _, count in parts) for _, parts in found), default=0)
    top = _round_up(most)
    step = (WIDTH - LEFT) / max(1, len(found))
    drawn = [_grid(top)]
    for index, (begin, parts) in enumerate(found):
        x = LEFT + index * step
        if index % every == 0 and x + LABEL <= WIDTH:
            drawn.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}">{_day(begin)}</text>')
        drawn.append(_bar(x + step * 0.12, step * 0.76, begin, parts, top))
    total = sum(count for _, parts in found for _, count in parts)
    label = f"{title}: {total} in all, at most {most} in one bar"
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}"'
        f' data-total="{total}" preserveAspectRatio="none">{"".join(drawn)}</svg>'
    )


def _bar(x: float, width: float, begin: int, parts: Sequence[tuple[str, int]], top: int) -> str:
    room = HEIGHT - TOP - BOTTOM
    base = float(HEIGHT - BOTTOM)
    drawn = []
    for name, count in parts:
        if count:
            height = max(1.0, room * count / top)
            base -= height
            drawn.append(
                f'<rect class="part-{name}" x="{x:.1f}" y="{base:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
            )
    said = ", ".join(f"{count} {name}" for name, count in parts if count) or "none"
    return f"<g><title>{_day(begin)}: {escape(said)}</title>{''.join(drawn)}</g>" if drawn else ""


def _grid(top: int) -> str:
    room = HEIGHT - TOP - BOTTOM
    drawn = []
    for share in (0.0, 0.5, 1.0):
        y = HEIGHT - BOTTOM - room * share
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if top * share == int(top * share):
            value = int(top * share)
            drawn.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{value}</text>')
    return "".join(drawn)


def _round_up(value: int) -> int:
    """1, 2, 5, 10, 20, 50 ...: the end of the axis."""
    scale = 1
    while True:
        for nice in (1, 2, 5):
            if nice * scale >= value:
                return max(2, nice * scale)
        scale *= 10


def _day(moment: int) -> str:
    return time.strftime("%-d %b", time.gmtime(moment))
