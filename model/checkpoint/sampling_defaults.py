"""The sampling parameters that a model's makers recommend, as defaults for requests."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from model.checkpoint.config import Config
from model.checkpoint.errors import LONGEST_LABEL, label

APPLIED = frozenset({"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "do_sample", "eos_token_id"})
"""Keys that are applied; eos_token_id is read along with the tokenizer."""

HARMLESS = frozenset(
    {
        # The tokenizer and its template make the prompt; padding and a start token of the decoder are not needed.
        *("bos_token_id", "pad_token_id", "decoder_start_token_id"),
        # These change the way of computing, and not the result.
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory", "prefill_chunk_size"),
        *("compile_config", "disable_compile", "continuous_batching_config", "renormalize_logits"),
        "remove_invalid_values",
        # Speculative decoding leaves the distribution as it is.
        *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
        *("target_lookbehind", "speculation_type", "use_mtp"),
        # These are about values that transformers' generate() returns beside the tokens.
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        # These compare beams; num_beams, below, says whether there are any.
        *("early_stopping", "length_penalty"),
        # These describe the file.
        *("transformers_version", "_from_model_config", "_commit_hash"),
    }
)
"""Keys that change no completion, whichever value they have."""

IDLE: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), (1,)),
    **dict.fromkeys(("typical_p", "encoder_repetition_penalty"), (1,)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "penalty_alpha", "diversity_penalty"), (0,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "stop_strings"), ([],)),
    **dict.fromkeys(("constraints", "force_words_ids"), ([],)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), ()),
    **dict.fromkeys(("max_length", "max_new_tokens", "max_time", "dola_layers", "watermarking_config"), ()),
    "top_h": (),
    "assistant_ensemble_weight": (0,),
    "sequence_bias": ([], {}),
    "token_healing": (False,),
    "guidance_scale": (1,),
}
"""Keys that are not applied, each with the values at which it would change nothing; null is always one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """Sampling parameters for requests that do not set them; neutral where the makers recommend nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    not_applied: tuple[str, ...] = ()
    """Recommendations that are not supported and reach no request, each as `key=value`."""


NEUTRAL = SamplingDefaults()


def read_sampling_defaults(values: Mapping[str, object], source: str) -> SamplingDefaults:
    """The defaults from values under the keys of generation_config.json.

    A value that is absent or null is neutral. If do_sample is false, the temperature is 0. Raises CheckpointError, with
    a message that begins with `source`, for an impossible value.
    """
    file = Config(values, source)
    temperature = file.within("temperature", NEUTRAL.temperature, 0, 2)
    return SamplingDefaults(
        temperature=temperature if file.flag("do_sample", True) else 0.0,
        # Both 0 and -1 stand for all tokens.
        top_k=max(int(file.within("top_k", NEUTRAL.top_k, -1, 2**31 - 1)), 0),
        top_p=file.within("top_p", NEUTRAL.top_p, math.ulp(0.0), 1),
        min_p=file.within("min_p", NEUTRAL.min_p, 0, 1),
        repetition_penalty=file.within("repetition_penalty", NEUTRAL.repetition_penalty, 0.01, 100),
        not_applied=tuple(_shown(key, value) for key, value in values.items() if not _is_followed(key, value)),
    )


def legacy_keys(config: Mapping[str, object]) -> Mapping[str, object]:
    """The sampling keys in config.json, where old versions of transformers stored them."""
    return {key: value for key, value in config.items() if key in APPLIED or key in IDLE}


def _is_followed(key: str, value: object) -> bool:
    """Whether the value is applied, or would change nothing."""
    return value is None or key in APPLIED or key in HARMLESS or value in IDLE.get(key, ())


def _shown(key: str, value: object) -> str:
    # The key, like the value, comes from the file.
    plain = key.isprintable() and len(key) <= LONGEST_LABEL
    return f"{key if plain else label(key)}={label(value)}"
