"""Charts as SVG text, with axes, a legend and titles on hover. Knows nothing of the meaning of the numbers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 44
COLOURS = ("#1f6feb", "#d1570c", "#1a7f37", "#8250df")

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Layer:
    """Points drawn as a line, as dots, or as adjacent bars from zero; each layer has a row in the legend."""

    label: str
    points: Sequence[Point]
    kind: Literal["line", "dots", "bars"] = "line"


@dataclass(frozen=True, slots=True)
class Mark:
    """A dashed line at a value of one axis."""

    label: str
    value: float
    axis: Literal["x", "y"] = "x"


def chart(title: str, x_label: str, y_label: str, layers: Sequence[Layer], marks: Sequence[Mark] = ()) -> str:
    """A chart as an <svg> element. Both axes begin at zero; points that are NaN interrupt a line."""
    plane = _Plane.around([point for layer in layers for point in layer.points if _finite(point)], marks)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        _text(_LEFT, 14, title, "title"),
        *_axes(plane, x_label, y_label),
        *(part for index, layer in enumerate(layers) for part in _draw(plane, layer, COLOURS[index % len(COLOURS)])),
        *(part for mark in marks for part in _draw_mark(plane, mark)),
        *_legend(layers),
        "</svg>",
    ]
    return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class _Plane:
    """The conversion from values to pixels."""

    x_step: float
    x_max: float
    y_step: float
    y_max: float

    @classmethod
    def around(cls, points: Sequence[Point], marks: Sequence[Mark]) -> "_Plane":
        xs = [x for x, _ in points] + [mark.value for mark in marks if mark.axis == "x"]
        ys = [y for _, y in points] + [mark.value for mark in marks if mark.axis == "y"]
        return cls(*_scale(max(xs, default=1.0)), *_scale(max(ys, default=1.0)))

    def x(self, value: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * value / self.x_max, 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / self.y_max, 1)


def _scale(largest: float) -> tuple[float, float]:
    """(step, end) of an axis: a round step, and the first multiple of it that is at least `largest`."""
    if largest <= 0:
        return 1.0, 1.0
    magnitude = 10 ** math.floor(math.log10(largest / 5))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude * 5 >= largest)
    return step, step * math.ceil(largest / step)


def _finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _axes(plane: _Plane, x_label: str, y_label: str) -> Iterable[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for index in range(round(plane.y_max / plane.y_step) + 1):
        value = index * plane.y_step
        yield f'<line class="grid" x1="{_LEFT}" y1="{plane.y(value)}" x2="{right}" y2="{plane.y(value)}"/>'
        yield _text(_LEFT - 6, plane.y(value) + 4, f"{value:g}", "tick end")
    for index in range(round(plane.x_max / plane.x_step) + 1):
        value = index * plane.x_step
        yield _text(plane.x(value), bottom + 16, f"{value:g}", "tick middle")
    yield f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
    yield _text((_LEFT + right) / 2, HEIGHT - 8, x_label, "tick middle")
    yield f'<g transform="translate(14 {(_TOP + bottom) / 2}) rotate(-90)">{_text(0, 0, y_label, "tick middle")}</g>'


def _draw(plane: _Plane, layer: Layer, colour: str) -> Iterable[str]:
    match layer.kind:
        case "line":
            for run in _unbroken(layer.points):
                path = " ".join(f"{plane.x(x)},{plane.y(y)}" for x, y in run)
                yield f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>'
            yield from _dots(plane, layer, colour, 2)
        case "dots":
            yield from _dots(plane, layer, colour, 4)
        case "bars":
            width = plane.x(min((x for x, _ in layer.points), default=1.0) * 2) - _LEFT
            for x, y in filter(_finite, layer.points):
                yield (
                    f'<rect fill="{colour}" x="{round(plane.x(x) - width / 2, 1)}" y="{plane.y(y)}" '
                    f'width="{round(width, 1)}" height="{round(plane.y(0) - plane.y(y), 1)}"/>'
                )


def _unbroken(points: Sequence[Point]) -> Iterable[list[Point]]:
    run: list[Point] = []
    for point in points:
        if _finite(point):
            run.append(point)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _dots(plane: _Plane, layer: Layer, colour: str, radius: int) -> Iterable[str]:
    for x, y in filter(_finite, layer.points):
        title = f"<title>{escape(layer.label)}: {x:.4g}, {y:.4g}</title>"
        yield f'<circle cx="{plane.x(x)}" cy="{plane.y(y)}" r="{radius}" fill="{colour}">{title}</circle>'


def _draw_mark(plane: _Plane, mark: Mark) -> Iterable[str]:
    if mark.axis == "x":
        x = plane.x(mark.value)
        yield f'<line class="mark" x1="{x}" y1="{_TOP}" x2="{x}" y2="{HEIGHT - _BOTTOM}"/>'
        yield _text(x + 4, _TOP + 10, mark.label, "tick")
    else:
        y = plane.y(mark.value)
        yield f'<line class="mark" x1="{_LEFT}" y1="{y}" x2="{WIDTH - _RIGHT}" y2="{y}"/>'
        yield _text(WIDTH - _RIGHT, y - 4, mark.label, "tick end")


def _legend(layers: Sequence[Layer]) -> Iterable[str]:
    right = WIDTH - _RIGHT
    for index, layer in reversed(list(enumerate(layers))):
        yield _text(right, 14, layer.label, "tick end")
        right -= 6 * len(layer.label) + 14
        yield f'<rect x="{right}" y="6" width="9" height="9" fill="{COLOURS[index % len(COLOURS)]}"/>'
        right -= 12


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{round(x, 1)}" y="{round(y, 1)}" class="{style}">{escape(text)}</text>'
