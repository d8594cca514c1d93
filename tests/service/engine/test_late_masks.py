"""Requests with a grammar beside a device that works ahead: their masks come while it computes, and change nothing."""

from threading import Event

import pytest

from model.contract import NOTHING, Wanted
from model.runner import ModelRunner
from service.engine import grammars, guides
from service.engine.grammar_places import Masks, Place
from service.engine.guides import Guide
from service.engine.messages import Cancel, Submit
from tests.service.engine.fakes import FakeRunner
from tests.service.engine.guided import schemas
from tests.service.engine.guided_core import (
    EagerRunner,
    ask,
    fake_core,
    json_grammar,
    model_core,
    outcome,
    regex,
    run,
)

pytestmark = pytest.mark.usefixtures("one_trial")

SOURCES = ["a|bcdabcdabcd", "a*bcd", "(ab|cd){3}", "d|[abc]{9}d", "[abc]{2,9}d", "(a|bcdabcdabcd)(d|abababab)", "d?"]


def guided(most: int = 40) -> list[Submit]:
    return [ask(id, regex(source), [id % 8, 3, 5], max_tokens=most) for id, source in enumerate(SOURCES)]


def test_a_request_with_a_grammar_draws_in_every_step() -> None:
    """Its masks would else hold it back: it would draw in every other step of those that run beside it."""
    core = fake_core(blocks=512, lookahead=1, drafts=0)
    core.submit(ask(0, regex("[abcd]{400}"), max_tokens=800))
    while not core.stats().totals.generated_tokens:  # Until its grammar is compiled.
        core.step()
    core.submit(ask(1, None, max_tokens=60, stop_token_ids=()))
    drawn = {0: 0, 1: 0}
    while drawn[1] < 60:
        report = core.step()
        assert report is not None
        for delta in report.deltas:
            drawn[delta.id] += len(delta.tokens)
    assert drawn[0] > 50


@pytest.mark.parametrize("most", [3, 40])
@pytest.mark.parametrize("blocks", [6, 64])
def test_working_ahead_changes_no_token(blocks: int, most: int) -> None:
    """With few tokens some draws are taken back, lest the text be cut."""
    messages = guided(most)
    ahead, after = (run(fake_core(blocks, lookahead), messages) for lookahead in (1, 0))
    for message in messages:
        assert outcome(ahead[message.id]) == outcome(after[message.id])


def test_working_ahead_changes_no_token_of_a_model() -> None:
    messages = [
        ask(id, json_grammar(schema), [id % 256, 5], stop_token_ids=(), max_tokens=30, seed=id, **params)
        for id, (schema, params) in enumerate(
            zip(schemas(40)[::4], [{}, {"logprobs": 2}, {"frequency_penalty": 0.5}, {"top_k": 20}, {}] * 2, strict=True)
        )
    ]
    messages.append(ask(len(messages), None, [7, 7], stop_token_ids=(), max_tokens=30, presence_penalty=0.5))
    ahead, after = (run(model_core(runner_kind=kind), messages) for kind in (EagerRunner, ModelRunner))
    for message in messages:
        assert outcome(ahead[message.id])[:2] == outcome(after[message.id])[:2]


@pytest.mark.parametrize("most", [3, 40])
def test_a_mask_that_comes_too_late_misses_a_step_and_loses_nothing(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other mask is not there when its step draws."""
    messages = guided(most)
    expected = run(fake_core(lookahead=1), messages)
    ready, asked = Guide.ready.fget, 0
    assert ready is not None

    def slow(guide: Guide) -> bool:
        nonlocal asked
        asked += 1
        return asked % 3 > 0 and ready(guide)

    monkeypatch.setattr(Guide, "ready", property(slow))
    for message, deltas in run(fake_core(lookahead=1), messages).items():
        assert outcome(deltas) == outcome(expected[message])


@pytest.mark.parametrize("wanted", [NOTHING, Wanted(prompt_logprobs=0)], ids=["tokens", "scores too"])
def test_a_search_for_an_end_holds_up_nobody_else(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a prompt computed again of which nothing but tokens is wanted."""
    found, search = Event(), guides.weigh

    def weigh(place: Place, token: int, left: int, masks: Masks) -> Place:
        assert found.wait(60)
        return search(place, token, left, masks)

    monkeypatch.setattr(grammars, "WATCHED", 0)  # No end is known at the beginning.
    monkeypatch.setattr(guides, "weigh", weigh)
    core = fake_core(runner=(runner := FakeRunner(64, 4)))
    prompt = [1, 2, 3, 4, 5]
    core.submit(ask(0, regex("[abc]{9}d"), prompt, wanted, max_tokens=30))
    while not runner.plans:  # Until its grammar is compiled.
        core.step()
    core.submit(ask(1, None, max_tokens=30, stop_token_ids=()))
    ended: list[int] = []
    while report := core.step():
        ended += [delta.id for delta in report.deltas if delta.finish_reason]
        if ended:
            found.set()
    assert ended == [1, 0]
    chunks = [chunk for plan in runner.plans for chunk in plan.chunks if chunk.draws]
    starts = [chunk.start for chunk in chunks if chunk.draws[0].prompt == prompt]
    assert starts.count(0) == (1 if wanted is NOTHING else 2)


@pytest.mark.parametrize("when", ["start", "draw"])
def test_a_step_that_fails_while_it_awaits_masks_is_run_again(when: str) -> None:
    runner = FakeRunner(64, 4, lookahead=1)
    core = fake_core(runner=runner)
    messages = guided()
    expected = run(fake_core(lookahead=1), messages)
    for message in messages:
        core.submit(message)
    tokens: dict[int, list[int]] = {message.id: [] for message in messages}
    failed = False
    while report := core.step():
        for delta in report.deltas:
            tokens[delta.id] += delta.tokens
            assert delta.finish_reason != "error"
        if not failed and runner.in_flight and runner.in_flight[-1].outcome is None:
            failed = True
            if when == "start":
                runner.refusal = RuntimeError("no step")
            else:
                runner.draw_refusal = RuntimeError("no draw")
    assert failed
    core.check()
    assert tokens == {id: outcome(deltas)[0] for id, deltas in expected.items()}


def test_a_request_that_is_cancelled_while_its_mask_is_made_changes_nothing_for_others() -> None:
    runner = FakeRunner(64, 4, lookahead=1)
    core = fake_core(runner=runner)
    messages = [ask(id, regex("[abcd]{30}"), [id, 3]) for id in range(3)]
    expected = run(fake_core(lookahead=1), messages)
    for message in messages:
        core.submit(message)
    tokens: dict[int, list[int]] = {message.id: [] for message in messages}
    while report := core.step():
        for delta in report.deltas:
            tokens[delta.id] += delta.tokens
        if len(tokens[1]) == 5:
            core.cancel(Cancel(1))
    core.check()
    for id in (0, 2):
        assert tokens[id] == outcome(expected[id])[0]
    assert tokens[1] == outcome(expected[1])[0][:5]
