"""The same model in Hugging Face's transformers: eager mode, torch's attention, a static cache."""

from typing import Any

import torch

from benchmarks.timing import Timer
from model.spec import DecoderSpec

DECODED = 64
"""The largest number of tokens that a measurement appends to the cache."""


class TransformersPeer:
    """A Llama of `spec` with random weights. Raises ImportError where transformers is not installed."""

    def __init__(self, spec: DecoderSpec, dtype: torch.dtype, device: torch.device) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        rope = spec.layers[0].rope
        values: dict[str, Any] = {
            "vocab_size": spec.vocab_size,
            "hidden_size": spec.hidden_size,
            "intermediate_size": spec.mlp_size,
            "num_hidden_layers": len(spec.layers),
            "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "max_position_embeddings": spec.max_context,
            "rope_parameters": {"rope_type": "default", "rope_theta": None if rope is None else rope.theta},
            "tie_word_embeddings": spec.tied_embeddings,
            "attn_implementation": "sdpa",
            "dtype": dtype,
        }
        self._config = LlamaConfig(**values)
        with device:
            model: Any = LlamaForCausalLM(self._config)
        self._model = model.to(dtype).eval()
        self._device = device

    def prefill(self, timer: Timer, tokens: int) -> float:
        """Seconds that a prompt of `tokens` tokens takes, with the logits of its last token."""
        ids = torch.zeros(1, tokens, dtype=torch.int64, device=self._device)
        return timer.steady(lambda: self._model(ids, logits_to_keep=1, use_cache=True), runs=5)

    def decode(self, timer: Timer, sequences: int, context: int) -> float:
        """Seconds that one token for each of `sequences` sequences takes, after `context` tokens."""
        from transformers import StaticCache

        cache = StaticCache(self._config, max_cache_len=context + DECODED)
        prompt = torch.zeros(sequences, context, dtype=torch.int64, device=self._device)
        self._model(prompt, past_key_values=cache, logits_to_keep=1)
        token = prompt[:, :1]
        return timer.steady(lambda: self._model(token, past_key_values=cache).logits.argmax(-1), runs=10)
