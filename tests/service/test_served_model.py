"""What the settings say of the engine is what the engine is made from."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from model.checkpoint.errors import CheckpointError
from model.checkpoint.sampling_defaults import NEUTRAL
from model.limits import ModelLimits
from model.runner_config import RunnerConfig
from service.model_files import locate
from service.processes.engine_config import engine_config
from service.served_model import ServedModel, check_ends, read_served_model
from service.settings import Settings
from tests.byte_tokenizer import save_byte_tokenizer

CHANGED = {
    "device": "cpu",
    "dtype": "bfloat16",
    "load_format": "dummy",
    "round_weights": "8bit",
    "backend": "triton",
    "graphs": False,
    "batch_invariant": True,
    "threads": 3,
    "max_context": 100,
    "block_size": 32,
    "cache_memory": 2**20,
    "cache_dtype": "fp8",
    "memory_share": 0.5,
    "token_budget": 77,
    "max_running": 5,
}
"""Other than the defaults, and called the same in the settings and in the runner's configuration."""


def test_every_setting_of_the_runner_reaches_it(smollm2: Path) -> None:
    settings = Settings(model=str(smollm2), draft_model=str(smollm2), log_level="error", log_format="json", **CHANGED)
    config = engine_config(settings, locate(settings))
    expected = RunnerConfig(model=str(smollm2), draft_model=str(smollm2), **CHANGED)  # type: ignore[arg-type]
    assert config.runner == expected
    unchanged = asdict(RunnerConfig(model="another"))
    assert [name for name, value in asdict(expected).items() if value == unchanged[name]] == []
    assert {name: Settings.model_fields[name].default for name in CHANGED} == {
        name: unchanged[name] for name in CHANGED
    }
    assert (config.log_level, config.log_format) == ("error", "json")


def test_a_draft_model_guesses_four_tokens_if_nobody_says_how_many(smollm2: Path) -> None:
    settings = Settings(model=str(smollm2), draft_model=str(smollm2))
    config = engine_config(settings, locate(settings))
    assert config.draft_tokens == 4
    said = engine_config(settings.model_copy(update={"draft_tokens": 7, "draft_running": 9}), locate(settings))
    assert (said.draft_tokens, said.draft_running) == (7, 9)
    alone = Settings(model=str(smollm2))
    assert engine_config(alone, locate(alone)).draft_tokens == 0


def test_a_draft_model_with_other_tokens_is_refused(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_byte_tokenizer(tmp_path)
    settings = Settings(model=str(smollm2), draft_model=str(tmp_path), load_format="dummy")
    with pytest.raises(CheckpointError, match="needs the vocabulary of the model, and here token 0 is") as caught:
        locate(settings)
    assert "\n" not in str(caught.value)


def test_recommendations_are_applied_or_named_once_and_neutral_turns_all_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_byte_tokenizer(tmp_path)
    recommended = {"repetition_penalty": 1.25, "do_sample": False, "typical_p": 0.5, "num_beams": 3, "new_key": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(recommended))
    settings = Settings(model=str(tmp_path), load_format="dummy")
    served = read_served_model(settings, locate(settings))
    assert (served.sampling.repetition_penalty, served.sampling.temperature) == (1.25, 0)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "service.model_files"]
    assert line.endswith("typical_p=0.5, num_beams=3, new_key=1")
    caplog.clear()
    neutral = settings.model_copy(update={"sampling_defaults": "neutral"})
    assert read_served_model(neutral, locate(neutral)).sampling == NEUTRAL
    assert [record for record in caplog.records if record.name == "service.model_files"] == []


@pytest.mark.parametrize(("columns", "named"), [(260, []), (258, []), (257, ["257"]), (200, ["256, 257"])])
def test_ends_that_the_model_cannot_draw_are_said(
    columns: int, named: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    served = ServedModel(("toy",), SimpleNamespace(eos_token_ids=frozenset({257, 256})), None)  # type: ignore[arg-type]
    check_ends(
        served,
        ModelLimits(vocab_size=columns, max_context=8, num_blocks=1, block_size=8, layers=1, heads=1, encoding_width=8),
    )
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == len(named)
    assert all(f"tokens {ids}," in line and str(columns) in line for ids, line in zip(named, told, strict=True))
