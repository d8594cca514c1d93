"""One process that tries grammars, for all engines of a file."""

import pytest

from service.engine.grammar_trial import Trial


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial()


@pytest.fixture
def one_trial(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """All engines of the file try their grammars in one process; each start would cost what many trials do."""
    monkeypatch.setattr("service.engine.grammars.Trial", lambda: trial)
