"""Settings: from the environment and from flags, and one plain line for whatever is wrong."""

from typing import Any

import pytest

from service.settings import Settings, SettingsError, load_settings, parse_bytes


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"HEADLIGHT_{name.upper()}", raising=False)


def test_flags_win_over_the_environment_and_that_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().port == 8000
    monkeypatch.setenv("HEADLIGHT_PORT", "8123")
    monkeypatch.setenv("HEADLIGHT_CACHE_MEMORY", "256MB")
    monkeypatch.setenv("HEADLIGHT_MAX_CONTEXT", "")
    settings = load_settings(host="::")
    assert (settings.host, settings.port, settings.cache_memory, settings.max_context) == (
        "::",
        8123,
        256_000_000,
        None,
    )
    assert load_settings(port="9000").port == 9000


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("4096", 4096), ("1kB", 1000), ("256MB", 256 * 10**6), ("1.5GiB", 3 * 2**29), (" 2 TB ", 2 * 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"port": "abc"}, ["port", "integer", "'abc'"]),
        ({"port": 65536}, ["port", "65535"]),
        ({"dtype": "int3"}, ["dtype", "float32", "'int3'"]),
        ({"cache_memory": "lots"}, ["cache_memory", "256MB", "'lots'"]),
        ({"cache_memory": "0MB"}, ["cache_memory"]),
        ({"cache_memory": "1XB"}, ["cache_memory"]),
        ({"cache_memory": "9" * 400}, ["cache_memory", "more than any memory"]),
        ({"cache_memory": "10000000TB"}, ["cache_memory", "more than any memory"]),
        ({"cache_memory": 2**63}, ["cache_memory"]),
        ({"max_context": 2**63}, ["max_context"]),
        ({"engine_timeout_seconds": "nan"}, ["engine_timeout_seconds"]),
        ({"drain_seconds": -1}, ["drain_seconds"]),
        ({"max_running": 0}, ["max_running"]),
        ({"memory_share": "1.5"}, ["memory_share", "1"]),
        ({"cache_dtype": "fp4"}, ["cache_dtype", "fp8", "'fp4'"]),
        ({"load_format": "guess"}, ["load_format", "dummy", "'guess'"]),
        ({"graphs": "perhaps"}, ["graphs", "boolean", "'perhaps'"]),
        ({"token_budget": 8, "max_running": 9}, ["token_budget (8)", "max_running (9)"]),
        ({"draft_model": "a", "draft_tokens": 0}, ["draft_tokens", "draft_model"]),
        ({"log_format": "xml"}, ["log_format", "json", "'xml'"]),
        ({"otlp_endpoint": "localhost:4318"}, ["otlp_endpoint", "http", "'localhost:4318'"]),
        ({"kv_events_endpoint": "*:5557"}, ["kv_events_endpoint", "tcp", "'*:5557'"]),
        ({"kv_events_endpoint": "tcp://*"}, ["kv_events_endpoint", "'tcp://*'"]),
        ({"kv_events_topic": "kv"}, ["kv_events_endpoint", "should be set"]),
        ({"kv_events_replay_endpoint": "tcp://*:5558"}, ["kv_events_endpoint", "should be set"]),
        ({"colour": "red"}, ["colour", "no such setting"]),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_it(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**given)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_unknown_variables_are_refused_but_not_those_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADLIGHT_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("HEADLIGHT_SERVICE_PORT_HTTP", "80")
    monkeypatch.setenv("HEADLIGHT_PORT_80_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("HEADLIGHT_WEB_PORT", "tcp://10.0.0.1:80")
    load_settings()
    monkeypatch.setenv("HEADLIGHT_PROT", "1")
    with pytest.raises(SettingsError, match="HEADLIGHT_PROT"):
        load_settings()


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())
