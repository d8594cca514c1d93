from hypothesis import given
from hypothesis import strategies as st

from service.text.stop import StopMatcher
from tests.service.text.training import deterministic
from tests.speed import work_within

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


def cut_across(
    characters: list[tuple[str, bool]], strings: list[str], across: list[str], unsearched: int
) -> tuple[str, str | None]:
    """The definition with hidden parts, for characters that are each shown or not; the first ones end no string."""
    for end in range(unsearched + 1, len(characters) + 1):
        shown = "".join(character for character, hidden in characters[:end] if not hidden)
        whole = "".join(character for character, _ in characters[:end])
        found = [string for string in strings if string in across and whole.endswith(string)]
        if not characters[end - 1][1]:
            found += [string for string in strings if string not in across and shown.endswith(string)]
        if found:
            longest = max(found, key=len)
            last = characters[end - len(longest) : end] if longest in across else [("", False)] * len(longest)
            return shown[: len(shown) - sum(not hidden for _, hidden in last)], longest
    return "".join(character for character, hidden in characters if not hidden), None


@deterministic
@given(
    pieces=st.lists(st.tuples(letters, st.booleans())),
    strings=stop_strings,
    across=stop_strings,
    unsearched=st.integers(0, 3),
)
def test_strings_across_hidden_parts_end_the_text_where_they_begin(
    pieces: list[tuple[str, bool]], strings: list[str], across: list[str], unsearched: int
) -> None:
    matcher = StopMatcher(strings, across=across)
    out = ""
    for index, (piece, hidden) in enumerate(pieces):
        matcher.searching = index >= unsearched
        out += matcher.hide(piece) if hidden else matcher.push(piece)
    characters = [(character, hidden) for piece, hidden in pieces for character in piece]
    before = sum(len(piece) for piece, _ in pieces[:unsearched])
    assert (out + matcher.finish(), matcher.stopped) == cut_across(characters, strings, across, before)


def test_hidden_text_costs_nothing_while_text_is_held_back() -> None:
    matcher = StopMatcher(["a" * 200 + "b", "a<x>b"], across=["a<x>b"])
    with work_within(4):
        for _ in range(20_000):
            matcher.push("a")
            matcher.hide("<x>")


def test_nothing_follows_a_stop_string() -> None:
    matcher = StopMatcher(["STOP"])
    assert [matcher.push(text) for text in ("one ST", "OP two", "three")] == ["one ", "", ""]
    assert matcher.finish() == ""
    assert matcher.stopped == "STOP"


def test_repetitive_text_and_strings_take_linear_time() -> None:
    matcher = StopMatcher(["a" * length + "b" for length in (1000, 999, 998, 997)])
    with work_within(2):
        for _ in range(2000):
            matcher.push("aaaa")
