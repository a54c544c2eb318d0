"""Parts of an HTML page in one file: text, tables and line charts. No network, no scripts.

What others wrote is escaped, and a page forbids itself to load or run anything.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from itertools import cycle

from selfplay_gym.output import inert

Series = dict[str, list[tuple[float, float]]]
"""Points (x, y) by name."""

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
WIDTH, HEIGHT, LEFT, BOTTOM = 420, 200, 44, 22

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}pre{background:#f6f6f6;padding:.6em;overflow:auto}
figure{display:inline-block;margin:0 1em 1em 0}figcaption{font-weight:600}svg{background:#fff}"""

_PAGE = """<!doctype html>
<meta charset=utf-8>
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'">
<title>{}</title><style>{}</style>
{}
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page; the parts are HTML already, the title is not."""
    return _PAGE.format(escape(title), _STYLE, "\n".join(parts))


def escape(text: str) -> str:
    r"""Return text that is shown as it is and does nothing, control characters as escapes.

    >>> escape("<b>\x1b[0m")
    '&lt;b&gt;\\x1b[0m'
    """
    return html.escape(inert(text, keep="\n\t"))


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with these column headings."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def chart(series: Series, across: str = "step", *, width: int = WIDTH, from_zero: bool = True) -> str:
    """Return a line chart as SVG; each line is a running mean over about a twentieth of its points.

    Args:
        series: The lines; at least one, each with at least one point.
        across: What the horizontal axis counts.
        width: In pixels.
        from_zero: Whether the vertical axis has a zero; without, small changes of large values can be seen.
    """
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    low, high = min(ys + [0.0] * from_zero), max(ys)
    high = high if high > low else low + 1.0

    def place(x: float, y: float) -> str:
        right = LEFT + (x - min(xs)) / (max(xs) - min(xs) or 1.0) * (width - LEFT - 8)
        return f"{right:.1f},{8 + (high - y) / (high - low) * (HEIGHT - BOTTOM - 8):.1f}"

    lines = [
        f"<polyline fill=none stroke-width=1.6 stroke='{colour}' "
        f"points='{' '.join(place(x, y) for x, y in _smooth(points))}'/>"
        for colour, points in zip(cycle(COLOURS), series.values(), strict=False)
    ]
    words = [
        f"<text x=2 y=14 font-size=11>{high:.3g}</text><text x=2 y={HEIGHT - BOTTOM} font-size=11>{low:.3g}</text>"
    ]
    words += [f"<text x={LEFT} y={HEIGHT - 6} font-size=11>{escape(across)} {min(xs):g} to {max(xs):g}</text>"]
    start, pitch = LEFT + width // 4, (3 * width // 4 - LEFT) // max(3, len(series))
    words += [
        f"<text x={start + pitch * n} y={HEIGHT - 6} font-size=11 fill='{colour}'>{escape(name)}</text>"
        for n, (colour, name) in enumerate(zip(cycle(COLOURS), series, strict=False))
    ]
    return f"<svg width={width} height={HEIGHT} xmlns='http://www.w3.org/2000/svg'>{''.join(lines + words)}</svg>"


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    half = len(points) // 40
    windows = [points[max(0, n - half) : n + half + 1] for n in range(len(points))]
    return [(points[n][0], sum(y for _, y in window) / len(window)) for n, window in enumerate(windows)]
