"""The sections of a run, the most important first: when the time is over, the last ones are left out."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.attention import measure_cache_forms, measure_decode, measure_flex, measure_prefill
from benchmarks.bench import Bench
from benchmarks.elementwise import measure_elementwise, measure_sampling
from benchmarks.end_to_end import measure_end_to_end, measure_transformers
from benchmarks.matmul import measure_batch_invariance, measure_matmul
from benchmarks.step import measure_step_variants
from benchmarks.variants import (
    measure_decode_variants,
    measure_matmul_variants,
    measure_prefill_variants,
    measure_sampling_variants,
)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a run that can be measured alone."""

    measure: Callable[[Bench], None]
    seconds: float
    """The time after which no more peers are measured; after twice as long, the section is ended."""


SECTIONS: dict[str, Section] = {
    "decode": Section(measure_decode, 70),
    "prefill": Section(measure_prefill, 50),
    "ragged and FP8": Section(measure_cache_forms, 30),
    "end to end": Section(measure_end_to_end, 80),
    "elementwise": Section(measure_elementwise, 40),
    "sampling": Section(measure_sampling, 20),
    "matmul": Section(measure_matmul, 60),
    "batch invariance": Section(measure_batch_invariance, 40),
    # Slow peers: these sections add to the rows of the sections above.
    "transformers": Section(measure_transformers, 60),
    "flex": Section(measure_flex, 120),
}

VARIANTS: dict[str, Section] = {
    "step": Section(measure_step_variants, 90),
    "sampling": Section(measure_sampling_variants, 240),
    "decode": Section(measure_decode_variants, 300),
    "prefill": Section(measure_prefill_variants, 240),
    "matmul": Section(measure_matmul_variants, 300),
}
"""Kernel, or a step of many -> the section of `--variants` that measures it in all ways that could be chosen."""
