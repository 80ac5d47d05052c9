"""Bars and lines as SVG, by hand: a few shapes need no library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 760
COLOURS = ("#1f5fa8", "#c8553d", "#4d8f4a", "#8a5fa8", "#8a8a8a")
MUTED, INK, GRID = "#9db4cc", "#222222", "#dddddd"
FONT = 'font-family="system-ui, sans-serif" font-size="13"'
Point = tuple[float, float]


def _page(height: float, title: str, shapes: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" {FONT}>',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
            _text(16, 26, title, weight="600"),
            *shapes,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "400", fill: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}">{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'


def bars(title: str, rows: Sequence[tuple[str, float, float, float, bool]]) -> str:
    """A bar for each (label, median, least, most, whether it is ours), with its range as a line."""
    left, top, step, room = 300, 48, 30, WIDTH - 300 - 90
    most = max(row[3] for row in rows)
    shapes = []
    for index, (label, median, low, high, is_ours) in enumerate(rows):
        y = top + index * step
        colour = COLOURS[0] if is_ours else MUTED
        shapes.append(_text(left - 10, y + 15, label, anchor="end"))
        shapes.append(f'<rect x="{left}" y="{y}" width="{room * median / most:.1f}" height="20" fill="{colour}"/>')
        shapes.append(
            _line(left + room * low / most, y + 10, left + room * high / most, y + 10, INK, 'stroke-width="1.5"')
        )
        shapes.append(_text(left + room * high / most + 8, y + 15, f"{median:,.0f}"))
    return _page(top + len(rows) * step + 14, title, shapes)


def lines(
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    x_label: str,
    y_label: str,
    is_log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """A line for each name. ``is_log``: a logarithmic height. ``marks``: a moment and what happened."""
    left, right, top, bottom, height = 64, WIDTH - 150, 60, 290, 340
    x_most = max(x for points in series.values() for x, _ in points) or 1.0
    values = [y for points in series.values() for _, y in points]
    ticks = _log_ticks(min(values), max(values)) if is_log else _ticks(max(values))
    low, high = (math.log10(ticks[0]), math.log10(ticks[-1])) if is_log else (0.0, ticks[-1])

    def place(x: float, y: float) -> Point:
        share = ((math.log10(y) if is_log else y) - low) / (high - low)
        return left + (right - left) * x / x_most, bottom - (bottom - top) * share

    shapes = [
        _text(left, 46, y_label, fill="#666666"),
        _text((left + right) / 2, height - 10, x_label, anchor="middle"),
    ]
    for tick in ticks:
        _, y = place(0, tick)
        shapes += [_line(left, y, right, y, GRID), _text(left - 8, y + 4, f"{tick:,.6g}", anchor="end")]
    for tick in _ticks(x_most):
        if tick <= x_most:
            shapes.append(_text(place(tick, ticks[0])[0], bottom + 18, f"{tick:,.6g}", anchor="middle"))
    for moment, words in marks:
        x, _ = place(moment, ticks[0])
        shapes += [_line(x, top, x, bottom, INK, 'stroke-dasharray="4 3"'), _text(x + 6, top + 12, words)]
    ends = sorted(((place(*points[-1])[1], name) for name, points in series.items()), reverse=True)
    for index, points in enumerate(series.values()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[index]}" stroke-width="2"/>')
    label_y = float("inf")
    for y, name in ends:
        label_y = min(y + 4, label_y - 16)
        shapes.append(_text(right + 8, label_y, name, fill=COLOURS[list(series).index(name)], weight="600"))
    return _page(height, title, shapes)


def _ticks(most: float) -> list[float]:
    """About five round numbers from zero to past the most."""
    rough = most / 5 if most > 0 else 1.0
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * index for index in range(max(1, math.ceil(most / step - 1e-9)) + 1)]


def _log_ticks(least: float, most: float) -> list[float]:
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]
