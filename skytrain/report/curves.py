"""Curves as SVG, drawn here, so that a page needs no program to show them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 38
MOST_POINTS = 1000
COLORS = 8
"""How many classes the style sheet knows: c0, c1 and so on."""

LARGEST, CLOSEST = 1e300, 1e-300
"""Larger values are not drawn, and closer ones are one: nothing on the way to a pixel leaves a float's range."""

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Series:
    """points: (x, y) in the order of x; y None breaks the line. dots: each point is marked, and the line dashed."""

    name: str
    points: list[Point]
    color: int
    dots: bool = False


class Axis:
    """Values to pixels, and the ticks. low < high; of a logarithmic one both over 0."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False):
        self.log, self.start, self.end = log, start, end
        self.low, self.high = (math.log10(low), math.log10(high)) if log else (low, high)

    def at(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return _decades(self.low, self.high) if self.log else _round(self.low, self.high)


def plot(title: str, series: list[Series], x: str, y: str, *, zero: bool = False, top: float | None = None) -> Markup:
    """A figure with its legend. x, y: the axes' names with units. zero: y begins at 0; else it is logarithmic where
    values are far apart. top: y ends there. Empty where there is no finite point."""
    kept = [Series(one.name, thinned(_drawable(one.points)), one.color, one.dots) for one in series]
    xs = [px for one in kept for px, py in one.points if py is not None]
    ys = [py for one in kept for _, py in one.points if py is not None]
    if not ys:
        return Markup("")
    across = Axis(*_spread(min(xs), max(xs)), LEFT, WIDTH - RIGHT)
    log = not zero and min(ys) > 0 and max(ys) / min(ys) > 20
    low, high = min(ys), max(ys)
    if not log:
        low, high = _spread(min(0.0, low) if zero else low, (max(0.0, high) if zero else high) if top is None else top)
    up = Axis(low, high, HEIGHT - BOTTOM, TOP, log)
    parts = [_frame(across, up, x), *(_line(one, across, up) for one in kept)]
    legend = Markup("").join(
        Markup('<li><span class="swatch c{}{}"></span>{}</li>').format(
            one.color % COLORS, " dots" if one.dots else "", one.name
        )
        for one in kept
    )
    label = f"{title}: {y} from {tick(min(ys))} to {tick(max(ys))}, {x} from {tick(min(xs))} to {tick(max(xs))}"
    return Markup(
        '<figure class="plot"><figcaption>{}<span class="unit">{}{}</span></figcaption><ul class="legend">{}</ul>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>\n'
    ).format(title, y, ", logarithmic" if log else "", legend, WIDTH, HEIGHT, label, Markup("").join(parts))


def _drawable(points: list[Point]) -> list[Point]:
    return [(x, None if y is None or abs(y) > LARGEST else y) for x, y in points]


def thinned(points: list[Point]) -> list[Point]:
    """At most about MOST_POINTS: of each stretch the lowest and the highest, so that no peak is lost; a gap stays."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [point for point in stretch if point[1] is not None]
        ends = {min(finite, key=_height), max(finite, key=_height)} if finite else set()
        gap = {point for point in stretch if point[1] is None}
        kept += [point for point in stretch if point in ends or point in gap]
    return kept


def _height(point: Point) -> float:
    return point[1]


def _spread(low: float, high: float) -> tuple[float, float]:
    """A little room, where all values are one, but for rounding."""
    size = max(abs(low), abs(high))
    if high - low > max(CLOSEST, 1e-12 * size):
        return low, high
    room = size / 2 if size > CLOSEST else 0.5
    return low - room, high + room


def _line(one: Series, across: Axis, up: Axis) -> Markup:
    places = [None if y is None else (across.at(x), up.at(y)) for x, y in one.points]
    path, dots, before = [], [], None
    for i, place in enumerate(places):
        if place is not None:
            path.append(f"{'M' if before is None else 'L'}{place[0]:.1f} {place[1]:.1f}")
            alone = before is None and (i + 1 == len(places) or places[i + 1] is None)
            if one.dots or alone:
                dots.append(f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="2.6"/>')
        before = place
    kind = f"line c{one.color % COLORS}{' dots' if one.dots else ''}"
    return Markup(f'<g class="{kind}"><path d="{"".join(path)}"/>{"".join(dots)}</g>')


def _frame(across: Axis, up: Axis, x: str) -> Markup:
    parts = []
    bottom = HEIGHT - BOTTOM
    for value in up.ticks():
        y = up.at(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick(value)}</text>'
        )
    for value in across.ticks():
        at = across.at(value)
        # A label in the middle of the last tick would reach over the edge.
        anchor = "end" if at > WIDTH - RIGHT - 12 else "middle"
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{tick(value)}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    return Markup("".join(parts)) + Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
        middle, HEIGHT - 4, x
    )


def _round(low: float, high: float) -> list[float]:
    """Round values within, four to eight of them."""
    raw = (high - low) / 7
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    return [float(f"{i * step:.12g}") for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """low, high: logarithms. Powers of ten, about eight at most, with their doubles and fives where there are few."""
    factors = (1, 2, 5) if high - low < 3 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1, math.ceil((high - low) / 8) or 1)
    every = [10.0**power * factor for power in powers for factor in factors]
    return [value for value in every if value > 0 and low - 1e-9 <= math.log10(value) <= high + 1e-9]


def tick(value: float) -> str:
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if 0 < size < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-")
    return f"{value:.4g}"
