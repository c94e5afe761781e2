"""Plots as SVG: bars, lines and dots. No font from outside; colours that hold on light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 760
LEFT: Final = 190
RIGHT: Final = 90
TOP: Final = 44
BAR: Final = 15
GAP: Final = 14
COLOURS: Final = {
    "direct": "#8a8f98",
    "relay": "#2f81f7",
    "reuseport": "#0b5cad",
    "sk_lookup": "#6cb6ff",
    "stream": "#1b9e8f",
    "haproxy": "#e08a1e",
    "nginx": "#4c9a2a",
    "socket-proxyd": "#a371f7",
    "socat": "#b5654a",
    "envoy": "#d6509b",
    "reference": "#b0a060",
}
OTHERS: Final = ("#2f81f7", "#e08a1e", "#4c9a2a", "#a371f7", "#d6509b", "#1b9e8f")
STYLE: Final = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#24292f}"
    ".t{font-size:15px;font-weight:600}.s{font-size:11px;fill:#57606a}.g{stroke:#8c959f;stroke-opacity:.35}"
    ".m{stroke:#24292f;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.m{stroke:#e6edf3}}"
)


@dataclass(frozen=True)
class Bar:
    """One bar: who, how much, and where a second figure of theirs (a percentile) lies."""

    name: str
    value: float
    mark: float | None = None


def colour(name: str, number: int = 0) -> str:
    """The same one for a contender in every plot."""
    return COLOURS.get(name) or next(
        (value for key, value in COLOURS.items() if name.startswith(key)), OTHERS[number % len(OTHERS)]
    )


def number(value: float) -> str:
    """Three digits, with k, M, G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def bars(title: str, subtitle: str, groups: Sequence[tuple[str, Sequence[Bar]]], *, log: bool = False) -> str:
    """Horizontal bars in groups, each with its figure beside it."""
    every = [bar for _, found in groups for bar in found]
    most = max(max(bar.value, bar.mark or 0.0) for bar in every)
    least = min(bar.value for bar in every) / 2 if log else 0.0
    room = WIDTH - LEFT - RIGHT

    def at(value: float) -> float:
        if log:
            return LEFT + room * math.log(max(value, least) / least) / math.log(most / least)
        return LEFT + room * value / most

    y = float(TOP + 14)
    parts: list[str] = []
    for name, found in groups:
        if name:
            parts.append(_text(12, y + 4, name, "s" if len(groups) > 1 else ""))
            y += GAP
        for bar in found:
            parts.append(_text(LEFT - 8, y + 11, bar.name, anchor="end"))
            parts.append(
                f'<rect x="{LEFT}" y="{y:.1f}" width="{max(1.0, at(bar.value) - LEFT):.1f}" height="{BAR - 3}" '
                f'rx="2" fill="{colour(bar.name)}"/>'
            )
            end = bar.value
            if bar.mark is not None:
                end = max(end, bar.mark)
                parts.append(_line(at(bar.mark), y - 1, at(bar.mark), y + BAR - 2, "m"))
                parts.append(_line(at(bar.value), y + 6, at(bar.mark), y + 6, "g"))
            shown = number(bar.value) + (f" / {number(bar.mark)}" if bar.mark is not None else "")
            parts.append(_text(at(end) + 6, y + 11, shown, "s"))
            y += BAR
        y += GAP
    return _svg(title, subtitle, y + 4, parts)


def lines(
    title: str, subtitle: str, x_name: str, series: Mapping[str, Sequence[tuple[float, float]]], height: int = 260
) -> str:
    """One line for each of the series, over a common axis that begins at zero."""
    points = [point for found in series.values() for point in found]
    most_x, most_y = max(x for x, _ in points) or 1.0, max(y for _, y in points) * 1.1 or 1.0
    low, room = TOP + height, WIDTH - 70 - 130

    def at(x: float, y: float) -> tuple[float, float]:
        return 70 + room * x / most_x, low - (height - 20) * y / most_y

    parts = _grid(most_y, low, height, 70, 70 + room)
    for place, (name, found) in enumerate(series.items()):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in found))
        shade = colour(name, place)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{shade}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{shade}"/>' for x, y in (at(*one) for one in found)]
        x, y = at(*found[-1])
        parts.append(_text(x + 8, y + 4, name))
    for x in sorted({x for x, _ in points}):
        parts.append(_text(at(x, 0)[0], low + 16, number(x) if x else "0", "s", "middle"))
    parts.append(_text(70 + room / 2, low + 32, x_name, "s", "middle"))
    return _svg(title, subtitle, low + 42, parts)


def timelines(
    title: str, subtitle: str, panels: Mapping[str, Sequence[tuple[float, float, str]]], height: int = 96
) -> str:
    """One panel below the other: a dot for each connection, by when it was due (ms) and how long it took (ms, log)."""
    every = [point for found in panels.values() for point in found]
    begin, end = min(x for x, _, _ in every), max(x for x, _, _ in every)
    least, most = 0.03, max(10.0, *(y for _, y, _ in every)) * 1.3
    room, parts, top = WIDTH - 70 - 30, list[str](), TOP + 20
    for name, found in panels.items():
        low = top + height - 18

        def at(x: float, y: float, low: float = low) -> tuple[float, float]:
            up = math.log(max(y, least) / least) / math.log(most / least)
            return 70 + room * (x - begin) / (end - begin), low - (height - 34) * up

        parts.append(_text(70, top - 2, name))
        for level in (0.1, 1, 10, 100):
            if level <= most:
                y = at(begin, level)[1]
                parts += [_line(70, y, 70 + room, y, "g"), _text(62, y + 4, f"{level:g} ms", "s", "end")]
        parts.append(_line(at(0, 1)[0], top + 4, at(0, 1)[0], low, "m"))
        for x, y, who in found:
            place = at(x, y)
            shade = {"A": OTHERS[0], "B": OTHERS[1]}.get(who, "#d1242f")
            parts.append(f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="1.7" fill="{shade}"/>')
        top += height
    for x in _steps(begin, end):
        parts.append(_text(70 + room * (x - begin) / (end - begin), top - 4, f"{x:g} ms", "s", "middle"))
    return _svg(title, subtitle, top + 10, parts)


def _steps(begin: float, end: float) -> Iterable[int]:
    return range(int(math.ceil(begin / 50) * 50), int(end) + 1, 50)


def _grid(most: float, low: float, height: float, left: float, right: float) -> list[str]:
    parts: list[str] = []
    for part in range(5):
        value = most * part / 4
        y = low - (height - 20) * part / 4
        parts += [_line(left, y, right, y, "g"), _text(left - 8, y + 4, number(value) if value else "0", "s", "end")]
    return parts


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    extra = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _svg(title: str, subtitle: str, height: float, parts: Sequence[str]) -> str:
    head = [_text(12, 22, title, "t"), _text(12, 38, subtitle, "s")]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" aria-label="{escape(title)}"><style>{STYLE}</style>'
        + "\n".join([*head, *parts])
        + "</svg>\n"
    )
