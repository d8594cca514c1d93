from pathlib import Path

import pytest

from model.runner_config import RunnerConfig
from service.processes.engine_config import EngineConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """What the fake loader and its runner are to do; see there."""
    path = tmp_path / "script"
    path.write_text("ok")
    return path


@pytest.fixture
def config(script: Path, monkeypatch: pytest.MonkeyPatch) -> EngineConfig:
    """An engine with a fake runner."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return EngineConfig(
        runner=RunnerConfig(model=str(script), token_budget=64, max_running=32),
        loader="tests.service.engine.fake_loader:load_runner",
    )
