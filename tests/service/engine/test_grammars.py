"""Requests with a grammar get text that fits it, and change nothing for others."""

import itertools
import json
import random
import re
from typing import Any
from unittest.mock import Mock

import jsonschema
import psutil
import pytest
from llguidance import LLParserLimits

from model.contract import Wanted
from model.sampling_params import SamplingParams
from service.engine import grammar_source
from service.engine.core import EngineCore
from service.engine.grammar_source import GrammarError, compiled, to_llguidance
from service.engine.grammar_tokens import GrammarTokens
from service.engine.grammars import Grammars
from service.engine.guides import wait_for_masks
from service.engine.messages import Cancel, EngineRequest, Grammar, Submit
from tests.service.engine.fakes import FakeRunner
from tests.service.engine.guided import JSON_WORDS, WordVocabulary, schemas
from tests.service.engine.guided_core import (
    CHARACTERS,
    END,
    LETTERS,
    ask,
    fake_core,
    json_grammar,
    model_core,
    outcome,
    regex,
    run,
    text,
)
from tests.speed import work_within

pytestmark = pytest.mark.usefixtures("one_trial")


def refusal(grammar: Grammar) -> str:
    *_, delta = run(fake_core(), [ask(0, grammar)])[0]
    assert delta.finish_reason == "refused", delta
    assert delta.refusal
    assert delta.refusal.code == "invalid_grammar"
    assert delta.refusal.field == grammar.field
    assert "\n" not in delta.refusal.reason
    return delta.refusal.reason


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("source", ["a", "abcd", "(ab|cd){3}", "a*b", "[abc]{2,9}d", "(a+)+b", "d?"])
def test_a_regular_expression_fits_the_whole_text(source: str, lookahead: int) -> None:
    messages = [ask(id, regex(source), prompt=[id % 8, 3]) for id in range(12)]
    texts = {text(deltas) for deltas in run(fake_core(lookahead=lookahead), messages).values()}
    assert all(re.fullmatch(source, got) for got in texts), texts


def test_every_choice_is_one_of_the_list() -> None:
    choices = ["a", "ab", "abcd", "dd", ""]
    grammar = Grammar("choice", json.dumps(choices), "structured_outputs.choice")
    texts = {
        text(deltas) for deltas in run(fake_core(), [ask(id, grammar, [id % 8, id // 8]) for id in range(32)]).values()
    }
    assert texts <= set(choices)
    assert len(texts) > 3


@pytest.mark.parametrize(
    "choice", ['say "a"', "a\nb", "back\\slash", "é한🙂", "/a/", "a | b", "\x00", "\u2028", "%import", "<s>", "</s>"]
)
def test_a_choice_is_taken_as_it_is_written(choice: str) -> None:
    grammar = Grammar("choice", json.dumps([choice], ensure_ascii=False), "structured_outputs.choice")
    assert text(run(model_core(CHARACTERS), [ask(0, grammar, stop_token_ids=(256,))])[0], CHARACTERS) == choice


@pytest.mark.parametrize(
    "source", ['start: "a" b*\nb: "b" | "cd"', 'root ::= "a" b*\nb ::= "b" | "cd"', 'start: "a" /(b|cd)*/']
)
def test_grammars_in_lark_and_gbnf(source: str) -> None:
    grammar = Grammar("grammar", source, "structured_outputs.grammar")
    texts = {text(deltas) for deltas in run(fake_core(), [ask(id, grammar, [id]) for id in range(8)]).values()}
    assert all(re.fullmatch("a(b|cd)*", got) for got in texts), texts
    assert len(texts) > 2


def test_the_end_comes_when_the_grammar_can_end_and_must_when_nothing_else_can_follow() -> None:
    for deltas in run(fake_core(), [ask(id, regex("a|abcd"), [id]) for id in range(8)]).values():
        tokens, reason, _ = outcome(deltas)
        assert (tokens[-1], reason) == (END, "stop")
        assert LETTERS.text(tokens) in ("a", "abcd")


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("blocks", [16, 64])
def test_neighbours_in_a_batch_get_what_each_gets_alone(blocks: int, lookahead: int) -> None:
    """The smaller pool is not large enough for all, so that requests with grammars are preempted."""
    messages = [
        ask(id, grammar, [id % 8] * (1 + id), **params)
        for id, (grammar, params) in enumerate(
            [
                (regex("[abc]{20,30}"), {}),
                (None, {"stop_token_ids": (), "logprobs": 2}),
                (regex("(ab|cd)*"), {"logprobs": 1}),
                (None, {"stop_token_ids": (), "presence_penalty": 1.0}),
                (None, {"stop_token_ids": ()}),
                (regex("[abcd]{9}"), {"frequency_penalty": 0.5}),
            ]
        )
    ]
    core = fake_core(blocks, lookahead)
    together = run(core, messages)
    assert (core.stats().totals.preemptions > 0) == (blocks == 16)
    for message in messages:
        alone = run(fake_core(64, lookahead), [message])
        assert outcome(together[message.id]) == outcome(alone[message.id])


CLOSING = (b'"', b"}", b"]", b'"}', b"}}", b"]]", b"0", b"1", b",")


def ask_json(id: int, schema: Any, **params: Any) -> Submit:
    """With a bias towards what ends a string or a list: a model that knows no language would go on and on."""
    ends = tuple(JSON_WORDS.eos_token_ids)
    closing = [token for token in range(JSON_WORDS.vocab_size) if JSON_WORDS.token_bytes(token) in CLOSING]
    bias = tuple((token, 4.0) for token in (*closing, *ends))
    settings = {"max_tokens": 200, "stop_token_ids": ends, "logit_bias": bias, "seed": id} | params
    return Submit(id, EngineRequest([id % 256, 5], SamplingParams(**settings), grammar=json_grammar(schema)))


def test_schemas_of_growing_nesting_are_kept_by_a_random_model() -> None:
    checked = dict(list(enumerate(schemas(200)))[::3])
    deltas = run(model_core(), [ask_json(id, schema) for id, schema in checked.items()])
    for id, schema in checked.items():
        got = text(deltas[id], JSON_WORDS)
        if deltas[id][-1].finish_reason == "stop":
            jsonschema.validate(json.loads(got), schema)
    assert sum(deltas[id][-1].finish_reason == "stop" for id in deltas) >= 0.9 * len(checked)


def test_neighbours_of_a_random_model_get_what_each_gets_alone() -> None:
    guided = ask_json(0, schemas(20)[15])
    others = [
        Submit(id, EngineRequest([id, 7], SamplingParams(max_tokens=20, seed=id, **params)))
        for id, params in enumerate([{"logprobs": 3}, {"repetition_penalty": 1.3, "presence_penalty": 0.5}, {}], 1)
    ]
    together = run(model_core(), [guided, *others])
    for message in [guided, *others]:
        tokens, reason, logprobs = outcome(together[message.id])
        alone = outcome(run(model_core(), [message])[message.id])
        assert (tokens, reason) == alone[:2]
        assert [entry.chosen for entry in logprobs] == pytest.approx([entry.chosen for entry in alone[2]], abs=1e-4)


def start_closing(grammar: Grammar, words: WordVocabulary, most: int) -> list[int] | None:
    """A closing of at most `most` tokens from the beginning."""
    tokens = GrammarTokens(words, words.vocab_size)
    return tokens.closings.find(compiled(to_llguidance(grammar), tokens.tokenizer), most)


def whole(schema: Any, got: str) -> bool:
    try:
        jsonschema.validate(json.loads(got), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


@pytest.mark.parametrize("most", [6, 15, 40])
def test_json_is_whole_when_its_tokens_run_out(most: int) -> None:
    """Unless it could not be from the beginning. Nothing leads this model to an end."""
    checked = schemas(200)[::5]
    deltas = run(
        model_core(), [ask_json(id, schema, max_tokens=most, logit_bias=()) for id, schema in enumerate(checked)]
    )
    kept = cut = 0
    for id, schema in enumerate(checked):
        tokens, reason, _ = outcome(deltas[id])
        assert len(tokens) <= most
        if start_closing(json_grammar(schema), JSON_WORDS, most) is not None:
            assert whole(schema, text(deltas[id], JSON_WORDS))
            kept += 1
            cut += reason == "length"
    assert kept >= 20
    assert cut >= 5


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("blocks", [6, 64])
def test_texts_are_whole_when_their_tokens_run_out(blocks: int, lookahead: int) -> None:
    """A draw that is taken back changes neither the scores of the prompt nor the number of log-probabilities."""
    sources = ["a|bcdabcdabcd", "a*bcd", "(ab|cd){3}", "d|[abc]{9}d", "[abc]{2,9}d", "(a|bcdabcdabcd)(d|abababab)"]
    messages = [
        ask(id, regex(source), [id % 8, 3, 5, id % 3], Wanted(prompt_logprobs=1), max_tokens=3, logprobs=1)
        for id, source in enumerate(sources * 4)
    ]
    core = fake_core(blocks, lookahead)
    deltas = run(core, messages)
    for message, source in zip(messages, sources * 4, strict=True):
        assert re.fullmatch(source, text(deltas[message.id])), (source, text(deltas[message.id]))
        tokens, _, logprobs = outcome(deltas[message.id])
        assert len(logprobs) == len(tokens) <= 3
        assert sum(len(delta.scores) for delta in deltas[message.id]) == 3
    reasons = [deltas[message.id][-1].finish_reason for message in messages]
    assert {*reasons} == {"stop", "length"}


def test_what_cannot_be_whole_is_cut() -> None:
    [*_, last] = deltas = run(fake_core(), [ask(0, regex("a{9}b"), max_tokens=3)])[0]
    assert last.finish_reason == "length"
    assert "aaaaaaaaab".startswith(text(deltas))


DOUBLING = 'root ::= r0\nr2000 ::= "x"\n' + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(2000))


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (json_grammar({"type": "strin"}), "Invalid type"),
        (json_grammar({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (json_grammar({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}), "uniqueItems"),
        (json_grammar({"not": {}}), "not"),
        (json_grammar({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (json_grammar({"$ref": "http://example.com/x"}), "retriev"),
        (json_grammar({"type": "integer", "minimum": 5, "maximum": 2}), "greater"),
        (json_grammar(False), ""),
        (json_grammar("{"), "not a JSON schema"),
        (json_grammar("[1]"), ""),
        (json_grammar({"$ref": "#"}), "no text fits"),
        (json_grammar('{"items":' * 1000 + "{}" + "}" * 1000), "recursion"),
        (regex("["), "unclosed"),
        (regex("(" * 30_000 + "a" + ")" * 30_000), ""),
        (regex("(a{1000}){1000}"), "too complex"),
        (regex("(a|b|ab)*" * 5000), "too complex"),
        (json_grammar({"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}), "too complex"),
        (Grammar("grammar", DOUBLING, "g"), "too complex"),
        (Grammar("grammar", "start: foo", "g"), "foo"),
        (Grammar("grammar", "start: start", "g"), "no text fits"),
        (Grammar("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "g"), "nested"),
        (Grammar("grammar", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "g"), "neither"),
        (Grammar("grammar", "root ::= foo", "g"), "neither"),
        (Grammar("grammar", "root ::= [a", "g"), "neither"),
        (Grammar("grammar", "what", "g"), "neither"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else value.source[:24],
)
def test_what_cannot_be_followed_is_refused_in_time(grammar: Grammar, reason: str) -> None:
    with work_within(10):
        assert reason in refusal(grammar)


def test_schemas_without_end_leave_little_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow once as many are kept as may be: 400 more would take about 60 MB."""
    # Few enough that their number bounds them on the slowest machine, and never the seconds they took.
    monkeypatch.setattr("service.engine.grammars._MOST_KEPT", 64)
    grammars = Grammars(lambda: JSON_WORDS, JSON_WORDS.vocab_size)
    process = psutil.Process()

    def megabytes(schemas: range) -> list[float]:
        for number in schemas:
            properties = {f"p{number}": {"type": "string", "maxLength": number % 50}, "b": {"enum": [number, "x"]}}
            assert grammars.guide(json_grammar({"type": "object", "properties": properties, "required": ["b"]})).mask
        trials = [child for child in process.children() if "service.engine.grammar_trial" in child.cmdline()]
        return [one.memory_info().rss / 2**20 for one in (process, *trials)]

    full, later = megabytes(range(100)), megabytes(range(100, 500))
    assert len(later) == len(full) > 1
    assert max(after - earlier for after, earlier in zip(later, full, strict=True)) < 30
    assert max(later[1:]) < 500


def test_a_grammar_after_one_that_was_too_complex_compiles() -> None:
    grammars = Grammars(lambda: LETTERS, 8)
    too_complex, plain = grammars.guide(regex("(a{1000}){1000}")), grammars.guide(regex("a"))
    assert plain.mask == b"\x01\x00\x00\x00"
    assert isinstance(too_complex.failure, GrammarError)


FILLING = "([xyz]{1,50}x[xyz]{1,50}y){30}"
"""An expression with more states than its table has room for; each request fills a part of the table."""
CLUSTERS = WordVocabulary(
    [*(bytes([byte]) for byte in range(256)), *("".join(five).encode() for five in itertools.product("xyz", repeat=5))]
)


def served(grammars: Grammars, rng: random.Random, most: int) -> int:
    """Number of tokens that a new guide lets pass, chosen at random, up to `most`."""
    guide = grammars.guide(regex(FILLING))
    for length in range(most):
        wait_for_masks([guide], 60)
        if guide.failure is not None:
            return length
        allowed = [token for token in range(256, CLUSTERS.vocab_size) if guide.mask[token // 8] >> token % 8 & 1]
        guide.advance([rng.choice(allowed)])
        grammars.begin_moves()
    return most


def test_a_grammar_serves_on_when_its_states_are_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests it has served, each gets what the first got."""
    monkeypatch.setattr(grammar_source, "_LIMITS", LLParserLimits(max_lexer_states=4000, verbose_errors=False))
    grammars, rng = Grammars(lambda: CLUSTERS, CLUSTERS.vocab_size), random.Random(0)
    assert [served(grammars, rng, 9) for _ in range(6)] == [9] * 6


def test_plain_requests_go_on_while_a_grammar_compiles() -> None:
    core = fake_core()
    core.submit(ask(0, Grammar("grammar", DOUBLING, "g")))
    core.submit(ask(1, None, max_tokens=30, stop_token_ids=()))
    ended: list[int] = []
    while report := core.step():
        ended += [delta.id for delta in report.deltas if delta.finish_reason]
    assert ended == [1, 0]


def test_a_grammar_that_cannot_be_followed_ends_alone() -> None:
    messages = [ask(0, regex("a{9}")), ask(1, regex("[")), ask(2, None, logprobs=1)]
    together = run(fake_core(), messages)
    assert [together[id][-1].finish_reason for id in range(3)][1] == "refused"
    for id in (0, 2):
        assert outcome(together[id]) == outcome(run(fake_core(), [messages[id]])[id])


def test_the_vocabulary_is_read_once_and_for_a_grammar_alone() -> None:
    """It takes tens of megabytes, and most engines never see a grammar."""
    read = Mock(return_value=LETTERS)
    core = fake_core(read_vocabulary=read)
    run(core, [ask(0, None)])
    assert read.call_count == 0
    run(core, [ask(1, regex("a")), ask(2, regex("ab")), ask(3, regex("a"))])
    assert read.call_count == 1


def test_an_engine_without_a_vocabulary_says_so() -> None:
    core = EngineCore(FakeRunner(8, 4), token_budget=16, max_running=8)
    [delta] = run(core, [ask(0, regex("a"))])[0]
    assert delta.finish_reason == "error"


def test_a_request_can_be_cancelled_while_its_grammar_compiles() -> None:
    core = fake_core()
    core.submit(ask(0, regex("a|b|" * 500 + "c")))
    core.cancel(Cancel(0))
    report = core.step()
    assert report
    assert [delta.finish_reason for delta in report.deltas] == ["abort"]
    assert core.step() is None
