"""What a model's makers recommend is read from either format, and nonsense is refused."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf import GgufCheckpoint
from model.checkpoint.huggingface import HuggingFaceCheckpoint
from model.checkpoint.sampling_defaults import (
    APPLIED,
    HARMLESS,
    IDLE,
    NEUTRAL,
    SamplingDefaults,
    read_sampling_defaults,
)


def test_a_folder_recommends_what_its_generation_config_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    assert HuggingFaceCheckpoint(tmp_path).sampling_defaults == NEUTRAL
    config = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": None, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert HuggingFaceCheckpoint(tmp_path).sampling_defaults == SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20)


def test_a_folder_without_a_generation_config_recommends_what_its_config_says(tmp_path: Path) -> None:
    config = {"repetition_penalty": 1.25, "num_beams": 4, "hidden_size": 64, "top_p": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    expected = SamplingDefaults(repetition_penalty=1.25, not_applied=("num_beams=4",))
    assert HuggingFaceCheckpoint(tmp_path).sampling_defaults == expected
    (tmp_path / "generation_config.json").write_text("{}")
    assert HuggingFaceCheckpoint(tmp_path).sampling_defaults == NEUTRAL


def test_every_key_of_transformers_has_a_place() -> None:
    keys = transformers.GenerationConfig().to_dict().keys()
    assert keys - APPLIED - HARMLESS - IDLE.keys() == set()
    assert len(APPLIED) + len(HARMLESS) + len(IDLE) == len({*APPLIED, *HARMLESS, *IDLE})


@pytest.mark.parametrize("key", sorted(APPLIED - {"eos_token_id"}))
def test_every_key_that_is_applied_changes_the_defaults(key: str) -> None:
    value = False if key == "do_sample" else 0.5 if key != "top_k" else 5
    assert read_sampling_defaults({key: value}, "file") != NEUTRAL


def test_who_does_not_sample_is_greedy() -> None:
    assert read_sampling_defaults({"do_sample": False, "temperature": 0.6}, "file").temperature == 0
    assert read_sampling_defaults({"do_sample": True, "temperature": 0.6}, "file").temperature == 0.6


def test_keys_that_change_nothing_are_silent_and_every_other_one_is_named() -> None:
    defaults = transformers.GenerationConfig._get_default_generation_params()
    asked = {key for key in defaults if key not in {*APPLIED, "max_length"}}
    assert read_sampling_defaults({key: defaults[key] for key in asked}, "file") == NEUTRAL
    assert read_sampling_defaults(dict.fromkeys(HARMLESS, 7), "file") == NEUTRAL
    for key in (*IDLE, "unheard_of", "line\nbreak"):
        (shown,) = read_sampling_defaults({key: [7]}, "file").not_applied
        assert shown.isprintable()
        assert shown.endswith("=[7]")
        assert key.split("\n")[0] in shown


def gguf_defaults(folder: Path, **sampling: float | str) -> SamplingDefaults:
    path = folder / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in sampling.items():
        add = {float: writer.add_float32, int: writer.add_int32, str: writer.add_string}[type(value)]
        add(f"general.sampling.{key}", value)
    writer.add_tensor("a", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufCheckpoint(path).sampling_defaults


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"temp": 0.5, "top_k": 40}, SamplingDefaults(temperature=0.5, top_k=40)),
        ({"penalty_repeat": 1.25, "top_k": -1}, SamplingDefaults(repetition_penalty=1.25)),
        ({"penalty_repeat": 1.25, "penalty_last_n": -1}, SamplingDefaults(repetition_penalty=1.25)),
        ({"penalty_repeat": 1.25, "penalty_last_n": 0}, NEUTRAL),
        ({"penalty_repeat": 1.0, "penalty_last_n": 64}, NEUTRAL),
        (
            {"penalty_repeat": 1.25, "penalty_last_n": 64},
            SamplingDefaults(repetition_penalty=1.25, not_applied=("penalty_last_n=64",)),
        ),
        ({"mirostat": 0, "mirostat_tau": 5.0, "xtc_probability": 0.0, "xtc_threshold": 0.5}, NEUTRAL),
        ({"mirostat": 2, "mirostat_eta": 0.5}, SamplingDefaults(not_applied=("mirostat=2", "mirostat_eta=0.5"))),
        ({"xtc_probability": 0.5}, SamplingDefaults(not_applied=("xtc_probability=0.5",))),
        ({"sequence": "top_k;temp"}, SamplingDefaults(not_applied=("sequence='top_k;temp'",))),
    ],
)
def test_a_gguf_file_recommends_what_its_metadata_says(
    sampling: dict[str, float | str], expected: SamplingDefaults, tmp_path: Path
) -> None:
    assert gguf_defaults(tmp_path, **sampling) == expected


def test_every_key_of_the_gguf_format_has_a_place(tmp_path: Path) -> None:
    """With a value that asks for something, each is applied or named."""
    names = [key for key in vars(gguf.Keys.General) if key.startswith("SAMPLING_")]
    assert len(names) > 10
    for name in names:
        key = getattr(gguf.Keys.General, name).removeprefix("general.sampling.")
        beside = {"mirostat": 1, "xtc_probability": 0.5, "penalty_repeat": 1.25}
        beside.pop(key, None)
        value = 5 if key in ("top_k", "mirostat", "penalty_last_n") else 0.5
        assert gguf_defaults(tmp_path, **beside, **{key: value}) != gguf_defaults(tmp_path, **beside), key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_k", True),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("do_sample", "no"),
    ],
)
def test_nonsense_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"^file: {key} is "):
        read_sampling_defaults({key: value}, "file")
