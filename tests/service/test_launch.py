"""What the settings say of the engine is what the engine is made from."""

from dataclasses import asdict
from pathlib import Path

from model.contract import RunnerConfig
from service.launch import engine_config, locate
from service.settings import Settings

CHANGED = {
    "device": "cpu",
    "dtype": "bfloat16",
    "load_format": "dummy",
    "backend": "triton",
    "graphs": False,
    "batch_invariant": True,
    "threads": 3,
    "max_context": 100,
    "block_size": 32,
    "cache_dtype": "fp8",
    "memory_share": 0.5,
    "token_budget": 77,
    "max_running": 5,
}
"""Other than the defaults, and called the same in the settings and in the runner's configuration."""


def test_every_setting_of_the_runner_reaches_it(smollm2: Path) -> None:
    settings = Settings(model=str(smollm2), cache_memory=2**20, log_level="error", log_format="json", **CHANGED)
    config = engine_config(settings, locate(settings))
    expected = RunnerConfig(model=str(smollm2), cache_bytes=2**20, **CHANGED)  # type: ignore[arg-type]
    assert config.runner == expected
    unchanged = asdict(RunnerConfig(model="another"))
    assert [name for name, value in asdict(expected).items() if value == unchanged[name]] == []
    assert (config.token_budget, config.max_running) == (77, 5)
    assert (config.log_level, config.log_format) == ("error", "json")
