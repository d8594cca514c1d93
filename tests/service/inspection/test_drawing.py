"""Pictures in a terminal: their structure, and that they stay within its columns whatever a token's text is."""

import re
import unicodedata
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.schemas.inspection import InspectedToken, Respelling, SpeltToken
from service.inspection.arrays import (
    Attention,
    Distribution,
    Embedding,
    Inspection,
    Lens,
    PositionEncoding,
    Residual,
    Rotation,
)
from service.inspection.columns import clusters, fitted, shown, width
from service.inspection.drawing import Canvas, bar, drawn, ranges, window

LAYERS = 2
COLOUR = re.compile("\x1b\\[[0-9;]+m")


def inspection(texts: list[str], **views: Any) -> Inspection:
    """A look at every position of a text; a view that is True is made up, others are None."""
    count, top, numbers = len(texts), 3, np.random.default_rng(0)
    weights = np.tril(numbers.random((2, count, count))).astype(np.float32)
    words = np.array((texts * (LAYERS + 1) * count * top)[: (LAYERS + 1) * count * top], np.object_)
    shape = (LAYERS + 1, count, top)
    made: dict[str, Any] = {
        "attention": Attention(
            heads=[(3, 5), (0, 1)], layers=None, weights=weights / weights.sum(axis=2, keepdims=True), keys=None
        ),
        "embedding": Embedding(
            norms=numbers.random(count),
            tokens=np.zeros((count, top), np.int64),
            texts=words[: count * top].reshape(count, top),
            cosines=numbers.random((count, top)),
            vectors=numbers.standard_normal((count, 576)),
        ),
        "residual": Residual(stream=numbers.random((2 * LAYERS + 1, count)), added=numbers.random((2 * LAYERS, count))),
        "lens": Lens(
            tokens=np.zeros(shape, np.int64),
            texts=words.reshape(shape),
            logprobs=np.log(numbers.dirichlet(np.ones(top + 1), shape[:2])[..., :top]),
            next_logprob=np.zeros(shape[:2]),
            next_rank=np.ones(shape[:2], np.int64),
        ),
        "position_encoding": PositionEncoding(
            rotary=[
                Rotation(
                    layers=[0, 1, 3], magnitude=1.0, frequencies=numbers.random(32), angles=numbers.random((count, 32))
                )
            ],
            learned=numbers.random((count, 64)),
            alibi_slopes=numbers.random(4),
        ),
        "text": "".join(texts),
        "spellings": [
            Respelling(
                name="lower",
                text="".join(texts),
                tokens=[SpeltToken(id=id, text=text, special=False) for id, text in enumerate(texts)],
            )
        ],
        "distributions": [distribution(texts)],
    }
    tokens = [
        InspectedToken(id=id, text=text, special=False, generated=False, bytes=[*text.encode()], offsets=(id, id + 1))
        for id, text in enumerate(texts)
    ]
    return Inspection(
        tokens=tokens,
        positions=np.arange(count),
        **{name: view if views.get(name) else None for name, view in made.items()},
    )


def distribution(texts: list[str]) -> Distribution:
    names = ["raw", "repetition_penalty", "typical_p", "temperature", "top_k", "top_p", "min_p"]
    words = [*dict.fromkeys(texts)][:5]
    return Distribution(
        position=len(texts) - 1,
        setting=None,
        stages=names,
        kept=np.full(len(names), 49152),
        mass=np.ones(len(names)),
        entropy=np.full(len(names), np.log(2)),
        tokens=np.arange(len(words)),
        texts=np.array(words, np.object_),
        probabilities=np.full((len(words), len(names)), 1 / len(words)),
        noise=np.ones(len(words)),
        drawn=0,
    )


VIEWS = ("text", "spellings", "attention", "residual", "embedding", "position_encoding", "lens", "distributions")
EVERYTHING = dict.fromkeys(VIEWS, True)
WORDS = [
    "The",
    " 대한민국의",
    " 수도는",
    "\n",
    "",
    "\x1b[2J\x07",
    "‮ab",
    "각",
    "́",
    "👩‍🚀",
    " a\tb",
    "ｆｕｌｌ",
    "\u115f",
]


@pytest.mark.parametrize("columns", [48, 80, 133, 300])
@pytest.mark.parametrize("count", [1, 2, 13, 60])
@pytest.mark.parametrize("coloured", [False, True])
def test_no_line_is_wider_than_the_terminal_or_moves_its_cursor(columns: int, count: int, coloured: bool) -> None:
    seen = inspection((WORDS * 5)[:count], **EVERYTHING)
    lines = [*drawn(seen, Canvas(columns, coloured))]
    assert bool(COLOUR.search("".join(lines))) is coloured
    for line in (COLOUR.sub("", line) for line in lines):
        assert width(line) <= max(columns, 80), line  # Titles are sentences.
        assert {unicodedata.category(character)[0] for character in line} & {"C"} == set()


@pytest.mark.parametrize("columns", [48, 133])
def test_the_heaviest_keys_are_listed_as_they_are_told(columns: int) -> None:
    seen = inspection(WORDS, attention=True)
    assert seen.attention is not None
    weights, keys = np.array([[[1.0, 0], [0.75, 0.25]]], np.float32), np.array([[[0, -1], [1, 0]]])
    few = replace(
        seen, positions=np.array([0, 2]), attention=replace(seen.attention, heads=[(3, 5)], weights=weights, keys=keys)
    )
    lines = [*drawn(few, Canvas(columns, coloured=False))]
    assert [line.split() for line in lines[-2:]] == [
        ["0", "The", "0", "The", "100%"],
        ["2", "␣수도는", "1", "␣대한민국의", "75%", "0", "The", "25%"],
    ]


@pytest.mark.parametrize(
    ("numbers", "text"), [([0], "0"), ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8"), ([], ""), ([3, 4], "3-4")]
)
def test_consecutive_numbers_are_a_range(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


@given(st.text(max_size=12), st.integers(1, 20), st.booleans())
def test_a_text_fits_exactly(text: str, columns: int, right: bool) -> None:
    label = shown(text)
    assert width(fitted(label, columns, right=right)) == columns
    assert "".join(clusters(label)) == label
    assert label.isprintable()
    if width(label) <= columns:
        assert fitted(label, columns, right=right).strip() == label


@pytest.mark.parametrize(
    ("text", "columns"),
    [("abc", 3), ("한국", 4), ("ｆ", 2), ("e\u0301", 1), ("\u1112\u1161\u11ab", 2), ("👍", 2), ("", 0)],
)
def test_wide_characters_take_two_columns_and_marks_none(text: str, columns: int) -> None:
    assert width(text) == columns


def test_the_shades_of_a_matrix_are_its_numbers() -> None:
    texts = ["The", " 한국", " is"]
    seen = inspection(texts, attention=True)
    assert seen.attention is not None
    seen.attention.weights[0] = [[1, 0, 0], [0.5, 0.5, 0], [0.02, 0.18, 0.8]]
    lines = [*drawn(seen, Canvas(80, coloured=False))][3:]
    assert lines[:9] == [
        "attention of layer 3, head 5: what each token (row) looks at (column)",
        "        T ␣ ␣",
        "        h 한i",
        "        e 국s",
        "  0 The ██     100% The",
        "1 ␣한국 ▓▓▓▓    50% The",
        "  2 ␣is ··▒▒██  80% ␣is",
        "",
        "attention of layer 0, head 1: what each token (row) looks at (column)",
    ]


def test_a_long_text_keeps_its_first_and_last_tokens() -> None:
    assert window(5, 5) == [0, 1, 2, 3, 4]
    assert window(100, 5) == [0, None, 97, 98, 99]
    text = "\n".join(drawn(inspection([f"t{number}" for number in range(100)], **EVERYTHING), Canvas(80, False)))
    assert re.search(r"^\d\d of 100 tokens are left out; --npz and --html have all$", text, re.MULTILINE)
    assert "93 of 100 positions are left out; --npz and --html have all" in text
    assert re.search(r"^ +0 t0 ", text, re.MULTILINE)
    assert re.search(r"^ +99 t99 ", text, re.MULTILINE)
    matrix = text[text.index("attention of layer") : text.index("logit lens")]
    assert not re.search(r"^ +50 t50 ", matrix, re.MULTILINE)


@pytest.mark.parametrize("view", sorted(EVERYTHING))
def test_a_view_is_drawn_only_if_it_was_asked_for(view: str) -> None:
    titles = {
        "text": "bytes of each token",
        "spellings": "in other spellings",
        "position_encoding": "rotary angles",
        "attention": "attention of layer",
        "lens": "logit lens",
        "residual": "norms of the",
        "embedding": "embedding: ",
        "distributions": "distribution after",
    }
    text = "\n".join(drawn(inspection(["a", "b"], **{view: True}), Canvas(80, False)))
    assert [name for name, title in titles.items() if title in text] == [view]


def test_the_layers_of_a_lens_flow_upwards() -> None:
    lines = [*drawn(inspection(["a", "b"], lens=True), Canvas(80, False))]
    assert [line[:10].strip() for line in lines[4:]] == ["layer 1", "layer 0", "embedding", "token"]


def test_the_drawn_token_is_marked_in_the_distribution() -> None:
    lines = [*drawn(inspection(["a", "b"], distributions=True), Canvas(200, False))]
    marked = [line for line in lines if line.startswith("▶")]
    assert len(marked) == 1
    assert re.match(r"▶ a +█+▌? +50\.0%", marked[0])
    assert any("repetition penalty" in line for line in lines)


@pytest.mark.parametrize(
    ("share", "columns", "said"),
    [(0, 4, "    "), (1, 4, "████"), (0.5, 3, "█▌ "), (2, 2, "██"), (float("nan"), 2, "  ")],
)
def test_bars(share: float, columns: int, said: str) -> None:
    assert bar(share, columns) == said
