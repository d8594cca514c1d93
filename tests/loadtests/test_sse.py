"""What the stream reader makes of the ways in which servers stream."""

import json

import pytest

from loadtests.sse import Answer, Stream, StreamError

USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}


def event(**fields) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n"


def delta(content=None, finish_reason=None, **fields) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": content} | fields, "finish_reason": finish_reason}])


def read(*lines: bytes, done: bool = True) -> tuple[Answer, str]:
    """Each line comes a second after the one before; the request was sent at 10."""
    stream = Stream(10.0)
    for second, line in enumerate([*lines, b"data: [DONE]\n"] if done else lines):
        stream.feed(line, 11.0 + second)
    return stream.answer(began=1000.0, now=99.0), stream.text


def test_tokens_are_timed_and_counted_by_the_server() -> None:
    answer, text = read(
        delta(role="assistant", content=""), delta("a"), delta("b"), delta("c", "stop"), event(choices=[], usage=USAGE)
    )
    assert text == "abc"
    assert (answer.ttft, answer.gaps, answer.seconds) == (2.0, [1.0, 1.0], 89.0)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == (5, 4, 3)
    assert answer.complete


def test_the_token_that_ends_a_completion_counts_though_it_has_no_text() -> None:
    answer, _ = read(delta("a"), delta("b"), delta(None, "stop"), event(choices=[], usage=USAGE))
    assert answer.gaps == [1.0, 1.0]


def test_a_finish_reason_after_the_last_token_is_no_token() -> None:
    answer, _ = read(delta("a"), delta("b"), delta("c"), delta(None, "stop"), event(choices=[], usage=USAGE))
    assert answer.gaps == [1.0, 1.0]


def test_texts_reasoning_and_comments() -> None:
    answer, text = read(
        b": still here\n",
        b"\r\n",
        b"event: message\n",
        delta(None, reasoning_content="hm"),
        b'data:{"choices": [{"text": "plain"}]}\r\n',
        delta("c", "length"),
        event(choices=[], usage=USAGE),
    )
    assert text == "plainc"
    assert (answer.ttft, answer.gaps) == (4.0, [1.0, 1.0])


def test_tokens_that_share_an_event_have_a_pace_still() -> None:
    answer, _ = read(delta("a"), delta("b c", "stop"), event(choices=[], usage=USAGE))
    assert answer.gaps == [1.0]
    assert answer.seconds_per_token == 0.5


@pytest.mark.parametrize(
    ("lines", "done", "word"),
    [
        ([delta("a"), event(choices=[], usage=USAGE)], False, "DONE"),
        ([delta("a", "stop")], True, "counts"),
        ([event(choices=[], usage=USAGE | {"completion_tokens": 0})], True, "no token"),
        ([delta("a"), event(error={"message": "out of memory"})], True, "out of memory"),
        ([delta("a"), b"data: {\n"], True, "JSON"),
    ],
)
def test_what_is_no_whole_answer_is_an_error(lines, done: bool, word: str) -> None:
    with pytest.raises(StreamError, match=word):
        read(*lines, done=done)


def test_a_broken_answer_keeps_what_came() -> None:
    stream = Stream(10.0)
    stream.feed(delta("a"), 11.0)
    assert stream.broken(1000.0, 12.0, "gone") == Answer(1000.0, 2.0, ttft=1.0, error="gone")
    assert stream.broken(1000.0, 12.0, None).abandoned
