"""Guides are moved on together in a few jobs, and none holds up or harms another."""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event

import pytest

from service.engine.grammar_places import Masks, Place
from service.engine.grammar_source import GrammarError, compiled, mask_of, to_llguidance
from service.engine.grammar_tokens import GrammarTokens
from service.engine.grammars import Grammars
from service.engine.guides import HEAVY_SECONDS, Guide, Movers, wait_for_masks
from tests.service.engine.guided import JSON_WORDS, schemas
from tests.service.engine.guided_core import LETTERS, json_grammar, regex

TOKENS = GrammarTokens(JSON_WORDS, JSON_WORDS.vocab_size)


def made(movers: Movers) -> None:
    """Wait until all moves are made."""
    movers.begin()
    movers._threads.shutdown(wait=True)


@pytest.mark.usefixtures("one_trial")
def test_masks_by_way_of_one_memory_are_those_of_the_package() -> None:
    masks, chance, compared = Masks(TOKENS.width), random.Random(0), 0
    for schema in schemas(60)[::3]:
        matcher = compiled(to_llguidance(json_grammar(schema)), TOKENS.tokenizer)
        while not matcher.is_stopped():
            mask = masks.read(matcher)
            assert mask == mask_of(matcher)
            allowed = [token for token in range(TOKENS.width) if mask[token // 8] >> token % 8 & 1]
            matcher.consume_token(chance.choice(allowed))
            compared += 1
            if compared % 200 == 0:
                break
    assert compared > 200


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["name", "tags"],
    "additionalProperties": False,
}


@pytest.mark.usefixtures("one_trial")
@pytest.mark.parametrize("seed", range(10))
def test_texts_as_models_write_them_need_no_search_for_an_end(seed: int) -> None:
    """The closing from the beginning is joined again behind white space, other tokens and the ends of strings."""
    chance, grammars = random.Random(seed), Grammars(lambda: JSON_WORDS, JSON_WORDS.vocab_size)
    guide = grammars.guide(json_grammar(PERSON))
    wait_for_masks([guide], 60)
    closing = guide._place.closing
    assert closing is not None
    text = chance.choice(
        [
            '{"name": "ab", "tags": ["a", "b"]}',
            '{\n  "name":"hello}",\n  "tags":[]}',
            '{ "name" : "" ,"tags" : [ "a"] }',
        ]
    ).encode()
    while text:
        fitting = [token for token in range(JSON_WORDS.vocab_size) if text.startswith(JSON_WORDS.token_bytes(token))]
        token = chance.choice([token for token in fitting if JSON_WORDS.token_bytes(token)])
        text = text[len(JSON_WORDS.token_bytes(token)) :]
        way = [JSON_WORDS.token_bytes(other) for other in guide._place.closing or ()]
        assert guide.keeps(token, 40), (JSON_WORDS.token_bytes(token), text, way)
        guide.advance([token])
        grammars.begin_moves()
        wait_for_masks([guide], 60)
        place = guide._place
        assert place.closing is not None
        matcher = place.matcher.deep_copy()
        assert matcher.consume_tokens([*place.closing])
        assert matcher.is_accepting()


def test_many_moves_are_one_job() -> None:
    movers, at = Movers(8), Place.__new__(Place)
    moves = [movers.add(lambda masks: at, heavy=False) for _ in range(50)]
    assert all(move.job is None for move in moves)
    made(movers)
    assert len({move.job for move in moves}) == 1
    assert all(move.place is at and move.error is None and not move.heavy for move in moves)


def test_a_move_that_fails_fails_alone() -> None:
    class Panic(BaseException):
        pass

    movers, at = Movers(8), Place.__new__(Place)

    def make(error: BaseException | None, masks: Masks) -> Place:
        if error is not None:
            raise error
        return at

    errors = [None, GrammarError("no"), None, Panic(), None]
    moves = [movers.add(partial(make, error), heavy=False) for error in errors]
    made(movers)
    assert [move.error for move in moves] == errors
    assert [move.place for move in moves] == [at if error is None else None for error in errors]


@pytest.mark.usefixtures("one_trial")
def test_a_search_for_an_end_is_made_apart() -> None:
    grammars = Grammars(lambda: LETTERS, 8)
    searching, *others = guides = [grammars.guide(regex(f"[abcd]{{{count}}}")) for count in (9, 1, 2, 3)]
    wait_for_masks(guides, 60)
    searching._place.closing = None
    assert not searching.keeps(0, 20)
    for guide in others:
        assert guide.keeps(0, 20)
        guide.advance([0])
    jobs = [guide.pending for guide in guides]
    assert jobs == [None] * 4, "begun too early"
    grammars.begin_moves()
    jobs = [guide._move.job for guide in guides if guide._move]
    assert jobs[0] not in jobs[1:]
    assert len(set(jobs)) == 2


@pytest.mark.usefixtures("one_trial")
def test_a_request_with_heavy_moves_holds_up_no_other() -> None:
    """But for its first one: from then on they are made apart."""
    grammars = Grammars(lambda: LETTERS, 8)
    heavy, *light = guides = [grammars.guide(regex("[abcd]*")) for _ in range(8)]
    wait_for_masks(guides, 60)
    movers, place, blocked = grammars._movers, heavy._place, Event()

    def slow(masks: Masks) -> Place:
        time.sleep(2 * HEAVY_SECONDS)
        return place

    def stuck(masks: Masks) -> Place:
        blocked.wait(60)
        return place

    def go_on(make: Callable[[Masks], Place], awaited: Sequence[Guide]) -> None:
        heavy._go(make)
        for guide in light:
            guide.advance([0])
        movers.begin()
        wait_for_masks(awaited, 60)
        assert all(guide.ready for guide in awaited)

    go_on(slow, guides)
    go_on(stuck, light)
    assert not heavy.ready
    blocked.set()
    wait_for_masks(guides, 60)
    assert heavy.ready
