"""Old and new ways of writing the same rotary embedding are read as the same."""

from pathlib import Path
from typing import Any

import pytest

from model.families import read_spec
from model.spec import LinearScaling, Llama3Scaling, RopeSpec, YarnScaling
from tests.tiny import LINEAR, LLAMA3, TINY_MODELS, YARN, MemoryCheckpoint, save


def old_style(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 4 wrote config.json."""
    old = {key: value for key, value in config.items() if key != "rope_parameters"}
    rope = dict(config["rope_parameters"])
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    old["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    old.pop("layer_types", None)
    if "_sliding_window_pattern" in old:
        old["sliding_window_pattern"] = old.pop("_sliding_window_pattern")
    return old


@pytest.mark.parametrize("case", [case for case in TINY_MODELS if case not in ("gpt2", "bloom")])
def test_old_and_new_style_are_one_spec(case: str, tmp_path: Path) -> None:
    checkpoint = MemoryCheckpoint(save(TINY_MODELS[case].build(), tmp_path))
    old = MemoryCheckpoint(checkpoint)
    old.config = old_style(checkpoint.config)
    assert read_spec(old) == read_spec(checkpoint)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> MemoryCheckpoint:
    return MemoryCheckpoint(save(TINY_MODELS["llama"].build(), tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize(
    ("parameters", "rope"),
    [
        ({"rope_theta": 5000}, RopeSpec(5000.0, 16)),
        ({}, RopeSpec(10000.0, 16)),
        (LINEAR, RopeSpec(1000.0, 16, LinearScaling(4.0))),
        (LLAMA3, RopeSpec(1000.0, 16, Llama3Scaling(8.0, 1.0, 4.0, 16))),
        (YARN, RopeSpec(1000.0, 16, YarnScaling(4.0, 16))),
        ({**YARN, "beta_fast": 4, "beta_slow": 0.5}, RopeSpec(1000.0, 16, YarnScaling(4.0, 16, 4.0, 0.5))),
        ({"type": "yarn", "factor": 2}, RopeSpec(10000.0, 16, YarnScaling(2.0, 64))),
        ({**YARN, "factor": None}, RopeSpec(1000.0, 16, YarnScaling(4.0, 16))),
    ],
    ids=str,
)
def test_parameters(parameters: dict[str, Any], rope: RopeSpec, llama: MemoryCheckpoint) -> None:
    checkpoint = MemoryCheckpoint(llama)
    checkpoint.config["rope_parameters"] = parameters
    assert {layer.rope for layer in read_spec(checkpoint).layers} == {rope}
