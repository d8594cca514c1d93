"""Old and new ways of writing the same rotary embedding are read as the same, and what transformers makes of both."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import open_checkpoint
from model.families.reader import read_spec
from model.spec import FactorsScaling, LinearScaling, Llama3Scaling, RopeSpec, YarnScaling
from tests.tiny import (
    LINEAR,
    LLAMA3,
    LONGROPE,
    TINY_MODELS,
    YARN,
    MemoryCheckpoint,
    TinyDecoder,
    random_tokens,
    reference_logits,
    save,
)


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


@pytest.mark.parametrize("case", [case for case in TINY_MODELS if case not in ("gpt2", "bloom", "gemma3-multimodal")])
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
        ({"type": "dynamic", "factor": 2, "rope_theta": 5000}, RopeSpec(5000.0, 16)),
    ],
    ids=str,
)
def test_parameters(parameters: dict[str, Any], rope: RopeSpec, llama: MemoryCheckpoint) -> None:
    checkpoint = MemoryCheckpoint(llama)
    checkpoint.config["rope_parameters"] = parameters
    assert {layer.rope for layer in read_spec(checkpoint).layers} == {rope}


def reloaded(folder: Path) -> Any:
    """The model of a folder as transformers reads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def change(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("case", "scaling"),
    [
        ("llama", {**YARN, "rope_theta": 10000.0}),
        ("llama", {key: value for key, value in YARN.items() if key != "rope_theta"}),
        ("llama-yarn", YARN),
        ("llama", {}),
        ("mistral", {**LINEAR, "rope_theta": 10000.0}),
        ("qwen2", {**LLAMA3, "rope_theta": 10000.0}),
        ("phi3", {**LONGROPE, "partial_rotary_factor": 0.5, "short_factor": [1.0] * 4, "long_factor": [1, 2, 4, 8]}),
        # Gemma adds it to what rope_parameters says of full layers.
        ("gemma3", {"rope_type": "linear", "factor": 2.0}),
        ("gemma3", {**YARN, "rope_theta": 300.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("rope_type", "none"),
)
def test_rope_scaling_beside_rope_parameters(case: str, scaling: dict[str, Any], tmp_path: Path) -> None:
    """What model cards tell people to add to a folder, which transformers 5 may have saved."""
    save(TINY_MODELS[case].build(), tmp_path)
    change(tmp_path, rope_scaling=scaling, max_position_embeddings=16)
    if case == "phi3":
        change(tmp_path, original_max_position_embeddings=8)
    tokens = random_tokens(40)
    ours = TinyDecoder(open_checkpoint(tmp_path)).step({0: tokens})[0]
    torch.testing.assert_close(ours, reference_logits(reloaded(tmp_path), tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("parameters", "scaling", "named"),
    [
        ({"rope_type": "default", "rope_theta": 1e6}, {"type": "yarn", "factor": 2.0}, "rope_parameters.rope_theta"),
        ({"rope_type": "default", "rope_theta": 1e6}, YARN, "rope_parameters.rope_theta"),
        (LINEAR, {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1000.0}, "rope_parameters.rope_type"),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}, "rope_parameters.type"),
        (LINEAR, {**LINEAR, "factor": 2.0}, "rope_parameters.factor"),
        (
            {"partial_rotary_factor": 0.5},
            {"rope_type": "linear", "factor": 2.0},
            "rope_parameters.partial_rotary_factor",
        ),
        ({"full_attention": LINEAR}, LINEAR, "rope_parameters.full_attention"),
    ],
    ids=str,
)
def test_what_rope_scaling_would_drop_is_refused(
    parameters: dict[str, Any], scaling: dict[str, Any], named: str, llama: MemoryCheckpoint
) -> None:
    checkpoint = MemoryCheckpoint(llama)
    checkpoint.config |= {"rope_parameters": parameters, "rope_scaling": scaling}
    with pytest.raises(CheckpointError, match=f"{named} is .*rope_scaling"):
        read_spec(checkpoint)


def test_rope_scaling_may_leave_the_base_where_older_files_have_it(llama: MemoryCheckpoint) -> None:
    checkpoint = MemoryCheckpoint(llama)
    scaling = {"rope_type": "linear", "factor": 2.0}
    base = {"rope_type": "default", "rope_theta": 5000.0}
    checkpoint.config |= {"rope_theta": 5000.0, "rope_parameters": base, "rope_scaling": scaling}
    assert {layer.rope for layer in read_spec(checkpoint).layers} == {RopeSpec(5000.0, 16, LinearScaling(2.0))}


@pytest.mark.parametrize(
    ("scaling", "stated", "context"),
    [
        (None, 64, 64),
        (YARN, 64, 64),  # As DeepSeek states it: after scaling.
        (YARN, 16, 64),  # Qwen 2.5: before.
        (YARN, 20, 64),  # Qwen 3: before, and with room for an answer.
        ({"rope_type": "yarn", "factor": 4.0}, 16, 64),
        ({**YARN, "factor": None}, 48, 48),
        ({**YARN, "factor": 2.5}, 16, 40),
        (LINEAR, 64, 64),
        ({"rope_type": "dynamic", "factor": 4.0}, 64, 64),
        (LLAMA3, 64, 64),
        ({**LONGROPE, "partial_rotary_factor": 1.0, "short_factor": [1] * 8, "long_factor": [2] * 8}, 64, 64),
    ],
    ids=str,
)
def test_context(scaling: dict[str, Any] | None, stated: int, context: int, llama: MemoryCheckpoint) -> None:
    checkpoint = MemoryCheckpoint(llama)
    checkpoint.config |= {"rope_parameters": scaling, "max_position_embeddings": stated}
    assert read_spec(checkpoint).max_context == context


@pytest.mark.parametrize(("max_context", "factors"), [(16, "short_factor"), (17, "long_factor"), (None, "long_factor")])
@pytest.mark.parametrize("extra", [{}, {"factor": 3.0}, {"attention_factor": 1.5}], ids=str)
def test_longrope_chooses_by_the_context_that_is_served(
    max_context: int | None, factors: str, extra: dict[str, float], tmp_path: Path
) -> None:
    """A call of transformers chooses by its own length: each list is compared in its own range."""
    save(TINY_MODELS["phi3-longrope"].build(), tmp_path)
    change(tmp_path, rope_parameters={**LONGROPE, **extra})
    checkpoint = open_checkpoint(tmp_path)
    scaling = read_spec(checkpoint, max_context).layers[0].rope
    magnitude = extra.get("attention_factor", math.sqrt(1 + math.log(extra.get("factor", 4.0)) / math.log(16)))
    assert scaling == RopeSpec(10000.0, 12, FactorsScaling(tuple(LONGROPE[factors]), magnitude))  # type: ignore[arg-type]
    tokens = random_tokens(16 if factors == "short_factor" else 40)
    ours = TinyDecoder(checkpoint, max_context=max_context).step({0: tokens})[0]
    torch.testing.assert_close(ours, reference_logits(reloaded(tmp_path), tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["longrope", "su", "yarn"])
def test_names_that_phi3_gives_longrope(name: str, tmp_path: Path) -> None:
    checkpoint = MemoryCheckpoint(save(TINY_MODELS["phi3-longrope"].build(), tmp_path))
    expected = read_spec(checkpoint)
    checkpoint.config["rope_parameters"] = {**LONGROPE, "rope_type": name}
    assert read_spec(checkpoint) == expected
