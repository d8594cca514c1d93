"""Pictures of an inspection, in a terminal's characters.

Each view is a function that yields lines, none if the view was not asked for; `VIEWS` has them all.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from service.inspection.arrays import Distribution, Floats, Inspection, Integers
from service.inspection.columns import clusters, fitted, shown, width

_SHADES = ((0.64, "█", 208), (0.36, "▓", 179), (0.16, "▒", 72), (0.04, "░", 67), (0.01, "·", 60), (0.0, " ", None))
"""Least share of each shade, and its colour of the 256, which the colour-blind tell apart."""
_EIGHTHS = " ▏▎▍▌▋▊▉"
_LABEL = 16
"""Columns of a token's label beside a picture, at most."""
_LETTERS = 8
"""Characters of a label that is written downwards."""
_TAIL = 22
"""Columns of a row's strongest key."""
_LENS_CELL = 10
_NUMBER = 8
"""Columns of a number of a position's encoding."""
_STAGE = 14
"""Columns of a stage of a distribution, at least."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """The place to draw on."""

    columns: int
    coloured: bool

    def shade(self, share: float, times: int = 1) -> str:
        """A share of 1 as a shade."""
        sign, colour = next((sign, colour) for least, sign, colour in _SHADES if share >= least or least == 0)
        return f"\x1b[38;5;{colour}m{sign * times}\x1b[0m" if self.coloured and colour else sign * times

    def strong(self, text: str) -> str:
        """A text that stands out."""
        return f"\x1b[1m{text}\x1b[0m" if self.coloured else text


def drawn(inspection: Inspection, canvas: Canvas) -> Iterator[str]:
    """The lines of all views that were asked for."""
    blocks = [lines for view in VIEWS if (lines := [line.rstrip() for line in view(inspection, canvas)])]
    for index, lines in enumerate(blocks):
        yield from ([""] if index else []) + lines


def _tokens(inspection: Inspection, canvas: Canvas) -> Iterator[str]:
    """The tokens with their ids, as many a line as fit."""
    yield canvas.strong(f"{len(inspection.tokens)} tokens")
    line = ""
    for token in inspection.tokens:
        entry = f"{shown(token.text)} {token.id}{' drawn' if token.generated else ''}"
        if line and width(line) + 3 + width(entry) > canvas.columns:
            yield line
            line = ""
        line = f"{line} │ {entry}" if line else fitted(entry, min(width(entry), canvas.columns))
    yield line


def _attention(inspection: Inspection, canvas: Canvas) -> Iterator[str]:
    """A matrix for each head: queries down, keys across."""
    if inspection.attention is None or not len(inspection.positions):
        return
    names = [f"layer {layer}, head {head}" for layer, head in inspection.attention.heads or ()]
    names += [f"layer {layer}, its heads reduced" for layer in inspection.attention.layers or ()]
    if inspection.attention.keys is not None:
        for name, weights, keys in zip(names, inspection.attention.weights, inspection.attention.keys, strict=True):
            yield canvas.strong(f"attention of {name}: what each token looks at most")
            yield from _heaviest(inspection, weights, keys, canvas)
        return
    for name, weights in zip(names, inspection.attention.weights, strict=True):
        yield canvas.strong(f"attention of {name}: what each token (row) looks at (column)")
        yield from _matrix(inspection, weights, canvas)
        yield ""
    yield "share  " + "  ".join(f"{canvas.shade(least)} {least:.0%}" for least, *_ in _SHADES[-2::-1]) + " or more"


def _matrix(inspection: Inspection, weights: Floats, canvas: Canvas) -> Iterator[str]:
    """The weights [positions, keys] of one head."""
    names = [shown(token.text) for token in inspection.tokens]
    label = min(_LABEL, max(map(width, names)) + 1 + len(str(len(names))))
    most = max((canvas.columns - label - 1) // 2, 3)
    keys, rows = window(weights.shape[1], most), window(weights.shape[0], most)
    has_tail = label + 1 + 2 * len(keys) + _TAIL <= canvas.columns
    yield from _downwards(["⋯" if key is None else names[key] for key in keys], " " * (label + 1))
    for row in rows:
        if row is None:
            yield fitted("⋮", label, right=True)
            continue
        query = int(inspection.positions[row])
        cells = ("  " if key is None or key > query else canvas.shade(float(weights[row, key]), 2) for key in keys)
        strongest = int(weights[row].argmax())
        tail = f" {float(weights[row, strongest]):4.0%} {fitted(names[strongest], _TAIL - 7)}" if has_tail else ""
        yield f"{_numbered(query, names[query], label)} {''.join(cells)}{tail}"
    if None in keys:
        yield f"{weights.shape[1] - len(keys) + 1} of {weights.shape[1]} tokens are left out; --npz and --html have all"


def _heaviest(inspection: Inspection, weights: Floats, keys: Integers, canvas: Canvas) -> Iterator[str]:
    """The heaviest keys [positions, top] of one head, and their weights."""
    names = [shown(token.text) for token in inspection.tokens]
    for position, found, shares in zip(inspection.positions, keys, weights, strict=True):
        pairs = [f"{key} {names[key]} {share:.0%}" for key, share in zip(found, shares, strict=True) if key >= 0]
        begin = f"{_numbered(position, names[position], _LABEL)}  "
        yield begin + fitted("  ".join(pairs), max(canvas.columns - width(begin), 1)).rstrip()


def _numbered(position: int, name: str, columns: int) -> str:
    """A position and its token in so many columns."""
    room = columns - 1 - len(str(position))
    return fitted(f"{position} {fitted(name, min(width(name), room))}", columns, right=True)


def _downwards(names: Sequence[str], margin: str) -> Iterator[str]:
    """Labels of columns of two, one character a line."""
    letters = [[*clusters(name)] for name in names]
    letters = [[*name[: _LETTERS - 1], "…"] if len(name) > _LETTERS else name for name in letters]
    tall = max(map(len, letters))
    for line in range(tall):
        places = (line - tall + len(name) for name in letters)
        yield margin + "".join(
            fitted(name[at], 2) if at >= 0 else "  " for at, name in zip(places, letters, strict=True)
        )


def window(count: int, most: int) -> list[int | None]:
    """At most `most` of `count` places: all, or the first and the last with None for those between."""
    if count <= most:
        return [*range(count)]
    return [0, None, *range(count - most + 2, count)]


def _lens(inspection: Inspection, canvas: Canvas) -> Iterator[str]:
    """The likeliest token at each layer and position, the last layer on top."""
    lens = inspection.lens
    if lens is None or not lens.tokens.size:
        return
    stages, label, count = len(lens.tokens), 10, len(inspection.positions)
    positions = range(max(count - max((canvas.columns - label) // _LENS_CELL, 1), 0), count)
    cell = min((canvas.columns - label) // len(positions), 16)
    yield canvas.strong("logit lens: the likeliest next token if the model ended after a layer")

    def row(name: str, cells: Iterator[str]) -> str:
        return fitted(name, label) + "".join(cells)

    def entry(stage: int, place: int) -> str:
        share = math.exp(lens.logprobs[stage, place, 0])
        return f"{canvas.shade(share)} {fitted(shown(lens.texts[stage, place, 0]), cell - 3)} "

    for stage in reversed(range(stages)):
        yield row(f"layer {stage - 1}" if stage else "embedding", (entry(stage, place) for place in positions))
    texts = (shown(inspection.tokens[inspection.positions[place]].text) for place in positions)
    yield row("token", (f"  {fitted(text, cell - 3)} " for text in texts))
    if positions[0]:
        yield f"{positions[0]} of {count} positions are left out; --npz and --html have all"


def _residual(inspection: Inspection, canvas: Canvas) -> Iterator[str]:
    """The norms at the last position as bars."""
    if inspection.residual is None or not len(inspection.positions):
        return
    last = int(inspection.positions[-1])
    stream, added = inspection.residual.stream[:, -1], inspection.residual.added[:, -1]
    yield canvas.strong(f"norms of the residual stream at position {last}, {shown(inspection.tokens[last].text)}")
    label, columns = 10, max((canvas.columns - 10) // 3, 12)
    yield fitted("", label) + "".join(fitted(name, columns) for name in ("stream", "attention adds", "MLP adds"))
    full = float(max(stream.max(), added.max(), 1e-9))

    def amount(norm: float) -> str:
        text = f" {norm:.4g}"
        room = columns - 10
        return fitted(bar(norm / full, room).rstrip() + text, columns)

    yield fitted("embedding", label) + amount(float(stream[0]))
    for layer in range(len(added) // 2):
        numbers = (stream[2 * layer + 2], added[2 * layer], added[2 * layer + 1])
        yield fitted(f"layer {layer}", label) + "".join(amount(float(number)) for number in numbers)


def _embedding(inspection: Inspection, canvas: Canvas) -> Iterator[str]:
    """A token a line: its norm, and the tokens nearest to it."""
    if inspection.embedding is None:
        return
    yield canvas.strong("embedding: its norm, and the tokens of nearest direction with their cosines")
    label = min(_LABEL, max((width(shown(inspection.tokens[at].text)) for at in inspection.positions), default=0) + 5)
    for row, position in enumerate(inspection.positions):
        near = zip(inspection.embedding.texts[row], inspection.embedding.cosines[row], strict=True)
        told = "  ".join(f"{shown(text)} {cosine:.2f}" for text, cosine in near)
        name = _numbered(position, shown(inspection.tokens[position].text), label)
        begin = f"{name} {inspection.embedding.norms[row]:8.3g}  "
        yield begin + fitted(told, max(canvas.columns - width(begin), 1)).rstrip()
    if inspection.embedding.vectors is not None and inspection.embedding.vectors.size:
        yield ""
        yield from _strips(inspection, inspection.embedding.vectors, label, canvas)


def _strips(inspection: Inspection, vectors: Floats, label: int, canvas: Canvas) -> Iterator[str]:
    """A token a line: the sizes of its vector's numbers; a column stands for several of a long vector's."""
    count = vectors.shape[1]
    each = -(-count // max(canvas.columns - label - 1, 1))
    sizes = np.pad(np.abs(vectors), ((0, 0), (0, -count % each))).reshape(len(vectors), -1, each).max(axis=2)
    full = float(sizes.max()) or 1.0
    yield canvas.strong(f"the {count} numbers of each embedding by size, the largest of {each} in a column")
    for position, row in zip(inspection.positions, sizes, strict=True):
        cells = "".join(canvas.shade(float(size) / full) for size in row)
        yield f"{_numbered(position, shown(inspection.tokens[position].text), label)} {cells}"
    yield f"size  {'  '.join(f'{canvas.shade(least)} {least * full:.2g}' for least, *_ in _SHADES[-2::-1])} or more"


def _details(inspection: Inspection, canvas: Canvas) -> Iterator[str]:
    """A token a line: its place in the text, and its bytes."""
    if inspection.text is None:
        return
    yield canvas.strong("bytes of each token, and its place in the text")
    for position, token in enumerate(inspection.tokens):
        start, end = token.offsets or (0, 0)
        begin = f"{_numbered(position, shown(token.text), _LABEL)}  {f'{start}-{end}':>9}  "
        yield begin + fitted(bytes(token.bytes or []).hex(" "), max(canvas.columns - width(begin), 1)).rstrip()


def _spellings(inspection: Inspection, canvas: Canvas) -> Iterator[str]:
    """A spelling a line: its number of tokens, and what they are."""
    if inspection.spellings is None:
        return
    yield canvas.strong(f"the text in other spellings; as it is, it has {len(inspection.tokens)} tokens")
    for spelling in inspection.spellings:
        begin = f"{spelling.name.replace('_', ' '):<17}{len(spelling.tokens):>4} tokens  "
        told = " │ ".join(f"{shown(token.text)} {token.id}" for token in spelling.tokens)
        yield begin + fitted(told, max(canvas.columns - width(begin), 1)).rstrip()


def _encoding(inspection: Inspection, canvas: Canvas) -> Iterator[str]:
    """The rotary angles and learned rows of each position, as many as fit, and the slope of each head."""
    encoding = inspection.position_encoding
    if encoding is None:
        return
    for rotation in encoding.rotary or ():
        yield canvas.strong(f"rotary angles in degrees, a column for each pair, in layers {ranges(rotation.layers)}")
        yield from _rows(inspection, np.degrees(rotation.angles), "{:.0f}°", canvas)
    if encoding.learned is not None:
        yield canvas.strong("learned rows that are added to the embedding, a column for each dimension")
        yield from _rows(inspection, encoding.learned, "{:.3f}", canvas)
    if encoding.alibi_slopes is not None:
        yield canvas.strong("ALiBi's slopes: the score of a token d positions back is lowered by slope * d")
        for head, slope in enumerate(encoding.alibi_slopes):
            yield f"{f'head {head}':>{_LABEL}}  {slope:.6g}"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, consecutive ones as a range: 0-4, 6."""
    ends: list[list[int]] = []
    for number in numbers:
        if ends and number == ends[-1][-1] + 1:
            ends[-1] = [ends[-1][0], number]
        else:
            ends.append([number])
    return ", ".join("-".join(map(str, end)) for end in ends)


def _rows(inspection: Inspection, numbers: Floats, form: str, canvas: Canvas) -> Iterator[str]:
    """Numbers [positions, columns], as many of a row's first as fit."""
    most = max((canvas.columns - _LABEL) // _NUMBER, 1)
    for position, row in zip(inspection.positions, numbers, strict=True):
        cells = "".join(form.format(number).rjust(_NUMBER) for number in row[:most])
        yield f"{_numbered(position, shown(inspection.tokens[position].text), _LABEL)}{cells}"
    if numbers.shape[1] > most:
        yield f"{numbers.shape[1] - most} of {numbers.shape[1]} columns are left out; --npz and --html have all"


def bar(share: float, columns: int) -> str:
    """A share of 1 as a bar in so many columns."""
    eighths = round(min(max(share, 0.0), 1.0) * columns * 8) if math.isfinite(share) else 0
    full, rest = divmod(eighths, 8)
    return fitted("█" * full + (_EIGHTHS[rest] if rest else ""), columns)


def _distributions(inspection: Inspection, canvas: Canvas) -> Iterator[str]:
    """The candidates of each distribution down, its stages across."""
    for index, one in enumerate(inspection.distributions or ()):
        if index:
            yield ""
        under = "" if one.setting is None else f", under setting {one.setting}"
        name = shown(inspection.tokens[one.position].text)
        yield canvas.strong(f"distribution after position {one.position}, {name}{under}: stage by stage")
        yield from _stages(one, canvas)


def _stages(one: Distribution, canvas: Canvas) -> Iterator[str]:
    names = [shown(text) for text in one.texts]
    label = min(_LABEL, max([7, *map(width, names)]) + 2)
    fit = max((canvas.columns - label) // _STAGE, 1)
    # The first stages are what there is to begin with, the last is drawn from.
    places = [place for place in window(len(one.stages), max(fit, 3)) if place is not None]
    columns = min((canvas.columns - label) // len(places), 30)
    length = max(columns - 8, 1)

    def line(name: str, cells: Iterator[str]) -> str:
        return fitted(name, label) + "".join(fitted(cell, columns) for cell in cells)

    yield line("", (one.stages[place].replace("_", " ") for place in places))
    yield line("kept", (f"{one.kept[place]:,} tokens" for place in places))
    yield line("share", (_percent(one.mass[place]) for place in places))
    yield line("entropy", (f"{max(one.entropy[place], 0) / math.log(2):.2f} bits" for place in places))
    for token, name, shares in zip(one.tokens, names, one.probabilities, strict=True):
        cells = (f"{bar(shares[place], length)} {_percent(shares[place])}" for place in places)
        mark = "▶ " if token == one.drawn else "  "
        text = line(mark + name, cells)
        yield canvas.strong(text) if token == one.drawn else text
    if len(places) < len(one.stages):
        yield "Stages in the middle are left out: the terminal is too narrow."


def _percent(share: float) -> str:
    if not np.isfinite(share) or share <= 0:
        return "–"
    return f"{share:.1%}" if share >= 0.001 else "<0.1%"


View = Callable[[Inspection, Canvas], Iterator[str]]
VIEWS: tuple[View, ...] = (
    *(_tokens, _details, _spellings, _embedding, _encoding),
    *(_attention, _lens, _residual, _distributions),
)
"""Every view, in the order in which they are drawn."""
