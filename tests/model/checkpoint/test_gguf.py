"""GGUF files, whole ones written by the gguf package, damaged ones byte by byte."""

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf import BLOCKS_AT_ONCE, LARGEST_HEADER, PLAIN_TYPES, GgufCheckpoint
from model.checkpoint.gguf_blocks import DECODERS
from model.checkpoint.gguf_types import BLOCKS, TensorType, ValueType
from model.checkpoint.tokenizer_data import GgufTokenizer

UINT32, INT32, STRING, ARRAY, UINT8 = 4, 5, 8, 9, 0
F32, Q4_0 = 0, 2
QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
HEADER_BYTES = 24


def written(path: Path, fill: Callable[[GGUFWriter], None], endianess: GGUFEndian = GGUFEndian.LITTLE) -> Path:
    writer = GGUFWriter(path, "llama", endianess=endianess)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, *, shape: tuple[int, ...] = (8,), kind: int = F32, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def build(
    *tensors: bytes,
    entries: tuple[bytes, ...] = (),
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    entry_count: int | None = None,
    data: bytes = bytes(64),
) -> bytes:
    """A GGUF file byte by byte; by default its data is two tensors of eight floats."""
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if entry_count is None else entry_count,
    )
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


def opened(path: Path, content: bytes) -> GgufCheckpoint:
    path.write_bytes(content)
    return GgufCheckpoint(path)


def read_all(checkpoint: GgufCheckpoint) -> None:
    for name in checkpoint.tensor_names():
        assert checkpoint.read(name).data.shape == checkpoint.shape(name)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file with one of everything."""

    def fill(writer: GGUFWriter) -> None:
        writer.add_name("Small")
        writer.add_uint32("llama.block_count", 2)
        writer.add_float32("llama.rope.freq_base", 0.5)
        writer.add_bool("tokenizer.ggml.add_bos_token", True)
        writer.add_token_list(["a", "é", "한", "😀"])
        writer.add_token_types([1, 1, 3, 1])
        writer.add_token_scores([0.0, -1.0, 0.25, -2.0])
        writer.add_tensor("plain", np.arange(6, dtype=np.float32).reshape(2, 3))
        writer.add_tensor("half", np.arange(4, dtype=np.float16))
        blocks = quants.quantize(np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), GGMLQuantizationType.Q8_0)
        writer.add_tensor("blocks", blocks, raw_dtype=GGMLQuantizationType.Q8_0)

    return written(tmp_path_factory.mktemp("gguf") / "small.gguf", fill).read_bytes()


def test_metadata_and_tensors_of_a_whole_file(tmp_path: Path, small: bytes) -> None:
    checkpoint = opened(tmp_path / "small.gguf", small)
    assert checkpoint.format == "gguf"
    assert checkpoint.name == "Small"
    assert checkpoint.config == {
        "general.architecture": "llama",
        "general.name": "Small",
        "llama.block_count": 2,
        "llama.rope.freq_base": 0.5,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": ["a", "é", "한", "😀"],
        "tokenizer.ggml.token_type": [1, 1, 3, 1],
        "tokenizer.ggml.scores": [0.0, -1.0, 0.25, -2.0],
    }
    assert checkpoint.tokenizer == GgufTokenizer(checkpoint.config)
    assert {name: checkpoint.shape(name) for name in checkpoint.tensor_names()} == {
        "plain": (2, 3),
        "half": (4,),
        "blocks": (2, 32),
    }
    plain, half, blocks = (checkpoint.read(name) for name in ("plain", "half", "blocks"))
    assert (plain.dtype, half.dtype, blocks.dtype) == ("F32", "F16", "F32")
    assert [raw.data.dtype.name for raw in (plain, half, blocks)] == ["float32", "float16", "float32"]
    np.testing.assert_array_equal(plain.data, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(half.data, [0, 1, 2, 3])
    np.testing.assert_allclose(blocks.data.reshape(-1), np.linspace(-1, 1, 64), atol=0.01)
    assert plain.data.flags.writeable, "torch takes it without a copy or a warning"


def test_types_are_those_of_the_gguf_package() -> None:
    assert {kind.name: kind.value for kind in TensorType} == {kind.name: kind.value for kind in GGMLQuantizationType}
    assert {kind.name: kind.value for kind in ValueType} == {kind.name: kind.value for kind in GGUFValueType}
    assert BLOCKS.keys() == PLAIN_TYPES.keys() | DECODERS.keys()
    assert {kind.name: BLOCKS[kind] for kind in BLOCKS} == {
        kind.name: GGML_QUANT_SIZES[GGMLQuantizationType(kind)] for kind in BLOCKS
    }


def test_bfloat16_comes_as_its_bits(tmp_path: Path) -> None:
    bits = np.array([[0x3F80, 0xBF80, 0x7F80], [0x0000, 0x4049, 0x0001]], dtype=np.uint16)
    path = written(
        tmp_path / "bf16.gguf",
        lambda writer: writer.add_tensor("w", bits.view(np.uint8), raw_dtype=GGMLQuantizationType.BF16),
    )
    raw = GgufCheckpoint(path).read("w")
    assert raw.dtype == "BF16"
    np.testing.assert_array_equal(raw.data, bits)


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_types_are_decoded_as_the_package_does(tmp_path: Path, name: str) -> None:
    """On random bytes, so that every field of a block counts, over more blocks than are decoded at once."""
    kind = GGMLQuantizationType[name]
    block_elements, block_bytes = GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(kind)
    rows, blocks_a_row = 7, BLOCKS_AT_ONCE // 6
    encoded = generator.integers(0, 256, (rows, blocks_a_row * block_bytes), dtype=np.uint8)
    path = written(tmp_path / "q.gguf", lambda writer: writer.add_tensor("w", encoded, raw_dtype=kind))
    raw = GgufCheckpoint(path).read("w")
    assert raw.dtype == "F32"
    assert raw.data.shape == (rows, blocks_a_row * block_elements)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(raw.data, quants.dequantize(encoded, kind))


FORMS = {
    "Q4_0": (4, 32, False), "Q4_1": (4, 32, True), "Q5_0": (8, 32, False), "Q5_1": (8, 32, True),
    "Q8_0": (8, 32, False), "Q2_K": (4, 16, True), "Q3_K": (4, 16, False), "Q4_K": (4, 32, True),
    "Q5_K": (8, 32, True), "Q6_K": (8, 16, False),
}  # fmt: skip
"""Bits of a code, elements of a group, and whether groups have offsets."""


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_types_as_integers_and_scales(tmp_path: Path, name: str) -> None:
    """To the last bit what the package makes of them: no product of scales is rounded yet."""
    kind = GGMLQuantizationType[name]
    block_elements, block_bytes = GGML_QUANT_SIZES[kind]
    rows, blocks_a_row = 7, BLOCKS_AT_ONCE // 6
    encoded = np.random.default_rng(kind).integers(0, 256, (rows, blocks_a_row * block_bytes), dtype=np.uint8)
    path = written(tmp_path / "q.gguf", lambda writer: writer.add_tensor("w", encoded, raw_dtype=kind))
    quantized = GgufCheckpoint(path).read_quantized("w")
    assert quantized is not None
    bits, group_size, offsets = FORMS[name]
    assert (quantized.bits, quantized.group_size, quantized.offsets is not None) == (bits, group_size, offsets)
    assert quantized.codes.dtype == np.uint8
    assert quantized.codes.shape == (rows, blocks_a_row * block_elements)
    assert quantized.codes.max() < 1 << bits
    assert quantized.zero == (0 if offsets else 1 << (bits - 1))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(quantized.dequantized(), quants.dequantize(encoded, kind))


def test_only_quantised_matrices_have_a_quantised_form(tmp_path: Path, small: bytes) -> None:
    checkpoint = opened(tmp_path / "small.gguf", small)
    assert checkpoint.read_quantized("plain") is None
    assert checkpoint.read_quantized("blocks") is not None
    block = opened(tmp_path / "row.gguf", build(tensor("w", shape=(32,), kind=Q4_0), data=bytes(18)))
    assert block.read_quantized("w") is None
    with pytest.raises(CheckpointError, match=r"has no tensor 'output.weight'"):
        checkpoint.read_quantized("output.weight")


def halves(*values: float) -> bytes:
    return np.array(values, np.float16).tobytes()


# Worked out by hand from the layout of ggml's structs. In the K-quants d is 2, every scale 1 and every offset 0.
KNOWN_BLOCKS = {
    "Q4_0": (halves(0.5) + bytes([0x90] * 16), [-4.0] * 16 + [0.5] * 16),
    "Q4_1": (halves(0.5, -1) + bytes([0x21] * 16), [-0.5] * 16 + [0.0] * 16),
    "Q5_0": (halves(2) + bytes([0, 0, 255, 255] + [0x01] * 16), [-30.0] * 16 + [0.0] * 16),
    "Q5_1": (halves(2, 3) + bytes([255, 255, 0, 0] + [0x10] * 16), [35.0] * 16 + [5.0] * 16),
    "Q8_0": (halves(0.25) + bytes([0xFC, 4] * 16), [-1.0, 1.0] * 16),
    "Q2_K": (bytes([1] * 16 + [0xFF] * 64) + halves(2, 0), [2.0 * 3] * 256),
    "Q3_K": (bytes([0] * 32 + [0xFF] * 64 + [0x11] * 8 + [0xAA] * 4) + halves(2), [2.0 * (3 - 4)] * 256),
    "Q4_K": (halves(2, 0) + bytes([1] * 4 + [0] * 4 + [1] * 4 + [0xFF] * 128), [2.0 * 15] * 256),
    "Q5_K": (halves(2, 0) + bytes([1] * 4 + [0] * 4 + [1] * 4 + [0xFF] * 160), [2.0 * 31] * 256),
    "Q6_K": (bytes([0xFF] * 192 + [1] * 16) + halves(2), [2.0 * (63 - 32)] * 256),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_known_blocks(tmp_path: Path, name: str) -> None:
    block, expected = KNOWN_BLOCKS[name]
    content = build(tensor("w", shape=(len(expected),), kind=GGMLQuantizationType[name]), data=block)
    np.testing.assert_array_equal(opened(tmp_path / "block.gguf", content).read("w").data, expected)


def test_scales_that_are_not_numbers_raise_no_warning(tmp_path: Path) -> None:
    block = np.array([np.inf], np.float16).tobytes() + bytes([0x88] * 16)
    checkpoint = opened(tmp_path / "inf.gguf", build(tensor("w", shape=(32,), kind=Q4_0), data=block))
    assert np.isnan(checkpoint.read("w").data).all()


DAMAGED = {
    "nothing in it": (b"", "not a GGUF file"),
    "wrong magic": (build(magic=b"GGML"), "not a GGUF file"),
    "version 1": (build(version=1), "version 1 is not supported"),
    "version 0": (build(version=0), "version 0 is not supported"),
    "version 4": (build(version=4), "version 4 is not supported"),
    "big-endian": (build(version=3 << 24), "big-endian"),
    "lying tensor count": (build(tensor("a"), tensor_count=2**64 - 1), "tensors and"),
    "lying entry count": (build(entry_count=2**63), "metadata entries"),
    "one tensor too many": (build(tensor("a"), tensor_count=2, data=b""), "truncated or corrupt"),
    "one entry too many": (build(entry_count=1, data=b""), "truncated or corrupt"),
    "lying string length": (build(entries=(entry("k", STRING, struct.pack("<Q", 2**63) + b"x"),)), "truncated"),
    "lying key length": (build(entries=(struct.pack("<Q", 2**64 - 1),)), "truncated"),
    "lying array count": (build(entries=(entry("k", ARRAY, struct.pack("<IQ", UINT8, 2**62)),)), "truncated"),
    "lying count of strings": (build(entries=(entry("k", ARRAY, struct.pack("<IQ", STRING, 2**62)),)), "truncated"),
    "array of arrays": (build(entries=(entry("k", ARRAY, struct.pack("<IQIQ", ARRAY, 1, UINT8, 0)),)), "of arrays"),
    "unknown value type": (build(entries=(entry("k", 99, bytes(8)),)), "'k' has the unknown type 99"),
    "unknown item type": (build(entries=(entry("k", ARRAY, struct.pack("<IQ", 77, 1)),)), "unknown type 77"),
    "key twice": (build(entries=(entry("k", UINT8, b"1"), entry("k", UINT8, b"1"))), "'k' appears twice"),
    "key that is not UTF-8": (build(entries=(text(b"\xff\xfe"),)), "not UTF-8"),
    "value that is not UTF-8": (build(entries=(entry("k", STRING, text(b"\xc3")),)), "not UTF-8"),
    "surrogate in UTF-8": (build(entries=(entry("k", STRING, text(b"\xed\xa0\x80")),)), "not UTF-8"),
    "tensor twice": (build(tensor("a"), tensor("a", offset=32)), "'a' appears twice"),
    "unknown tensor type": (build(tensor("a", kind=1234)), "'a' has the unknown type 1234"),
    "unsupported tensor type": (build(tensor("a", shape=(256,), kind=23)), "IQ4_XS, which is not supported"),
    "no dimensions": (build(tensor("a", shape=())), "0 dimensions"),
    "five dimensions": (build(tensor("a", shape=(1, 1, 1, 1, 8))), "5 dimensions"),
    "lying number of dimensions": (build(text("a") + struct.pack("<I", 2**32 - 1)), "4294967295 dimensions"),
    "empty tensor": (build(tensor("a", shape=(0, 2**63))), "is empty"),
    "dimensions that overflow": (build(tensor("a", shape=(2**32, 2**32))), "'a' ends beyond the file"),
    "dimensions that overflow to 8": (build(tensor("a", shape=(2**63 + 4, 2))), "'a' ends beyond the file"),
    "part of a block": (build(tensor("a", shape=(33,), kind=Q4_0)), "not whole Q4_0 blocks"),
    "tensor beyond the file": (build(tensor("a", offset=64)), "'a' ends beyond the file"),
    "offset that overflows": (build(tensor("a", offset=2**64 - 32)), "'a' ends beyond the file"),
    "unaligned offset": (build(tensor("a", offset=4)), "not aligned to 32 bytes"),
    "overlap": (build(tensor("a", shape=(16,)), tensor("b", offset=32)), "'a' and 'b' overlap"),
    "same place": (build(tensor("a"), tensor("b")), "'a' and 'b' overlap"),
    "alignment 0": (build(entries=(entry("general.alignment", UINT32, bytes(4)),)), "general.alignment is 0"),
    "alignment 48": (build(entries=(entry("general.alignment", UINT32, struct.pack("<I", 48)),)), "not a power of two"),
    "alignment below 0": (build(entries=(entry("general.alignment", INT32, b"\xff" * 4),)), "general.alignment is -1"),
    "alignment in words": (build(entries=(entry("general.alignment", STRING, text("32")),)), "alignment is '32'"),
    "split model": (build(entries=(entry("split.count", 2, struct.pack("<H", 3)),)), "one of 3 parts of a split model"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_ends_in_one_line(tmp_path: Path, what: str) -> None:
    content, message = DAMAGED[what]
    path = tmp_path / "bad.gguf"
    with pytest.raises(CheckpointError) as caught:
        opened(path, content)
    line = str(caught.value)
    assert message in line
    assert line.startswith(f"{path}: ")
    assert line.isprintable(), "one line, no control characters"


def test_an_undamaged_file_of_the_same_kind_opens(tmp_path: Path) -> None:
    """So that the files above fail for what they say and for nothing else."""
    entries = (entry("general.alignment", UINT32, struct.pack("<I", 32)), entry("k", STRING, text("é")))
    for version in (2, 3):
        content = build(tensor("a"), tensor("b", shape=(4, 2), offset=32), entries=entries, version=version)
        checkpoint = opened(tmp_path / "good.gguf", content)
        assert checkpoint.shape("b") == (2, 4)
        assert checkpoint.name == "good"


def test_names_from_the_file_cannot_break_the_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path / "bad.gguf", build(tensor("a\n\x1b[31m" + "x" * 5000, kind=1234)))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_header_that_never_ends_is_refused_early(tmp_path: Path) -> None:
    """The file is sparse: were its strings read, there would be no memory for them."""
    path = tmp_path / "long.gguf"
    path.write_bytes(build(entries=(entry("k", STRING, struct.pack("<Q", 2**36)),), data=b""))
    with path.open("r+b") as file:
        file.truncate(2**40)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="header is larger than 32 MiB"):
            GgufCheckpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_largest_header_takes_bounded_memory(tmp_path: Path) -> None:
    """As many of the smallest items as the limit allows, in a file that goes on."""
    path = tmp_path / "dense.gguf"
    path.write_bytes(build(entries=(entry("k", ARRAY, struct.pack("<IQ", UINT8, LARGEST_HEADER - 1000)),), data=b""))
    with path.open("r+b") as file:
        file.truncate(2 * LARGEST_HEADER)
    tracemalloc.start()
    try:
        GgufCheckpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 12 * LARGEST_HEADER
    finally:
        tracemalloc.stop()


def test_missing_and_irregular_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        GgufCheckpoint(tmp_path / "absent.gguf")
    with pytest.raises(CheckpointError, match="not a regular file"):
        GgufCheckpoint(Path("/dev/zero"))
    with pytest.raises(CheckpointError, match="not a regular file"):
        GgufCheckpoint(tmp_path)


def test_absent_tensors_are_refused_by_name(tmp_path: Path, small: bytes) -> None:
    checkpoint = opened(tmp_path / "small.gguf", small)
    for ask in (checkpoint.shape, checkpoint.read):
        with pytest.raises(CheckpointError, match=r"small\.gguf: has no tensor 'output.weight'"):
            ask("output.weight")


def test_a_file_that_shrinks_after_opening_is_noticed(tmp_path: Path, small: bytes) -> None:
    checkpoint = opened(tmp_path / "small.gguf", small)
    (tmp_path / "small.gguf").write_bytes(small[: len(small) // 2])
    with pytest.raises(CheckpointError, match="became shorter"):
        read_all(checkpoint)


def test_big_endian_files_of_the_writer_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "be.gguf", lambda writer: writer.add_uint32("n", 1), GGUFEndian.BIG)
    with pytest.raises(CheckpointError, match="big-endian"):
        GgufCheckpoint(path)


def test_every_truncation_is_refused(tmp_path: Path, small: bytes) -> None:
    """The last tensor is followed by padding alone, which nobody misses."""
    path = tmp_path / "cut.gguf"
    padding = len(small) - len(small.rstrip(b"\0"))
    for length in range(len(small) - padding):
        with pytest.raises(CheckpointError):
            read_all(opened(path, small[:length]))


@settings(max_examples=300, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_raise_nothing_but_the_one_error(tmp_path: Path, small: bytes, data: st.DataObject) -> None:
    damaged = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(small) - 1))] = data.draw(st.integers(0, 255))
    tracemalloc.start()
    try:
        read_all(opened(tmp_path / "flipped.gguf", bytes(damaged)))
    except CheckpointError as error:
        assert str(error).isprintable()  # noqa: PT017 (it need not be raised)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**22


def test_the_real_model(smollm2: Path) -> None:
    checkpoint = GgufCheckpoint(smollm2)
    config = checkpoint.config
    assert config["general.architecture"] == "llama"
    assert (config["llama.block_count"], config["llama.embedding_length"], config["llama.vocab_size"]) == (
        30,
        576,
        49152,
    )
    assert (config["llama.attention.head_count"], config["llama.attention.head_count_kv"]) == (9, 3)
    assert config["llama.rope.freq_base"] == 100_000
    tokens = config["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert len(checkpoint.tensor_names()) == 272
    assert checkpoint.shape("token_embd.weight") == (49152, 576)
    assert checkpoint.shape("blk.0.ffn_gate.weight") == (1536, 576)
    norm = checkpoint.read("output_norm.weight").data
    assert norm.shape == (576,)
    gate = checkpoint.read("blk.0.ffn_gate.weight").data
    assert np.isfinite(gate).all()
    assert 0.01 < gate.std() < 1
