"""What a model's makers recommend is read from either format, and nonsense is refused."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf import GgufCheckpoint
from model.checkpoint.huggingface import HuggingFaceCheckpoint
from model.checkpoint.sampling_defaults import NEUTRAL, SamplingDefaults, read_sampling_defaults


def test_a_folder_recommends_what_its_generation_config_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    assert HuggingFaceCheckpoint(tmp_path).sampling_defaults == NEUTRAL
    config = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": None, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert HuggingFaceCheckpoint(tmp_path).sampling_defaults == SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20)


def test_a_gguf_file_recommends_what_its_metadata_says(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_float32("general.sampling.temp", 0.5)
    writer.add_int32("general.sampling.top_k", 40)
    writer.add_tensor("a", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert GgufCheckpoint(tmp_path / "m.gguf").sampling_defaults == SamplingDefaults(temperature=0.5, top_k=40)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_k", True),
        ("min_p", 2),
    ],
)
def test_nonsense_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"^file: {key} is "):
        read_sampling_defaults({key: value}, "file")
