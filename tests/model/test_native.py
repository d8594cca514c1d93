"""What only a GPU can show: real graphs, real transfers, and no bit that depends on the batch.

Imports torch, triton and our own modules alone, as an image for GPUs has them; what needs more asks for it.
"""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.load import load_backend
from model.batch import batch_layout
from model.checkpoint.source import DEFAULT_MODEL, list_aliases, open_checkpoint, resolve
from model.contract import INVALID_TOKEN, Chunk, Runner, StepPlan, StepResult
from model.decoder import Decoder
from model.graphs import CudaCapture, GraphedDecoder
from model.loading.load import load_runner
from model.loading.memory import DeviceMemoryError
from model.runner import ModelRunner
from model.runner_config import RunnerConfig
from model.sampling_params import SamplingParams
from model.spec import DecoderSpec, LayerSpec, RopeSpec
from model.token_logprobs import TokenLogprobs
from tests.dummies import GREEDY, drawing, drawn, drawn_logprobs, drawn_one_by_one, empty_cache, make_decoder

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
BLOCK_SIZE = 16
BLOCKS = 512
CACHE_BYTES = BLOCKS * BLOCK_SIZE * 4 * 2 * 30 * 3 * 64
"""Of the default model in float32: 30 layers, 3 key heads of 64."""
SPEC = DecoderSpec(
    family="llama",
    vocab_size=1000,
    hidden_size=512,
    layers=(LayerSpec(RopeSpec(1e4, 64)), LayerSpec(RopeSpec(1e4, 64), window=40)) * 2,
    heads=8,
    kv_heads=2,
    head_dim=64,
    mlp_size=1024,
    max_context=512,
    attention_scale=0.125,
    tied_embeddings=False,
)
cache_dtypes = pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
SAMPLED = SamplingParams(max_tokens=100, temperature=0.8, top_k=50, top_p=0.95, seed=11, logprobs=3)


def native_decoder(*, batch_invariant: bool = True, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    backend = load_backend(GPU, "triton", batch_invariant=batch_invariant)
    return make_decoder(SPEC, backend, dtype, GPU)


def native_runner(decoder: Decoder, *, graphs: bool = True, cache_dtype: torch.dtype | None = None) -> ModelRunner:
    cache = empty_cache(decoder, blocks=BLOCKS, block_size=BLOCK_SIZE, dtype=cache_dtype)
    if not graphs:
        return ModelRunner(decoder, cache, SPEC.max_context)
    graphed = GraphedDecoder(
        decoder, cache, max_batch=16, max_context=SPEC.max_context, token_budget=512, capture=CudaCapture()
    )
    return ModelRunner(graphed, cache, SPEC.max_context)


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


Answer = tuple[list[int], list[TokenLogprobs | None]]


def answers(
    runner: Runner, prompts: Sequence[Sequence[int]], count: int, params: SamplingParams, *, ahead: bool, strict: bool
) -> list[Answer]:
    """Every prompt in one batch; with `ahead`, each step is started before the result of the one before is known.

    With `strict`, starting a step must not wait for the device.
    """
    each = BLOCKS // len(prompts)
    tables = [range(index * each, (index + 1) * each) for index in range(len(prompts))]
    found: list[Answer] = [([], []) for _ in prompts]

    def take(result: StepResult) -> None:
        for (tokens, logprobs), token, logprob in zip(found, drawn(result), drawn_logprobs(result), strict=True):
            tokens.append(token)
            logprobs.append(logprob)

    plan = StepPlan([Chunk(p, 0, t, drawing(params)) for p, t in zip(prompts, tables, strict=True)])
    pending = runner.start(plan)
    for step in range(1, count):
        if not ahead:
            take(pending.result())
        chunks = [
            Chunk(
                [INVALID_TOKEN if ahead else found[index][0][-1]],
                len(prompt) + step - 1,
                tables[index],
                drawing(params, found[index][0], ahead=int(ahead)),
                follows=index if ahead else None,
            )
            for index, prompt in enumerate(prompts)
        ]
        before = pending
        if strict:
            with no_waiting():
                pending = runner.start(StepPlan(chunks))
        else:
            pending = runner.start(StepPlan(chunks))
        if ahead:
            take(before.result())
    take(pending.result())
    return found


def random_prompts(count: int, seed: int = 0) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(1000) for _ in range(chance.randrange(1, 100))] for _ in range(count)]


# Torch warns that the mode which finds waiting is new.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_a_mask_that_comes_while_the_device_computes_restricts_the_draw(graphs: bool) -> None:
    runner = native_runner(native_decoder(), graphs=graphs)
    assert drawn_one_by_one(runner, [300, 7, 999, 0, 300], no_waiting) == [300, 7, 999, 0, 300]


@cache_dtypes
@pytest.mark.parametrize("count", [1, 3, 8, 13])
def test_graphs_change_no_bit(count: int, cache_dtype: torch.dtype) -> None:
    decoder, prompts = native_decoder(), random_prompts(count)
    eager, graphs = (native_runner(decoder, graphs=graphs, cache_dtype=cache_dtype) for graphs in (False, True))
    expected = answers(eager, prompts, 12, SAMPLED, ahead=False, strict=False)
    assert answers(graphs, prompts, 12, SAMPLED, ahead=False, strict=False) == expected
    # The same graphs, with other tokens in other places.
    others = random_prompts(count, seed=1)
    expected = answers(eager, others, 12, SAMPLED, ahead=False, strict=False)
    assert answers(graphs, others, 12, SAMPLED, ahead=False, strict=False) == expected


# Torch warns that the mode which finds waiting is new.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_looking_ahead_changes_no_bit_and_waits_for_nothing(graphs: bool) -> None:
    decoder, prompts = native_decoder(batch_invariant=False), random_prompts(5)
    runner = native_runner(decoder, graphs=graphs)
    assert runner.lookahead == 1
    waiting = answers(runner, prompts, 12, SAMPLED, ahead=False, strict=False)
    assert answers(runner, prompts, 12, SAMPLED, ahead=True, strict=True) == waiting


@cache_dtypes
def test_a_request_is_answered_alike_to_the_bit_alone_and_in_any_batch(cache_dtype: torch.dtype) -> None:
    decoder = native_decoder()
    for seed in range(3):
        prompts = random_prompts(1 + 4 * seed + seed, seed)
        together = answers(
            native_runner(decoder, cache_dtype=cache_dtype), prompts, 8, SAMPLED, ahead=True, strict=False
        )
        for prompt, expected in zip(prompts, together, strict=True):
            runner = native_runner(decoder, graphs=False, cache_dtype=cache_dtype)
            assert answers(runner, [prompt], 8, SAMPLED, ahead=False, strict=False) == [expected]


@cache_dtypes
def test_a_prompt_in_chunks_beside_others_is_answered_alike_to_the_bit(cache_dtype: torch.dtype) -> None:
    """Chunks of two tokens and more: a single one is computed as one that decodes."""
    decoder = native_decoder()
    (other, prompt), table = random_prompts(2), range(100, 140)
    prompt = [*prompt, *range(200)]

    def last(cuts: Sequence[int], beside: int) -> StepResult:
        """The result of the prompt's last chunk; `beside` copies of another prompt are in each step."""
        runner = native_runner(decoder, cache_dtype=cache_dtype)
        company = [Chunk(other, 0, range(10 * index, 10 * index + 10)) for index in range(beside)]
        *early, (start, _) = pairwise([0, *cuts, len(prompt)])
        for begin, end in early:
            runner.start(StepPlan([*company, Chunk(prompt[begin:end], begin, table)])).result()
        return runner.start(StepPlan([*company, Chunk(prompt[start:], start, table, drawing(SAMPLED))])).result()

    whole = last([], beside=0)
    for seed in range(4):
        cuts = sorted(random.Random(seed).sample(range(2, len(prompt) - 1, 2), k=1 + seed))
        found = last(cuts, beside=2 * seed)
        assert found.chunks[-1] == whole.chunks[-1]


def test_the_decoder_comes_to_what_the_reference_comes_to() -> None:
    """In float32, prompts and decoding sequences in one batch."""
    ours, theirs = native_decoder(dtype=torch.float32), make_decoder(SPEC, load_backend(GPU, "reference"), device=GPU)
    chunks = [Chunk([0], 3, [9]), Chunk([0] * 20, 0, [3, 5]), Chunk([0] * 70, 0, range(10, 15))]
    layout = batch_layout(chunks, BLOCK_SIZE, GPU)
    tokens = torch.randint(1000, (91,), device=GPU, generator=torch.Generator(GPU).manual_seed(0))

    def logits(decoder: Decoder) -> Tensor:
        cache = empty_cache(decoder, blocks=16, block_size=BLOCK_SIZE)
        for layer in cache.layers:
            layer.keys[9].fill_(0.5)
            layer.values[9].fill_(0.5)
        return decoder.logits(decoder.forward(tokens, layout, cache))

    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-3, atol=1e-3)


def test_times_are_the_devices_own() -> None:
    runner = native_runner(native_decoder())
    plan = StepPlan([Chunk([1] * 400, 0, range(25), drawing())])
    runner.start(plan).result()
    result = runner.start(plan).result()
    assert 0 < result.sample_seconds < 1
    assert 0 < result.forward_seconds < 1


@pytest.fixture
def dummy(tmp_path: Path) -> RunnerConfig:
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-5, "vocab_size": 1000,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 131072, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return RunnerConfig(model=str(tmp_path), device="cuda", load_format="dummy", max_running=8)


def test_the_cache_takes_the_share_that_is_left(dummy: RunnerConfig) -> None:
    """Whatever is used already, by this process or another, counts."""
    free, total = torch.cuda.mem_get_info(GPU)
    share = (total - free) / total + 0.02
    runner = load_runner(replace(dummy, memory_share=share))
    after, _ = torch.cuda.mem_get_info(GPU)
    assert runner.limits.num_blocks > 100
    assert total - after <= share * total


def test_too_large_a_cache_is_one_line(dummy: RunnerConfig) -> None:
    with pytest.raises(DeviceMemoryError, match=r"KV cache of .* GiB did not fit .* lower cache_memory"):
        load_runner(replace(dummy, cache_memory=2**45))


def test_an_fp8_cache_from_end_to_end(dummy: RunnerConfig) -> None:
    plain = load_runner(replace(dummy, cache_memory=2**28))
    fp8 = load_runner(replace(dummy, cache_memory=2**28, cache_dtype="fp8"))
    assert fp8.limits.num_blocks == 2 * plain.limits.num_blocks
    plan = StepPlan([Chunk([1, 2, 3], 0, [0], drawing(replace(GREEDY, logprobs=1)))])
    (expected,), (found,) = (drawn_logprobs(runner.start(plan).result()) for runner in (plain, fp8))
    assert expected is not None
    assert found is not None
    assert found.top_logprobs == pytest.approx(expected.top_logprobs, abs=0.2)


def assert_greedy(model: Any, prompts: Sequence[Sequence[int]], found: Sequence[Answer]) -> None:
    """Every token is the choice of transformers' `model` after those before it, or tied with it."""
    for prompt, (tokens, _) in zip(prompts, found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *tokens]], device=GPU)).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2)
        for position, token in enumerate(tokens):
            first, second = best.values[position].tolist()
            tied = first - second < 1e-2 and token in best.indices[position].tolist()
            assert token == int(best.indices[position, 0]) or tied, (prompt, position)


def test_greedy_tokens_of_random_weights_equal_transformers(tmp_path: Path) -> None:
    """In the default model's shape, whose files need not be here."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=1000,
        max_position_embeddings=2048,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:  # Wide, so that what attention brings shows in the tokens.
                weight.normal_(0.0, 0.06)
    model.save_pretrained(tmp_path)
    runner = load_runner(RunnerConfig(model=str(tmp_path), device="cuda", dtype="float32", cache_memory=CACHE_BYTES))
    prompts = random_prompts(6)
    found = answers(runner, prompts, 32, GREEDY, ahead=True, strict=False)
    assert len({token for tokens, _ in found for token in tokens}) > 20
    assert_greedy(model.to(GPU), prompts, found)


def test_greedy_tokens_of_the_real_model_equal_transformers(model_home: Path) -> None:
    if not any(status.alias == DEFAULT_MODEL and status.cached for status in list_aliases(model_home)):
        pytest.skip("the model is not on this machine")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    from service.text.tokenizer import load_tokenizer

    path = resolve(DEFAULT_MODEL, model_home).path
    tokenizer = load_tokenizer(open_checkpoint(path).tokenizer)
    texts = ["The capital of France is", "Once upon a time, in a small village by the sea,", "def fibonacci(n):\n    "]
    prompts = [tokenizer.encode(text, add_special_tokens=True, parse_special=True) for text in texts]
    runner = load_runner(RunnerConfig(model=str(path), device="cuda", dtype="float32", cache_memory=CACHE_BYTES))
    found = answers(runner, prompts, 32, GREEDY, ahead=True, strict=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert_greedy(model.to(GPU), prompts, found)
