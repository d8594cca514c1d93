"""Charts as HTML figures: a title, a plot in SVG, a legend beside it. Knows nothing of the meaning of the numbers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

# A plot is about as wide as it is on a phone, so that its letters are as large there as in the text around it.
WIDTH, HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 10, 40
COLOURS = ("#1f6feb", "#d1570c", "#2da44e", "#8250df")
_MARK_COLOURS = ("#cf222e", "#9a6700")
_FAR = 2.0
"""A mark at more than so many times the largest value is only named in the legend, or it would flatten the data."""
_MARGIN = 0.03
"""The share of a horizontal axis that is left free after the data."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Layer:
    """Points drawn as a line, as dots, or as adjacent bars from zero; each layer has a row in the legend."""

    label: str
    points: Sequence[Point]
    kind: Literal["line", "dots", "bars"] = "line"


@dataclass(frozen=True, slots=True)
class Mark:
    """A dashed line at a value of one axis, with a row in the legend."""

    label: str
    value: float
    axis: Literal["x", "y"] = "x"


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: its label, and what it is made to show."""

    label: str
    end: float | None = None
    """The last value; None for that of the data."""
    fits: bool = False
    """Whether it may begin above zero, where the data does."""
    whole: bool = False
    """Whether its values are whole numbers."""


def chart(
    title: str,
    x: Axis,
    y: Axis,
    layers: Sequence[Layer],
    marks: Sequence[Mark] = (),
    empty: str = "nothing was measured",
) -> str:
    """A chart as a <figure>. Points that are NaN interrupt a line; without anything above zero it says `empty`."""
    points = [point for layer in layers for point in layer.points if _finite(point)]
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    if any(point[1] for point in points):
        plane = _Plane(
            _Scale.around([point[0] for point in points], _near(marks, "x", points), x, upright=False),
            _Scale.around([point[1] for point in points], _near(marks, "y", points), y, upright=True),
        )
        drawn = [part for layer, colour in zip(layers, _cycle(), strict=False) for part in _draw(plane, layer, colour)]
        lines = [
            part for mark, colour in zip(marks, _MARK_COLOURS, strict=False) for part in _line(plane, mark, colour)
        ]
        plot = [opening, *_axes(plane, x.label, y.label), *drawn, *lines, "</svg>"]
        legend = list(_legend(layers, marks, plane))
    else:
        plot = [opening, _text(WIDTH / 2, HEIGHT / 2, empty, "empty middle"), "</svg>"]
        legend = []
    rows = f'<ul class="legend">{"".join(legend)}</ul>' if legend else ""
    return "\n".join([f"<figure><figcaption>{escape(title)}</figcaption>", *plot, rows, "</figure>"])


@dataclass(frozen=True, slots=True)
class _Scale:
    """The range of an axis, from `start` to `end`, with a number at each multiple of `step`."""

    start: float
    end: float
    step: float

    @classmethod
    def around(cls, values: Sequence[float], marks: Sequence[float], axis: Axis, upright: bool) -> "_Scale":
        """An upright axis ends at a number; the other one ends with the data, after a small margin."""
        largest = max([*values, *marks]) if axis.end is None else axis.end
        smallest = min([*values, *marks])
        start = smallest if axis.fits and smallest > largest / 2 else 0.0
        if largest <= start:
            start, largest = (start, 1.0) if largest <= 0 else (0.0, largest)
        step = _round_step((largest - start) / 5)
        step = math.ceil(step) if axis.whole else step
        start = math.floor(start / step + 1e-9) * step
        if axis.end is None:
            largest = math.ceil(largest / step - 1e-9) * step if upright else largest + (largest - start) * _MARGIN
        return cls(start, largest, step)

    def ticks(self) -> list[float]:
        count = math.floor((self.end - self.start) / self.step + 1e-9)
        return [self.start + index * self.step for index in range(count + 1)]

    def share(self, value: float) -> float:
        return (value - self.start) / (self.end - self.start)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is at least `least`."""
    magnitude = 10.0 ** math.floor(math.log10(least))
    return next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= least * (1 - 1e-9))


@dataclass(frozen=True, slots=True)
class _Plane:
    """The conversion from values to pixels."""

    horizontal: _Scale
    vertical: _Scale

    def x(self, value: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * self.horizontal.share(value), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * self.vertical.share(value), 1)

    def shows(self, mark: Mark) -> bool:
        scale = self.horizontal if mark.axis == "x" else self.vertical
        return scale.start <= mark.value <= scale.end


def _near(marks: Sequence[Mark], axis: Literal["x", "y"], points: Sequence[Point]) -> list[float]:
    """The values of the marks of an axis that are near enough to the data to be shown."""
    largest = max(point[0 if axis == "x" else 1] for point in points)
    return [mark.value for mark in marks if mark.axis == axis and mark.value <= _FAR * largest]


def _cycle() -> Iterable[str]:
    while True:
        yield from COLOURS


def _finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _axes(plane: _Plane, x_label: str, y_label: str) -> Iterable[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for value in plane.vertical.ticks():
        yield f'<line class="grid" x1="{_LEFT}" y1="{plane.y(value)}" x2="{right}" y2="{plane.y(value)}"/>'
        yield _text(_LEFT - 6, plane.y(value) + 4, f"{value:.6g}", "end")
    for value in plane.horizontal.ticks():
        yield _text(plane.x(value), bottom + 16, f"{value:.6g}", "middle")
    yield f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
    yield _text((_LEFT + right) / 2, HEIGHT - 6, x_label, "middle")
    yield f'<g transform="translate(11 {(_TOP + bottom) / 2}) rotate(-90)">{_text(0, 0, y_label, "middle")}</g>'


def _draw(plane: _Plane, layer: Layer, colour: str) -> Iterable[str]:
    match layer.kind:
        case "line":
            for run in _unbroken(layer.points):
                path = " ".join(f"{plane.x(x)},{plane.y(y)}" for x, y in run)
                yield f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>'
            yield from _dots(plane, layer, colour, 2)
        case "dots":
            yield from _dots(plane, layer, colour, 3)
        case "bars":
            yield from _bars(plane, layer, colour)


def _bars(plane: _Plane, layer: Layer, colour: str) -> Iterable[str]:
    xs = [x for x, _ in layer.points]
    half = (xs[1] - xs[0]) / 2 if len(xs) > 1 else plane.horizontal.step / 2
    for x, y in filter(_finite, layer.points):
        left, right = (min(max(plane.x(edge), _LEFT), WIDTH - _RIGHT) for edge in (x - half, x + half))
        yield (
            f'<rect fill="{colour}" x="{left}" y="{plane.y(y)}" width="{round(right - left, 1)}" '
            f'height="{round(plane.y(0) - plane.y(y), 1)}">{_title(layer, x, y)}</rect>'
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
        circle = f'<circle cx="{plane.x(x)}" cy="{plane.y(y)}" r="{radius}" fill="{colour}" fill-opacity=".75">'
        yield f"{circle}{_title(layer, x, y)}</circle>"


def _title(layer: Layer, x: float, y: float) -> str:
    return f"<title>{escape(layer.label)}: {x:.4g}, {y:.4g}</title>"


def _line(plane: _Plane, mark: Mark, colour: str) -> Iterable[str]:
    if not plane.shows(mark):
        return
    left, right, top, bottom = float(_LEFT), float(WIDTH - _RIGHT), float(_TOP), float(HEIGHT - _BOTTOM)
    if mark.axis == "x":
        left = right = plane.x(mark.value)
    else:
        top = bottom = plane.y(mark.value)
    yield f'<line class="mark" stroke="{colour}" x1="{left}" y1="{top}" x2="{right}" y2="{bottom}"/>'


def _legend(layers: Sequence[Layer], marks: Sequence[Mark], plane: _Plane) -> Iterable[str]:
    for layer, colour in zip(layers, _cycle(), strict=False):
        yield f'<li><span style="border-color:{colour}"></span>{escape(layer.label)}</li>'
    for mark, colour in zip(marks, _MARK_COLOURS, strict=False):
        place = "" if plane.shows(mark) else ", outside the plot"
        dash = f'<span class="dashed" style="border-color:{colour}"></span>'
        yield f"<li>{dash}{escape(mark.label)}: {mark.value:.3g}{place}</li>"


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{round(x, 1)}" y="{round(y, 1)}" class="{style}">{escape(text)}</text>'
