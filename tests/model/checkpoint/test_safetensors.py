"""One safetensors file, whole and damaged. Whole ones are written by the library, damaged ones byte by byte."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from safetensors.torch import save_file

from model.checkpoint.errors import CheckpointError
from model.checkpoint.safetensors import SafetensorsFile

SMALL = save(
    {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.array([[0.5], [-2]], np.float16),
        "scalar": np.array(7, np.float32),
    },
    metadata={"format": "pt"},
)


def entry(*, dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def build(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data


def opened(path: Path, content: bytes) -> SafetensorsFile:
    path.write_bytes(content)
    return SafetensorsFile(path)


def read_all(file: SafetensorsFile) -> None:
    for name, shape in file.shapes.items():
        assert file.read(name).data.shape == shape


def test_tensors_of_a_whole_file(tmp_path: Path) -> None:
    file = opened(tmp_path / "small.safetensors", SMALL)
    assert file.shapes == {"plain": (2, 3), "half": (2, 1), "scalar": ()}
    assert (file.read("plain").dtype, file.read("half").dtype) == ("F32", "F16")
    np.testing.assert_array_equal(file.read("plain").data, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(file.read("half").data, [[0.5], [-2]])
    assert file.read("scalar").data == 7
    assert file.read("half").data.dtype == np.float16


def test_bfloat16_comes_as_its_bits(tmp_path: Path) -> None:
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"w": weight}, tmp_path / "bf16.safetensors")
    raw = SafetensorsFile(tmp_path / "bf16.safetensors").read("w")
    assert raw.dtype == "BF16"
    assert torch.equal(torch.from_numpy(raw.data).view(torch.bfloat16), weight)


def test_unused_kinds_may_be_there_but_not_be_read(tmp_path: Path) -> None:
    file = opened(tmp_path / "mask.safetensors", save({"mask": np.ones(4, np.int64), "w": np.ones(4, np.float32)}))
    assert file.read("w").data.sum() == 4
    with pytest.raises(CheckpointError, match="'mask' is of type I64, which is not supported"):
        file.read("mask")


DAMAGED = {
    "nothing in it": (b"", "truncated"),
    "a short length": (b"\x08\0\0", "truncated"),
    "no header": (build(b""), "truncated"),
    "lying length": (build({}, length=2**24), "header is not complete"),
    "huge length": (build({}, length=2**64 - 1), "not a safetensors file"),
    "not JSON": (build(b"{not json}"), "not valid JSON"),
    "not UTF-8": (build(b'{"\xff": 1}'), "not valid JSON"),
    "deep JSON": (build(b'{"a":' + b"[" * 100_000), "nested too deep"),
    "an endless number": (build(b'{"a": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "not an object": (build([1, 2]), "not a JSON object"),
    "tensor twice": (build(b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2)), "a key appears twice"),
    "entry that is no object": (build({"a": 7}), "'a' is malformed"),
    "entry without dtype": (build({"a": {"shape": [2], "data_offsets": [0, 8]}}), "'a' is malformed"),
    "three offsets": (build({"a": entry(offsets=[0, 4, 8])}), "'a' is malformed"),
    "offsets that are no integers": (build({"a": entry(offsets=[0.0, 8.0])}), "'a' is malformed"),
    "unknown kind": (build({"a": entry(dtype="F4")}), "'a' has the unknown type 'F4'"),
    "negative dimension": (build({"a": entry(shape=[-1, -2])}), "impossible shape"),
    "empty dimension": (build({"a": entry(shape=[0, 2**62], offsets=[0, 0])}), "impossible shape"),
    "dimension that is a boolean": (build({"a": entry(shape=[True, 2])}), "impossible shape"),
    "too many dimensions": (build({"a": entry(shape=[1] * 70 + [2])}), "impossible shape"),
    "dimensions that overflow": (build({"a": entry(shape=[2**32, 2**32])}), "more or fewer bytes"),
    "backward offsets": (build({"a": entry(offsets=[8, 0])}), "more or fewer bytes"),
    "offsets of 4300 digits": (
        build(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-1, %b]}}' % (b"9" * 4300)),
        "more or fewer bytes",
    ),
    "before the data": (build({"a": entry(offsets=[-8, 0])}), "overlap or a gap"),
    "gap": (build({"a": entry(offsets=[8, 16])}, data=bytes(16)), "overlap or a gap"),
    "overlap": (build({"a": entry(), "b": entry(offsets=[4, 12])}, data=bytes(12)), "overlap or a gap"),
    "missing data": (build({"a": entry()}, data=bytes(7)), "7 bytes of data"),
    "extra data": (build({"a": entry()}, data=bytes(9)), "9 bytes of data"),
    "escapes in a name": (build({"a\n\x1b\ud800" + "b" * 1000: entry(dtype="?")}), "unknown type"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_ends_in_one_line(tmp_path: Path, what: str) -> None:
    content, message = DAMAGED[what]
    path = tmp_path / "bad.safetensors"
    with pytest.raises(CheckpointError) as caught:
        opened(path, content)
    line = str(caught.value)
    assert message in line
    assert line.startswith(f"{path}: ")
    assert line.isprintable(), "one line, no control characters"
    assert len(line) < 1000


def test_an_undamaged_file_of_the_same_kind_opens(tmp_path: Path) -> None:
    assert opened(tmp_path / "good.safetensors", build({"a": entry()})).shapes == {"a": (2,)}


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for length in range(len(SMALL)):
        with pytest.raises(CheckpointError):
            opened(tmp_path / "cut.safetensors", SMALL[:length])


@settings(max_examples=300, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_raise_nothing_but_the_one_error(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(SMALL) - 1))] = data.draw(st.integers(0, 255))
    tracemalloc.start()
    try:
        read_all(opened(tmp_path / "flipped.safetensors", bytes(damaged)))
    except CheckpointError as error:
        assert str(error).isprintable()  # noqa: PT017 (it need not be raised)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**25
