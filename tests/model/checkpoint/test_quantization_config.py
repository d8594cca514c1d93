"""quantization_config: known formats with known numbers, or one line."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint.errors import CheckpointError
from model.checkpoint.fp8_format import Fp8Format
from model.checkpoint.packed_formats import Awq, Gptq, PackQuantized
from model.checkpoint.quantization_config import WeightFormat, weight_format
from tests.tiny_fp8 import FP8_PACKINGS, float_quantized, fp8
from tests.tiny_packed import PACKINGS, compressed_tensors

CONFIGS = {name: dict(packing.config) for name, packing in (PACKINGS | FP8_PACKINGS).items()}


@pytest.mark.parametrize(
    ("packing", "expected"),
    [
        ("gptq-4", Gptq(4, 32, stored_zero=-1)),
        ("gptq-4-asymmetric", Gptq(4, 16, stored_zero=-1)),
        ("gptq-8", Gptq(8, 32, stored_zero=-1)),
        ("gptq-row", Gptq(4, None, stored_zero=-1)),
        ("gptq-v2", Gptq(4, 32, stored_zero=0)),
        ("awq", Awq(32)),
        ("pack-quantized-4", PackQuantized(4, 32, symmetric=True)),
        ("pack-quantized-channel", PackQuantized(8, None, symmetric=False)),
        ("block", Fp8Format((128, 128))),
        ("tensor", Fp8Format((None, None), static_inputs=True)),
        ("compressed-tensor", Fp8Format((None, None), static_inputs=True)),
        ("compressed-channel", Fp8Format((1, None))),
        ("compressed-block", Fp8Format((32, 64))),
    ],
)
def test_formats(packing: str, expected: WeightFormat) -> None:
    assert weight_format({"quantization_config": CONFIGS[packing]}, "config.json") == expected


def test_no_quantization() -> None:
    assert weight_format({}, "config.json") is None
    assert weight_format({"quantization_config": None}, "config.json") is None


def changed(config: dict[str, Any], *path: str, value: object) -> dict[str, Any]:
    """A copy of nested objects with one value replaced."""
    first, *rest = path
    return {**config, first: changed(config[first], *rest, value=value) if rest else value}


GPTQ = dict(PACKINGS["gptq-4"].config)
AWQ = dict(PACKINGS["awq"].config)
PACK_QUANTIZED = compressed_tensors(4, symmetric=True, group_size=32)
FLOAT_QUANTIZED = float_quantized("channel")
GROUP = ("config_groups", "group_0")
OTHER_GROUP = compressed_tensors(8, symmetric=True)["config_groups"]["group_0"]
REFUSED: list[tuple[object, str]] = [
    (
        {"quant_method": "bitsandbytes"},
        "quant_method 'bitsandbytes' is not supported; gptq, awq, fp8, compressed-tensors",
    ),
    ({"quant_method": ["gptq"]}, "quant_method ['gptq']"),
    ({}, "quant_method None"),
    (4, "quant_method None"),
    (changed(PACK_QUANTIZED, "config_groups", "x" * 5000, value=7), "xxx"),
    (changed(GPTQ, "bits", value=3), "bits 3"),
    (changed(GPTQ, "bits", value=None), "bits None"),
    (changed(GPTQ, "group_size", value=0), "group_size is 0"),
    (changed(GPTQ, "group_size", value="128"), "group_size is '128'"),
    (changed(GPTQ, "checkpoint_format", value="marlin"), "checkpoint_format 'marlin'"),
    (changed(GPTQ, "is_marlin_format", value=True), "is_marlin_format True"),
    (changed(AWQ, "version", value="gemv"), "version 'gemv'"),
    (changed(AWQ, "bits", value=8), "bits 8"),
    (changed(AWQ, "zero_point", value=False), "zero_point False"),
    (changed(PACK_QUANTIZED, "format", value="naive-quantized"), "format 'naive-quantized'"),
    (changed(PACK_QUANTIZED, "format", value="float-quantized"), "group_0.input_activations is missing"),
    (changed(PACK_QUANTIZED, *GROUP, "format", value="float-quantized"), "group_0.format 'float-quantized'"),
    (changed(PACK_QUANTIZED, "kv_cache_scheme", value={"num_bits": 8}), "kv_cache_scheme"),
    (changed(PACK_QUANTIZED, "transform_config", value={"R1": {}}), "transform_config"),
    (changed(PACK_QUANTIZED, "config_groups", value={}), "config_groups"),
    (changed(PACK_QUANTIZED, "config_groups", value=7), "config_groups is 7"),
    (changed(PACK_QUANTIZED, "config_groups", "b\nad", value=7), r"config_groups.'b\nad' is 7"),
    (changed(PACK_QUANTIZED, "config_groups", "group_1", value=OTHER_GROUP), "config_groups"),
    (changed(PACK_QUANTIZED, *GROUP, "input_activations", value={"num_bits": 8}), "group_0.input_activations"),
    (changed(PACK_QUANTIZED, *GROUP, "weights", value=None), "group_0.weights is missing"),
    (changed(PACK_QUANTIZED, *GROUP, "weights", "num_bits", value=2), "weights.num_bits 2"),
    (changed(PACK_QUANTIZED, *GROUP, "weights", "type", value="float"), "weights.type 'float'"),
    (changed(PACK_QUANTIZED, *GROUP, "weights", "strategy", value="block"), "weights.strategy 'block'"),
    (changed(PACK_QUANTIZED, *GROUP, "weights", "actorder", value="group"), "weights.actorder 'group'"),
    (changed(PACK_QUANTIZED, *GROUP, "weights", "symmetric", value="no"), "weights.symmetric is 'no'"),
    (fp8(fmt="e5m2"), "fmt 'e5m2'"),
    (fp8(activation_scheme="none"), "activation_scheme 'none'"),
    (fp8(scale_fmt="ue8m0"), "scale_fmt 'ue8m0'"),
    (fp8(kv_cache_scheme="static"), "kv_cache_scheme 'static'"),
    (fp8(weight_block_size=[128]), "weight_block_size [128]"),
    (fp8(weight_block_size=[128, 0]), "weight_block_size [128, 0]"),
    (changed(FLOAT_QUANTIZED, *GROUP, "input_activations", value=None), "input_activations is missing"),
    (changed(FLOAT_QUANTIZED, *GROUP, "input_activations", "type", value="int"), "input_activations.type 'int'"),
    (changed(FLOAT_QUANTIZED, *GROUP, "input_activations", "symmetric", value=False), "symmetric False"),
    (changed(FLOAT_QUANTIZED, *GROUP, "input_activations", "dynamic", value=False), "strategy 'token'"),
    (changed(FLOAT_QUANTIZED, *GROUP, "weights", "type", value="int"), "weights.type 'int'"),
    (changed(FLOAT_QUANTIZED, *GROUP, "weights", "num_bits", value=4), "weights.num_bits 4"),
    (changed(FLOAT_QUANTIZED, *GROUP, "weights", "strategy", value="group"), "weights.strategy 'group'"),
    (changed(FLOAT_QUANTIZED, *GROUP, "weights", "dynamic", value=True), "weights.dynamic True"),
    (changed(FLOAT_QUANTIZED, *GROUP, "output_activations", value={"num_bits": 8}), "output_activations"),
]


@pytest.mark.parametrize(("config", "named"), REFUSED)
def test_what_means_something_else_is_refused(config: object, named: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        weight_format({"quantization_config": config}, "folder/config.json")
    line = str(caught.value)
    assert line.startswith("folder/config.json: quantization_config.")
    assert named in line
    assert line.isprintable()
    assert len(line) < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(packing=st.sampled_from(list(CONFIGS.values())), data=st.data())
def test_any_value_makes_a_format_or_one_line(packing: dict[str, Any], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([*paths(packing)]))
    config = changed(packing, *path, value=data.draw(JSON))
    message = ""
    try:
        weight_format({"quantization_config": config}, "config.json")
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message


def paths(values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *rest) for rest in paths(value))
