"""The torch device that a configuration names."""

import torch


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the current GPU if torch sees one, else the CPU.

    A CUDA device always has an index. Raises ValueError for an unknown name, and for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: use auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"unsupported device {name!r}: use auto, cpu or cuda")
    return _numbered(device) if device.type == "cuda" else device


def _numbered(device: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        raise ValueError("the device is set to cuda, but torch sees no CUDA device")
    if device.index is None:
        # torch.cuda.set_device and comparisons of devices need an index.
        return torch.device("cuda", torch.cuda.current_device())
    if device.index >= torch.cuda.device_count():
        raise ValueError(f"the device is set to {device}, but torch sees only {torch.cuda.device_count()} CUDA devices")
    return device
