"""What the settings say of the engine is what the engine is made from."""

from dataclasses import asdict
from pathlib import Path

import pytest

from model.contract import RunnerConfig
from service import launch
from service.engine.process import EngineConfig
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


def test_every_setting_of_the_runner_reaches_it(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[EngineConfig] = []
    monkeypatch.setattr(launch, "EngineClient", lambda config, **_: configs.append(config))
    launch.prepare(Settings(model=str(smollm2), cache_memory=2**20, log_level="error", log_format="json", **CHANGED))
    expected = RunnerConfig(model=str(smollm2), cache_bytes=2**20, **CHANGED)  # type: ignore[arg-type]
    assert configs[0].runner == expected
    unchanged = asdict(RunnerConfig(model="another"))
    assert [name for name, value in asdict(expected).items() if value == unchanged[name]] == []
    assert (configs[0].token_budget, configs[0].max_running) == (77, 5)
    assert (configs[0].log_level, configs[0].log_format) == ("error", "json")
