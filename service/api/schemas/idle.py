"""Fields without an effect on this server, each with the values at which it asks for nothing."""

from typing import Any

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "background": (False,),
    "bootstrap_host": (),
    "bootstrap_port": (),
    "bootstrap_room": (),
    "cache_control": (),
    "cache_prompt": (True,),
    "chat_template": (),
    "container": (),
    "context_management": ([],),
    "conversation": (),
    "custom_labels": ({},),
    "custom_logit_processor": (),
    "custom_params": ({},),
    "data_parallel_rank": (),
    "disable_additional_properties": (False,),
    "disable_any_whitespace": (False,),
    "disagg_prefill_dp_rank": (),
    "documents": ([],),
    "dry_multiplier": (0, 0.0),
    "dynatemp_range": (0, 0.0),
    "ebnf": (),
    "ec_transfer_params": (),
    "echo": (False,),
    "enable_thinking": (),
    "extra_key": (),
    "file": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "grammar": ("",),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "id_slot": (-1,),
    "image_url": (),
    "images_config": ({},),
    "include_obfuscation": (False,),
    "include_reasoning": (True,),
    "input_audio": (),
    "input_ids": (),
    "json_schema": (),
    "kv_transfer_params": (),
    "logits_processors": ([],),
    "logprob_token_ids": (),
    "lora_path": (),
    "max_dynamic_patch": (),
    "max_tool_calls": (),
    "mcp_servers": ([],),
    "media_io_kwargs": ({},),
    "min_dynamic_patch": (),
    "mirostat": (0,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "n_predict": (),
    "n_probs": (0,),
    "ngram_corpus_id": (),
    "no_stop_trim": (False,),
    "prediction": (),
    "previous_response_id": (),
    "priority": (0,),
    "prompt_embeds": (),
    "reasoning": (),
    "reasoning_details": ([],),
    "refusal": (),
    "regex": (),
    "repeat_penalty": (1, 1.0),
    "repetition_detection": (),
    "request_id": (),
    "return_cached_tokens_details": (False,),
    "return_hidden_states": (False,),
    "return_meta_info": (False,),
    "return_prompt_text": (False,),
    "return_prompt_token_ids": (False,),
    "return_routed_experts": (False,),
    "return_token_strs": (False,),
    "return_tokens_as_token_ids": (False,),
    "rid": (),
    "routed_dp_rank": (),
    "routed_experts_start_len": (0,),
    "sampling_seed": (),
    "session_params": ({},),
    "spaces_between_special_tokens": (True,),
    "stop_reason": (),
    "stop_regex": ([],),
    "stream_reasoning": (True,),
    "structural_tag": (),
    "suffix": ("",),
    "task": (),
    "thinking": (),
    "thinking_token_budget": (),
    "timings_per_token": (False,),
    "top_a": (0, 0.0),
    "truncate_prompt_tokens": (),
    "truncation": ("disabled",),
    "truncation_side": (),
    "use_audio_in_video": (False,),
    "video_url": (),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    "web_search_options": (),
    "whitespace_pattern": (),
    "xtc_probability": (0, 0.0),
}
"""Fields that clients know and this server doesn't implement, each with the values that ask for nothing."""

HINTS: dict[str, tuple[Any, ...]] = {
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
}
"""Fields that are accepted because they cannot change an answer, each with the values that ask for nothing.

A field with any other value is named to the client as ignored. For example `store` asks to keep the answer, which this
server never does.
"""

ELSEWHERE: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "best_of": (1,),
    "continue_final_message": (False,),
    "parallel_tool_calls": (True, False),
    "separate_reasoning": (True, False),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Fields that client libraries send to all routes that generate, each with the values that ask for nothing."""


DECLARED = frozenset(
    (
        "add_generation_prompt add_special_tokens allowed_token_ids attention bad_words best_of cache_salt "
        "chat_template_kwargs choice clear_thinking continue_final_message continuous_usage_stats date_string details "
        "dimensions distribution early_stopping embedding embedding_vectors encoding_format frequency_penalty "
        "ignore_eos include include_stop_str_in_output include_usage input inspect instruction instructions "
        "json_object length_penalty lens logit_bias logprobs max_completion_tokens max_output_tokens max_tokens "
        "messages min_p min_tokens model model_identity n no normalize output_config parallel_tool_calls pooling "
        "position_encoding positions presence_penalty preserve_thinking prompt prompt_logprobs queries query "
        "reasoning_content reasoning_effort reduction repetition_penalty residual response_format return_documents "
        "return_offsets return_token_ids seed separate_reasoning settings skip_special_tokens spellings stop "
        "stop_sequences stop_token_ids stream stream_options structured_outputs system temperature template text "
        "text_1 text_2 thinking_budget tokens tool_call_id tool_calls tool_choice tools top_k top_keys top_logprobs "
        "top_n top_n_sigma top_p type typical_p use_activation use_beam_search yes"
    ).split()
)
"""Fields that some object of a request has, of this API or of OpenAI's responses and Anthropic's messages.

Where they are out of place they are refused, as they would mean something elsewhere. A test holds that none is missing.
"""


def asks_for_nothing(value: Any, idle: tuple[Any, ...]) -> bool:
    """Whether a field's value is null or one of its idle values, of the same type."""
    return value is None or any(type(value) is type(one) and value == one for one in idle)
