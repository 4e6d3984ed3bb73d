"""A chart of the simulation, as SVG that is read on light and dark paper."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

__all__ = ["chart"]

WEEK = 168  # hours
WIDTH, LEFT, TOP, PANEL, GAP = 720, 64, 30, 130, 52
STYLE = """<style>
text{font:12px system-ui,sans-serif;fill:#333}.title{font-weight:600}.end{text-anchor:end}.grid{stroke:#ddd}
.bar{fill:#1f6fb2}.mean{stroke:#c2410c;stroke-dasharray:5 4}.paper{fill:#fff}
@media (prefers-color-scheme:dark){
text{fill:#ddd}.grid{stroke:#444}.bar{fill:#6cb0ea}.mean{stroke:#fb923c}.paper{fill:#161b22}}
</style>"""


def chart(found: list[tuple[str, Mapping[int, int]]]) -> str:
    """Panels one below the other, each with a scale of its own: for each week, the most renewals in one hour of it; and
    a line at the mean of all hours. found: title, and renewals by hour."""
    height = TOP + len(found) * (PANEL + GAP)
    panels = [_panel(TOP + index * (PANEL + GAP), *each) for index, each in enumerate(found)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="Renewals at the CA over two years">\n{STYLE}\n'
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>\n{"".join(panels)}</svg>\n'
    )


def _panel(y: int, title: str, hours: Mapping[int, int]) -> str:
    weeks = max(hours, default=0) // WEEK + 1
    most = [
        max(hours.get(hour, 0) for hour in range(week * WEEK, week * WEEK + WEEK)) for week in range(weeks)
    ]
    top, base, step = max(1, *most), y + PANEL, (WIDTH - LEFT - 8) / weeks
    mean = sum(hours.values()) / (weeks * WEEK)
    said = f"{title}: at most {max(most)} in an hour, {max(most) / mean:.1f} times the mean of {mean:.0f}"
    drawn = [f'<text class="title" x="{LEFT}" y="{y - 10}">{escape(said)}</text>']
    for share in (0.0, 0.5, 1.0):
        at = base - PANEL * share
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{at:.0f}" y2="{at:.0f}"/>')
        drawn.append(f'<text class="end" x="{LEFT - 6}" y="{at + 4:.0f}">{top * share:.0f}</text>')
    for week, count in enumerate(most):
        size, x = PANEL * count / top, LEFT + week * step
        drawn.append(
            f'<rect class="bar" x="{x:.1f}" y="{base - size:.1f}" width="{step * 0.8:.1f}" height="{size:.1f}"/>'
        )
    at = base - PANEL * mean / top
    drawn.append(f'<line class="mean" x1="{LEFT}" x2="{WIDTH - 8}" y1="{at:.1f}" y2="{at:.1f}"/>')
    for week in range(0, weeks, 13):
        drawn.append(f'<text x="{LEFT + week * step:.0f}" y="{base + 16}">week {week}</text>')
    return "\n".join(drawn) + "\n"
