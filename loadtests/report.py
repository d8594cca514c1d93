"""The report of a run: a self-contained HTML file with verdict, plots and tables, and lines for a terminal."""

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from loadtests.charts import Layer, Mark, chart
from loadtests.figures import Figures, Series, Spread
from loadtests.goals import LEAST_SAMPLES, Verdict
from loadtests.scrape import Comparison
from loadtests.sse import Answer
from loadtests.summary import Summary

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: #1f2328; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .7rem; border-bottom: 1px solid #d1d9e0; }
th { text-align: left; font-weight: 600; } td { text-align: right; font-variant-numeric: tabular-nums; }
td.word { text-align: left; }
.yes { color: #1a7f37; } .no { color: #cf222e; font-weight: 600; } .unclear { color: #9a6700; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; } svg text { fill: #1f2328; font: 11px system-ui, sans-serif; }
svg .title { font-weight: 600; font-size: 13px; } svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .grid { stroke: #e6eaef; } svg .axis { stroke: #1f2328; } svg .mark { stroke: #cf222e; stroke-dasharray: 4 3; }
"""


_STAGE_HEADS = (
    *("load", "seconds", "in flight", "requests", "failed", "abandoned", "prompt tokens", "of them cached"),
    *("generated tokens", "tokens/s", "requests/s", "TTFT p95, s", "inter-token p95, s", "goodput"),
)


def render(summary: Summary, series: Series, answers: Sequence[Answer]) -> str:
    """The report as an HTML document."""
    title = "Load test: {model}, {workload} workload, {shape} load".format_map(summary.settings)
    body = [
        f"<h1>{escape(title)}</h1>",
        _verdict(summary),
        '<div class="charts">',
        *_charts(summary, series, answers),
        "</div>",
        "<h2>Latencies</h2>",
        _latencies(summary.total),
        "<h2>Load</h2>",
        _stages(summary),
        *_errors(summary.total),
        "<h2>The server's own figures</h2>",
        _server(summary),
        "<h2>Settings</h2>",
        _table([(name, str(value)) for name, value in summary.settings.items()]),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


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
        lines.append(f"goals hold up to {held}" if held else "goals hold at no load")
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
        (verdict.goal, _number(verdict.value), str(verdict.samples), _number(verdict.limit), _judged(verdict.met))
        for verdict in summary.verdicts
    ]
    unclear = f"Too few samples for a verdict, which needs {LEAST_SAMPLES}."
    word = _judged(summary.passed, "All goals met.", "A goal was missed.", unclear)
    lines = [f"<p>{word}</p>", _table(rows, ("goal", "measured", "samples", "limit", "met"))]
    if summary.knee is not None:
        knee = summary.stages[summary.knee]
        lines.append(f"<p>Knee: {_load(summary, summary.knee)}, {knee.tokens_per_second:.1f} tokens/s.</p>")
        if summary.capacity is None:
            lines.append("<p>No stage met the goals.</p>")
        else:
            lines.append(f"<p>The goals hold up to {_load(summary, summary.capacity)}.</p>")
    return "\n".join(lines)


def _charts(summary: Summary, series: Series, answers: Sequence[Answer]) -> Iterable[str]:
    goals, seconds = summary.goals, "seconds from the start"
    ttft_goal = [] if goals.ttft_p95_seconds is None else [Mark("goal for p95", goals.ttft_p95_seconds, "y")]
    pace_goal = (
        [] if goals.inter_token_p95_seconds is None else [Mark("goal for p95", goals.inter_token_p95_seconds, "y")]
    )

    def line(label: str, values: Sequence[float]) -> Layer:
        return Layer(label, list(zip(series.time, values, strict=True)))

    ttft = [line("median", series.ttft_p50), line("p95", series.ttft_p95)]
    yield chart("Time to first token over time", seconds, "seconds", ttft, ttft_goal)
    pace = [line("median", series.inter_token_p50), line("p95", series.inter_token_p95)]
    yield chart("Inter-token latency over time", seconds, "seconds", pace, pace_goal)
    yield chart("Throughput over time", seconds, "tokens/s", [line("tokens/s", series.tokens_per_second)])
    yield chart("Requests in flight over time", seconds, "requests", [line("in flight", series.in_flight)])
    against = [Layer("slices of the run", list(zip(series.in_flight, series.tokens_per_second, strict=True)), "dots")]
    if len(summary.stages) > 1:
        points = sorted((stage.in_flight, stage.tokens_per_second) for stage in summary.stages)
        against.append(Layer("stages", points))
    yield chart("Throughput against concurrency", "requests in flight", "tokens/s", against)
    yield _distribution([answer.ttft for answer in answers if answer.complete and answer.ttft is not None])


def _distribution(ttfts: Sequence[float]) -> str:
    counts, edges = np.histogram(ttfts, bins=30, range=(0, max(ttfts, default=1.0) or 1.0))
    bars = Layer(
        "requests", [(float(x), float(y)) for x, y in zip((edges[:-1] + edges[1:]) / 2, counts, strict=True)], "bars"
    )
    spread = Spread.of(ttfts)
    marks = [Mark("median", spread.p50), Mark("p95", spread.p95)] if spread else []
    return chart("Distribution of the time to first token", "seconds", "requests", [bars], marks)


def _latencies(total: Figures) -> str:
    quantiles = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    spreads = (
        ("time to first token, s", total.ttft),
        ("inter-token latency, s", total.inter_token),
        ("end to end, s", total.end_to_end),
    )
    rows = [
        (
            label,
            str(spread.samples),
            _number(spread.mean),
            *(_quantile(spread, share) for share in quantiles.values()),
            _number(spread.max),
        )
        for label, spread in spreads
        if spread
    ]
    return _table(rows, ("", "samples", "mean", *quantiles, "max"))


def _quantile(spread: Spread | None, share: float) -> str:
    if spread is None:
        return "none"
    value = spread.quantile(share)
    return "too few" if value is None else _number(value)


def _stages(summary: Summary) -> str:
    parts = [*summary.stages, summary.total] if len(summary.stages) > 1 else [summary.total]
    return _table([_stage(part) for part in parts], _STAGE_HEADS)


def _stage(part: Figures) -> tuple[str, ...]:
    goodput = "" if part.goodput_share is None else f"{part.goodput_share:.0%}"
    latencies = tuple(_quantile(spread, 0.95) for spread in (part.ttft, part.inter_token))
    counts = (part.complete, part.failed, part.abandoned, part.prompt_tokens, part.cached_prompt_tokens)
    rates = (_number(part.tokens_per_second), _number(part.requests_per_second))
    load = (f"{part.load:g}", f"{part.seconds:.0f}", f"{part.in_flight:.1f}")
    return (*load, *map(str, counts), str(part.completion_tokens), *rates, *latencies, goodput)


def _errors(total: Figures) -> list[str]:
    if not total.errors:
        return []
    return ["<h2>Failures</h2>", _table([(error, str(count)) for error, count in total.errors.items()])]


def _server(summary: Summary) -> str:
    server = summary.server
    if server is None:
        return "<p>Not compared: it has no /metrics with names that are known here.</p>"
    rows = [(row.figure, _number(row.client), _theirs(row), _judged(row.agrees)) for row in server.comparisons]
    build = "".join(f"{escape(name)} {escape(value)}, " for name, value in server.build.items() if value).rstrip(", ")
    table = _table(rows, ("figure", "clients", "server", "agree"))
    return table + (f"<p>{build}</p>" if build else "")


def _theirs(row: Comparison) -> str:
    if isinstance(row.server, tuple):
        low, high = row.server
        return f"above {_number(low)}" if high is None else f"{_number(low)} to {_number(high)}"
    return _number(row.server)


def _table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """An HTML table. Cells are escaped, unless they are _Markup."""
    head = "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in heads) + "</tr>" if heads else ""
    body = (
        "<tr>" + f'<td class="word">{_cell(first)}</td>' + "".join(f"<td>{_cell(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return "<table>" + head + "".join(body) + "</table>"


class _Markup(str):
    """Text that is already HTML."""


def _cell(text: str) -> str:
    return text if isinstance(text, _Markup) else escape(text)


def _load(summary: Summary, stage: int) -> str:
    return f"{summary.stages[stage].load:g} {summary.settings['unit']}"


def _judged(fine: bool | None, yes: str = "yes", no: str = "no", unclear: str = "too few samples") -> _Markup:
    kind, text = {True: ("yes", yes), False: ("no", no), None: ("unclear", unclear)}[fine]
    return _Markup(f'<span class="{kind}">{escape(text)}</span>')


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
