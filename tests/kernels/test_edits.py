"""Edits of logits by each backend's kernels against those in plain torch, and nothing beside them is written."""

import random

import pytest
import torch
from torch import Tensor

from kernels import reference_edits as reference
from kernels.backend import Backend, Penalties, TokenCounts
from kernels.gpu import edits
from kernels.load import load_backend

CPU = torch.device("cpu")
DEVICES = {"triton": torch.device("cuda" if torch.cuda.is_available() else "cpu"), "cpu": CPU}
REQUESTS, CAPACITY, VOCAB = 7, 40, 1003


@pytest.fixture(params=DEVICES)
def backend(request: pytest.FixtureRequest) -> Backend:
    return load_backend(DEVICES[request.param], request.param)


@pytest.fixture
def device(backend: Backend) -> torch.device:
    return DEVICES[backend.name.split()[0]]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row has several blocks without being long."""
    monkeypatch.setattr(edits, "TOKENS", 16)
    monkeypatch.setattr(edits, "LOGITS", 256)


def random_counts(chance: random.Random, capacity: int = CAPACITY) -> TokenCounts:
    """Rows of distinct tokens, some of them empty or full; what lies behind them is any."""
    tokens = torch.tensor([chance.sample(range(VOCAB), capacity) for _ in range(REQUESTS)], dtype=torch.int32)
    times = torch.tensor([[chance.randrange(4) for _ in range(capacity)] for _ in range(REQUESTS)], dtype=torch.int32)
    lengths = [1, capacity - 1, 16, 17, *(chance.randrange(1, capacity) for _ in range(REQUESTS - 4))]
    return TokenCounts(tokens=tokens, times=times, lengths=torch.tensor(lengths, dtype=torch.int32))


def narrowed(counts: TokenCounts, width: int) -> TokenCounts:
    return TokenCounts(tokens=counts.tokens[:, :width], times=counts.times[:, :width], lengths=counts.lengths)


def on(device: torch.device, counts: TokenCounts) -> TokenCounts:
    return counts.map(lambda column: column.to(device, copy=True))


def told(counts: TokenCounts) -> list[dict[int, int]]:
    """The number of times of each token of each row; a token that stands twice in a row fails."""
    rows = zip(counts.tokens.tolist(), counts.times.tolist(), counts.lengths.tolist(), strict=True)
    found = [dict(zip(tokens[:length], times[:length], strict=True)) for tokens, times, length in rows]
    assert [len(row) for row in found] == counts.lengths.tolist()
    return found


@pytest.mark.parametrize("seed", range(5))
def test_drawn_tokens_are_counted(backend: Backend, device: torch.device, seed: int) -> None:
    """Known and new ones, in a view of the table, and a failed draw as none."""
    chance = random.Random(seed)
    counts = random_counts(chance)
    requests = chance.sample(range(REQUESTS), 5)
    known = [int(counts.tokens[row, chance.randrange(int(counts.lengths[row]))]) for row in requests]
    drawn = [chance.choice([token, chance.randrange(VOCAB), -1]) for token in known]
    expected = told(counts)
    for row, token in zip(requests, drawn, strict=True):
        if token >= 0:
            expected[row][token] = expected[row].get(token, 0) + 1
    ours, theirs = on(device, counts), counts.map(torch.clone)
    columns = torch.tensor(requests), torch.tensor(drawn)
    backend.count_tokens(narrowed(ours, CAPACITY), *(column.to(device) for column in columns))
    reference.count_tokens(theirs, *columns)
    assert told(ours) == told(theirs) == expected


def test_a_full_row_counts_what_it_knows_and_no_failed_draw(backend: Backend, device: torch.device) -> None:
    counts = random_counts(random.Random(0))
    counts.lengths[:] = CAPACITY
    expected, last = told(counts), int(counts.tokens[2, 39])
    expected[2][last] += 1
    columns = torch.tensor([2, 3]), torch.tensor([last, -1])
    ours, theirs = on(device, counts), counts.map(torch.clone)
    backend.count_tokens(ours, *(column.to(device) for column in columns))
    reference.count_tokens(theirs, *columns)
    assert told(ours) == told(theirs) == expected


@pytest.mark.parametrize("width", [CAPACITY, CAPACITY - 1])
@pytest.mark.parametrize("seed", range(5))
def test_penalties_are_those_of_the_reference(backend: Backend, device: torch.device, seed: int, width: int) -> None:
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    counts = random_counts(chance)
    logits = torch.randn(6, VOCAB, generator=generator) * 5
    logits[1, :100] = -torch.inf
    rows, requests = chance.sample(range(6), 4), chance.sample(range(REQUESTS), 4)
    counts.lengths[requests[0]] = width

    def column(numbers: list[float]) -> Tensor:
        return torch.tensor(chance.choices(numbers, k=4), dtype=torch.float32)

    penalties = Penalties(
        rows=torch.tensor(rows),
        requests=torch.tensor(requests),
        repetition=column([1.0, 1.3, 0.7]),
        presence=column([0.0, 0.4, -1.1]),
        frequency=column([0.0, 0.3, -0.2]),
    )
    ours, theirs = logits.to(device, copy=True), logits.clone()
    backend.penalise(ours, narrowed(on(device, counts), width), penalties.map(lambda column: column.to(device)))
    reference.penalise(theirs, narrowed(counts, width), penalties)
    torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=1e-6)
    assert not torch.equal(theirs, logits)


@pytest.mark.parametrize("vocab", [1003, 1024, 5])
def test_a_mask_bans_what_it_does_not_allow(backend: Backend, device: torch.device, vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(5, vocab, generator=generator)
    rows = torch.tensor([3, 0])
    masks = torch.randint(256, (2, -(-vocab // 32) * 4), generator=generator, dtype=torch.uint8)
    ours, theirs = logits.to(device, copy=True), logits.clone()
    backend.restrict(ours, rows.to(device), masks.to(device))
    reference.restrict(theirs, rows, masks)
    assert torch.equal(ours.cpu(), theirs)
    allowed = [[int(mask[token // 8]) >> token % 8 & 1 for token in range(vocab)] for mask in masks]
    assert theirs[rows].isfinite().int().tolist() == allowed
    assert torch.equal(theirs[[1, 2, 4]], logits[[1, 2, 4]])
