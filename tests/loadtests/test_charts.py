from xml.etree import ElementTree

import pytest

from loadtests.charts import WIDTH, Axis, Layer, Mark, chart

X, Y = Axis("load"), Axis("seconds")


def svg(*layers: Layer, marks: tuple[Mark, ...] = (), x: Axis = X, y: Axis = Y) -> ElementTree.Element:
    html = chart("Title", x, y, layers, marks)
    return ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])


def numbers(plot: ElementTree.Element, style: str) -> list[float]:
    texts = [one.text or "" for one in plot.iter("text") if one.get("class") == style]
    return [float(text) for text in texts if text.replace(".", "").isdigit()]


@pytest.mark.parametrize("points", [[], [(float("nan"), 1.0)], [(1.0, 0.0), (2.0, 0.0)]])
def test_a_chart_without_anything_to_see_says_so(points: list[tuple[float, float]]) -> None:
    plot = svg(Layer("a", points))
    assert [one.text for one in plot.iter("text")] == ["nothing was measured"]


@pytest.mark.parametrize("largest", [0.0003, 0.07, 1.0, 12.4, 32.0, 117.0, 99_000.0])
def test_the_data_fill_their_plot(largest: float) -> None:
    plot = svg(Layer("a", [(largest / 2, largest / 3), (largest, largest)], "dots"))
    top, right = numbers(plot, "end")[-1], max(float(dot.get("cx", 0)) for dot in plot.iter("circle"))
    assert largest <= top * 1.001
    assert top <= 1.35 * largest
    assert WIDTH - 40 < right < WIDTH - 14


def test_an_axis_may_begin_where_the_data_do() -> None:
    bars = Layer("a", [(100.0, 1.0), (101.0, 2.0)], "bars")
    assert min(numbers(svg(bars), "middle")) == 0
    assert min(numbers(svg(bars, x=Axis("seconds", fits=True)), "middle")) == 100


def test_counts_have_whole_numbers() -> None:
    plot = svg(Layer("a", [(1.0, 2.0)]), y=Axis("requests", whole=True))
    assert numbers(plot, "end") == [0, 1, 2]


def test_a_mark_far_from_the_data_is_only_named() -> None:
    layer = Layer("a", [(1.0, 0.2), (2.0, 0.1)])
    for value, shown in ((0.3, True), (5.0, False)):
        mark = Mark("goal", value, "y")
        assert ("outside the plot" in chart("Title", X, Y, [layer], [mark])) != shown
        lines = [line for line in svg(layer, marks=(mark,)).iter("line") if line.get("class") == "mark"]
        assert len(lines) == shown
