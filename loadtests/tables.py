"""HTML pages with tables, for a screen of any width: a table that is too wide scrolls within its own box."""

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1f2328, #e6edf3); --faint: light-dark(#d1d9e0, #3d444d); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); }
body { margin: 1.5rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--faint); vertical-align: baseline; }
th { text-align: right; font-weight: 600; } th:first-child { text-align: left; }
td { text-align: right; font-variant-numeric: tabular-nums; }
td.word { text-align: left; overflow-wrap: anywhere; } td.word:first-child { overflow-wrap: normal; }
.yes { color: light-dark(#1a7f37, #3fb950); } .no { color: light-dark(#cf222e, #ff7b72); font-weight: 600; }
.unclear { color: light-dark(#9a6700, #d29922); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); gap: 1.5rem 2rem; }
.charts { margin: 2rem 0; }
figure { margin: 0; min-width: 0; display: grid; grid-template-columns: minmax(0, 1fr) 8.5rem; column-gap: .75rem; }
figcaption { grid-column: 1 / -1; font-weight: 600; margin-bottom: .25rem; }
.legend { list-style: none; margin: 0; padding: 0; font-size: 13px; align-self: center; }
.legend span { display: inline-block; width: 1.1em; border-top: 4px solid; vertical-align: middle; margin-right: .4em; }
.legend span.dashed { border-top: 2px dashed; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 11px system-ui, sans-serif; }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; } svg .empty { font-size: 14px; }
svg .grid { stroke: var(--faint); stroke-width: .6; } svg .axis { stroke: var(--ink); }
svg .mark { stroke-dasharray: 5 3; stroke-width: 1.5; }
@media (max-width: 40rem) {
  body { font-size: 14px; } th, td { padding: .25rem .2rem; }
  figure { grid-template-columns: minmax(0, 1fr); }
  .legend { display: flex; flex-wrap: wrap; gap: 0 1rem; }
}
"""


class Markup(str):
    """Text that is already HTML."""


def page(title: str, body: Iterable[str]) -> str:
    """A document that needs nothing else."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def table(rows: Iterable[Sequence[str]], heads: Sequence[str] = (), words: bool = False) -> str:
    """An HTML table, whose first column is words, as are all if `words`. Cells are escaped, unless they are Markup."""
    head = "<tr>" + "".join(f"<th>{cell(name)}</th>" for name in heads) + "</tr>" if heads else ""
    kind = ' class="word"' if words else ""
    body = (
        f'<tr><td class="word">{cell(first)}</td>' + "".join(f"<td{kind}>{cell(one)}</td>" for one in rest) + "</tr>"
        for first, *rest in rows
    )
    return '<div class="scroll" tabindex="0"><table>' + head + "".join(body) + "</table></div>"


def cell(text: str) -> str:
    """The text as HTML. Names may be broken after their underscores."""
    return text if isinstance(text, Markup) else escape(text).replace("_", "_<wbr>")


def number(value: float | None) -> str:
    """A number in three digits."""
    if value is None:
        return "none"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
