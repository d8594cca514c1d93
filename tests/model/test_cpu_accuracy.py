"""The cpu backend, which rounds activations and keys and values, on the default model: how far that is from float32."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend
from kernels.reference import ReferenceBackend
from model.batch import batch_layout
from model.checkpoint.source import open_checkpoint
from model.contract import Chunk
from model.decoder import Decoder
from model.families.reader import read_spec
from model.loading.cache import make_cache
from model.loading.load import load_runner
from model.loading.weights import load_weights
from model.runner_config import RunnerConfig
from model.sampling_params import SamplingParams
from service.engine.core import EngineCore
from service.engine.messages import EngineRequest, Submit
from service.text.chat import JinjaTemplate
from service.text.tokenizer import VocabularyTokenizer, load_tokenizer

CPU = torch.device("cpu")
BLOCK_SIZE = CpuBackend.block_size
ENGLISH = """The history of the printing press begins in Mainz, where around 1440 a goldsmith named Johannes Gutenberg
began to cast single letters in metal. Printing itself was not new: in China and Korea books had been printed from
carved blocks of wood for centuries, and the oldest book known to have been printed with movable metal type was
made in a Korean temple in 1377. What was new was a whole process: a mould in which any number of equal letters
could be cast, an ink of oil that stuck to metal, and a press like those in which grapes were pressed for wine.
Within fifty years there were presses in more than two hundred cities, and about twenty million books had been
made, more than all the scribes of Europe had copied in the thousand years before. Prices fell. A student could
own what once only a monastery could afford, and two people who lived far from each other could speak of the
same page. Mistakes were also spread more widely than before, and so were corrections. To estimate how long a
book took: a team of three could print about 240 sheets in an hour, so that an edition of 300 copies with 40
sheets each would need 300 * 40 / 240 = 50 hours at the press."""
KOREAN = """세종대왕은 조선의 네 번째 임금으로, 1443년에 훈민정음을 만들었다. 그때까지 우리나라 사람들은 한자를
빌려 글을 썼기 때문에, 글을 배울 시간이 없는 백성들은 자기 뜻을 글로 적을 수 없었다. 임금은 이것을
안타깝게 여겨 누구나 쉽게 배울 수 있는 스물여덟 글자를 새로 만들었다. 글자의 모양은 소리를 낼 때의
입과 혀와 목구멍의 모습을 본떴다."""


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> VocabularyTokenizer:
    return load_tokenizer(open_checkpoint(smollm2).tokenizer)


@torch.inference_mode()
def log_probabilities(model: Path, backend: Backend, texts: list[list[int]]) -> list[Tensor]:
    """Of every next token, [tokens, vocab] for each text."""
    checkpoint = open_checkpoint(model)
    spec = read_spec(checkpoint)
    decoder = Decoder(spec, load_weights(spec, checkpoint, backend, torch.float32, CPU), backend)
    blocks = -(-max(map(len, texts)) // BLOCK_SIZE)
    dtype = backend.cache_dtype or torch.float32
    cache = make_cache(spec, blocks=blocks, block_size=BLOCK_SIZE, dtype=dtype, device=CPU)
    found = []
    for text in texts:
        layout = batch_layout([Chunk(text, 0, tuple(range(blocks)))], BLOCK_SIZE, CPU)
        hidden = decoder.forward(torch.tensor(text), layout, cache)
        found.append(decoder.logits(hidden).log_softmax(-1))
    return found


def test_probabilities_are_close_to_those_in_float32(smollm2: Path, tokenizer: VocabularyTokenizer) -> None:
    texts = [tokenizer.encode(text, add_special_tokens=True, parse_special=True) for text in (ENGLISH, KOREAN)]
    assert min(map(len, texts)) > 250
    expected = log_probabilities(smollm2, ReferenceBackend(), texts)
    got = log_probabilities(smollm2, CpuBackend(2), texts)
    for ours, theirs in zip(got, expected, strict=True):
        divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean().item()
        agreement = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
        print(f"{len(ours)} tokens: a mean KL divergence of {divergence:.5f}, greedy agreement {agreement:.3f}")
        assert divergence < 0.0005
        assert agreement > 0.98


def test_the_capital_of_france_is_paris(smollm2: Path, tokenizer: VocabularyTokenizer) -> None:
    """Its likeliest first token leads the next one by no more than 0.08, after which there is no Paris."""
    template = JinjaTemplate.of(tokenizer)
    assert template is not None
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = template.encode(question, add_generation_prompt=True)
    (reference,), (logits,) = (
        log_probabilities(smollm2, backend, [text]) for backend in (ReferenceBackend(), CpuBackend(2))
    )
    first, second = reference[-1].topk(2).indices.tolist()
    lead = [(row[-1, first] - row[-1, second]).item() for row in (reference, logits)]
    print(f"the lead in float32 and here: {lead[0]:.3f}, {lead[1]:.3f}")
    assert lead[1] > lead[0] / 2
    config = RunnerConfig(model=str(smollm2), backend="cpu", cache_memory=2**26, block_size=BLOCK_SIZE)
    engine = EngineCore(load_runner(config), token_budget=64, max_running=1)
    engine.submit(Submit(0, EngineRequest(text, SamplingParams(temperature=0, max_tokens=12))))
    answer: list[int] = []
    while report := engine.step():
        answer += [token for delta in report.deltas for token in delta.tokens]
    assert "Paris" in tokenizer.decode(answer)
