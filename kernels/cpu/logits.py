"""The CPU backend's operations on logits beside the forward pass: edits before the draw, and what is told of it.

They are never recorded.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kernels.backend import Penalties, SamplingBatch, TokenCounts, Weighed
from kernels.cpu.arguments import (
    CountArguments,
    LogprobsArguments,
    PenaliseArguments,
    RestrictArguments,
    WeighArguments,
)
from kernels.cpu.operation import Operation
from kernels.cpu.operations import (
    WEIGHED_FIGURES,
    count_operation,
    logprobs_operation,
    penalise_operation,
    restrict_operation,
    weigh_operation,
)

Words = Mapping[str, Tensor | int]
"""Some words of a step by their names in `StepWords`: numbers, and tensors that stand for their addresses."""


def logit_operations() -> list[Operation]:
    """The operations that some request may ask for at any time."""
    makers = (count_operation, penalise_operation, restrict_operation, weigh_operation, logprobs_operation)
    return [maker() for maker in makers]


class LogitOperations(ABC):
    """A part of `kernels.backend.Backend`, over whatever runs an operation."""

    _step: int
    """Address of the words of the step."""

    @abstractmethod
    def _set(self, rows: Tensor, words: Words | None = None) -> None:
        """Set the batch of the next operation: a row for each of its tokens, and words of the step."""

    @abstractmethod
    def _run(self, operation: Operation, arguments: Sequence[int]) -> None:
        """Run an operation."""

    def count_tokens(self, counts: TokenCounts, requests: Tensor, tokens: Tensor) -> None:
        requests, tokens = requests.contiguous(), tokens.contiguous()
        self._set(requests)
        self._run(
            count_operation(), CountArguments(self._step, requests.data_ptr(), tokens.data_ptr(), *_table(counts))
        )

    def penalise(self, logits: Tensor, counts: TokenCounts, penalties: Penalties) -> None:
        columns = penalties.map(Tensor.contiguous).tensors().values()
        self._set(penalties.rows)
        addresses = [column.data_ptr() for column in columns]
        arguments = PenaliseArguments(self._step, logits.data_ptr(), logits.shape[1], *_table(counts), *addresses)
        self._run(penalise_operation(), arguments)

    def restrict(self, logits: Tensor, rows: Tensor, masks: Tensor) -> None:
        rows, masks = rows.contiguous(), masks.contiguous()
        self._set(rows)
        arguments = RestrictArguments(
            self._step, logits.data_ptr(), logits.shape[1], rows.data_ptr(), masks.data_ptr(), masks.shape[1]
        )
        self._run(restrict_operation(), arguments)

    def weigh(self, logits: Tensor, batch: SamplingBatch, before: Weighed | None) -> Weighed:
        logits = logits.contiguous()
        rows, vocab = logits.shape
        found = Weighed(torch.empty(rows, vocab), torch.empty(rows, WEIGHED_FIGURES, dtype=torch.float64))
        self._set(logits, batch.tensors())
        arguments = WeighArguments(
            step=self._step,
            logits=logits.data_ptr(),
            vocab=vocab,
            weights=found.weights.data_ptr(),
            figures=found.figures.data_ptr(),
            weights_before=_address(before and before.weights),
            figures_before=_address(before and before.figures),
        )
        self._run(weigh_operation(), arguments)
        return found

    def log_probabilities(self, logits: Tensor, tokens: Tensor, most: int) -> Tensor:
        out = torch.empty(len(logits), 2 + 2 * most, dtype=torch.float64)
        logits, tokens = logits.contiguous(), tokens.contiguous()
        self._set(logits)
        arguments = LogprobsArguments(
            self._step, logits.data_ptr(), logits.shape[1], tokens.data_ptr(), most, out.data_ptr()
        )
        self._run(logprobs_operation(), arguments)
        return out


def _table(counts: TokenCounts) -> tuple[int, int, int, int]:
    """The last arguments of `CountArguments`."""
    return counts.tokens.data_ptr(), counts.times.data_ptr(), counts.lengths.data_ptr(), counts.tokens.stride(0)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
