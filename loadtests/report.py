"""The report of a run: a self-contained HTML file with verdict, plots and tables, and lines for a terminal."""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np

from loadtests.charts import Axis, Layer, Mark, chart
from loadtests.figures import Figures, Series, Spread
from loadtests.goals import LEAST_SAMPLES, Verdict
from loadtests.scrape import Comparison
from loadtests.sse import Answer
from loadtests.summary import Summary
from loadtests.tables import Markup, number, page, table

DOTS = 500
"""The largest number of requests that are drawn one by one; of more, there are quantiles over time."""
_NOTHING = "no request had a token"
_NO_PACE = "no request had two tokens"
_LATENCIES = ("samples", "mean", "p50", "p95", "p99", "max")
_STAGE_HEADS = (
    *("load", "seconds", "in flight", "requests", "failed", "abandoned", "prompt tokens", "of them cached"),
    *("generated tokens", "tokens/s", "requests/s", "TTFT p95, s", "inter-token p95, s", "goodput"),
)


def render(summary: Summary, series: Series, answers: Sequence[Answer]) -> str:
    """The report as an HTML document. `answers` are all of the run, its warm-up left out."""
    title = "Load test: {model}, {workload} workload, {shape} load".format_map(summary.settings)
    body = [
        f"<h1>{escape(title)}</h1>",
        _verdict(summary),
        '<div class="charts">',
        *_charts(summary, series, answers),
        "</div>",
        "<h2>Latencies, in seconds</h2>",
        _latencies(summary.total),
        "<h2>Load</h2>",
        _stages(summary),
        *_models(summary),
        *_errors(summary.total),
        "<h2>The server's own figures</h2>",
        _server(summary),
        "<h2>Settings</h2>",
        table([(name, str(value)) for name, value in summary.settings.items()], words=True),
    ]
    return page(title, body)


def conclusion(summary: Summary) -> list[str]:
    """The verdict as lines for a terminal."""
    total = summary.total
    lines = [
        f"{total.complete} requests, {total.failed} failed; {total.requests_per_second:.2f} requests/s, "
        f"{total.tokens_per_second:.1f} tokens/s, {total.in_flight:.1f} requests in flight"
    ]
    if len(summary.stages) > 1:
        lines += ["", *_markdown(_STAGE_HEADS, map(_stage, summary.stages)), ""]
    if summary.knee is not None:
        lines.append(f"knee at {_load(summary, summary.knee)}")
        held = None if summary.capacity is None else _load(summary, summary.capacity)
        lines.append(f"goals hold up to {held}" if held else "no stage is sure to meet the goals")
    lines += [f"{_WORDS[verdict.met]:7}  {_sentence(verdict)}" for verdict in summary.verdicts]
    if summary.passed is None:
        lines.append(f"too few: a verdict needs {LEAST_SAMPLES} samples; give the run more DURATION or USERS")
    if total.abandoned:
        lines.append(
            f"{total.abandoned} requests were abandoned at the end, {total.abandoned_without_token} of them before the "
            "first token; the tokens of the others count in the latencies"
        )
    if summary.server is None:
        lines.append("server's own figures: no /metrics to compare with")
    else:
        off = [comparison.figure for comparison in summary.server.comparisons if not comparison.agrees]
        lines.append(
            f"server's own figures: {'differ in ' + '; '.join(off) if off else 'agree within 5% (latencies: or 50 ms)'}"
        )
    return lines


_WORDS = {True: "met", False: "MISSED", None: "too few"}


def _sentence(verdict: Verdict) -> str:
    value = "none" if verdict.value is None else f"{verdict.value:.3g}"
    return f"{verdict.goal}: {value} of {verdict.samples} samples (goal {verdict.limit:g})"


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """The lines of a Markdown table."""
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _verdict(summary: Summary) -> str:
    rows = [
        (verdict.goal, number(verdict.value), str(verdict.samples), number(verdict.limit), _judged(verdict.met))
        for verdict in summary.verdicts
    ]
    unclear = f"Too few samples for a verdict, which needs {LEAST_SAMPLES}."
    word = _judged(summary.passed, "All goals met.", "A goal was missed.", unclear)
    lines = [f"<p>{word}</p>", table(rows, ("goal", "measured", "samples", "limit", "met"))]
    if summary.knee is not None:
        knee = summary.stages[summary.knee]
        lines.append(f"<p>Knee: {_load(summary, summary.knee)}, {knee.tokens_per_second:.1f} tokens/s.</p>")
        if summary.capacity is None:
            lines.append("<p>No stage is sure to meet the goals.</p>")
        else:
            lines.append(f"<p>The goals hold up to {_load(summary, summary.capacity)}.</p>")
    return "\n".join(lines)


def _charts(summary: Summary, series: Series, answers: Sequence[Answer]) -> Iterable[str]:
    goals, seconds = summary.goals, Axis("seconds from the start", end=summary.total.seconds)

    def line(label: str, values: Sequence[float]) -> Layer:
        return Layer(label, list(zip(series.time, values, strict=True)))

    yield chart(
        "Time to first token over time",
        seconds,
        Axis("seconds"),
        _over_time(series, answers, lambda answer: answer.ttft, series.ttft_p50, series.ttft_p95),
        _goal(goals.ttft_p95_seconds),
        _NOTHING,
    )
    yield chart(
        "Inter-token latency over time",
        seconds,
        Axis("seconds"),
        [line("median", series.inter_token_p50), line("p95", series.inter_token_p95)],
        _goal(goals.inter_token_p95_seconds),
        _NO_PACE,
    )
    yield chart("Throughput over time", seconds, Axis("tokens/s"), [line("tokens/s", series.tokens_per_second)])
    flying = [line("in flight", series.in_flight)]
    yield chart("Requests in flight over time", seconds, Axis("requests"), flying)
    if len({stage.load for stage in summary.stages}) > 1:
        yield from _against_load(summary)
    against = [Layer("slices of the run", list(zip(series.in_flight, series.tokens_per_second, strict=True)), "dots")]
    if len(summary.stages) > 1:
        points = sorted((stage.in_flight, stage.tokens_per_second) for stage in summary.stages)
        against.append(Layer("stages", points))
    yield chart("Throughput against concurrency", Axis("requests in flight"), Axis("tokens/s"), against)
    yield _distribution([answer.ttft for answer in answers if answer.error is None and answer.ttft is not None])


def _over_time(
    series: Series,
    answers: Sequence[Answer],
    latency: Callable[[Answer], float | None],
    median: Sequence[float],
    p95: Sequence[float],
) -> list[Layer]:
    """Quantiles over time, or the single requests if they are few."""
    if len(answers) > DOTS:
        return [
            Layer("median", list(zip(series.time, median, strict=True))),
            Layer("p95", list(zip(series.time, p95, strict=True))),
        ]
    heard = [(answer.began - series.start, latency(answer)) for answer in answers if answer.error is None]
    return [Layer("each request", [(began, value) for began, value in heard if value is not None], "dots")]


def _goal(limit: float | None) -> list[Mark]:
    return [] if limit is None else [Mark("goal for p95", limit, "y")]


def _against_load(summary: Summary) -> Iterable[str]:
    """The latencies that are judged, against the load of the stages."""
    stages, goals = sorted(summary.stages, key=lambda stage: stage.load), summary.goals
    first = [(stage.load, stage.ttft) for stage in stages if stage.ttft]
    next_ones = [(stage.load, stage.inter_token) for stage in stages if stage.inter_token]
    for title, spreads, limit, empty in (
        ("Time to first token against load", first, goals.ttft_p95_seconds, _NOTHING),
        ("Inter-token latency against load", next_ones, goals.inter_token_p95_seconds, _NO_PACE),
    ):
        layers = [
            Layer(name, [(load, _known(spread.quantile(share))) for load, spread in spreads])
            for name, share in (("median", 0.5), ("p95", 0.95))
        ]
        yield chart(title, Axis(summary.settings["unit"]), Axis("seconds"), layers, _goal(limit), empty)


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _distribution(ttfts: Sequence[float]) -> str:
    bins = min(max(round(len(ttfts) ** 0.5), 5), 30)
    counts, edges = np.histogram(ttfts, bins=bins)
    bars = [(float(x), float(y)) for x, y in zip((edges[:-1] + edges[1:]) / 2, counts, strict=True)] if ttfts else []
    spread = Spread.of(ttfts)
    marks = [Mark("median", spread.p50), Mark("p95", spread.p95)] if spread else []
    title = "Distribution of the time to first token"
    return chart(
        title,
        Axis("seconds", fits=True),
        Axis("requests", whole=True),
        [Layer("requests", bars, "bars")],
        marks,
        _NOTHING,
    )


def _latencies(total: Figures) -> str:
    spreads = (("first token", total.ttft), ("between tokens", total.inter_token), ("whole answer", total.end_to_end))
    columns = [_spread(spread) for _, spread in spreads]
    rows = [(name, *(column[index] for column in columns)) for index, name in enumerate(_LATENCIES)]
    return table(rows, ("", *(name for name, _ in spreads)))


def _spread(spread: Spread | None) -> tuple[str, ...]:
    if spread is None:
        return ("0", *["none"] * (len(_LATENCIES) - 1))
    quantiles = (_quantile(spread, share) for share in (0.5, 0.95, 0.99))
    return (str(spread.samples), number(spread.mean), *quantiles, number(spread.max))


def _quantile(spread: Spread | None, share: float) -> str:
    if spread is None:
        return "none"
    value = spread.quantile(share)
    return "too few" if value is None else number(value)


def _stages(summary: Summary) -> str:
    """A column for each stage, which are few, since figures are many."""
    parts = [*summary.stages, summary.total] if len(summary.stages) > 1 else [summary.total]
    heads = [*(f"stage {index}" for index in range(1, len(parts))), "all"] if len(parts) > 1 else ["all"]
    columns = [_stage(part) for part in parts]
    return table([(head, *cells) for head, *cells in zip(_STAGE_HEADS, *columns, strict=True)], ("", *heads))


def _stage(part: Figures) -> tuple[str, ...]:
    goodput = "" if part.goodput_share is None else f"{part.goodput_share:.0%}"
    latencies = tuple(_quantile(spread, 0.95) for spread in (part.ttft, part.inter_token))
    counts = (part.complete, part.failed, part.abandoned, part.prompt_tokens, part.cached_prompt_tokens)
    rates = (number(part.tokens_per_second), number(part.requests_per_second))
    load = (f"{part.load:g}", f"{part.seconds:.0f}", f"{part.in_flight:.1f}")
    return (*load, *map(str, counts), str(part.completion_tokens), *rates, *latencies, goodput)


def _models(summary: Summary) -> list[str]:
    if not summary.models:
        return []
    columns = [_stage(figures) for figures in summary.models.values()]
    rows = [(head, *cells) for head, *cells in zip(_STAGE_HEADS, *columns, strict=True)]
    return ["<h2>Models</h2>", table(rows, ("", *summary.models))]


def _errors(total: Figures) -> list[str]:
    if not total.errors:
        return []
    return ["<h2>Failures</h2>", table([(error, str(count)) for error, count in total.errors.items()])]


def _server(summary: Summary) -> str:
    server = summary.server
    if server is None:
        return "<p>Not compared: it has no /metrics with names that are known here.</p>"
    rows = [(row.figure, number(row.client), _theirs(row), _judged(row.agrees)) for row in server.comparisons]
    build = "".join(f"{escape(name)} {escape(value)}, " for name, value in server.build.items() if value).rstrip(", ")
    compared = table(rows, ("figure", "clients", "server", "agree"))
    return compared + (f"<p>{build}</p>" if build else "")


def _theirs(row: Comparison) -> str:
    if isinstance(row.server, tuple):
        low, high = row.server
        return f"above {number(low)}" if high is None else f"{number(low)} to {number(high)}"
    return number(row.server)


def _load(summary: Summary, stage: int) -> str:
    return f"{summary.stages[stage].load:g} {summary.settings['unit']}"


def _judged(fine: bool | None, yes: str = "yes", no: str = "no", unclear: str = "too few") -> Markup:
    kind, text = {True: ("yes", yes), False: ("no", no), None: ("unclear", unclear)}[fine]
    return Markup(f'<span class="{kind}">{escape(text)}</span>')
