"""A configuration names a device as torch wants it, on machines with GPUs as well: torch.cuda is a fake here."""

from dataclasses import dataclass, field

import pytest
import torch

from kernels.reference import ReferenceBackend
from model.loading.device import choose_device
from model.loading.load import _step_threads


@dataclass
class FakeCuda:
    """The part of torch.cuda that devices are chosen by; it refuses what torch refuses."""

    devices: int
    current: int = 0
    chosen: list[torch.device] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: self.devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: self.devices)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "set_device", self.set_device)

    def set_device(self, device: torch.device) -> None:
        if device.index is None:
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        self.chosen.append(device)


@pytest.mark.parametrize(
    ("name", "current", "wanted"),
    [
        ("auto", 0, "cuda:0"),
        ("cuda", 0, "cuda:0"),
        ("cuda", 2, "cuda:2"),
        ("cuda:1", 0, "cuda:1"),
        ("cpu", 0, "cpu"),
    ],
)
def test_a_gpu_is_named_with_its_index(name: str, current: int, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(devices=3, current=current)
    cuda.install(monkeypatch)
    device = choose_device(name)
    assert device == torch.device(wanted)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        assert cuda.chosen == [device]


def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(devices=0).install(monkeypatch)
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "devices", "words"),
    [
        ("cuda", 0, "no CUDA device"),
        ("cuda:0", 0, "no CUDA device"),
        ("cuda:3", 3, "only 3"),
        ("meta", 1, "unsupported"),
    ],
)
def test_a_device_that_is_not_there_is_refused_by_name(
    name: str, devices: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCuda(devices).install(monkeypatch)
    with pytest.raises(ValueError, match=words):
        choose_device(name)


def test_beside_a_gpu_the_host_computes_with_one_thread() -> None:
    assert _step_threads(torch.device("cuda", 0), ReferenceBackend(), 16) == 1
    assert _step_threads(torch.device("cpu"), ReferenceBackend(), 16) == 16
