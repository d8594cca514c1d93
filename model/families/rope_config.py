"""Reads a layer's rotary embedding from a configuration, in the form of transformers 4 and in that of transformers 5.

transformers 4 has the key rope_scaling, transformers 5 rope_parameters. Frequencies are computed in `model.positions`.
"""

import math
from collections.abc import Mapping
from typing import Literal

from model.checkpoint.config import LARGEST_INTEGER, Config
from model.checkpoint.errors import label
from model.spec import FactorsScaling, LinearScaling, Llama3Scaling, RopeScaling, RopeSpec, YarnScaling

LayerKind = Literal["full_attention", "sliding_attention"]

DEFAULT_THETA = 10000.0
ROPE_TYPES: Mapping[str, str] = {name: name for name in ("default", "linear", "dynamic", "llama3", "yarn", "longrope")}
"""Kinds of scaling by the names that files give them."""


def read_rope(
    config: Config, kind: LayerKind, head_dim: int, context: int, types: Mapping[str, str] = ROPE_TYPES
) -> RopeSpec:
    """The rotary embedding of layers of `kind`, for a model that is served with a context of `context` tokens.

    `types` maps the names that a file may give to kinds of scaling. Raises CheckpointError for any other name, and for
    a value that is missing or out of range.
    """
    scaling, parameters = config.section("rope_scaling"), config.section("rope_parameters")
    if scaling is None or not scaling.present():
        parameters = parameters or config.empty()
        return _rope(parameters.section(kind) or parameters, config, "rope_theta", head_dim, context, types)
    rope = _rope(scaling, config, "rope_theta", head_dim, context, types)
    if parameters is not None:
        _refuse_replaced(parameters, scaling, config)
    return rope


def read_global_rope(config: Config, head_dim: int, context: int) -> RopeSpec:
    """The rotary embedding of full layers in a model whose sliding layers have a base of their own (Gemma 3).

    rope_scaling applies to full layers alone. Raises CheckpointError.
    """
    parameters = config.section("rope_parameters") or config.empty()
    full = parameters.section("full_attention")
    if full is None and (parameters.get("rope_type") or parameters.get("type")):
        raise config.refusal("rope_parameters", "is not given for each kind of layer, which is not supported")
    full, scaling = full or config.empty(), config.section("rope_scaling")
    merged = full if scaling is None else scaling.over(full)
    return _rope(merged, config, "rope_theta", head_dim, context, ROPE_TYPES)


def read_local_rope(config: Config, head_dim: int, context: int) -> RopeSpec:
    """The rotary embedding of sliding layers with a base of their own (Gemma 3); rope_scaling does not apply to them.

    Raises CheckpointError.
    """
    parameters = config.section("rope_parameters") or config.empty()
    local = parameters.section("sliding_attention") or config.empty()
    return _rope(local, config, "rope_local_base_freq", head_dim, context, ROPE_TYPES)


def scaled_context(rope: RopeSpec | None, config: Config) -> int:
    """Context in tokens that a model is made for: max_position_embeddings, or with YaRN original context times factor.

    With YaRN some files give max_position_embeddings before scaling and others after it, so it cannot be used. With any
    other kind it is the whole context: llama3 and longrope models are trained up to it, and dynamic scaling begins
    beyond it. Files do not say whether linear scaling is included; in published models it is.

    Raises CheckpointError for a YaRN context that is no possible size.
    """
    stated = config.integer("max_position_embeddings")
    if rope is None or not isinstance(rope.scaling, YarnScaling):
        return stated
    extended = round(rope.scaling.original_context * rope.scaling.factor)
    if not 1 <= extended <= LARGEST_INTEGER:
        raise config.refusal("max_position_embeddings", f"would be {extended} by its yarn scaling")
    return extended


def _refuse_replaced(parameters: Config, scaling: Config, config: Config) -> None:
    """Refuse a value of rope_parameters that is absent from rope_scaling, which replaces rope_parameters.

    transformers drops such a value without a word. Someone who adds a scaling to a file does not mean to drop, say, the
    base of its frequencies.
    """
    otherwise = {
        "rope_type": _rope_type(scaling),
        "type": _rope_type(scaling),
        "rope_theta": config.number("rope_theta", DEFAULT_THETA),
        "partial_rotary_factor": config.number("partial_rotary_factor", 1.0),
    }
    for key in parameters.present():
        value = parameters.get(key)
        said = scaling.get(key) if scaling.get(key) is not None else otherwise.get(key)
        if value != said and not (key in ("rope_type", "type") and value == "default"):
            reason = f"is {label(value)}, and rope_scaling, which replaces rope_parameters, does not repeat it"
            raise parameters.refusal(key, f"{reason}: put all values into one of them")


def _rope(
    parameters: Config, config: Config, theta_key: str, head_dim: int, context: int, types: Mapping[str, str]
) -> RopeSpec:
    theta = parameters.number("rope_theta", config.number(theta_key, DEFAULT_THETA))
    if theta <= 1:
        raise parameters.refusal("rope_theta", f"is {theta}, which is not above 1")
    share = parameters.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    dim = config.integer("rotary_dim", int(head_dim * share))
    if not 2 <= dim <= head_dim or dim % 2:
        raise parameters.refusal("partial_rotary_factor", f"rotates {dim} of {head_dim} dimensions: not an even part")
    named = _rope_type(parameters)
    if named not in types:
        raise parameters.refusal("rope_type", f"is {label(named)}, which is not supported")
    return RopeSpec(theta, dim, _scaling(types[named], parameters, config, dim // 2, context))


def _rope_type(parameters: Config) -> str:
    return parameters.text("rope_type", parameters.text("type", "default"))


def _scaling(kind: str, parameters: Config, config: Config, pairs: int, context: int) -> RopeScaling | None:
    match kind:
        case "linear":
            return LinearScaling(parameters.number("factor"))
        case "llama3":
            low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
            if low >= high:
                raise parameters.refusal("low_freq_factor", f"is {low}, which is not below high_freq_factor {high}")
            return Llama3Scaling(parameters.number("factor"), low, high, _original_context(parameters, config))
        case "yarn":
            return _yarn(parameters, _original_context(parameters, config), config)
        case "longrope":
            return _longrope(parameters, _original_context(parameters, config), config, pairs, context)
        case "dynamic":
            # Dynamic scaling changes nothing up to max_position_embeddings, and no model is served beyond it.
            parameters.require("alpha", None)
            parameters.number("factor")
            return None
        case _:
            return None


def _original_context(parameters: Config, config: Config) -> int:
    """Context in tokens that the model was trained with before scaling."""
    key = "original_max_position_embeddings"
    inner, outer = parameters.get(key), config.get(key)
    if inner is not None and outer is not None and inner != outer:
        raise parameters.refusal(key, f"is {label(inner)}, and beside it there is {label(outer)}")
    return parameters.integer(key, config.integer(key, config.integer("max_position_embeddings")))


def _yarn(parameters: Config, original: int, config: Config) -> YarnScaling:
    factor = parameters.number("factor", config.integer("max_position_embeddings") / original)
    return YarnScaling(
        factor,
        original,
        parameters.number("beta_fast", 32.0),
        parameters.number("beta_slow", 1.0),
        _yarn_attention_factor(parameters, factor),
        parameters.flag("truncate", True),
    )


def _yarn_attention_factor(parameters: Config, factor: float) -> float | None:
    """The file's own factor, or the ratio of DeepSeek's mscale factors; None stands for the paper's formula."""
    if parameters.get("attention_factor") is not None:
        return parameters.number("attention_factor")
    # An mscale of 0 counts as absent, as in transformers.
    if not (parameters.get("mscale") and parameters.get("mscale_all_dim")) or factor <= 1:
        return None
    wanted, all_dims = (0.1 * parameters.number(key) * math.log(factor) + 1 for key in ("mscale", "mscale_all_dim"))
    return wanted / all_dims


def _longrope(parameters: Config, original: int, config: Config, pairs: int, context: int) -> FactorsScaling:
    """LongRoPE's scaling (Ding et al., arXiv 2402.13753), with long factors if `context` exceeds the original context.

    The short or the long list is chosen once for all sequences, as in vLLM and llama.cpp: keys in the cache were
    rotated with one list, so a growing sequence cannot change to the other. The magnitude is the same for both.
    """
    for key in ("short_mscale", "long_mscale"):
        parameters.require(key, None)
    lists = {key: parameters.numbers(key, pairs) for key in ("short_factor", "long_factor")}
    factor = parameters.number("factor", config.integer("max_position_embeddings") / original)
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 < original else 1.0
    return FactorsScaling(
        lists["long_factor" if context > original else "short_factor"],
        parameters.number("attention_factor", magnitude),
    )
