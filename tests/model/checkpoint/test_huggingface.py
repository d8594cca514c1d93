"""Hugging Face folders, as transformers saves them and as nobody should."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from model.checkpoint.errors import CheckpointError
from model.checkpoint.huggingface import HuggingFaceCheckpoint
from model.checkpoint.source import open_checkpoint


def store(folder: Path, **files: object) -> None:
    """JSON files by their stem."""
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model in one file."""
    folder = tmp_path / "tiny-model"
    folder.mkdir()
    store(folder, config={"model_type": "llama", "eos_token_id": 2}, tokenizer={"version": "1.0"})
    save_file({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def shards(folder: Path) -> Path:
    """The same in two shards."""
    (folder / "model.safetensors").unlink()
    save_file({"a": np.ones((2, 3), np.float32)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": np.zeros(4, np.float32)}, folder / "model-00002-of-00002.safetensors")
    index(folder, a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")
    return folder


def index(folder: Path, **weight_map: object) -> None:
    store(folder, **{"model.safetensors.index": {"metadata": {"total_size": 40}, "weight_map": weight_map}})


def test_a_model_as_transformers_saves_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, dtype="bfloat16",
    )  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="3KB")
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert len([*tmp_path.glob("*.safetensors")]) > 1, "the shards are what is tested"
    assert checkpoint.format == "huggingface"
    assert checkpoint.config["hidden_size"] == 16
    state = model.state_dict()
    assert set(checkpoint.tensor_names()) == set(state)
    for name, expected in state.items():
        raw = checkpoint.read(name)
        assert raw.dtype == "BF16"
        assert checkpoint.shape(name) == raw.data.shape == expected.shape
        assert torch.equal(torch.from_numpy(raw.data).view(torch.bfloat16), expected)


def test_one_file(folder: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(folder)
    assert checkpoint.name == "tiny-model"
    assert set(checkpoint.tensor_names()) == {"a", "b"}
    np.testing.assert_array_equal(checkpoint.read("a").data, np.ones((2, 3)))
    for ask in (checkpoint.shape, checkpoint.read):
        with pytest.raises(CheckpointError, match="has no tensor 'c'"):
            ask("c")


def test_shards(shards: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(shards)
    assert checkpoint.shape("a") == (2, 3)
    np.testing.assert_array_equal(checkpoint.read("b").data, np.zeros(4))


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors", "/etc/passwd", "/outside.safetensors", "..", "", "sub/x.safetensors",
        "..\\x.safetensors", "weights.bin", "x\n.safetensors", "\ud800.safetensors", 7, None, ["x.safetensors"],
    ],
)  # fmt: skip
def test_an_index_names_nothing_outside_its_folder(shards: Path, shard: object) -> None:
    save_file({"b": np.zeros(4, np.float32)}, shards.parent / "outside.safetensors")
    index(shards, a="model-00001-of-00002.safetensors", b=shard)
    with pytest.raises(CheckpointError, match="not the name of a safetensors file beside it"):
        HuggingFaceCheckpoint(shards)


def test_what_an_index_promises_in_vain_is_told(shards: Path) -> None:
    assert HuggingFaceCheckpoint(shards).missing == {}
    index(shards, b="model-00001-of-00002.safetensors")
    checkpoint = HuggingFaceCheckpoint(shards)
    assert set(checkpoint.tensor_names()) == {"a"}
    (line,) = checkpoint.missing.values()
    assert line.endswith("model.safetensors.index.json: the tensor 'b' is not in 'model-00001-of-00002.safetensors'")


def no_weight_map(folder: Path) -> None:
    store(folder, **{"model.safetensors.index": {"weight_map": ["a"]}})


def missing_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def truncated_shard(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def config_is_a_list(folder: Path) -> None:
    store(folder, config=[])


def config_is_deep(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def config_is_huge(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**34)


def config_is_a_device(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


def quantised(folder: Path) -> None:
    store(folder, config={"quantization_config": {"quant_method": "bitsandbytes"}})


def quantised_somehow(folder: Path) -> None:
    store(folder, config={"quantization_config": 4})


def pickled(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")


def no_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_weight_map, "has no weight_map"),
        (missing_shard, "model-00002-of-00002.safetensors: no such file"),
        (truncated_shard, "model-00002-of-00002.safetensors: truncated"),
        (no_config, "has no config.json"),
        (config_is_a_list, "config.json: not a JSON object"),
        (config_is_deep, "config.json: its JSON is nested too deep"),
        (config_is_huge, "config.json: larger than 16 MiB"),
        (config_is_a_device, "config.json: not a regular file"),
        (
            quantised,
            "quantization_config.quant_method 'bitsandbytes' is not supported; gptq, awq, fp8, compressed-tensors are",
        ),
        (quantised_somehow, "quantization_config.quant_method None is not supported"),
        (pickled, "only safetensors are supported"),
        (no_weights, "has neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_damage_ends_in_one_line(shards: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(shards)
    with pytest.raises(CheckpointError) as caught:
        HuggingFaceCheckpoint(shards)
    assert message in str(caught.value)
    assert str(shards) in str(caught.value)
    assert str(caught.value).isprintable()


def test_tokenizer_files(folder: Path) -> None:
    tokenizer = HuggingFaceCheckpoint(folder).tokenizer
    assert json.loads(tokenizer.tokenizer_json) == {"version": "1.0"}
    assert (tokenizer.config, tokenizer.chat_template, tokenizer.eos_token_ids) == ({}, None, (2,))

    store(folder, tokenizer_config={"chat_template": "from config"}, generation_config={"eos_token_id": [5, 6]})
    tokenizer = HuggingFaceCheckpoint(folder).tokenizer
    assert tokenizer.config["chat_template"] == tokenizer.chat_template == "from config"
    assert tokenizer.eos_token_ids == (5, 6)

    (folder / "chat_template.jinja").write_text("from file 한")
    assert HuggingFaceCheckpoint(folder).tokenizer.chat_template == "from file 한"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.EIO])
def test_what_the_system_refuses_is_one_line(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = HuggingFaceCheckpoint(folder)

    def refuse(path: Path, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    asked: list[Callable[[], object]] = [
        lambda: open_checkpoint(folder),
        lambda: HuggingFaceCheckpoint(folder),
        lambda: checkpoint.tokenizer,
        lambda: checkpoint.sampling_defaults,
        lambda: checkpoint.read("a"),
    ]
    for ask in asked:
        with pytest.raises(CheckpointError) as caught:
            ask()
        assert str(caught.value).startswith(str(folder))
        assert str(caught.value).endswith(f": {os.strerror(number)}")


def test_a_named_template(folder: Path) -> None:
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    store(folder, tokenizer_config={"chat_template": templates})
    assert HuggingFaceCheckpoint(folder).tokenizer.chat_template == "plain"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: not valid JSON"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "other", "template": "x"}]}',
            "no chat_template that is",
        ),
        ("tokenizer_config.json", '{"chat_template": 7}', "no chat_template that is"),
        ("chat_template.jinja", "\udcff", "chat_template.jinja: not UTF-8"),
        ("generation_config.json", '{"eos_token_id": "end"}', "eos_token_id is 'end'"),
        ("generation_config.json", '{"eos_token_id": [1, true]}', "eos_token_id is [1, True]"),
        ("generation_config.json", '{"eos_token_id": -1}', "eos_token_id is -1"),
    ],
)
def test_damaged_tokenizer_files(folder: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, errors="surrogateescape")
    checkpoint = HuggingFaceCheckpoint(folder)
    with pytest.raises(CheckpointError) as caught:
        _ = checkpoint.tokenizer
    assert message in str(caught.value)
