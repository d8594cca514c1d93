"""Tiny random models of every family, made by transformers, and a way to run our decoder on them step by step.

Weights are drawn wider than for training, so that logits differ clearly and an error anywhere shows in them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from kernels.backend import Backend, KVCache
from kernels.load import load_backend
from kernels.reference import ReferenceBackend
from model.batch import batch_layout
from model.checkpoint.checkpoint import Checkpoint, Format, Quantized, RawTensor
from model.checkpoint.errors import CheckpointError
from model.checkpoint.sampling_defaults import NEUTRAL, SamplingDefaults
from model.checkpoint.source import open_checkpoint
from model.checkpoint.tokenizer_data import TokenizerData
from model.contract import Chunk
from model.decoder import Decoder
from model.families.reader import read_spec
from model.loading.weights import load_weights
from model.weights import DecoderWeights

CPU = torch.device("cpu")
VOCAB = 97
BLOCK_SIZE = 4
BLOCKS = 64

LLAMA_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 3.0, 7.0, 15.0, 31.0],
    "partial_rotary_factor": 0.75,
}


@dataclass(frozen=True)
class TinyModel:
    """A class of transformers and the configuration of a tiny model of it."""

    architecture: str
    config: Mapping[str, Any]

    def build(self) -> Any:
        """The model in float32, the same at every call."""
        model_class = getattr(transformers, self.architecture)
        # Token ids of text have no meaning here, and some defaults lie outside the tiny vocabulary.
        specials = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = model_class.config_class(**self.config, **specials)
        torch.manual_seed(0)
        if "text_config" in self.config:
            config = model_class.config_class(
                **{**self.config, "text_config": {**self.config["text_config"], **specials}}
            )
        model = model_class._from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
        norm_centre = 0.0 if self.architecture.startswith("Gemma") else 1.0
        with torch.no_grad():
            for name, weight in model.named_parameters():
                is_norm = weight.ndim == 1 and name.endswith("weight")
                weight.normal_(norm_centre if is_norm else 0.0, 0.2)
        return model


TINY_MODELS = {
    "llama": TinyModel("LlamaForCausalLM", LLAMA_LIKE),
    "llama-tied": TinyModel("LlamaForCausalLM", {**LLAMA_LIKE, "tie_word_embeddings": True, "head_dim": 24}),
    "llama-biased": TinyModel("LlamaForCausalLM", {**LLAMA_LIKE, "attention_bias": True, "mlp_bias": True}),
    "llama-linear": TinyModel("LlamaForCausalLM", {**LLAMA_LIKE, "rope_parameters": LINEAR}),
    "llama-llama3": TinyModel("LlamaForCausalLM", {**LLAMA_LIKE, "rope_parameters": LLAMA3}),
    "llama-yarn": TinyModel("LlamaForCausalLM", {**LLAMA_LIKE, "rope_parameters": YARN}),
    "llama-yarn-attention-factor": TinyModel(
        "LlamaForCausalLM", {**LLAMA_LIKE, "rope_parameters": {**YARN, "attention_factor": 0.7, "truncate": False}}
    ),
    "llama-yarn-mscale": TinyModel(
        "LlamaForCausalLM",
        {
            **LLAMA_LIKE,
            "rope_parameters": {**YARN, "mscale": 2.0, "mscale_all_dim": 0.5, "beta_fast": 4.0, "beta_slow": 0.5},
        },
    ),
    "mistral": TinyModel("MistralForCausalLM", {**LLAMA_LIKE, "sliding_window": 7}),
    "qwen2": TinyModel("Qwen2ForCausalLM", LLAMA_LIKE),
    "qwen2-window": TinyModel(
        "Qwen2ForCausalLM", {**LLAMA_LIKE, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    ),
    "qwen3": TinyModel("Qwen3ForCausalLM", {**LLAMA_LIKE, "head_dim": 24, "rope_parameters": YARN}),
    "gemma3": TinyModel(
        "Gemma3ForCausalLM",
        {
            **LLAMA_LIKE,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 7,
            "sliding_window_pattern": 3,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "gemma3-softcap": TinyModel(
        "Gemma3ForCausalLM",
        {**LLAMA_LIKE, "head_dim": 24, "query_pre_attn_scalar": 9, "sliding_window": 7, "final_logit_softcapping": 3.0},
    ),
    "gemma3-multimodal": TinyModel(
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {
                **LLAMA_LIKE,
                "head_dim": 16,
                "query_pre_attn_scalar": 9,
                "sliding_window": 7,
                "sliding_window_pattern": 3,
                "tie_word_embeddings": True,
                "rope_local_base_freq": 100.0,
                "rope_theta": 1000.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": VOCAB - 1,
        },
    ),
    # Whole prompts are longer than the original context, so that transformers takes the long factors as well.
    "phi3-longrope": TinyModel(
        "Phi3ForCausalLM",
        {
            **LLAMA_LIKE,
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 16,
            "sliding_window": 48,
            "rope_parameters": LONGROPE,
        },
    ),
    "phi3": TinyModel(
        "Phi3ForCausalLM", {**LLAMA_LIKE, "sliding_window": 9, "rope_parameters": {"partial_rotary_factor": 0.5}}
    ),
    "gpt2": TinyModel(
        "GPT2LMHeadModel", {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}
    ),
    # Six heads: ALiBi's slopes are more than one geometric sequence.
    "bloom": TinyModel("BloomForCausalLM", {"vocab_size": VOCAB, "hidden_size": 96, "n_layer": 3, "n_head": 6}),
}


class QuantizedBackend(ReferenceBackend):
    """The reference, of weights that stay quantised until they are used."""

    name = "quantized"
    keeps_quantized = True
    keeps_fp8 = True


class MemoryCheckpoint:
    """A dense copy of a checkpoint, for tests that change something in it."""

    def __init__(self, source: Checkpoint) -> None:
        self.format: Format = source.format
        self.name = source.name
        self.config: dict[str, object] = dict(source.config)
        self.missing: dict[str, str] = dict(source.missing)
        self.tensors = {name: source.read(name) for name in source.tensor_names()}

    @property
    def tokenizer(self) -> TokenizerData:
        raise CheckpointError("a checkpoint in memory has no tokenizer")

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        return NEUTRAL

    def tensor_names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.read(name).data.shape

    def read(self, name: str) -> RawTensor:
        if name not in self.tensors:
            raise CheckpointError(f"has no tensor {name!r}")
        return self.tensors[name]

    def read_quantized(self, name: str) -> Quantized | None:
        return None


class TinyDecoder:
    """Our decoder over a paged cache whose blocks are handed out in no order. Sequences are named by numbers."""

    def __init__(self, checkpoint: Checkpoint, backend: Backend | None = None, max_context: int | None = None) -> None:
        spec = read_spec(checkpoint, max_context)
        backend = backend or load_backend(CPU, "reference")
        self.decoder = Decoder(spec, load_weights(spec, checkpoint, backend, torch.float32, CPU), backend)
        self._cache = KVCache(
            layers=len(spec.layers),
            blocks=BLOCKS,
            block_size=BLOCK_SIZE,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            dtype=torch.float32,
            device=CPU,
        )
        self._free = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(0)).tolist()
        self._tables: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}

    @torch.inference_mode()
    def step(self, work: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
        """Compute the next tokens of some sequences in one batch; the logits [tokens, vocab] of each."""
        order = sorted(work, key=lambda sequence: len(work[sequence]) > 1)
        chunks = [self._chunk(sequence, work[sequence]) for sequence in order]
        tokens = torch.tensor([token for chunk in chunks for token in chunk.tokens])
        hidden = self.decoder.forward(tokens, batch_layout(chunks, BLOCK_SIZE, CPU), self._cache)
        parts = self.decoder.logits(hidden).split([len(chunk.tokens) for chunk in chunks])
        return dict(zip(order, parts, strict=True))

    def _chunk(self, sequence: int, tokens: Sequence[int]) -> Chunk:
        start = self._lengths.get(sequence, 0)
        table = self._tables.setdefault(sequence, [])
        self._lengths[sequence] = start + len(tokens)
        while len(table) * BLOCK_SIZE < self._lengths[sequence]:
            table.append(self._free.pop())
        return Chunk(tokens, start, tuple(table))


def save(model: Any, folder: Path) -> Checkpoint:
    """The model as a Hugging Face folder, opened by our reader."""
    model.save_pretrained(folder)
    return open_checkpoint(folder)


@torch.inference_mode()
def reference_logits(model: Any, tokens: Sequence[int]) -> Tensor:
    """[tokens, vocab] by transformers."""
    logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def random_tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = torch.randint(0, VOCAB, (count,), generator=generator).tolist()
    return tokens


def logits_of(folder: Path, backend: Backend | None = None) -> Tensor:
    """Logits of random tokens by the model in a folder."""
    return TinyDecoder(open_checkpoint(folder), backend).step({0: random_tokens(23)})[0]


def weights_of(folder: Path, backend: Backend) -> DecoderWeights:
    """The weights in a folder, packed by a backend."""
    checkpoint = open_checkpoint(folder)
    return load_weights(read_spec(checkpoint), checkpoint, backend, torch.float32, CPU)
