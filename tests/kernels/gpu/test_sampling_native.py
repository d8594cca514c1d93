"""Drawing compiled for the GPU, at the sizes of vocabularies: the reference's tokens, and the frequencies they have.

Rounding may decide a race, or whether a token is still within top-p, where two numbers agree to five or six digits:
about once in 10^5 rows, and so once in as many runs of these few hundred, whose seeds are fixed.
"""

from dataclasses import fields
from itertools import product

import pytest
import torch
from torch import Tensor

from kernels import reference_sampling as reference
from kernels.backend import SamplingBatch
from kernels.gpu.launch import JitLauncher, device_target
from kernels.gpu.sampling import sample

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAUNCH = JitLauncher(device_target(DEVICE))
NAN, INF = float("nan"), float("inf")

Filters = tuple[float, int, float, float]
"""Temperature, top_k, top_p, min_p."""
MIXED: list[Filters] = [
    (temperature, top_k, top_p, min_p)
    for temperature, top_k, top_p, min_p in product((0.0, 0.7, 1.5), (0, 1, 50, 2000), (1.0, 0.3, 0.95), (0.0, 0.02))
]

vocabularies = pytest.mark.parametrize("vocab", [32_000, 50_257, 128_256, 151_936, 262_208])


def batch_of(rows: list[Filters], seed: int = 0) -> SamplingBatch:
    """On the GPU; row i draws its token number i."""
    columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
    temperature, top_k, top_p, min_p = (column.to(DEVICE) for column in columns)
    counter = torch.arange(len(rows), device=DEVICE)
    seeds = torch.full_like(counter, seed)
    return SamplingBatch(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seeds, counter=counter)


def on_host(batch: SamplingBatch) -> SamplingBatch:
    return SamplingBatch(*(getattr(batch, field.name).cpu() for field in fields(batch)))


def random_logits(rows: int, vocab: int, seed: int = 0, spread: float = 2.5) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE) * spread


@vocabularies
@pytest.mark.parametrize("spread", [0.3, 2.5, 12.0])
def test_the_references_tokens(vocab: int, spread: float) -> None:
    """Of rows that are filtered each in its own way, some of which hold no numbers, or hardly any."""
    logits, batch = random_logits(len(MIXED), vocab, seed=1, spread=spread), batch_of(MIXED)
    logits[8:28] = logits[8:28].bfloat16().float()
    logits[36:44] = torch.where(logits[36:44] > spread, 0.5, -0.25)
    logits[[3, 30], vocab // 2] = NAN
    logits[[5, 50]] = -INF
    logits[[7, 31], vocab - 1] = INF
    logits[32:35, : vocab - 3] = -INF
    logits[53:56, 1::3] = -INF
    logits[61:64] = logits[61:64].round()
    drawn = sample(LAUNCH, logits, batch).cpu()
    assert torch.equal(drawn, reference.sample(logits.cpu(), on_host(batch)))
    assert (drawn == -1).nonzero().flatten().tolist() == [3, 5, 7, 30, 31, 50]


@vocabularies
def test_a_row_alone_draws_what_it_draws_in_a_batch(vocab: int) -> None:
    logits, batch = random_logits(len(MIXED), vocab, seed=2), batch_of(MIXED)
    together = sample(LAUNCH, logits, batch)
    for row in range(0, len(MIXED), 5):
        some = torch.arange(row, min(row + row % 3 + 1, len(MIXED)), device=DEVICE)
        assert torch.equal(sample(LAUNCH, logits[some], reference.select_rows(batch, some)), together[some])


@pytest.mark.parametrize("vocab", [128_256, 151_936])
@pytest.mark.parametrize("rows", [1, 8, 72])
def test_a_graph_draws_the_same_tokens(vocab: int, rows: int) -> None:
    """Captured once, for rows of any filters, and replayed with others."""
    static_logits, static = random_logits(rows, vocab), batch_of(MIXED[:rows])
    sample(LAUNCH, static_logits, static)  # Compiled.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = sample(LAUNCH, static_logits, static)
    for seed in range(1, 5):
        order = torch.randperm(len(MIXED), generator=torch.Generator().manual_seed(seed))[:rows]
        logits, batch = random_logits(rows, vocab, seed), batch_of([MIXED[i] for i in order.tolist()], seed)
        static_logits.copy_(logits)
        for field in fields(batch):
            getattr(static, field.name).copy_(getattr(batch, field.name))
        drawn.fill_(-2)
        graph.replay()
        assert torch.equal(drawn, sample(LAUNCH, logits, batch))


def test_more_logits_than_32_bits_count() -> None:
    vocab = 151_936
    rows = (1 << 31) // vocab + 4
    logits = torch.zeros(rows, vocab, device=DEVICE)
    logits[-3:] = random_logits(3, vocab)
    batch = batch_of([(1.0, 40, 0.9, 0.0)] * rows)
    last = torch.arange(rows - 3, rows, device=DEVICE)
    expected = reference.sample(logits[-3:].cpu(), on_host(reference.select_rows(batch, last)))
    assert torch.equal(sample(LAUNCH, logits, batch)[-3:].cpu(), expected)


DRAWS = 200_000


@pytest.mark.parametrize(
    "filters",
    [
        (1.0, 0, 1.0, 0.0),
        (0.6, 0, 1.0, 0.0),
        (1.0, 7, 1.0, 0.0),
        (1.0, 0, 0.8, 0.0),
        (3.0, 0, 1.0, 0.02),
        (1.5, 12, 0.9, 0.0),
        (1.3, 15, 0.97, 0.03),
    ],
    ids=str,
)
def test_draws_have_the_frequencies_of_the_definition(filters: Filters) -> None:
    logits = random_logits(1, 50, seed=1)
    tokens = sample(LAUNCH, logits.expand(DRAWS, -1), batch_of([filters] * DRAWS, seed=20))
    counts = torch.bincount(tokens, minlength=50).double()
    means = defined(logits[0], filters) * DRAWS
    assert not counts[means == 0].any()
    enough = means >= 5
    statistic = float(((counts - means)[enough].square() / means[enough]).sum())
    assert statistic < chi_square_bound(int(enough.sum()))


def defined(logits: Tensor, filters: Filters) -> Tensor:
    """The filtered distribution of one row, [vocab] float64, by the definitions."""
    temperature, top_k, top_p, min_p = filters
    p = (logits.double() / temperature).softmax(-1)
    order = p.sort(descending=True, stable=True).indices
    if top_k:
        p[order[top_k:]] = 0.0
        p = p / p.sum()
    ranked = p[order]
    p[order[ranked.cumsum(-1) - ranked >= top_p]] = 0.0
    p = p.where(p >= min_p * p.max(), 0.0)
    return p / p.sum()


def chi_square_bound(cells: int) -> float:
    """What chi-square of so many cells exceeds once in 30,000 times (Wilson and Hilferty, 1931)."""
    freedom = max(cells - 1, 1)
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 4 * spread**0.5) ** 3
