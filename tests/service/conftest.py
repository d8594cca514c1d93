from collections.abc import Iterator
from pathlib import Path

import pytest

from service import local_engine
from service.processes.engine_config import EngineConfig
from tests.service.dummy_model import TEMPLATE, dummy
from tests.service.engine.fake_loader import ROOT, fake_config
from tests.service.lent_engines import Lender
from tests.service.servers import serving


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
    return fake_config(script)


@pytest.fixture(scope="session")
def url(smollm2: Path) -> Iterator[str]:
    """The server of the real model that files share; a test leaves nothing running in it.

    It promises batch invariance, since tests compare answers, one of which may have found its prompt in the cache.
    """
    with serving("--batch-invariant", "true") as (url, _):
        yield url


@pytest.fixture(scope="session")
def dummy_flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The flags of commands for the dummy model; the same for all, so that they can borrow one engine."""
    return dummy(tmp_path_factory.mktemp("dummy"), TEMPLATE)


@pytest.fixture(scope="session")
def lender() -> Iterator[Lender]:
    lender = Lender()
    yield lender
    lender.close()


@pytest.fixture(scope="module")
def lent_engine(lender: Lender) -> Iterator[None]:
    """Commands and programs of a file borrow their engines, which others may have used before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_engine, "EngineKeeper", lender.keeper)
        yield
