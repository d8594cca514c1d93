"""What is wanted beside tokens equals transformers, however prompts are cut, cached, batched or preempted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kernels.backend import Backend, RecordingBackend
from kernels.load import load_backend
from model.array import Array
from model.contract import Chunk, Wanted
from model.decoder import Rows
from model.inspection import Distribution, InspectionRequest, InspectionResult
from model.probes import ChunkProbe
from model.recorded import KEPT_ROWS, RecordedDecoder
from model.runner import ModelRunner
from model.sampling_params import SamplingParams
from model.token_logprobs import TokenLogprobs
from service.engine.core import EngineCore
from service.engine.messages import Delta, EngineRequest, Submit
from tests.tiny import BLOCKS, CPU, TINY_MODELS, TinyDecoder, random_tokens, save

GREEDY = SamplingParams(max_tokens=0, temperature=0)
PROMPT = random_tokens(21, seed=5)


@dataclass
class Found:
    """What a request got, all deltas together."""

    tokens: list[int] = field(default_factory=list)
    scores: list[TokenLogprobs] = field(default_factory=list)
    parts: list[NDArray[np.float32]] = field(default_factory=list)
    inspections: list[InspectionResult] = field(default_factory=list)
    distributions: list[Distribution] = field(default_factory=list)
    last: Delta | None = None

    @property
    def pooled(self) -> NDArray[np.float32]:
        return np.sum(self.parts, axis=0)

    def positions(self) -> list[int]:
        return [position for inspection in self.inspections for position in inspection.positions]

    def maps(self, keys: int) -> NDArray[np.float32]:
        """[heads, positions, keys]."""
        maps = [to_numpy(inspection.attention) for inspection in self.inspections]
        return np.concatenate([np.pad(part, ((0, 0), (0, 0), (0, keys - part.shape[2]))) for part in maps], axis=1)

    def joined(self, name: str) -> NDArray[np.float32]:
        return np.concatenate([to_numpy(getattr(inspection, name)) for inspection in self.inspections], axis=1)

    def lens(self) -> list[list[TokenLogprobs]]:
        """[stages][positions]."""
        stages = [inspection.lens for inspection in self.inspections if inspection.lens is not None]
        return [[entry for part in stages for entry in part[stage]] for stage in range(len(stages[0]))]


def to_numpy(array: Array | None) -> NDArray[np.float32]:
    assert array is not None
    return np.frombuffer(array.data, "<f4").reshape(*array.shape)


Asked = tuple[Sequence[int], SamplingParams, Wanted]
"""A prompt, how to go on with it, and what is wanted beside."""


def run(core: EngineCore, *requests: Asked) -> list[Found]:
    """What requests get that are submitted together."""
    found = [Found() for _ in requests]
    for id, (prompt, params, wanted) in enumerate(requests):
        core.submit(Submit(id, EngineRequest([*prompt], params, wanted=wanted)))
    while report := core.step():
        for delta in report.deltas:
            mine = found[delta.id]
            assert delta.finish_reason in (None, "length"), delta.error
            mine.tokens += delta.tokens
            mine.scores += delta.scores
            mine.parts += [to_numpy(delta.pooled)] if delta.pooled else []
            mine.inspections += [delta.inspection] if delta.inspection else []
            mine.distributions += delta.distributions
            mine.last = delta
    core.check()
    return found


class Engine:
    """An engine on a tiny model of some family."""

    def __init__(
        self, family: str, folder: Path, *, token_budget: int, blocks: int = BLOCKS, backend: Backend | None = None
    ) -> None:
        self.model = TINY_MODELS[family].build()
        tiny = TinyDecoder(save(self.model, folder), backend)
        self.decoder, self.spec, self.cache = tiny.decoder, tiny.decoder.spec, tiny._cache
        tiny._cache.blocks = blocks
        self.core = EngineCore(ModelRunner(tiny.decoder, tiny._cache, 64), token_budget=token_budget, max_running=4)

    def run(self, *requests: Asked) -> list[Found]:
        return run(self.core, *requests)

    def everything(self, positions: Sequence[int] = (), *, generated: bool = False) -> Wanted:
        heads = [(layer, head) for layer in range(len(self.spec.layers)) for head in range(self.spec.heads)]
        asked = InspectionRequest(positions=positions, generated=generated, heads=heads, stream=True, lens=3)
        return Wanted(prompt_logprobs=3, pooling="mean", inspect=asked)


@dataclass
class Expected:
    """What transformers computes of a text."""

    logprobs: torch.Tensor
    hidden: torch.Tensor
    """[tokens, hidden] after the final norm."""
    streams: list[torch.Tensor]
    """[tokens, hidden] before each layer."""
    maps: torch.Tensor
    """[layers * heads, tokens, tokens]."""
    lens: list[torch.Tensor]


@torch.inference_mode()
def by_transformers(model: Any, tokens: Sequence[int]) -> Expected:
    out = model(torch.tensor([tokens]), output_attentions=True, output_hidden_states=True)
    base = getattr(model, "model", None) or model.transformer
    base = getattr(base, "language_model", base)
    norm = getattr(base, "norm", None) or base.ln_f
    *streams, hidden = (state[0] for state in out.hidden_states)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    def logprobs(normed: torch.Tensor) -> torch.Tensor:
        logits = model.lm_head(normed)
        return (logits if cap is None else cap * torch.tanh(logits / cap)).log_softmax(-1)

    lens = [*(logprobs(norm(stream)) for stream in streams), logprobs(hidden)]
    return Expected(
        out.logits[0].log_softmax(-1), hidden, streams, torch.cat([part[0] for part in out.attentions]), lens
    )


def check_inspection(found: Found, expected: Expected, tokens: Sequence[int], positions: Sequence[int]) -> None:
    assert found.positions() == [*positions]
    np.testing.assert_allclose(found.maps(len(tokens)), expected.maps[:, positions].numpy(), atol=1e-5)
    norms = np.stack([stream[positions].norm(dim=-1).numpy() for stream in expected.streams])
    np.testing.assert_allclose(found.joined("stream")[::2][:-1], norms, rtol=1e-4)
    assert found.joined("added").shape == (2 * len(expected.streams), len(positions))
    for stage, logprobs in zip(found.lens(), expected.lens, strict=True):
        check_logprobs(stage, logprobs[positions], [[*tokens, 0][position + 1] for position in positions])


def check_logprobs(found: Sequence[TokenLogprobs], logprobs: torch.Tensor, targets: Sequence[int]) -> None:
    assert len(found) == len(targets)
    for entry, row, target in zip(found, logprobs, targets, strict=True):
        assert entry.chosen == pytest.approx(row[target].item(), abs=1e-4)
        assert entry.top_logprobs == pytest.approx(row.topk(len(entry.top_tokens)).values.tolist(), abs=1e-4)
        assert row[entry.top_tokens].tolist() == pytest.approx(entry.top_logprobs, abs=1e-4)


@pytest.mark.parametrize("family", TINY_MODELS)
def test_a_prompt_in_chunks_beside_others(family: str, tmp_path: Path) -> None:
    engine = Engine(family, tmp_path, token_budget=8)
    company = (random_tokens(9, seed=1), SamplingParams(max_tokens=8), Wanted())
    positions = range(len(PROMPT))
    found, other = engine.run((PROMPT, GREEDY, engine.everything(positions)), company)
    expected = by_transformers(engine.model, PROMPT)
    assert found.tokens == []
    check_logprobs(found.scores, expected.logprobs[:-1], PROMPT[1:])
    np.testing.assert_allclose(found.pooled / len(PROMPT), expected.hidden.mean(0).numpy(), atol=1e-4)
    assert len(other.tokens) == 8
    # The token behind the last position is not known, and nothing is said of it.
    found.inspections[-1] = without_last(found.inspections[-1])
    check_inspection(found, expected, PROMPT, positions[:-1])


def without_last(inspection: InspectionResult) -> InspectionResult:
    assert inspection.lens is not None
    return InspectionResult(
        positions=inspection.positions[:-1],
        attention=cut(inspection.attention),
        stream=cut(inspection.stream),
        added=cut(inspection.added),
        lens=[stage[:-1] for stage in inspection.lens],
    )


def cut(array: Array | None) -> Array:
    part = to_numpy(array)[:, :-1]
    return Array(part.shape, part.tobytes())


def test_the_compiled_backend_shows_what_the_reference_shows(tmp_path: Path) -> None:
    """Its forward pass is not recorded here, so that every call is made for itself."""
    engine = Engine("llama", tmp_path, token_budget=8, backend=load_backend(CPU, "cpu"))
    positions = range(len(PROMPT) - 1)
    (found,) = engine.run((PROMPT, GREEDY, engine.everything(positions)))
    check_inspection(found, by_transformers(engine.model, PROMPT), PROMPT, positions)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize(("budget", "kept"), [(8, KEPT_ROWS), (70, KEPT_ROWS), (70, 4)])
def test_a_recorded_forward_pass_shows_the_same_and_changes_nothing(
    family: str, budget: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether few enough positions are looked at for the recording that keeps rows, or all is computed call by call."""
    monkeypatch.setattr("model.recorded.KEPT_ROWS", kept)
    backend = load_backend(CPU, "cpu")
    assert isinstance(backend, RecordingBackend)
    engine = Engine(family, tmp_path, token_budget=budget, backend=backend)
    decoder = RecordedDecoder(engine.decoder, backend, engine.cache, max_tokens=budget)
    engine.core = EngineCore(ModelRunner(decoder, engine.cache, 64), token_budget=budget, max_running=4)
    params = SamplingParams(max_tokens=6, temperature=0, logprobs=2)
    company = (random_tokens(40, seed=1), params, Wanted())
    (alone,) = engine.run(company)
    found, other = engine.run((PROMPT, params, engine.everything(range(20), generated=True)), company)
    text = [*PROMPT, *found.tokens]
    expected = by_transformers(engine.model, text)
    check_inspection(found, expected, text, [*range(20), *range(len(PROMPT) - 1, len(text) - 1)])
    assert other.tokens == alone.tokens


def test_generated_tokens_are_looked_at_as_they_are_drawn(tmp_path: Path) -> None:
    engine = Engine("llama", tmp_path, token_budget=8)
    params = SamplingParams(max_tokens=6, temperature=0, logprobs=2)
    company = (random_tokens(9, seed=1), params, Wanted())
    alone = engine.run((PROMPT, params, Wanted()))[0].tokens
    found, _ = engine.run((PROMPT, params, engine.everything([3, 7], generated=True)), company)
    assert found.tokens == alone
    text = [*PROMPT, *found.tokens]
    positions = [3, 7, *range(len(PROMPT) - 1, len(text) - 1)]
    check_inspection(found, by_transformers(engine.model, text), text, positions)


def test_a_cached_prefix_is_computed_again_where_it_is_looked_at(tmp_path: Path) -> None:
    engine = Engine("llama", tmp_path, token_budget=64)
    engine.run((PROMPT, SamplingParams(max_tokens=2), Wanted()))
    expected = by_transformers(engine.model, PROMPT)
    wanted = Wanted(inspect=engine.everything([17, 19]).inspect, pooling="last")
    (found,) = engine.run((PROMPT, GREEDY, wanted))
    assert found.last is not None
    assert found.last.cached_tokens == 16
    check_inspection(found, expected, PROMPT, [17, 19])
    np.testing.assert_allclose(found.pooled, expected.hidden[-1].numpy(), atol=1e-4)
    (whole,) = engine.run((PROMPT, GREEDY, Wanted(prompt_logprobs=0, pooling="first")))
    assert whole.last is not None
    assert whole.last.cached_tokens == 0
    check_logprobs(whole.scores, expected.logprobs[:-1], PROMPT[1:])
    np.testing.assert_allclose(whole.pooled, expected.hidden[0].numpy(), atol=1e-4)


def test_a_preempted_request_tells_everything_once(tmp_path: Path) -> None:
    """The cache has room for one of the two only. Both look inside, since one alone would wait for the other."""
    engine = Engine("llama", tmp_path, token_budget=8, blocks=9)
    params = SamplingParams(max_tokens=10, temperature=0)
    first = (random_tokens(8, seed=1), params, Wanted(inspect=InspectionRequest(generated=True, lens=1)))
    _, found = engine.run(first, (PROMPT[:12], params, engine.everything(range(11), generated=True)))
    assert engine.core.stats().totals.preemptions
    text = [*PROMPT[:12], *found.tokens]
    expected = by_transformers(engine.model, text)
    check_logprobs(found.scores, expected.logprobs[:11], text[1:12])
    np.testing.assert_allclose(found.pooled / 12, expected.hidden[:12].mean(0).numpy(), atol=1e-4)
    check_inspection(found, expected, text, range(len(text) - 1))


def test_nobody_else_notices(tmp_path: Path) -> None:
    engine = Engine("llama", tmp_path, token_budget=16)
    params = SamplingParams(max_tokens=8, seed=7, logprobs=1)
    company = [(random_tokens(9, seed=1), params, Wanted()), (random_tokens(4, seed=2), params, Wanted())]
    alone = [engine.run(one)[0].tokens for one in company]
    looked_at = (PROMPT, params, engine.everything(range(20), generated=True))
    assert [found.tokens for found in engine.run(looked_at, *company)[1:]] == alone


def test_a_prompt_of_one_token(tmp_path: Path) -> None:
    engine = Engine("llama", tmp_path, token_budget=16)
    (found,) = engine.run(([5], GREEDY, engine.everything([0])))
    assert (found.scores, found.positions()) == ([], [0])
    assert found.maps(1).tolist() == [[[1.0]]] * 12


@pytest.mark.parametrize("max_tokens", [0, 4])
def test_a_prompt_whose_logits_are_not_numbers_ends_with_an_error(max_tokens: int, tmp_path: Path) -> None:
    engine = Engine("llama", tmp_path, token_budget=8)
    engine.decoder.weights.output.weight.fill_(float("nan"))
    params = SamplingParams(max_tokens=max_tokens, temperature=0)
    engine.core.submit(Submit(1, EngineRequest(PROMPT, params, wanted=Wanted(prompt_logprobs=0))))
    deltas = [delta for report in iter(engine.core.step, None) for delta in report.deltas]
    assert [delta.finish_reason for delta in deltas] == ["error"]
    assert not deltas[0].scores


@pytest.mark.parametrize("norms", [False, True])
def test_a_lens_reads_the_streams_behind_whole_layers(norms: bool) -> None:
    """Alone it copies no others, each of which would keep everybody's next token waiting."""
    asked = InspectionRequest(positions=[3], lens=1, stream=norms)
    probe = ChunkProbe(Chunk([7, 8], 2, [0]), asked, 5, 16, load_backend(CPU, "reference"))
    for number in range(7):
        # The position is that of the batch's row 6; behind the rows of its tokens others may stand.
        probe.stream(Rows(torch.arange(9.0)[:, None].expand(9, 4) + 100 * number))
    rows = probe.lens_rows()
    assert rows is not None
    assert rows.tolist() == [[6.0 + 100 * number] * 4 for number in (0, 2, 4, 6)]
    assert len(probe._streams) == (7 if norms else 4)
    assert (probe.result(None).stream is not None) == norms
