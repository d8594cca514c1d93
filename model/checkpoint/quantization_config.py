"""Reads the format of quantised weights from config.json of a Hugging Face folder."""

from collections.abc import Callable, Mapping

from model.checkpoint.config import Config
from model.checkpoint.errors import CheckpointError, label
from model.checkpoint.fp8_format import Fp8Format
from model.checkpoint.packed_formats import AWQ_BITS, Awq, Bits, Gptq, PackedFormat, PackQuantized

WeightFormat = PackedFormat | Fp8Format


def weight_format(config: Mapping[str, object], source: str) -> WeightFormat | None:
    """The format that quantization_config in config.json describes; None if there is no such key.

    Raises CheckpointError, with a message that begins with `source`, for a format or a value that is not supported.
    """
    described = config.get("quantization_config")
    if described is None:
        return None
    settings = _Settings(described if isinstance(described, dict) else {}, source, prefix="quantization_config.")
    return FORMATS[settings.choice("quant_method", *FORMATS)](settings)


class _Settings(Config):
    """An object within quantization_config. Unsupported values are refused, since they would give other weights."""

    def choice(self, key: str, *supported: str, default: str | None = None) -> str:
        """The value in lower case. Raises CheckpointError unless it is one of `supported`."""
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, str) or value.lower() not in supported:
            raise self.unsupported(key, f"; {', '.join(supported)} {'is' if len(supported) == 1 else 'are'}")
        return value.lower()

    def bits(self, key: str, *supported: Bits) -> Bits:
        for bits in supported:
            if self.get(key) == bits:
                return bits
        raise self.unsupported(key)

    def group_size(self, key: str) -> int | None:
        """Number of inputs in a group; None where each row is one group, which files write as -1."""
        return None if self.get(key) == -1 else self.integer(key)

    def eight_bits(self, key: str) -> None:
        if self.get(key) != 8:
            raise self.unsupported(key)

    def block(self, key: str) -> tuple[int | None, int | None]:
        """(outputs, inputs) of a block of a weight; (None, None), all of both, if the key is absent."""
        match self.get(key):
            case None:
                return None, None
            case [int(height), int(width)] if height > 0 and width > 0:
                return height, width
        raise self.unsupported(key)

    def require_none(self, *keys: str) -> None:
        """Raise CheckpointError if any of `keys` has a value other than null, false, 0 or empty."""
        for key in keys:
            if self.get(key):
                raise self.unsupported(key)

    def unsupported(self, key: str, reason: str = "") -> CheckpointError:
        return self.refusal(key, f"{label(self.get(key))} is not supported{reason}")


def _gptq(settings: _Settings) -> PackedFormat:
    settings.require_none("is_marlin_format")
    version = settings.choice("checkpoint_format", "gptq", "gptq_v2", default="gptq")
    stored_zero = -1 if version == "gptq" else 0
    return Gptq(settings.bits("bits", 4, 8), settings.group_size("group_size"), stored_zero)


def _awq(settings: _Settings) -> PackedFormat:
    settings.choice("version", "gemm", default="gemm")
    settings.bits("bits", AWQ_BITS)
    if not settings.flag("zero_point", True):
        raise settings.unsupported("zero_point")
    return Awq(settings.group_size("group_size"))


def _fp8(settings: _Settings) -> Fp8Format:
    settings.choice("fmt", "e4m3", default="e4m3")
    settings.choice("scale_fmt", "float", default="float")
    settings.require_none("kv_cache_scheme")
    static = settings.choice("activation_scheme", "dynamic", "static", default="dynamic") == "static"
    return Fp8Format(settings.block("weight_block_size"), static)


def _compressed_tensors(settings: _Settings) -> WeightFormat:
    form = settings.choice("format", *GROUPS)
    settings.require_none("kv_cache_scheme", "transform_config")
    groups = settings.required("config_groups")
    formats = {_config_group(groups.required(name), form) for name in groups.present()}
    if len(formats) != 1:
        raise settings.unsupported("config_groups", "; it must quantise all layers alike")
    return formats.pop()


def _config_group(settings: _Settings, form: str) -> WeightFormat:
    settings.choice("format", form, default=form)
    settings.require_none("output_activations")
    return GROUPS[form](settings)


def _pack_quantized(settings: _Settings) -> PackQuantized:
    settings.require_none("input_activations")
    weights = settings.required("weights")
    weights.choice("type", "int")
    # With any other activation order, the columns of a group are not neighbours.
    weights.choice("actorder", "weight", "static", default="weight")
    grouped = weights.choice("strategy", "group", "channel") == "group"
    return PackQuantized(
        weights.bits("num_bits", 4, 8),
        weights.group_size("group_size") if grouped else None,
        weights.flag("symmetric", True),
    )


def _float_quantized(settings: _Settings) -> Fp8Format:
    weights, inputs = settings.required("weights"), settings.required("input_activations")
    for tensor in (weights, inputs):
        tensor.choice("type", "float")
        tensor.eight_bits("num_bits")
        if not tensor.flag("symmetric", True):
            raise tensor.unsupported("symmetric")
    weights.require_none("dynamic", "actorder")
    static = not inputs.flag("dynamic", False)
    inputs.choice("strategy", *(("tensor",) if static else ("token", "tensor", "group")))
    match weights.choice("strategy", "tensor", "channel", "block"):
        case "block":
            return Fp8Format(weights.block("block_structure"), static)
        case strategy:
            return Fp8Format((1 if strategy == "channel" else None, None), static)


GROUPS: Mapping[str, Callable[[_Settings], WeightFormat]] = {
    "pack-quantized": _pack_quantized,
    "float-quantized": _float_quantized,
}
"""Readers of a group of compressed-tensors' config_groups, by the value of format."""

FORMATS: Mapping[str, Callable[[_Settings], WeightFormat]] = {
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
}
"""Readers of the supported formats, by the value of quant_method."""
