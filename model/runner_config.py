"""The settings from which a runner is loaded. This module imports the standard library alone."""

from dataclasses import dataclass
from typing import Literal

GPU_SHARE = 0.9
"""Share of a GPU's memory that this process may use; the rest is kept for allocations that loading cannot measure."""
CPU_SHARE = 0.25
"""Share of the machine's free memory for the KV cache; the rest is left to the page cache and to other processes."""


DType = Literal["auto", "float32", "bfloat16", "float16"]
"""Number formats to compute in."""
CacheDType = Literal["auto", "fp8"]
"""auto: the backend's choice, or else the model's dtype; fp8: e4m3 with a scale for each head."""
LoadFormat = Literal["auto", "dummy"]
"""auto: read the weights; dummy: read the configuration alone and make random weights."""


Rounding = Literal["none", "8bit", "fp8"]
"""none: dense weights stay as they are; 8bit: groups of 32 inputs are rounded to 8 bits, with a scale each; fp8: the
projections of layers are rounded to e4m3, with a scale for each output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """The settings from which a runner is loaded."""

    model: str
    """Path of a GGUF file or a Hugging Face folder on this machine."""
    draft_model: str | None = None
    """Such a path too, of a model with the same vocabulary that guesses drafts; None: there is none."""
    device: str = "auto"
    dtype: DType = "auto"
    backend: str = "auto"
    threads: int | None = None
    """Limit of threads that compute on a CPU, where fewer run if other processes want the cores; None: one for each
    usable core."""
    max_context: int | None = None
    """Limit of a request's tokens; None: the model's own."""
    block_size: int | None = None
    """Tokens in a block of the KV cache; None: the backend's choice."""
    cache_memory: int | None = None
    """Size of the KV cache in bytes, a draft model's included; None: derived from `memory_share`."""
    memory_share: float | None = None
    """Share of the device's memory, from 0 to 1; None: `GPU_SHARE` or `CPU_SHARE`.

    On a GPU it is a share of all memory, and holds weights, working memory of a step, graphs and KV cache together. On
    a CPU it is a share of the memory that is free once the weights are loaded, and holds the KV cache alone.
    """
    cache_dtype: CacheDType = "auto"
    load_format: LoadFormat = "auto"
    round_weights: Rounding = "none"
    graphs: bool = True
    """Whether decoding and short prompts on a GPU are replayed from captured graphs."""
    batch_invariant: bool = False
    """Whether a request's logits must be the same, bit for bit, whichever other requests share its step."""
    max_running: int = 64
    """Limit of requests in a step; without `cache_memory`, the KV cache is made no larger than these could fill."""
    token_budget: int = 512
    """Limit of tokens in a step; the working memory of a GPU is measured on a step with this many."""
