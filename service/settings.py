"""Every setting of the server, once: environment variables (HEADLIGHT_*) and command-line flags both come from here."""

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.checkpoint.source import DEFAULT_MODEL
from model.runner_config import CPU_SHARE, GPU_SHARE, CacheDType, DType, LoadFormat, Rounding, RunnerConfig
from model.sampling_params import FilterOrder

PREFIX = "HEADLIGHT_"
_RUNNER = RunnerConfig(model=DEFAULT_MODEL)
"""Source of the defaults of the settings that are a runner's."""
RUNNER_SETTINGS = tuple(field.name for field in fields(RunnerConfig) if field.name not in ("model", "draft_model"))
"""Settings that are a runner's configuration, where they have the same names."""
LOOK_SETTINGS = ("max_logprobs", "max_inspection", "max_weights", "max_lens_rows", "max_distributions")
"""Settings that bound what may be looked at inside the model."""
ENGINE_SETTINGS = (
    "home",
    *RUNNER_SETTINGS,
    "draft_model",
    "draft_tokens",
    "draft_running",
    "sampling_defaults",
    "filter_order",
    "log_level",
)
"""Settings that matter without HTTP, to the terminal's commands."""
OFFLINE_SETTINGS = (
    *ENGINE_SETTINGS,
    *LOOK_SETTINGS,
    *"max_n max_choices max_request_tokens max_messages max_parts max_tools max_stop max_stop_length".split(),
    *"max_stop_token_ids max_logit_bias max_grammar".split(),
)
"""Settings of programs with an engine of their own: the engine's, and the bounds on requests."""
BATCH_SETTINGS = (
    *OFFLINE_SETTINGS,
    *"served_model_name unknown_fields max_body max_prompts".split(),
)
"""Settings of batches, whose requests may be any that the server takes."""
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_\w+)$")
"""Endings of the variables that Kubernetes sets in every pod for services named like the prefix."""
_ZMQ_ADDRESS = r"^(tcp://\S+:[0-9]+|ipc://\S+)$"
_DRAFT_TOKENS = 4
"""Drafts of a step at most where a draft model makes them and no setting says how many."""
_KEYS = (f"{PREFIX}API_KEYS", f"{PREFIX}API_KEYS_FILE")
_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000 ** (power + 1) for power, letter in enumerate("KMGT")}
_UNITS |= {f"{letter}IB": 1024 ** (power + 1) for power, letter in enumerate("KMGT")}


class SettingsError(ValueError):
    """A setting is unknown or has an impossible value; the message is one line for the operator."""


def parse_bytes(value: object) -> object:
    """Read a size such as 4096, "256MB" (10^6 bytes each) or "1.5GiB" (2^30 bytes each) as a number of bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", value.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError("not a size; write it as 4096, 256MB or 1.5GiB")
    size = float(match[1]) * _UNITS[match[2].upper()]
    if size >= 2**63:
        raise ValueError("more than any memory")
    return int(size)


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, lt=2**63)]


def listed(text: str | None) -> tuple[str, ...]:
    """The items of a setting that lists several, separated by commas; empty for None."""
    return tuple(item.strip() for item in text.split(",")) if text is not None else ()


def _listing(item: str, what: str) -> AfterValidator:
    """A validator that refuses a list with an item that doesn't match the pattern `item`; `what` describes one."""

    def check(text: str) -> str:
        if not all(re.fullmatch(item, each) for each in listed(text)):
            raise ValueError(f"each item, separated by commas, should be {what}")
        return text

    return AfterValidator(check)


def _unbracketed(host: str) -> str:
    """An IPv6 address without the brackets that it has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _root_path(path: str) -> str:
    if not re.fullmatch(r"(/[\w.~-]+)+/?", path, re.ASCII):
        raise ValueError("should be the path that a proxy's URL begins with, such as /llm")
    return path.rstrip("/")


Names = Annotated[str, _listing(r".+", "a name")]
Hosts = Annotated[
    str, _listing(r"\*|(\*\.)?[\w.-]+|\[?[0-9A-Fa-f:.]+\]?", "a host name or IP without a port, *.domain, or *")
]
Origins = Annotated[
    str, _listing(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#@*A-Z]+", "an origin such as https://app.example.com, or *")
]
Host = Annotated[str, AfterValidator(_unbracketed)]
RootPath = Annotated[str, AfterValidator(_root_path)]


class Settings(BaseSettings):
    """Settings of the server. Values given to the constructor win over the environment, and both over the defaults."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    model: str = Field(DEFAULT_MODEL, description="Model to serve: an alias, a GGUF file, a local folder, or a hub id.")
    served_model_name: Names | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="Names that clients use for the model, separated by commas, answers the first; by default its own.",
    )
    host: Host = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on.")
    root_path: RootPath | None = Field(
        None, description="Prefix of the paths behind a proxy, such as /llm, whether the proxy takes it off or not."
    )
    allowed_hosts: Hosts | None = Field(
        None, description="Host headers to answer, separated by commas, *.domain for any below it; by default all."
    )
    allowed_origins: Origins | None = Field(
        None, description="Origins of web pages that may use the server, separated by commas, * for any (CORS)."
    )
    api_keys: SecretStr | None = Field(
        None, description="Keys that clients need, separated by commas; by default they need none. Never a flag."
    )
    api_keys_file: Path | None = Field(
        None, description="File of such keys, one a line, # for comments; read again when it changes."
    )
    share_prefix_cache: bool = Field(
        False, description="Whether clients with different API keys share cached prefixes, and can see that they do."
    )
    page: bool = Field(True, description="Whether / is a page to chat with the model and to look inside it.")
    api_processes: Count = Field(
        1, le=64, description="Processes that answer HTTP for the engine; more than 1 if one is busy all the time."
    )
    home: Path = Field(Path("~/.cache/headlight"), description="Folder for downloaded models.", validate_default=True)
    device: str = Field(_RUNNER.device, description="Device to compute on: auto, cpu, cuda or cuda:N.")
    dtype: DType = Field(
        _RUNNER.dtype, description="Number format to compute in, and of the KV cache unless cache_dtype says otherwise."
    )
    load_format: LoadFormat = Field(
        _RUNNER.load_format,
        description="Weights: auto reads them; dummy makes random ones for the model's configuration.",
    )
    round_weights: Rounding = Field(
        _RUNNER.round_weights,
        description="Dense weights: none leaves them as they are; 8bit rounds them, in groups of 32 with a scale each; "
        "fp8 rounds those of layers to e4m3 with a scale for each output, on a GPU.",
    )
    backend: str = Field(_RUNNER.backend, description="Kernels to compute with: auto, reference, triton or cpu.")
    graphs: bool = Field(
        _RUNNER.graphs, description="Whether decoding and short prompts on a GPU are replayed from captured graphs."
    )
    batch_invariant: bool = Field(
        _RUNNER.batch_invariant,
        description="Whether no bit of a completion may depend on what else runs; not for the reference backend.",
    )
    threads: Count | None = Field(_RUNNER.threads, description="Threads of the engine process; by default it chooses.")

    sampling_defaults: Literal["model", "neutral"] = Field(
        "model",
        description="How requests are sampled that do not say: as the model's makers recommend, or with temperature 1.",
    )
    filter_order: FilterOrder = Field(
        "transformers",
        description="Order of the filters: temperature, typical-p, top-k, top-p, min-p; in vllm min-p before top-k; in "
        "llama.cpp top-k, typical-p, top-p, min-p, temperature.",
    )
    max_context: Count | None = Field(
        _RUNNER.max_context,
        description="Tokens of a prompt and its completion together; by default what the model was made for.",
    )
    block_size: Count | None = Field(
        _RUNNER.block_size, description="Tokens in a block of the KV cache; by default the backend chooses."
    )
    cache_memory: Bytes | None = Field(
        _RUNNER.cache_memory,
        description="Size of the KV cache in bytes, or as 256MB or 4GiB; by default from memory_share.",
    )
    cache_dtype: CacheDType = Field(
        _RUNNER.cache_dtype,
        description="Number format of the KV cache: auto is that of dtype, fp8 takes half or a quarter of it.",
    )
    memory_share: float | None = Field(
        _RUNNER.memory_share,
        gt=0,
        le=1,
        description=f"Share of a GPU's memory for all of the engine (by default {GPU_SHARE}), "
        f"or of a machine's free memory for the KV cache ({CPU_SHARE}).",
    )
    token_budget: Count = Field(
        _RUNNER.token_budget, description="Tokens that one step of the engine computes at most."
    )
    draft_model: str | None = Field(
        None,
        min_length=1,
        description="Smaller model with the same tokens that guesses those to come, for the model to check; it may be "
        "whatever the model may be.",
    )
    draft_tokens: int | None = Field(
        None,
        ge=0,
        le=64,
        description="Tokens of a completion that a step guesses at most and checks, which changes no answer: from its "
        f"own text (by default none), or by draft_model (by default {_DRAFT_TOKENS}).",
    )
    draft_running: Count = Field(
        4, description="Completions that run at the same time up to which tokens are guessed; beyond, guessing is off."
    )
    max_running: Count = Field(_RUNNER.max_running, description="Completions that run at the same time.")
    max_waiting: int = Field(
        256, ge=0, description="Completions that may wait beyond those; one more is answered with 429."
    )

    max_connections: Count = Field(
        1024, description="Connections of clients to each API process; one more is answered with 503."
    )
    request_timeout: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="Seconds in which a request must have arrived, headers and body."
    )
    write_timeout: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which a client that takes nothing of its answer is left.",
    )
    queue_timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a request may wait for its first step; X-Request-Timeout asks for fewer.",
    )
    max_running_per_key: Count | None = Field(None, description="Completions of one API key that run at the same time.")
    max_waiting_per_key: Count | None = Field(None, description="Completions of one API key that may wait beside them.")
    tokens_per_minute_per_key: Count | None = Field(
        None, description="Tokens of prompts and completions that one API key may use in a minute."
    )
    unknown_fields: Literal["refuse", "warn"] = Field(
        "refuse",
        description="Requests with a field that nobody knows: refuse, or answer and name it in X-Headlight-Ignored.",
    )
    max_body: Bytes = Field(4 * 2**20, description="Size of a request body in bytes.")
    max_n: Count = Field(64, description="Largest n of a request.")
    max_prompts: Count = Field(64, description="Prompts, texts to embed or pairs to judge in one request.")
    max_choices: Count = Field(128, description="Prompts times n of one request; a pair to judge counts twice.")
    max_request_tokens: Count = Field(
        2**20,
        description="Tokens of all prompts of one request; and, apart from them, prompts times n times max_tokens.",
    )
    max_messages: Count = Field(4096, le=8192, description="Messages in one chat request.")
    max_parts: Count = Field(1024, le=8192, description="Parts of one message.")
    max_tools: Count = Field(128, le=1024, description="Tools of one chat request, and calls in one message.")
    max_logprobs: int = Field(20, ge=0, description="Likeliest tokens to report beside each token.")
    max_inspection: Bytes = Field(
        4 * 2**20, description="Size of the attention weights that one request may look at, at 4 bytes a number."
    )
    max_weights: Count = Field(
        2**25, description="Attention weights to compute for one request that looks at them, or at a part of them."
    )
    max_lens_rows: Count = Field(
        2048,
        description="Positions times layers of one request's logit lens, and positions whose nearest tokens it asks "
        "for; each costs an output projection.",
    )
    max_distributions: Count = Field(
        64, description="Distributions that one request may look at: positions times settings, and generated tokens."
    )
    max_stop: Count = Field(16, description="Stop strings in one request.")
    max_stop_length: Count = Field(256, description="Characters of one stop string.")
    max_stop_token_ids: Count = Field(128, description="Stop token ids in one request.")
    max_logit_bias: Count = Field(1024, description="Entries of logit_bias in one request.")
    max_bad_words: Count = Field(128, description="Strings of bad_words in one request.")
    max_grammar: Count = Field(65536, description="Characters of a JSON schema, regular expression or grammar.")

    drain_seconds: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="Seconds that requests in flight have to finish at shutdown."
    )
    engine_timeout_seconds: float = Field(
        30.0,
        ge=5,
        allow_inf_nan=False,
        description="Seconds without a sign of life after which the engine, or an API process, counts as hung.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe messages to log.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines: text for people, json for collectors.")
    vllm_metrics: bool = Field(
        True, description="Whether /metrics tells the series that vLLM has too under vLLM's names as well."
    )
    kv_events_endpoint: str | None = Field(
        None,
        pattern=_ZMQ_ADDRESS,
        description="ZeroMQ address to publish the prefix cache's events at, tcp://*:5557, or of a subscriber; "
        "for routers that know vLLM's.",
    )
    kv_events_replay_endpoint: str | None = Field(
        None, pattern=_ZMQ_ADDRESS, description="ZeroMQ address that repeats such events, such as tcp://*:5558."
    )
    kv_events_topic: str | None = Field(
        None, max_length=512, description="Topic of such events, such as kv@10.0.0.7:8000@model for llm-d."
    )
    kv_events_form: Literal["map", "array"] = Field(
        "map", description="Such events as maps, as in vLLM since 0.24, or as arrays, as in vLLM before."
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+",
        description="URL of an OpenTelemetry collector for traces, such as http://localhost:4318.",
    )

    @model_validator(mode="after")
    def _budget_covers_batch(self) -> Self:
        if self.token_budget < self.max_running:
            raise ValueError(
                f"token_budget ({self.token_budget}) should be at least max_running ({self.max_running}): "
                "every running completion needs a token of a step"
            )
        return self

    @model_validator(mode="after")
    def _draft_model_guesses(self) -> Self:
        if self.draft_model is not None and self.draft_tokens == 0:
            raise ValueError("draft_tokens should be above 0: draft_model is nothing without tokens to guess")
        return self

    @model_validator(mode="after")
    def _key_limits_need_keys(self) -> Self:
        limits = (self.max_running_per_key, self.max_waiting_per_key, self.tokens_per_minute_per_key)
        if any(limits) and not (self.api_keys or self.api_keys_file):
            raise ValueError("limits per key need API keys: set api_keys or api_keys_file")
        return self

    @model_validator(mode="after")
    def _events_have_an_endpoint(self) -> Self:
        further = (self.kv_events_replay_endpoint, self.kv_events_topic, self.kv_events_form != "map")
        if any(further) and self.kv_events_endpoint is None:
            raise ValueError("kv_events_endpoint should be set: the other settings of events are nothing without it")
        return self

    def revealed(self) -> dict[str, Any]:
        """Every value as JSON, with the keys in the clear: for a pipe to a process of ours, never for a log."""
        keys = self.api_keys.get_secret_value() if self.api_keys else None
        return self.model_dump(mode="json") | {"api_keys": keys}

    @property
    def max_open(self) -> int:
        """Completions that may be open at the same time, running or waiting."""
        return self.max_running + self.max_waiting

    @property
    def most_drafts(self) -> int:
        """Tokens of a completion that a step guesses at most."""
        if self.draft_tokens is not None:
            return self.draft_tokens
        return 0 if self.draft_model is None else _DRAFT_TOKENS

    def runner(self, model: str, draft_model: str | None = None) -> RunnerConfig:
        """The configuration of a runner for the model, and for its draft model, at paths of this machine."""
        return RunnerConfig(model=model, draft_model=draft_model, **self.model_dump(include={*RUNNER_SETTINGS}))

    @property
    def home_path(self) -> Path:
        """`home` with ~ resolved. Raises SettingsError if the home directory is unknown."""
        try:
            return self.home.expanduser()
        except RuntimeError:
            raise SettingsError(f"home: {str(self.home)!r} is in no known home directory; give a full path") from None


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with `overrides` (the command line) on top.

    Raises SettingsError for a value that doesn't fit and for a HEADLIGHT_* variable that no setting reads.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        name = variable.upper()
        if name.startswith(PREFIX) and name not in known and not _SERVICE_LINK.search(name):
            raise SettingsError(f"{variable}: there is no such setting")
        # Other empty variables count as unset. An empty key variable would open a server whose keys got lost on the
        # way.
        if name in _KEYS and not os.environ[variable].strip():
            raise SettingsError(f"{variable}: it is empty; unset it for a server that needs no keys")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(_first_line(error)) from None


def _first_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return f"{name}: there is no such setting"
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return f"{name}: {message} (got {first['input']!r})"
