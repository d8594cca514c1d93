"""Names on the hub, and what its library's failures become. No test reaches a network."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils._paths import filter_repo_objects

from model.checkpoint.errors import CheckpointError
from model.checkpoint.hub import HubId, fetch_snapshot


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name")),
        ("org/name-1.5_b", HubId("org/name-1.5_b")),
        ("org/name@v1.0", HubId("org/name", "v1.0")),
        ("org/name@refs/pr/3", HubId("org/name", "refs/pr/3")),
        ("name", None),
        ("org/name@", None),
        ("a/b/c", None),
        ("/org/name", None),
        ("./name", None),
        ("../name", None),
        ("~/name", None),
        ("models/name.gguf", None),
        ("org/name\n", None),
        ("org/한", None),
        ("", None),
    ],
)
def test_names(text: str, expected: HubId | None) -> None:
    assert HubId.parse(text) == expected


def test_only_what_is_read_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fetch_snapshot(HubId("org/name", "v1")) == tmp_path
    assert (asked["repository"], asked["revision"]) == ("org/name", "v1")
    kept = filter_repo_objects(
        [
            *("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "chat_template.jinja"),
            *("pytorch_model.bin", "onnx/config.json", "original/x.safetensors", "consolidated.safetensors", "run.py"),
        ],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert [*kept] == [
        *("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "chat_template.jinja")
    ]


def http_error(kind: type[Exception]) -> Exception:
    return kind("401 Client Error.\nMore lines.", response=SimpleNamespace(headers={}, request=None, status_code=401))  # type: ignore[call-arg]


def offline() -> Exception:
    error = errors.LocalEntryNotFoundError("long text")
    error.__cause__ = errors.OfflineModeIsEnabled("offline")
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(errors.GatedRepoError), "access is restricted"),
        (http_error(errors.RepositoryNotFoundError), "the hub has no such model"),
        (http_error(errors.RevisionNotFoundError), "has no revision 'v1'"),
        (offline(), "HF_HUB_OFFLINE is set"),
        (errors.LocalEntryNotFoundError("Got: ConnectError\nlong text"), "the hub cannot be reached"),
        (OSError(28, "No space left on device"), "could not be fetched: [Errno 28] No space left on device"),
        (errors.HFValidationError("bad\nname"), "could not be fetched: bad name"),
        (RuntimeError(), "could not be fetched: RuntimeError"),
    ],
)
def test_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError) as caught:
        fetch_snapshot(HubId("org/name", "v1"))
    assert str(caught.value).startswith("org/name: ")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_offline_means_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself, told to stay offline, with an empty cache and then with the model in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        fetch_snapshot(HubId("org/name"))

    cache, commit = tmp_path / "models--org--name", "0" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    (cache / "snapshots" / commit).mkdir(parents=True)
    assert fetch_snapshot(HubId("org/name")) == cache / "snapshots" / commit
