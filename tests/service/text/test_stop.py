import time

from hypothesis import given
from hypothesis import strategies as st

from service.text.stop import StopMatcher
from tests.service.text.training import deterministic

letters = st.text("ab", max_size=30)
stop_strings = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def cut(text: str, strings: list[str], include: bool = False) -> tuple[str, str | None]:
    """The definition: the shortest beginning of the text that ends with a stop string, and the longest such string."""
    for end in range(len(text) + 1):
        found = [string for string in strings if text[:end].endswith(string)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@deterministic
@given(pieces=st.lists(letters), strings=stop_strings, include=st.booleans())
def test_the_text_ends_before_the_first_stop_string_however_it_is_cut(
    pieces: list[str], strings: list[str], include: bool
) -> None:
    matcher = StopMatcher(strings, include)
    out = "".join([matcher.push(piece) for piece in pieces])
    assert (out + matcher.finish(), matcher.stopped) == cut("".join(pieces), strings, include)


@deterministic
@given(text=letters, strings=stop_strings)
def test_as_much_as_possible_is_passed_on_and_nothing_of_a_stop_string(text: str, strings: list[str]) -> None:
    matcher = StopMatcher(strings)
    seen = out = ""
    for character in text:
        seen += character
        out += matcher.push(character)
        if matcher.stopped is None:
            held = seen[len(out) :]
            begun = [string[:length] for string in strings for length in range(1, len(string))]
            assert held == max((part for part in begun if seen.endswith(part)), key=len, default="")


def test_nothing_follows_a_stop_string() -> None:
    matcher = StopMatcher(["STOP"])
    assert [matcher.push(text) for text in ("one ST", "OP two", "three")] == ["one ", "", ""]
    assert matcher.finish() == ""
    assert matcher.stopped == "STOP"


def test_repetitive_text_and_strings_take_linear_time() -> None:
    matcher = StopMatcher(["a" * length + "b" for length in (1000, 999, 998, 997)])
    start = time.process_time()
    for _ in range(2000):
        matcher.push("aaaa")
    assert time.process_time() - start < 2
